"""JSON lines: one object per line, split at "\\n" alone, errors that name file and row."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from medlib.config import provenance
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
    except ValueError as error:
        raise DataError(f"{file}, row {row}: not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise DataError(f"{file}, row {row}: a JSON object is needed, not {line[:40].decode(errors='replace')!r}")
    return content


def read(file: str | Path) -> Iterator[tuple[int, dict]]:
    """(row, object) of every line; DataError for the first one that is no JSON object."""
    return ((row, parse(file, row, line)) for row, line in lines(file))


def write(file: str | Path, records: Iterable[dict], ensure_ascii: bool = True) -> Path:
    """Write one object per line; the file is replaced as a whole."""
    file = Path(file)
    text = "".join(json.dumps(record, ensure_ascii=ensure_ascii) + "\n" for record in records)
    with provenance.replacement(file) as temporary:
        temporary.write_bytes(text.encode())  # bytes: no platform line endings
    return file
