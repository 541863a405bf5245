"""JSON lines: what is written is read back, and a bad line is named."""

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


@pytest.mark.parametrize("line", [b"{", b"[1]", b'{"a": "\xff"}'])
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
