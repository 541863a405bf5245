import getpass
import json
import platform
import re
import subprocess
from datetime import datetime, timedelta, timezone

import numpy as np
import pytest

from medlib.config import ConfigError, files, provenance, resolve


def test_run_json_holds_what_a_rerun_needs(tmp_path):
    parameters = {"seed": 7, "lora_rank": 16, "lr": 1e-4}
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
        "systems": ("constant", "openai:gpt-4o"),
        "data_dir": str(tmp_path / "Doe_Jane"),
        "images_dir": "/somewhere/private/images",
        "model": "~/private/model",
        "adapter": r"C:\Users\private\adapter",
        "biomedclip": "models/biomedclip-nano",
        "dtype": "either/or",
        "not_a_setting": "private",
    }
    record = provenance.run_record(parameters, {}, device="cpu")
    known = record["parameters"]
    hashed = [known.pop(name) for name in ("data_dir", "images_dir", "model", "adapter")]
    assert all(re.fullmatch("path-[0-9a-f]{12}", value) for value in hashed) and len(set(hashed)) == 4
    assert known == {
        "run_dir": "runs/one", "systems": ["constant", "openai:gpt-4o"], "biomedclip": "models/biomedclip-nano",
        "dtype": "either/or",
    }  # fmt: skip
    text = json.dumps(record)
    assert str(tmp_path) not in text and "private" not in text and "Doe" not in text
    words = re.findall(r"[\w.-]+", text)
    assert platform.node() not in words and getpass.getuser() not in words


@pytest.mark.parametrize(
    "given, shown",
    [
        ("https://jane:pass@host.example:8443/v1/abc?api_key=xyz#part", "https://host.example"),
        ("http://localhost:8000/v1", "http://localhost"),
        ("sqlite:////home/jane/study.db", "sqlite://"),
        ("localhost:8000/v1?key=xyz", "address-"),
        ("http://jane:pass@[bad", "address-"),
        (None, None),
    ],
)
def test_of_an_address_scheme_and_host_are_shown(given, shown):
    value = provenance.public({"parameters": {"api_base_url": given}})["parameters"]["api_base_url"]
    assert value == shown or (shown == "address-" and re.fullmatch("address-[0-9a-f]{12}", value))


@pytest.mark.parametrize("address", ["http://jane:secret@[bad", "http://jane:secret@host:port/v1"])
def test_what_is_no_address_is_one_error_that_does_not_repeat_it(address):
    with pytest.raises(ConfigError, match="api_base_url: .*not an address") as error:
        resolve("tiny", api_base_url=address)
    assert "secret" not in str(error.value)
    assert resolve("tiny", api_base_url="localhost:8000/v1").api_base_url == "localhost:8000/v1"


@pytest.mark.parametrize(
    "place",
    [
        "../Mueller_Hans/model",
        "../../Mueller/tower",
        "models/../../Mueller/tower",
        r"\\server\share\mueller",
        r"..\mueller",
        "~user/x",
        "..",
    ],
)
def test_a_place_outside_the_working_folder_is_hashed_however_it_is_written(place):
    value = provenance.public_value(place, "model")
    assert re.fullmatch("path-[0-9a-f]{12}", value)
    assert provenance.public_value(value, "model") == value


def test_a_hub_name_is_shown_and_a_folder_of_the_project_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr("medlib.config.paths.ROOT", tmp_path)
    assert provenance.public_value("owner/breast", "data_dir") == "owner/breast"
    (tmp_path / "owner" / "breast").mkdir(parents=True)
    assert provenance.public_value("owner/breast", "data_dir").startswith("path-")


def test_of_an_older_record_only_known_parts_and_settings_are_shown():
    record = {"parameters": {"seed": 1, "token": "x"}, "hostname": "ward-7", "seed": 1, "report": {"seconds": 2}}
    assert provenance.public(record) == {"parameters": {"seed": 1}, "seed": 1, "report": {"seconds": 2}}
    again = provenance.public({"parameters": {"data_dir": "/scans/Doe"}})
    assert provenance.public(again) == again


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
