"""Answers on disk, one line per scenario, so that nothing is asked twice."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
from filelock import FileLock

from medlib import stats
from medlib.config import DataError, jsonl


def keep_answers(file: Path, keys: list[str], answers: pd.DataFrame) -> dict[str, dict]:
    """Append answers to a JSONL file, one line per scenario; returns them by key.

    Several processes may append to one file; a line that an interruption cut off is dropped first.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [stats.without_missing(row) for row in answers.to_dict(orient="records")]
    text = "".join(json.dumps({"key": key, **row}) + "\n" for key, row in zip(keys, rows))
    with FileLock(file.with_suffix(".lock")), file.open("ab+") as out:
        out.seek(0)
        out.truncate(out.read().rfind(b"\n") + 1)
        out.write(text.encode())
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
