import getpass
import json
import platform
import re
import subprocess
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np

from medlib.config import files, provenance


def test_run_json_holds_what_a_rerun_needs(tmp_path):
    parameters = {"seed": 7, "rank": 16, "rate": 1e-4}
    record = provenance.run_record(parameters, {"core24.jsonl": "ab" * 32}, device="cpu")
    path = files.write_json(tmp_path / "run.json", record)
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


def test_run_ids_sort_by_time_and_differ():
    names = {provenance.new_run_id("same") for _ in range(20)}
    assert len(names) == 20
    for name in names:
        assert re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{6}", name)
        when = datetime.strptime(name[:15], "%Y%m%d-%H%M%S").replace(tzinfo=timezone.utc)
        assert abs(datetime.now(timezone.utc) - when) < timedelta(minutes=5)
