"""Clinicians' ratings of the model's verdicts: an append-only store, and preferences made from it.

A rater sees a case and the verdict of the supervised adapter, and says whether they agree. Their own verdict
follows from that; with the severity that they give an error it becomes a preference between the two verdicts.
Raters see the cases in their own random order, without the gold verdict, other raters' answers or the names
of cases, which would reveal how a case was made (see `medlib.feedback.queue`).

A comment may contain patient data. It stays in the store: no log, report or export contains it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import hmac
import os
import re
import secrets
import sqlite3
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from medlib.config import SEVERITIES, VERDICTS, DataError, files, path
from medlib.feedback.simulated import PREFIX

ADAPTER = "medgemma-lora"
PSEUDONYM = r"^[a-z0-9][a-z0-9-]{1,19}$"
#: Severities that a rater can give, an ordinal scale; "none" belongs to CORRECT.
SEVERITY_LEVELS = ("none", *SEVERITIES)

SCHEMA = """
CREATE TABLE IF NOT EXISTS ratings (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    time TEXT NOT NULL,       -- UTC, ISO 8601
    rater TEXT NOT NULL,      -- pseudonym
    key TEXT,                 -- SHA-256 over what the rater saw of the case, see medlib.data.suite.Suite.keys
    shown TEXT,               -- the model's verdict, and
    p_correct REAL,           -- its probability of CORRECT
    agree INTEGER,
    severity TEXT,
    comment TEXT,             -- may contain patient data
    simulated INTEGER,
    noise REAL,               -- of a simulated rater
    withdraws INTEGER REFERENCES ratings(id)  -- set by an undo, whose columns from key on are empty
);
CREATE TRIGGER IF NOT EXISTS no_update BEFORE UPDATE ON ratings
    BEGIN SELECT RAISE(ABORT, 'ratings are only added, never changed'); END;
CREATE TRIGGER IF NOT EXISTS no_delete BEFORE DELETE ON ratings
    BEGIN SELECT RAISE(ABORT, 'ratings are only added, never deleted'); END;
-- INSERT OR REPLACE deletes without asking the trigger above
CREATE TRIGGER IF NOT EXISTS no_replace BEFORE INSERT ON ratings WHEN EXISTS (
    SELECT 1 FROM ratings WHERE id = NEW.id OR withdraws = NEW.withdraws)
    BEGIN SELECT RAISE(ABORT, 'ratings are only added, never replaced'); END;
CREATE TABLE IF NOT EXISTS raters (
    name TEXT PRIMARY KEY,    -- pseudonym
    time TEXT NOT NULL,
    salt BLOB NOT NULL,
    hash BLOB NOT NULL        -- of the secret that only the rater knows
);
CREATE TRIGGER IF NOT EXISTS no_update_of_raters BEFORE UPDATE ON raters
    BEGIN SELECT RAISE(ABORT, 'raters are only added, never changed'); END;
CREATE TRIGGER IF NOT EXISTS no_delete_of_raters BEFORE DELETE ON raters
    BEGIN SELECT RAISE(ABORT, 'raters are only added, never deleted'); END;
CREATE TRIGGER IF NOT EXISTS no_replacing_of_raters BEFORE INSERT ON raters WHEN EXISTS (
    SELECT 1 FROM raters WHERE name = NEW.name)
    BEGIN SELECT RAISE(ABORT, 'raters are only added, never replaced'); END;
"""
COLUMNS = (
    "id",
    "time",
    "rater",
    "key",
    "shown",
    "p_correct",
    "agree",
    "severity",
    "comment",
    "simulated",
    "noise",
    "withdraws",
)


class Rating(BaseModel):
    """One rater's judgement of one case."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rater: str = Field(pattern=PSEUDONYM)
    key: str = Field(pattern="^[0-9a-f]{64}$")
    shown: Literal["CORRECT", "ERROR"]
    p_correct: float = Field(ge=0, le=1)
    agree: bool
    severity: Literal["none", "moderate", "high", "critical"]
    comment: str = Field("", max_length=4000)
    simulated: bool = False
    noise: float | None = Field(None, ge=0, lt=0.5)

    @field_validator("comment", mode="before")
    @classmethod
    def _empty_is_no_comment(cls, value):
        return value or ""

    @model_validator(mode="after")
    def _fits_together(self) -> Rating:
        if (self.verdict == "CORRECT") != (self.severity == "none"):
            raise ValueError(f"severity: {self.severity!r} does not fit {self.verdict}, the rater's verdict")
        if self.simulated != self.rater.startswith(PREFIX):
            raise ValueError(
                f"rater: {self.rater!r}, but simulated is {self.simulated}; {PREFIX}... are "
                "names of simulated raters only"
            )
        if self.simulated != (self.noise is not None):
            raise ValueError(f"noise: {self.noise!r}, but simulated is {self.simulated}")
        return self

    @property
    def verdict(self) -> str:
        """The rater's own verdict."""
        return verdict_of(self.shown, self.agree)


def verdict_of(shown: str, agree: bool) -> str:
    """The verdict of a rater who agrees with the one shown, or disagrees.

    >>> verdict_of("CORRECT", agree=False)
    'ERROR'
    """
    return shown if agree else VERDICTS[1 - VERDICTS.index(shown)]


def pseudonym(text: str) -> str:
    """A pseudonym in lower case, stripped; DataError if it could be a real name: names have no digit."""
    name = text.strip().lower()
    with contextlib.suppress(ValidationError):
        Rating(rater=name, key="0" * 64, shown="CORRECT", p_correct=1, agree=True, severity="none")
        if re.search("[0-9]", name):
            return name
    raise DataError(
        f"{text[:40]!r} is no pseudonym. Use 2 to 20 letters, digits and hyphens, at least one digit, such "
        f"as reader-7, and not a person's name; {PREFIX}... is for simulated raters"
    )


# --- the store --------------------------------------------------------------------------------------


@contextlib.contextmanager
def _connected(file: Path, write: bool = False) -> Iterator[sqlite3.Connection]:
    """One transaction; errors of sqlite name the file. Reading never creates a file."""
    if not write and not file.is_file():
        raise DataError(
            f"{file}: no ratings there; collect some on the rating page (docs/feedback.md), or omit the parameter "
            "`ratings` to use simulated raters"
        )
    connection = None
    try:
        if write:
            _make_private(file)
        else:
            _recover(file)
        uri = f"{file.resolve().as_uri()}?mode={'rwc' if write else 'ro'}"
        connection = sqlite3.connect(uri, uri=True, timeout=30, isolation_level=None)
        columns = [column for _, column, *_ in connection.execute("PRAGMA table_info(ratings)")]
        if absent := [column for column in COLUMNS if column not in columns] if columns or not write else []:
            raise DataError(
                f"{file}: no column {', '.join(absent)} in a table 'ratings'; this is no store of "
                "05_collect_feedback"
            )
        if write:
            connection.executescript(SCHEMA)
            connection.execute("BEGIN IMMEDIATE")  # two raters may write at a time: the second one waits
        yield connection
        if write:
            connection.execute("COMMIT")
    except (sqlite3.Error, OSError) as error:
        raise DataError(f"{file}: {_reason(error)}") from error
    finally:
        if connection is not None:
            connection.close()  # without COMMIT nothing was written


def _make_private(file: Path) -> None:
    """An empty file that nobody else may read, if there is none; comments may contain patient data."""
    files.private_folder(file.parent)
    with contextlib.suppress(FileExistsError):
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def _recover(file: Path) -> None:
    """Undo what a killed writer has begun: its journal is beside the file, and reading alone may not use it."""
    if file.with_name(f"{file.name}-journal").is_file():
        with (
            contextlib.suppress(sqlite3.Error),
            contextlib.closing(sqlite3.connect(file, timeout=30)) as connection,
        ):
            connection.execute("SELECT 1 FROM sqlite_master").fetchone()


def _reason(error: sqlite3.Error | OSError) -> str:
    """What kept a store from being used, and what to do."""
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return "another program has been writing to it for 30 seconds; try again"
    if name.startswith("SQLITE_FULL") or getattr(error, "errno", None) == errno.ENOSPC:
        return "the disk is full; nothing of this was saved"
    if name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")) or isinstance(error, OSError):
        return "it may not be written; check the rights of the file and of its folder"
    return f"{error}; is it a store of ratings of 05_collect_feedback?"


# --- raters -----------------------------------------------------------------------------------------


def enrol(file: str | Path, rater: str) -> str | None:
    """The secret of a new rater, said this once; None if the pseudonym is taken."""
    secret, salt = secrets.token_hex(4), secrets.token_bytes(16)
    with _connected(path(file), write=True) as connection:
        if connection.execute("SELECT 1 FROM raters WHERE name = ?", (rater,)).fetchone():
            return None
        connection.execute("INSERT INTO raters VALUES (?, ?, ?, ?)", (rater, _now(), salt, _hash(secret, salt)))
    return secret


def check_secret(file: str | Path, rater: str, secret: str) -> None:
    """DataError unless this is the secret that the rater was given."""
    with _connected(path(file), write=True) as connection:
        known = connection.execute("SELECT salt, hash FROM raters WHERE name = ?", (rater,)).fetchone()
    if known is None or not hmac.compare_digest(known[1], _hash(secret, known[0])):
        raise DataError(f"{rater}: that is not the secret of this pseudonym")


def _hash(secret: str, salt: bytes) -> bytes:
    return hashlib.scrypt(secret.strip().lower().encode(), salt=salt, n=2**14, r=8, p=1)


# --- ratings ----------------------------------------------------------------------------------------


def add(file: str | Path, ratings: list[dict]) -> None:
    """Append ratings to a store, all or none; creates it if missing.

    Parameters
    ----------
    ratings : list of dict
        Fields of `Rating`.

    Raises
    ------
    DataError
        If one is no valid rating; the message names file, row and field.
    """
    file, now = path(file), _now()
    rows = [_checked(rating, f"{file}, new row {number}") for number, rating in enumerate(ratings, start=1)]
    names = ("time", *Rating.model_fields)
    marks = ", ".join("?" * len(names))
    with _connected(file, write=True) as connection:
        connection.executemany(
            f"INSERT INTO ratings ({', '.join(names)}) VALUES ({marks})",
            [(now, *row.model_dump().values()) for row in rows],
        )


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _checked(rating: dict, where: str) -> Rating:
    try:
        return Rating.model_validate(rating)
    except ValidationError as error:
        problems = []
        for item in error.errors():
            field = ".".join(map(str, item["loc"]))
            problems.append(
                f"{where}, field '{field}': {item['msg']}"
                if field
                else f"{where}, {item['msg'].removeprefix('Value error, ')}"
            )
        raise DataError("\n".join(problems)) from None


def undo(file: str | Path, rater: str) -> str | None:
    """Withdraw the rater's last rating by adding a row.

    Returns
    -------
    Key of the case to rate again; None if there was nothing to withdraw.
    """
    file = path(file)
    with _connected(file, write=True) as connection:
        last = connection.execute(
            "SELECT id, key FROM ratings WHERE rater = ? AND withdraws IS NULL AND id NOT IN "
            "(SELECT withdraws FROM ratings WHERE withdraws IS NOT NULL) ORDER BY id DESC",
            (rater,),
        ).fetchone()
        if last is None:
            return None
        connection.execute(
            "INSERT INTO ratings (time, rater, withdraws) VALUES (?, ?, ?)", (_now(), rater, last[0])
        )
    return last[1]


def rows(file: str | Path) -> pd.DataFrame:
    """Every row of a store as written, including withdrawn ratings and undos."""
    with _connected(path(file)) as connection:
        records = connection.execute(f"SELECT {', '.join(COLUMNS)} FROM ratings ORDER BY id").fetchall()
    return pd.DataFrame(records, columns=COLUMNS, dtype=object)


def current(file: str | Path) -> pd.DataFrame:
    """Ratings in force, by replaying the store: the last one of each rater and case that was not withdrawn.

    Returns
    -------
    DataFrame with the fields of `Rating`, the row's ``id`` and ``verdict``, the rater's own.

    Raises
    ------
    DataError
        For a row that is no rating, or that withdraws another rater's; names file, row and field.
    """
    standing: dict[int, dict] = {}
    for row in rows(file).to_dict("records"):
        where = f"{path(file)}, row {row['id']}"
        if row["withdraws"] is None:
            rating = _checked({name: row[name] for name in Rating.model_fields}, where)
            standing[row["id"]] = {"id": row["id"], **rating.model_dump(), "verdict": rating.verdict}
        elif standing.pop(row["withdraws"], {"rater": None})["rater"] != row["rater"]:
            raise DataError(
                f"{where}, field 'withdraws': {row['withdraws']!r} is no standing rating of {row['rater']!r}"
            )
    table = pd.DataFrame(standing.values(), columns=["id", *Rating.model_fields, "verdict"])
    return table.drop_duplicates(["rater", "key"], keep="last").reset_index(drop=True)
