"""Files are replaced whole; several files move together; old ones survive an error."""

import json
from pathlib import Path

import numpy as np
import pytest

from medlib.config import ConfigError, DataError, files


def test_json_takes_numpy_paths_and_nan(tmp_path):
    numbers = {"a": np.float32(0.5), "b": np.arange(3), "c": float("nan"), "d": (np.int64(1),)}
    path = files.write_json(tmp_path / "new" / "x.json", numbers | {"e": Path("p/q")})
    expected = {"a": 0.5, "b": [0, 1, 2], "c": None, "d": [1], "e": "p/q"}
    assert json.loads(path.read_text()) == expected


@pytest.mark.parametrize("broken", ["serialise", "replace"])
def test_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch, broken):
    path = files.write_json(tmp_path / "x.json", {"version": 1})

    def fail(*_):
        raise OSError("disk full")

    if broken == "replace":
        monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises((TypeError, OSError)):
        files.write_json(path, {"version": object() if broken == "serialise" else 2})
    assert json.loads(path.read_text()) == {"version": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]


def test_a_librarys_files_move_in_together_and_others_stay(tmp_path):
    (tmp_path / "old").write_text("old")
    (tmp_path / "same").write_text("old")
    with files.replacements(tmp_path) as unfinished:
        (unfinished / "inside").mkdir()
        (unfinished / "inside" / "new").write_text("new")
        (unfinished / "same").write_text("new")
        assert (tmp_path / "same").read_text() == "old"
    assert {p.relative_to(tmp_path).as_posix(): p.read_text() for p in tmp_path.rglob("*") if p.is_file()} == {
        "old": "old", "same": "new", "inside/new": "new",
    }  # fmt: skip


@pytest.mark.parametrize(
    "content", [b"{", b"", b"[1]", b"3", b"\xff{}", b"[" * 40_000, b'{"a": ' + b"9" * 5_000 + b"}"]
)
def test_what_is_no_json_object_is_refused_by_the_name_of_the_file(tmp_path, content):
    file = tmp_path / "x.json"
    file.write_bytes(content)
    for refuse in (DataError, ConfigError):
        with pytest.raises(refuse, match="x.json: (not valid JSON|a JSON object is needed)"):
            files.read_json(file, refuse)
    with pytest.raises(DataError, match="^the card: "):
        files.read_json(file, name="the card")


def test_a_json_file_that_is_not_there_holds_nothing_and_a_byte_order_mark_is_none(tmp_path):
    assert files.read_json(tmp_path / "absent.json") == {}
    (tmp_path / "x.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert files.read_json(tmp_path / "x.json") == {"a": 1}


def listed(folder):
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    for version in ("old", "new"):
        with files.replacement_folder(tmp_path / "out" / "model") as unfinished:
            (unfinished / f"{version} file").write_text(version)
            assert version == "old" or listed(tmp_path) | {} != listed(tmp_path / "out" / "model")
            assert (tmp_path / "out" / "model" / "old file").exists() == (version == "new")
    assert listed(tmp_path) == {"out/model/new file": "new"}


def test_after_an_error_the_old_folder_is_whole_and_what_a_kill_left_goes(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a").write_text("old")
    (tmp_path / ".model.1-1.tmp").mkdir()  # of a call that was killed
    (tmp_path / ".model-2.1-1.tmp").mkdir()  # of another folder
    with pytest.raises(OSError), files.replacement_folder(tmp_path / "model") as unfinished:
        (unfinished / "a").write_text("half")
        raise OSError("disk full")
    assert listed(tmp_path) == {"model/a": "old"}
    assert sorted(p.name for p in tmp_path.iterdir()) == [".model-2.1-1.tmp", "model"]


def test_where_the_new_folder_cannot_move_in_the_old_one_comes_back(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a").write_text("old")
    move = files.os.replace

    def second_fails(source, target):
        if (Path(source) / "a").is_file() and (Path(source) / "a").read_text() == "new":
            raise OSError("not allowed")
        move(source, target)

    monkeypatch.setattr(files.os, "replace", second_fails)
    with pytest.raises(OSError), files.replacement_folder(tmp_path / "model") as unfinished:
        (unfinished / "a").write_text("new")
    assert listed(tmp_path) == {"model/a": "old"}


def test_after_an_error_none_of_a_librarys_files_stays(tmp_path):
    (tmp_path / "same").write_text("old")
    with pytest.raises(OSError), files.replacements(tmp_path) as unfinished:
        (unfinished / "same").write_text("half")
        raise OSError("disk full")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("same", "old")]
