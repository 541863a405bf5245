"""Answers on disk, one line per scenario, so that nothing is asked twice."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from medlib import stats
from medlib.config import DataError, jsonl


def keep_answers(file: Path, keys: list[str], answers: pd.DataFrame) -> dict[str, dict]:
    """Append answers to a JSONL file, one line a scenario; returns them by key."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [stats.without_missing(row) for row in answers.to_dict(orient="records")]
    with file.open("a", encoding="utf-8") as out:
        out.writelines(json.dumps({"key": key, **row}) + "\n" for key, row in zip(keys, rows))
    return dict(zip(keys, rows))


def read_answers(file: Path) -> dict[str, dict]:
    """Answers by key; a last line that an interruption cut off is dropped, any other bad one is a DataError."""
    if not file.is_file():
        return {}
    text = file.read_text(encoding="utf-8")
    whole, _, torn = text.rpartition("\n")
    if torn:
        file.write_text(whole + "\n" if whole else "", encoding="utf-8")
    known = {}
    for number, line in jsonl.lines(file):
        try:
            answer = jsonl.parse(file.name, number, line)
            known[answer.pop("key")] = answer
        except (DataError, KeyError) as error:
            raise DataError(
                f"{file.name}, row {number}: not an answer ({error}); delete the row and run again"
            ) from None
    return known
