"""Which cases a rater sees, in which order, and what of a case."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd

from medlib.config import ANSWERS, RunConfig, path
from medlib.data import sources
from medlib.data.suite import Suite
from medlib.feedback import rating_store
from medlib.feedback.rating_store import ADAPTER
from medlib.models import prompts
from medlib.systems import Session

# --- what a rater sees --------------------------------------------------------------------------


def pool(config: RunConfig) -> tuple[Suite, pd.DataFrame]:
    """The cases to rate, and the supervised adapter's answers to them (`stats.predictions_table`)."""
    suite = sources.feedback(config)
    return suite, Session(config, {}).ask(ADAPTER, suite)


def order(keys: list[str], rater: str, seed: int = 0) -> list[int]:
    """Row numbers in the order in which this rater sees the cases; another rater gets another order."""
    name = hashlib.sha256(rater.encode()).digest()
    rng = np.random.default_rng([seed, int.from_bytes(name[:8], "big")])
    # by key, so that the order does not reveal how the cases were made
    return [int(row) for row in rng.permutation(np.argsort(keys, kind="stable"))]


def still_open(file: str | Path, keys: list[str], rater: str, seed: int = 0) -> list[int]:
    """Row numbers that this rater has yet to rate, next one first; a missing store counts as empty."""
    known = rating_store.current(file) if path(file).is_file() else pd.DataFrame(columns=["rater", "key"])
    rated = set(known.loc[known["rater"] == rater, "key"])
    return [row for row in order(keys, rater, seed) if keys[row] not in rated]


def case(suite: Suite, answers: pd.DataFrame, row: int) -> dict:
    """Everything that a view may show of a case.

    Returns
    -------
    dict with ``key``, ``image`` (PIL image), ``modality``, ``text`` (patient, finding, treatment),
    ``shown`` (the model's verdict), ``p_correct`` and ``answer`` (the model's words).
    """
    scenario, p_correct = suite.scenarios[row], float(answers["p_correct"].iloc[row])
    shown = str(answers["predicted"].iloc[row])
    return {
        "key": suite.keys()[row],
        "image": suite.image(scenario),
        "modality": scenario.modality,
        "text": prompts.clinical_text(scenario),
        "shown": shown,
        "p_correct": p_correct,
        "answer": ANSWERS[shown],
    }
