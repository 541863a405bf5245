import getpass
import json
import platform
import re
import subprocess
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest

from medlib.config import provenance


def test_run_json_holds_what_a_rerun_needs(tmp_path):
    parameters = {"seed": 7, "rank": 16, "rate": 1e-4}
    record = provenance.run_record(parameters, {"core24.jsonl": "ab" * 32}, device="cpu")
    path = provenance.write_json_atomic(tmp_path / "run.json", record)
    assert path == tmp_path / "run.json"
    record = json.loads(path.read_text())
    assert record["parameters"] == parameters
    assert record["seed"] == 7
    assert record["data_hashes"] == {"core24.jsonl": "ab" * 32}
    assert record["packages"]["numpy"] == np.__version__
    assert record["python"] == platform.python_version()
    assert record["device"]["type"] == "cpu" and record["device"]["threads"] >= 1
    age = datetime.now(timezone.utc) - datetime.fromisoformat(record["timestamp"])
    assert timedelta(seconds=-1) < age < timedelta(minutes=5)


def test_run_json_names_no_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parameters = {
        "run_dir": str(tmp_path / "runs" / "one"),
        "nested": {"images": [Path("/somewhere/private/images")]},
        "home": "~/private/model",
        "note": "either/or",
    }
    record = provenance.run_record(parameters, {}, device="cpu")
    assert record["parameters"] == {
        "run_dir": "runs/one", "nested": {"images": ["images"]}, "home": "model",
        "note": "either/or",
    }  # fmt: skip
    text = json.dumps(record)
    assert str(tmp_path) not in text and "private" not in text
    words = re.findall(r"[\w.-]+", text)
    assert platform.node() not in words and getpass.getuser() not in words


def test_missing_package_is_recorded_as_none(monkeypatch):
    monkeypatch.setattr(provenance, "PACKAGES", ("numpy", "no-such-package-here"))
    versions = provenance.run_record({}, {}, device="cpu")["packages"]
    assert versions == {"numpy": np.__version__, "no-such-package-here": None}


def test_git_gives_revision_and_dirty_flag(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert provenance._git(tmp_path) == {"revision": None, "dirty": None}
    git("init")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "--message", "first")
    assert provenance._git(tmp_path) == {"revision": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "file").write_text("two")
    assert provenance._git(tmp_path)["dirty"] is True
    (tmp_path / "inside").mkdir()  # a folder of someone else's checkout is not ours
    assert provenance._git(tmp_path / "inside") == {"revision": None, "dirty": None}


def test_json_takes_numpy_paths_and_nan(tmp_path):
    numbers = {"a": np.float32(0.5), "b": np.arange(3), "c": float("nan"), "d": (np.int64(1),)}
    path = provenance.write_json_atomic(tmp_path / "new" / "x.json", numbers | {"e": Path("p/q")})
    expected = {"a": 0.5, "b": [0, 1, 2], "c": None, "d": [1], "e": "p/q"}
    assert json.loads(path.read_text()) == expected


@pytest.mark.parametrize("broken", ["serialise", "replace"])
def test_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch, broken):
    path = provenance.write_json_atomic(tmp_path / "x.json", {"version": 1})

    def fail(*_):
        raise OSError("disk full")

    if broken == "replace":
        monkeypatch.setattr(provenance.os, "replace", fail)
    with pytest.raises((TypeError, OSError)):
        provenance.write_json_atomic(path, {"version": object() if broken == "serialise" else 2})
    assert json.loads(path.read_text()) == {"version": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]


def test_run_ids_sort_by_time_and_differ():
    names = {provenance.new_run_id("same") for _ in range(20)}
    assert len(names) == 20
    for name in names:
        assert re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{6}", name)
        when = datetime.strptime(name[:15], "%Y%m%d-%H%M%S").replace(tzinfo=timezone.utc)
        assert abs(datetime.now(timezone.utc) - when) < timedelta(minutes=5)
