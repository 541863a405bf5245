"""Answers on disk, one line per scenario, so that nothing is asked twice."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from medlib import stats
from medlib.config import DataError, jsonl


def keep_answers(file: Path, keys: list[str], answers: pd.DataFrame) -> dict[str, dict]:
    """Append answers to a JSONL file, one line per scenario; returns them by key."""
    rows = [stats.without_missing(row) for row in answers.to_dict(orient="records")]
    jsonl.append(file, [{"key": key, **row} for key, row in zip(keys, rows)])
    return dict(zip(keys, rows))


def read_answers(file: Path) -> dict[str, dict]:
    """Answers by key; a last line that is not complete is ignored, any other bad one is a DataError."""
    if not file.is_file():
        return {}
    known = {}
    for number, line in jsonl.lines(file):
        if not line.endswith(b"\n"):  # cut off, or another process is writing it
            break
        try:
            answer = jsonl.parse(file.name, number, line)
            known[answer.pop("key")] = answer
        except (DataError, KeyError) as error:
            raise DataError(
                f"{file.name}, row {number}: not an answer ({error}); delete the row and run again"
            ) from None
    return known
