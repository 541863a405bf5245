"""Every module can be imported where the modules that only POSIX has are absent, as on Windows."""

import importlib
import pkgutil
import sys

import medlib

POSIX_ONLY = ("fcntl", "grp", "pwd", "resource", "termios")


def test_every_module_is_imported_without_what_only_posix_has(monkeypatch):
    names = [m.name for m in pkgutil.walk_packages(medlib.__path__, "medlib.") if not m.name.endswith("__main__")]
    for name in names:  # what others need is there: only our own modules are imported anew
        importlib.import_module(name)
    for name in [name for name in sys.modules if name.partition(".")[0] == "medlib"]:
        monkeypatch.delitem(sys.modules, name)
    for name in POSIX_ONLY:
        monkeypatch.setitem(sys.modules, name, None)
    for name in names:
        importlib.import_module(name)
    memory = sys.modules["medlib.training.memory"]
    assert len(names) > 100 and memory.peak_memory_mib() > 10
