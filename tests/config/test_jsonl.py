"""JSON lines: what is written is read back, and a bad line is named."""

import subprocess
import sys
import time

import pytest

from medlib.config import DataError, jsonl


def test_objects_come_back_with_their_rows(tmp_path):
    records = [{"text": "a\u2028b\u0085c"}, {"text": "naïve"}]
    for ensure_ascii in (True, False):
        file = jsonl.write(tmp_path / "new" / "file.jsonl", records, ensure_ascii)
        assert list(jsonl.read(file)) == [(1, records[0]), (2, records[1])]
        assert [path.name for path in file.parent.iterdir()] == ["file.jsonl"]


def test_blank_lines_count_as_rows_but_are_left_out(tmp_path):
    file = tmp_path / "file.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\n{"a": 2}')
    assert list(jsonl.read(file)) == [(1, {"a": 1}), (3, {"a": 2})]


@pytest.mark.parametrize(
    "line", [b"{", b"[1]", b'{"a": "\xff"}', b'{"a":' + b"[" * 200_000, b'{"a": ' + b"9" * 5_000 + b"}"]
)
def test_a_bad_line_is_named(tmp_path, line):
    file = tmp_path / "file.jsonl"
    file.write_bytes(b'{"a": 1}\n' + line)
    with pytest.raises(DataError, match="file.jsonl, row 2"):
        list(jsonl.read(file))


def test_a_failed_write_leaves_the_old_file(tmp_path):
    file = jsonl.write(tmp_path / "file.jsonl", [{"a": 1}])
    with pytest.raises(TypeError):
        jsonl.write(file, [{"a": object()}])
    assert list(jsonl.read(file)) == [(1, {"a": 1})]


@pytest.mark.parametrize("block", [3, 1 << 16])
def test_a_torn_last_line_goes_and_nothing_else_is_written_again(tmp_path, monkeypatch, block):
    file = tmp_path / "answers.jsonl"
    jsonl.append(file, [{"key": "a"}, {"key": "b"}])
    with open(file, "ab") as out:
        out.write(b'{"key": "to')
    whole_lines, synced = jsonl._whole_lines, []
    monkeypatch.setattr(jsonl, "_whole_lines", lambda out: whole_lines(out, block))
    monkeypatch.setattr(jsonl.os, "fsync", lambda _: synced.append(file.read_bytes()))
    jsonl.append(file, [{"key": "c"}])
    assert list(jsonl.read(file)) == [(1, {"key": "a"}), (2, {"key": "b"}), (3, {"key": "c"})]
    assert synced == [file.read_bytes()]  # on disk before the call returns


def test_a_file_of_one_torn_line_becomes_empty_first(tmp_path):
    file = tmp_path / "answers.jsonl"
    file.write_bytes(b'{"key": "to')
    jsonl.append(file, [{"key": "a"}])
    assert file.read_bytes() == b'{"key": "a"}\n'


KILLED = """
import sys
from medlib.config import jsonl
file = sys.argv[1]
print("ready", flush=True)
while True:
    with open(file, "ab") as out:
        out.write(b'{"torn')
    jsonl.append(file, [{"key": "new"}])
"""


def test_no_kill_loses_what_was_kept(tmp_path):
    """Killed again and again while it repairs and appends, a file of 20,000 answers keeps all of them."""
    file = tmp_path / "answers.jsonl"
    jsonl.append(file, ({"key": "old", "row": row} for row in range(20_000)))
    for number in range(4):
        with subprocess.Popen([sys.executable, "-c", KILLED, str(file)], stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            time.sleep(0.01 * number)
            process.kill()
    jsonl.append(file, [{"key": "last"}])
    rows = [content for _, content in jsonl.read(file)]
    assert [row["row"] for row in rows if row["key"] == "old"] == list(range(20_000))
    assert rows[-1] == {"key": "last"}
