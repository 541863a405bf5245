"""Answers on disk, one line per scenario, so that nothing is asked twice."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from medlib import stats
from medlib.config import DataError


def keep_answers(file: Path, keys: list[str], answers: pd.DataFrame) -> dict[str, dict]:
    """Append answers to a JSONL file, one line a scenario; returns them by key."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [stats.without_missing(row) for row in answers.to_dict(orient="records")]
    with file.open("a", encoding="utf-8") as out:
        out.writelines(json.dumps({"key": key, **row}) + "\n" for key, row in zip(keys, rows))
    return dict(zip(keys, rows))


def read_answers(file: Path) -> dict[str, dict]:
    """Answers by key; a last line that an interruption cut off is dropped, any other bad one told."""
    if not file.is_file():
        return {}
    text = file.read_text(encoding="utf-8")
    whole, _, torn = text.rpartition("\n")
    if torn:
        file.write_text(whole + "\n" if whole else "", encoding="utf-8")
    known = {}
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            row = json.loads(line)
            known[row.pop("key")] = row
        except (json.JSONDecodeError, KeyError) as error:
            raise DataError(
                f"{file.name}, row {number}: not an answer ({error}); delete the row and run again"
            ) from None
    return known
