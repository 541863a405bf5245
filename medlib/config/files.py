"""Result files are there whole or not at all: written under a temporary name, then renamed."""

from __future__ import annotations

import contextlib
import glob
import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from medlib.config.errors import DataError


def private_folder(path: Path) -> Path:
    """A folder, made if missing so that nobody else may look into it; what is in it may be about patients."""
    if not path.is_dir():
        private_folder(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
    return path


@contextlib.contextmanager
def replacement(path: str | Path, sync: bool = True, private: bool = False) -> Iterator[Path]:
    """A path to write to; its file takes the place of ``path`` at the end, or vanishes after an error.

    So a reader sees the old file or the new one, never a half, whenever this process is killed. Missing folders
    are made.

    Parameters
    ----------
    sync : False for what is made again in a moment: then a power cut may leave an empty file
    private : a file that nobody else may read
    """
    path = Path(path)
    private_folder(path.parent) if private else path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        if private:
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        yield temporary
        if sync:
            _sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacements(folder: str | Path) -> Iterator[Path]:
    """A folder to write to, for a library that names its files itself; at the end they move into ``folder``.

    Other files of ``folder`` stay. Each file is replaced whole, but they move one after another: what says that
    all of them are there must be written afterwards.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(folder / "files")
    temporary.mkdir()
    try:
        yield temporary
        for file in [file for file in temporary.rglob("*") if file.is_file()]:
            _sync(file)
            target = folder / file.relative_to(temporary)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def replacement_folder(folder: str | Path) -> Iterator[Path]:
    """A folder to write to, which takes the place of ``folder`` as a whole at the end, or vanishes after an error.

    So nobody ever finds a folder of which a part is missing. A kill between the last two moves leaves none.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f".{glob.escape(folder.name)}.*.tmp"):  # of a call that was killed
        shutil.rmtree(left, ignore_errors=True)
    temporary, before = _temporary(folder), _temporary(folder.with_name(f"{folder.name}.old"))
    temporary.mkdir()
    try:
        yield temporary
        for file in [file for file in temporary.rglob("*") if file.is_file()]:
            _sync(file)
        if folder.exists():  # a folder that is not empty cannot be replaced in one move
            os.replace(folder, before)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if before.exists() and not folder.exists():  # the second move failed
            os.replace(before, folder)
        shutil.rmtree(before, ignore_errors=True)


def _temporary(path: Path) -> Path:
    # Same folder, because a rename is atomic only within one file system.
    return path.with_name(f".{path.name}.{os.getpid()}-{time.time_ns()}.tmp")


def _sync(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())  # else a power cut could leave the new name on an empty file


def write_bytes(path: str | Path, content: bytes, private: bool = False) -> Path:
    """Replace a file as a whole."""
    with replacement(path, private=private) as temporary:
        temporary.write_bytes(content)
    return Path(path)


def write_text(path: str | Path, text: str, private: bool = False) -> Path:
    """Replace a text as a whole, UTF-8 and the line ends as they are."""
    return write_bytes(path, text.encode(), private)


def read_json(file: str | Path, refuse: type[Exception] = DataError, name: str | None = None) -> dict:
    """The object in a JSON file; {} if there is no such file.

    Parameters
    ----------
    refuse : what is raised if the file holds anything else
    name : what messages call the file; its path by default
    """
    file = Path(file)
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig")) if file.is_file() else {}
    except (ValueError, RecursionError) as error:  # no text or JSON, too long a number, too many brackets
        raise refuse(f"{name or file}: not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise refuse(f"{name or file}: a JSON object is needed, not {type(content).__name__}")
    return content


def write_json(path: str | Path, obj) -> Path:
    """Replace a JSON file as a whole; takes what `to_json` takes.

    Raises
    ------
    TypeError
        If ``obj`` holds something that JSON has no form for; the old file is then untouched.
    """
    return write_text(path, json.dumps(to_json(obj), indent=2, ensure_ascii=False) + "\n")


def to_json(obj):
    """Copy ``obj`` into plain JSON types.

    numpy scalars and arrays become numbers and lists, paths become strings, and NaN and
    infinities become None, for which JSON has no number.
    """
    if isinstance(obj, dict):
        return {str(key): to_json(value) for key, value in obj.items()}
    if isinstance(obj, (list, tuple)):
        return [to_json(value) for value in obj]
    if isinstance(obj, np.ndarray):
        return to_json(obj.tolist())
    if isinstance(obj, np.generic):
        return to_json(obj.item())
    if isinstance(obj, Path):
        return obj.as_posix()
    if isinstance(obj, float) and not math.isfinite(obj):
        return None
    return obj
