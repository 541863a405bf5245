"""Which cases a rater sees, in which order, and what of a case."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from medlib.config import ANSWERS, RunConfig, path
from medlib.data import sources
from medlib.data.suite import Suite
from medlib.data.variants import WITHHELD
from medlib.feedback import rating_store
from medlib.feedback.rating_store import ADAPTER
from medlib.models import occlusion, prompts, scoring
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


def certainty(shown: str, p_correct: float) -> str:
    """The model's probability of its own verdict, never rounded to certainty.

    >>> certainty("ERROR", 0.0001)
    'more than 99%'
    """
    p = p_correct if shown == "CORRECT" else 1 - p_correct
    return "more than 99%" if p > 0.99 else f"{100 * p:.0f}%"


def rationale(session: Session, suite: Suite, row: int, grid: int = 8) -> dict:
    """What a verdict rests on, measured by asking again without parts of the case.

    The model gives a verdict and no reasons; any that it wrote need not be the real ones. This measures its
    behaviour instead, with ``grid ** 2 + 4`` questions.

    Returns
    -------
    dict
        ``drop``: float array (grid, grid) of `occlusion.occlusion_map`, and ``without``: probability of CORRECT
        without the "image", the "finding" and the "treatment", by name of the withheld part.
    """
    scenario, size = suite.scenarios[row], session.config.eval_batch_size
    drop, _ = occlusion.occlusion_map(session.adapted, scenario, suite.image(scenario), grid, size)
    words = [scenario.model_copy(update={name: WITHHELD}) for name in ("finding", "treatment")]
    variants = {
        "image": replace(suite, scenarios=[scenario], view="grey"),
        **{name: replace(suite, scenarios=[s]) for name, s in zip(("finding", "treatment"), words)},
    }
    return {
        "drop": drop,
        "without": {name: float(scoring.p_correct(session.adapted, part)[0]) for name, part in variants.items()},
    }
