"""JSON lines: one object per line, split at "\\n" alone, errors that name file and row."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock

from medlib.config import files
from medlib.config.errors import DataError


def lines(file: str | Path) -> Iterator[tuple[int, bytes]]:
    """(row, line) of a file, row 1 first, one line in memory at a time; blank lines are left out."""
    with open(file, "rb") as content:  # as text, a U+2028 inside a string could end a line too
        for row, line in enumerate(content, start=1):
            if line.strip():
                yield row, line


def parse(file: str | Path, row: int, line: bytes) -> dict:
    """The object on one line; DataError if there is none."""
    try:
        content = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, or a thousand brackets
        raise DataError(f"{file}, row {row}: not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise DataError(f"{file}, row {row}: a JSON object is needed, not {line[:40].decode(errors='replace')!r}")
    return content


def read(file: str | Path) -> Iterator[tuple[int, dict]]:
    """(row, object) of every line; DataError for the first one that is no JSON object."""
    return ((row, parse(file, row, line)) for row, line in lines(file))


def write(file: str | Path, records: Iterable[dict], ensure_ascii: bool = True, private: bool = False) -> Path:
    """Write one object per line; the file is replaced as a whole."""
    text = "".join(json.dumps(record, ensure_ascii=ensure_ascii) + "\n" for record in records)
    return files.write_text(file, text, private)


def append(file: str | Path, records: Iterable[dict]) -> None:
    """Add one object per line; they are on disk when this returns.

    Several processes may append to one file. A last line that an interruption cut off is dropped first; what
    stands before it is never written again.
    """
    file = Path(file)
    files.private_folder(file.parent)
    text = "".join(json.dumps(record) + "\n" for record in records)
    with FileLock(file.with_suffix(".lock")), open(file, "ab+") as out:
        out.truncate(_whole_lines(out))
        out.write(text.encode())
        out.flush()
        os.fsync(out.fileno())


def _whole_lines(file: BinaryIO, block: int = 1 << 16) -> int:
    """Number of bytes up to the last line end, found from behind."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - block)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0
