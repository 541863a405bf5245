"""Clinicians' ratings of the model's verdicts: an append-only store, and preferences made from it.

A rater sees a case and the verdict of the supervised adapter, and says whether he agrees. What he holds
himself follows from that; with the severity that he gives an error it becomes a preference between the two
verdicts. Every rater gets his own order of cases. The gold verdict, the verdicts of other raters and the
names of cases, which tell how a case was made, are not among what `case` hands to a view.

A comment may hold patient data. It stays in the store: no log, report or export of this module has it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import warnings
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from medlib import data, evaluation, explain, prompts, provenance, raters, systems
from medlib.config import RunConfig, path
from medlib.data import Suite
from medlib.schema import ANSWERS, VERDICTS, DataError

ADAPTER = "medgemma-lora"
PSEUDONYM = r"^[a-z0-9][a-z0-9-]{1,19}$"
#: Severity that a rater can give, an ordinal scale; "none" goes with CORRECT.
SEVERITIES = ("none", *raters.SEVERITIES)
#: A quarter of the pairs, on which a reward model is measured and never trained.
HELDOUT = 1 / 4

SCHEMA = """
CREATE TABLE IF NOT EXISTS ratings (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    time TEXT NOT NULL,       -- UTC, ISO 8601
    rater TEXT NOT NULL,      -- pseudonym
    key TEXT,                 -- SHA-256 over what the rater saw of the case, see medlib.data.Suite.keys
    shown TEXT,               -- the model's verdict, and
    p_correct REAL,           -- its probability of CORRECT
    agree INTEGER,
    severity TEXT,
    comment TEXT,             -- may hold patient data
    simulated INTEGER,
    noise REAL,               -- of a simulated rater
    withdraws INTEGER REFERENCES ratings(id)  -- an undo: all between key and here is empty
);
CREATE TRIGGER IF NOT EXISTS no_update BEFORE UPDATE ON ratings
    BEGIN SELECT RAISE(ABORT, 'ratings are only added, never changed'); END;
CREATE TRIGGER IF NOT EXISTS no_delete BEFORE DELETE ON ratings
    BEGIN SELECT RAISE(ABORT, 'ratings are only added, never deleted'); END;
-- INSERT OR REPLACE deletes without asking the trigger above
CREATE TRIGGER IF NOT EXISTS no_replace BEFORE INSERT ON ratings WHEN EXISTS (
    SELECT 1 FROM ratings WHERE id = NEW.id OR withdraws = NEW.withdraws)
    BEGIN SELECT RAISE(ABORT, 'ratings are only added, never replaced'); END;
"""
COLUMNS = ("id", "time", "rater", "key", "shown", "p_correct", "agree", "severity", "comment", "simulated",
           "noise", "withdraws")


class Rating(BaseModel):
    """What one rater says of one case."""

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
            raise ValueError(f"severity: {self.severity!r} does not go with {self.verdict}, the rater's verdict")
        if self.simulated != self.rater.startswith(raters.PREFIX):
            raise ValueError(f"rater: {self.rater!r}, but simulated is {self.simulated}; {raters.PREFIX}... are "
                             "the names of simulated raters, and of no others")
        if self.simulated != (self.noise is not None):
            raise ValueError(f"noise: {self.noise!r}, but simulated is {self.simulated}")
        return self

    @property
    def verdict(self) -> str:
        """The verdict that the rater holds himself."""
        return held(self.shown, self.agree)


def held(shown: str, agree: bool) -> str:
    """The verdict of a rater who agrees with the one shown, or does not.

    >>> held("CORRECT", agree=False)
    'ERROR'
    """
    return shown if agree else VERDICTS[1 - VERDICTS.index(shown)]


def pseudonym(text: str) -> str:
    """A pseudonym in lower case without the space around it; DataError if it could be a name."""
    name = text.strip().lower()
    with contextlib.suppress(ValidationError):
        Rating(rater=name, key="0" * 64, shown="CORRECT", p_correct=1, agree=True, severity="none")
        return name
    raise DataError(f"{text!r} is no pseudonym. Take 2 to 20 letters, digits and hyphens, such "
                    f"as reader-7, and no name of a person; {raters.PREFIX}... is for simulated raters")


# --- the store --------------------------------------------------------------------------------------


@contextlib.contextmanager
def _connected(file: Path, write: bool = False) -> Iterator[sqlite3.Connection]:
    """One transaction; sqlite's errors name the file. Reading never makes one."""
    if write:
        file.parent.mkdir(parents=True, exist_ok=True)
    elif not file.is_file():
        raise DataError(f"{file}: no ratings there; collect some in 08_collect_feedback, or leave the parameter "
                        "`ratings` away for simulated raters")
    connection = None
    try:
        uri = f"{file.resolve().as_uri()}?mode={'rwc' if write else 'ro'}"
        connection = sqlite3.connect(uri, uri=True, timeout=30, isolation_level=None)
        there = [column for _, column, *_ in connection.execute("PRAGMA table_info(ratings)")]
        if absent := [column for column in COLUMNS if column not in there] if there or not write else []:
            raise DataError(f"{file}: no column {', '.join(absent)} in a table 'ratings'; it is no store of "
                            "08_collect_feedback")
        if write:
            connection.executescript(SCHEMA)
            connection.execute("BEGIN IMMEDIATE")  # two raters may write at a time: the second one waits
        yield connection
        if write:
            connection.execute("COMMIT")
    except sqlite3.Error as error:
        raise DataError(f"{file}: {error}; is it a store of ratings of 08_collect_feedback?") from error
    finally:
        if connection is not None:
            connection.close()  # without COMMIT nothing was written


def add(file: str | Path, ratings: list[dict]) -> None:
    """Append ratings to a store, all or none; makes it if missing.

    Parameters
    ----------
    ratings : list of dict
        Fields of `Rating`.

    Raises
    ------
    DataError
        If one is not a rating; it names file, row and field.
    """
    file, now = path(file), _now()
    rows = [_checked(rating, f"{file}, new row {number}") for number, rating in enumerate(ratings, start=1)]
    names = ("time", *Rating.model_fields)
    marks = ", ".join("?" * len(names))
    with _connected(file, write=True) as connection:
        connection.executemany(f"INSERT INTO ratings ({', '.join(names)}) VALUES ({marks})",
                               [(now, *row.model_dump().values()) for row in rows])


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _checked(rating: dict, where: str) -> Rating:
    try:
        return Rating.model_validate(rating)
    except ValidationError as error:
        told = []
        for item in error.errors():
            field = ".".join(map(str, item["loc"]))
            told.append(f"{where}, field '{field}': {item['msg']}" if field else
                        f"{where}, {item['msg'].removeprefix('Value error, ')}")
        raise DataError("\n".join(told)) from None


def undo(file: str | Path, rater: str) -> str | None:
    """Withdraw the rater's last rating by a further row.

    Returns
    -------
    Key of the case that is open again; None if there was nothing to withdraw.
    """
    file = path(file)
    with _connected(file, write=True) as connection:
        last = connection.execute(
            "SELECT id, key FROM ratings WHERE rater = ? AND withdraws IS NULL AND id NOT IN "
            "(SELECT withdraws FROM ratings WHERE withdraws IS NOT NULL) ORDER BY id DESC", (rater,)).fetchone()
        if last is None:
            return None
        connection.execute("INSERT INTO ratings (time, rater, withdraws) VALUES (?, ?, ?)",
                           (_now(), rater, last[0]))
    return last[1]


def rows(file: str | Path) -> pd.DataFrame:
    """Every row of a store as written, undone ones and undos among them."""
    with _connected(path(file)) as connection:
        found = connection.execute(f"SELECT {', '.join(COLUMNS)} FROM ratings ORDER BY id").fetchall()
    return pd.DataFrame(found, columns=COLUMNS, dtype=object)


def current(file: str | Path) -> pd.DataFrame:
    """What holds now, derived by replaying the store: what was not withdrawn, a rater's last word on a case.

    Returns
    -------
    DataFrame with the fields of `Rating`, the row's ``id`` and ``verdict``, the one that the rater holds.

    Raises
    ------
    DataError
        For a row that is no rating, or that withdraws what is none of its rater's; names file, row and field.
    """
    standing: dict[int, dict] = {}
    for row in rows(file).to_dict("records"):
        where = f"{path(file)}, row {row['id']}"
        if row["withdraws"] is None:
            rating = _checked({name: row[name] for name in Rating.model_fields}, where)
            standing[row["id"]] = {"id": row["id"], **rating.model_dump(), "verdict": rating.verdict}
        elif standing.pop(row["withdraws"], {"rater": None})["rater"] != row["rater"]:
            raise DataError(f"{where}, field 'withdraws': {row['withdraws']!r} is no standing rating of "
                            f"{row['rater']!r}")
    table = pd.DataFrame(standing.values(), columns=["id", *Rating.model_fields, "verdict"])
    return table.drop_duplicates(["rater", "key"], keep="last").reset_index(drop=True)


# --- what a rater is shown --------------------------------------------------------------------------


def pool(config: RunConfig) -> tuple[Suite, pd.DataFrame]:
    """The cases to rate, and the supervised adapter's answers to them (`evaluation.predictions`)."""
    suite = data.feedback(config)
    return suite, systems.Setting(config, {}).ask(ADAPTER, suite)


def order(keys: list[str], rater: str, seed: int = 0) -> list[int]:
    """Row numbers in the order in which this rater sees the cases; another rater gets another order."""
    name = hashlib.sha256(rater.encode()).digest()
    rng = np.random.default_rng([seed, int.from_bytes(name[:8], "big")])
    # by key, so that the order does not follow how the cases were made
    return [int(row) for row in rng.permutation(np.argsort(keys, kind="stable"))]


def still_open(file: str | Path, keys: list[str], rater: str, seed: int = 0) -> list[int]:
    """Row numbers that this rater has yet to rate, next one first; a store not yet there holds nothing."""
    known = current(file) if path(file).is_file() else pd.DataFrame(columns=["rater", "key"])
    rated = set(known.loc[known["rater"] == rater, "key"])
    return [row for row in order(keys, rater, seed) if keys[row] not in rated]


def case(suite: Suite, answers: pd.DataFrame, row: int) -> dict:
    """All that a view may show of a case.

    Returns
    -------
    dict with ``key``, ``picture`` (PIL image), ``modality``, ``text`` (patient, finding, treatment),
    ``shown`` (the model's verdict), ``p_correct`` and ``answer`` (the model's words).
    """
    scenario, p_correct = suite.scenarios[row], float(answers["p_correct"].iloc[row])
    shown = str(answers["predicted"].iloc[row])
    return {"key": suite.keys()[row], "picture": suite.picture(scenario), "modality": scenario.modality,
            "text": prompts.clinical_text(scenario), "shown": shown, "p_correct": p_correct,
            "answer": ANSWERS[shown]}


def certainty(shown: str, p_correct: float) -> str:
    """The model's probability of the verdict that it gives, never rounded to certainty.

    >>> certainty("ERROR", 0.0001)
    'more than 99 %'
    """
    p = p_correct if shown == "CORRECT" else 1 - p_correct
    return "more than 99 %" if p > 0.99 else f"{100 * p:.0f} %"


def rationale(setting: systems.Setting, suite: Suite, row: int, grid: int = 8) -> dict:
    """What a verdict rests on, found by taking parts of the case away and asking again.

    The model gives a verdict and no reasons; words that it might add would not have to be its reasons. This
    is what it does. It asks ``grid ** 2 + 4`` questions.

    Returns
    -------
    dict
        ``drop``: float array (grid, grid) of `explain.occlusion_map`, and ``without``: probability of CORRECT
        without the "picture", the "finding" and the "treatment", by name of what is withheld.
    """
    processor, scenario = setting.base[0], suite.scenarios[row]
    size = setting.config.eval_batch_size
    drop, _ = explain.occlusion_map(setting.adapted, processor, scenario, suite.picture(scenario), grid, size)
    words = [scenario.model_copy(update={name: prompts.WITHHELD}) for name in ("finding", "treatment")]
    asked = {"picture": replace(suite, scenarios=[scenario], view="grey"),
             **{name: replace(suite, scenarios=[s]) for name, s in zip(("finding", "treatment"), words)}}
    return {"drop": drop, "without": {name: float(evaluation.p_correct(setting.adapted, processor, part)[0])
                                      for name, part in asked.items()}}


# --- from ratings to preferences --------------------------------------------------------------------


def own_store(config: RunConfig) -> Path:
    """Where the rating view writes: the file named by ``ratings``, else one of this run."""
    return path(config.ratings) if config.ratings else path(config.run_dir) / "feedback" / "ratings.sqlite"


def store(config: RunConfig) -> Path:
    """The file of ratings that this run learns from: the one named, else simulated raters' (made here)."""
    return path(config.ratings) if config.ratings else _simulated(config)


def _simulated(config: RunConfig) -> Path:
    suite, answers = pool(config)
    keys, shown = suite.keys(), list(answers["predicted"])
    made_of = [keys, shown, list(answers["p_correct"]), raters.NAMES, config.rater_noise, config.seed]
    file = path(config.run_dir) / "feedback" / f"simulated-{provenance.digest(made_of)[:16]}.sqlite"
    if file.is_file():
        return file
    begun = file.with_name(f".{os.getpid()}-{file.name}")
    begun.unlink(missing_ok=True)
    for name in raters.NAMES:
        said = raters.simulate(suite.scenarios, shown, name, config.rater_noise, config.seed)
        add(begun, [{"key": keys[row], "shown": shown[row], "p_correct": float(answers["p_correct"].iloc[row]),
                     **said[row]} for row in order(keys, name, config.seed)])
    os.replace(begun, file)  # there as a whole or not at all
    return file


def collected(config: RunConfig) -> tuple[Suite, pd.DataFrame]:
    """The pool, and the ratings of its cases with a column ``row``, the case's number.

    Warns
    -----
    UserWarning
        If the store has ratings of cases that are not in this run's pool; these are left out.
    """
    suite, ratings = data.feedback(config), current(store(config))
    number = {key: row for row, key in enumerate(suite.keys())}
    ratings["row"] = ratings["key"].map(number)
    strange = ratings[ratings["row"].isna()]
    if len(strange):
        warnings.warn(f"{store(config)}: {len(strange)} of {len(ratings)} ratings are of cases that are not in "
                      f"this run's pool (first: row {strange['id'].iloc[0]}, field 'key') and are left out; were "
                      "feedback_pairs, feedback_note_pairs, seed and pictures the same?", stacklevel=2)
    known = ratings.drop(strange.index).reset_index(drop=True)
    return suite, known.astype({"row": int})


def consensus(suite: Suite, ratings: pd.DataFrame) -> pd.DataFrame:
    """What the raters hold together, a row a rated case in the suite's order; ties are left out.

    The majority's verdict is chosen. The severity is the median of those who hold that it is an ERROR,
    between two levels the graver one.

    Returns
    -------
    DataFrame with ``row``, ``key``, ``id``, ``chosen``, ``rejected``, ``severity``, ``raters`` (count),
    ``agreement`` (share of the raters who hold with ``chosen``), ``simulated``, ``pair``.
    """
    found = []
    for row, of_case in ratings.groupby("row"):
        says_error = of_case["verdict"] == "ERROR"
        if says_error.mean() == 0.5:
            continue
        chosen = "ERROR" if says_error.mean() > 0.5 else "CORRECT"
        scenario = suite.scenarios[row]
        found.append({
            "row": row, "key": of_case["key"].iloc[0], "id": scenario.id, "chosen": chosen,
            "rejected": held(chosen, agree=False), "severity": _median(of_case.loc[says_error, "severity"])
            if chosen == "ERROR" else "none", "raters": len(of_case),
            "agreement": float((of_case["verdict"] == chosen).mean()),
            "simulated": bool(of_case["simulated"].any()), "pair": scenario.factors.get("pair", scenario.id)})
    columns = ["row", "key", "id", "chosen", "rejected", "severity", "raters", "agreement", "simulated", "pair"]
    return pd.DataFrame(found, columns=columns)


def _median(severities: pd.Series) -> str:
    return SEVERITIES[int(np.ceil(severities.map(SEVERITIES.index).median()))]


def is_heldout(pair: str) -> bool:
    """Whether a counterfactual pair is on the held-out side; by its name alone, so more ratings move nothing."""
    return int.from_bytes(hashlib.sha256(f"held out? {pair}".encode()).digest()[:8], "big") < HELDOUT * 2**64


def training_side(config: RunConfig) -> tuple[Suite, pd.DataFrame]:
    """Rated cases to learn from, with their `consensus` in the suite's order.

    Shares no counterfactual pair and no picture with `heldout_side`.
    """
    return _side(config, heldout=False)


def heldout_side(config: RunConfig) -> tuple[Suite, pd.DataFrame]:
    """Rated cases on which a reward model is measured; see `training_side`."""
    return _side(config, heldout=True)


def _side(config: RunConfig, heldout: bool) -> tuple[Suite, pd.DataFrame]:
    suite, ratings = collected(config)
    table = consensus(suite, ratings)
    table = table[table["pair"].map(is_heldout).to_numpy(bool) == heldout].reset_index(drop=True)
    if table.empty:
        raise DataError(f"{store(config)}: no case with a consensus on the "
                        f"{'held-out' if heldout else 'training'} side; rate more cases in 08_collect_feedback")
    return suite.rows(table["row"]), table.drop(columns="row")


def export(config: RunConfig, file: str | Path) -> Path:
    """Write the preferences as JSONL in TRL's conversational shape for pictures.

    ``datasets.load_dataset("json", data_files=...)`` reads it. Each row has ``prompt``, ``chosen``,
    ``rejected``, ``images`` (file names in the pool's picture folder), ``severity``, ``raters``,
    ``agreement``, ``simulated``, ``side`` ("train" or "heldout") and ``key``. Comments and pseudonyms are
    not in it.

    Returns
    -------
    Path of the file.
    """
    suite, ratings = collected(config)
    records = []
    for given in consensus(suite, ratings).to_dict("records"):
        scenario = suite.scenarios[given["row"]]
        question = f"{prompts.INSTRUCTION}\n\n{prompts.clinical_text(scenario)}"
        records.append({
            # TRL puts the picture's place before a question that is plain text
            "prompt": [{"role": "user", "content": question}],
            **{side: [{"role": "assistant", "content": ANSWERS[given[side]]}] for side in ("chosen", "rejected")},
            "images": [scenario.image],
            **{name: given[name] for name in ("severity", "raters", "agreement", "simulated")},
            "side": "heldout" if is_heldout(given["pair"]) else "train", "key": given["key"]})
    file = path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return file
