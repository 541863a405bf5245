"""Where things are: the repository root, one rule for relative paths, and a place for what is generated.

A relative path in a notebook, a profile or ``run.json`` begins at the repository; one on the command line begins
at the folder that one is in (see `medlib.cli.options.place`).
"""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


#: Names a folder for generated data sets and images, in place of ``data/`` of the repository.
HOME = "MEDLIB_HOME"


def generated(name: str) -> Path:
    """A folder for what is generated and can be made again, such as ``suites``; not made here.

    It lies in the folder that ``MEDLIB_HOME`` names, else in ``data/`` of the repository, or where that cannot be
    written, in the user's cache folder.
    """
    if home := os.environ.get(HOME):
        return expanded(home).absolute() / name
    if os.access(ROOT / "data", os.W_OK):
        return ROOT / "data" / name
    cache = os.environ.get("LOCALAPPDATA") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "medlib" / name


def expanded(name: str | Path) -> Path:
    """A path with ``~`` read as a home folder; as it is where there is no such user (pathlib raises)."""
    return Path(os.path.expanduser(name))


def path(name: str | Path) -> Path:
    """A path given relative to the repository works from any notebook's folder."""
    name = expanded(name)
    return name if name.is_absolute() else ROOT / name
