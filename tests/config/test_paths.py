"""Where generated data lie: in a folder that can be written."""

import pytest

from medlib.config import paths
from medlib.config.paths import ROOT, generated


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("MEDLIB_HOME", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)


def test_a_writable_checkout_keeps_them():
    assert generated("suites") == ROOT / "data" / "suites"


def test_of_a_read_only_checkout_they_lie_in_the_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(paths.os, "access", lambda folder, mode: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert generated("suites") == tmp_path / "medlib" / "suites"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert generated("own") == tmp_path / ".cache" / "medlib" / "own"


def test_a_folder_may_be_named(monkeypatch, tmp_path):
    monkeypatch.setenv("MEDLIB_HOME", str(tmp_path))
    assert generated("core24") == tmp_path / "core24"


def test_the_home_folder_of_nobody_is_a_name(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert paths.expanded("~/a") == tmp_path / "a"
    assert paths.path("~nobody-here/a") == ROOT / "~nobody-here" / "a"  # pathlib's own expanduser() raises
