"""Tables as people keep them: CSV, TSV, JSON lines and Parquet, all cells as text.

What is no table at all is a DataError. Single bad rows are listed, and the rest is read.
"""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from medlib.config import DataError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")


@dataclass
class Table:
    """Rows of one file.

    ``rows`` holds the row of each record as a reader counts it: the line of a JSONL file, the row of a
    spreadsheet (the header is row 1), the record of a Parquet file (from 1). ``notes`` says what was guessed,
    ``problems`` which rows could not be read.
    """

    file: str
    frame: pd.DataFrame
    rows: list[int]
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def read(path: Path, shown: str = "") -> Table:
    """Read a table; every cell becomes text, a missing one "".

    Parameters
    ----------
    path : Path
        The ending says what it is: one of `SUFFIXES`.
    shown : str
        Name of the file in messages.

    Raises
    ------
    DataError
        If the file is empty, has two columns of one name, or is not what its ending says.
    """
    shown = shown or path.name
    try:
        if path.suffix.lower() == ".parquet":
            return from_frame(pd.read_parquet(path), shown)
        text, encoding = decode(path.read_bytes())
    except (OSError, ValueError, ImportError) as error:
        raise DataError(f"{shown}: cannot be read as {path.suffix[1:]} ({_first_line(error)})") from None
    table = _json_lines(text, shown) if path.suffix.lower() == ".jsonl" else _separated(text, shown, path.suffix)
    if encoding != "utf-8":
        table.notes.append(f"{shown} is read as {encoding}, since it is not UTF-8")
    return table


def decode(content: bytes) -> tuple[str, str]:
    """Text and encoding of a file: UTF-8, UTF-16 by its byte-order mark, else Windows-1252 or Latin-1."""
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16"), "utf-16"
    for encoding in ("utf-8-sig", "cp1252"):
        try:
            return content.decode(encoding), encoding.removesuffix("-sig")
        except UnicodeDecodeError:
            pass
    return content.decode("latin-1"), "latin-1"


def from_frame(frame: pd.DataFrame, shown: str) -> Table:
    """A table in memory; bytes (of images) stay as they are, anything else becomes text."""
    records = [_flat(record) for record in frame.to_dict("records")]
    return Table(shown, _frame(records), list(range(1, len(records) + 1)))


def _separated(text: str, shown: str, suffix: str) -> Table:
    """The module csv, not pandas: it tells the row of a line with too many or too few cells."""
    first = text.lstrip("\r\n").split("\n", 1)[0]
    delimiter = "\t" if suffix.lower() == ".tsv" else max(",;\t|", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    lines: list[tuple[int, list[str]]] = []
    problems, start, spans = [], 0, {}
    try:
        for row, cells in enumerate(reader, start=1):
            spans[row], start = reader.line_num - start, reader.line_num
            if any(cell.strip() for cell in cells):
                lines.append((row, cells))
    except csv.Error as error:
        last = lines[-1][0] if lines else 0
        problems.append(f"{shown}, row {last + 1} and all below: not valid {suffix[1:].upper()} ({error})")
    if len(lines) < 2:
        raise DataError("\n".join(problems) or f"{shown}: no rows")
    header = [name.strip() for name in lines[0][1]]
    while header and not header[-1]:
        header.pop()  # a separator at the end of every line
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise DataError(f"{shown}, row {lines[0][0]}: columns of one name: {', '.join(map(repr, repeated))}")
    rows, kept = [], []
    for row, cells in lines[1:]:
        if len(cells) < len(header) or any(cell.strip() for cell in cells[len(header) :]):
            quote = f"; it spans {spans[row]} lines, is a quotation mark left open?" if spans[row] > 1 else ""
            problems.append(f"{shown}, row {row}: {len(cells)} cells, but the header has {len(header)}{quote}")
        else:
            rows.append(row)
            kept.append(cells[: len(header)])
    notes = [] if delimiter in ",\t" else [f"{shown}: cells are separated by {delimiter!r}"]
    return Table(shown, pd.DataFrame(kept, columns=header, dtype=str), rows, notes, problems)


def _json_lines(text: str, shown: str) -> Table:
    records, rows, problems = [], [], []
    for row, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            problems.append(f"{shown}, row {row}: not valid JSON ({error})")
            continue
        if isinstance(record, dict):
            rows.append(row)
            records.append(_flat(record))
        else:
            problems.append(f"{shown}, row {row}: not a JSON object")
    if not records and not problems:
        raise DataError(f"{shown}: no rows")
    return Table(shown, _frame(records), rows, problems=problems)


def _frame(records: list[dict]) -> pd.DataFrame:
    return pd.DataFrame(records, dtype=object).fillna("") if records else pd.DataFrame()


def _flat(record: dict) -> dict:
    """Cells as text; the fields of an object inside (``patient``, ``metadata``) become columns."""
    if {"instruction", "input", "output"} <= set(record):
        record = {name: value for name, value in record.items() if name not in ("instruction", "input")} | {
            "input": headings(str(record["input"]))
        }
    objects = {name: value for name, value in record.items() if isinstance(value, dict) and "bytes" not in value}
    flat = {str(name): _cell(value) for name, value in record.items() if name not in objects}
    for outer, inside in objects.items():
        for name, value in inside.items():
            flat[f"{outer}.{name}" if name in flat else str(name)] = _cell(value)
    return flat


def headings(text: str) -> dict[str, str]:
    """What stands below each ``**Heading:**`` of a text, and behind each ``- Name:`` below it.

    >>> headings("**Patient:**\\n- Age: 62\\n\\n**Finding:**\\nA mass\\n\\n**Your Assessment:**")
    {'Age': '62', 'Finding': 'A mass'}
    """
    found = {}
    for name, below in re.findall(r"\*\*(.+?):?\*\*:?(.*?)(?=\*\*|\Z)", text, re.DOTALL):
        items = re.findall(r"^[ \t]*[-*•][ \t]*([^:\n]+):[ \t]*(.*)$", below, re.MULTILINE)
        found |= dict(items) if items else {name.strip(): below.strip()} if below.strip() else {}
    return found


def _cell(value):
    if isinstance(value, dict) and "bytes" in value:
        return value  # an image inside the table
    if isinstance(value, str):
        return value
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else str(value)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
