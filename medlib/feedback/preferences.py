"""From ratings to preferences: consensus, the held-out side, export."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from medlib.config import ANSWERS, DataError, RunConfig, jsonl, path, provenance
from medlib.data import sources
from medlib.data.suite import Suite
from medlib.feedback import queue, rating_store, simulated
from medlib.feedback.rating_store import SEVERITY_LEVELS
from medlib.feedback.simulated import NAMES
from medlib.models import prompts
from medlib.models.prompts import INSTRUCTION

#: A quarter of the pairs, on which a reward model is measured and never trained.
HELDOUT = 1 / 4


# --- from ratings to preferences --------------------------------------------------------------------


def rating_file(config: RunConfig) -> Path:
    """Where the rating view writes: the file named by ``ratings``, else one of this run."""
    return path(config.ratings) if config.ratings else path(config.run_dir) / "feedback" / "ratings.sqlite"


def ratings_in_use(config: RunConfig) -> Path:
    """The file of ratings that this run learns from: the one named, else simulated raters' (made here)."""
    return path(config.ratings) if config.ratings else _simulated(config)


def _simulated(config: RunConfig) -> Path:
    suite, answers = queue.pool(config)
    keys, shown = suite.keys(), list(answers["predicted"])
    made_of = [keys, shown, list(answers["p_correct"]), NAMES, config.rater_noise, config.seed]
    file = path(config.run_dir) / "feedback" / f"simulated-{provenance.digest(made_of)[:16]}.sqlite"
    if file.is_file():
        return file
    with provenance.replacement(file) as unfinished:
        for name in NAMES:
            ratings = simulated.simulate(suite.scenarios, shown, name, config.rater_noise, config.seed)
            rating_store.add(
                unfinished,
                [
                    {
                        "key": keys[row],
                        "shown": shown[row],
                        "p_correct": float(answers["p_correct"].iloc[row]),
                        **ratings[row],
                    }
                    for row in queue.order(keys, name, config.seed)
                ],
            )
    return file


def collected(config: RunConfig) -> tuple[Suite, pd.DataFrame]:
    """The pool, and the ratings of its cases with a column ``row``, the case's number.

    Warns
    -----
    UserWarning
        If the store has ratings of cases that are not in this run's pool; these are left out.
    """
    suite, ratings = sources.feedback(config), rating_store.current(ratings_in_use(config))
    number = {key: row for row, key in enumerate(suite.keys())}
    ratings["row"] = ratings["key"].map(number)
    strange = ratings[ratings["row"].isna()]
    if len(strange):
        warnings.warn(
            f"{ratings_in_use(config)}: {len(strange)} of {len(ratings)} ratings are of cases that are not in "
            f"this run's pool (first: row {strange['id'].iloc[0]}, field 'key') and are left out; were "
            "feedback_pairs, feedback_note_pairs, seed and images the same?",
            stacklevel=2,
        )
    known = ratings.drop(strange.index).reset_index(drop=True)
    return suite, known.astype({"row": int})


def consensus(suite: Suite, ratings: pd.DataFrame) -> pd.DataFrame:
    """What the raters hold together, a row a rated case in the suite's order; ties are left out.

    The majority's verdict is chosen. The severity is the median of those who hold that it is an ERROR,
    between two levels the more severe one.

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
        found.append(
            {
                "row": row,
                "key": of_case["key"].iloc[0],
                "id": scenario.id,
                "chosen": chosen,
                "rejected": rating_store.verdict_of(chosen, agree=False),
                "severity": _median(of_case.loc[says_error, "severity"]) if chosen == "ERROR" else "none",
                "raters": len(of_case),
                "agreement": float((of_case["verdict"] == chosen).mean()),
                "simulated": bool(of_case["simulated"].any()),
                "pair": scenario.factors.get("pair", scenario.id),
            }
        )
    columns = ["row", "key", "id", "chosen", "rejected", "severity", "raters", "agreement", "simulated", "pair"]
    return pd.DataFrame(found, columns=columns)


def _median(severities: pd.Series) -> str:
    return SEVERITY_LEVELS[int(np.ceil(severities.map(SEVERITY_LEVELS.index).median()))]


def is_heldout(pair: str) -> bool:
    """Whether a counterfactual pair is on the held-out side; by its name alone, so more ratings move nothing."""
    return int.from_bytes(hashlib.sha256(f"held out? {pair}".encode()).digest()[:8], "big") < HELDOUT * 2**64


def training_side(config: RunConfig) -> tuple[Suite, pd.DataFrame]:
    """Rated cases to learn from, with their `consensus` in the suite's order.

    Shares no counterfactual pair and no image with `heldout_side`.
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
        raise DataError(
            f"{ratings_in_use(config)}: no case with a consensus on the "
            f"{'held-out' if heldout else 'training'} side; rate more cases in 05_collect_feedback"
        )
    return suite.rows(table["row"]), table.drop(columns="row")


def export(config: RunConfig, file: str | Path) -> Path:
    """Write the preferences as JSONL in TRL's conversational shape for images.

    ``datasets.load_dataset("json", data_files=...)`` reads it. Each row has ``prompt``, ``chosen``,
    ``rejected``, ``images`` (file names in the pool's image folder), ``severity``, ``raters``,
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
        question = f"{INSTRUCTION}\n\n{prompts.clinical_text(scenario)}"
        records.append(
            {
                # TRL puts the image's place before a question that is plain text
                "prompt": [{"role": "user", "content": question}],
                **{
                    side: [{"role": "assistant", "content": ANSWERS[given[side]]}]
                    for side in ("chosen", "rejected")
                },
                "images": [scenario.image],
                **{name: given[name] for name in ("severity", "raters", "agreement", "simulated")},
                "side": "heldout" if is_heldout(given["pair"]) else "train",
                "key": given["key"],
            }
        )
    return jsonl.write(path(file), records)
