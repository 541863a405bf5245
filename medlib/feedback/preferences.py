"""From ratings to preferences: consensus, the held-out side, export."""

from __future__ import annotations

import hashlib
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from medlib.config import ANSWERS, DataError, RunConfig, files, jsonl, path, provenance
from medlib.data import sources
from medlib.data.suite import Suite
from medlib.feedback import queue, rating_store, simulated
from medlib.feedback.rating_store import SEVERITY_LEVELS
from medlib.feedback.simulated import NAMES
from medlib.models import prompts
from medlib.models.prompts import INSTRUCTION

#: Share of the pairs on which a reward model is measured and never trained.
HELDOUT = 1 / 4


# --- from ratings to preferences --------------------------------------------------------------------


def rating_file(config: RunConfig) -> Path:
    """Where the rating view writes: the file that ``ratings`` names, by default one in this run's folder."""
    return path(config.ratings) if config.ratings else path(config.run_dir) / "feedback" / "ratings.sqlite"


def ratings_in_use(config: RunConfig) -> Path:
    """The ratings that this run learns from: the file that ``ratings`` names, by default simulated ones."""
    return path(config.ratings) if config.ratings else _simulated(config)


def _simulated(config: RunConfig) -> Path:
    suite, answers = queue.pool(config)
    keys, shown = suite.keys(), list(answers["predicted"])
    contents = [keys, shown, list(answers["p_correct"]), NAMES, config.rater_noise, config.seed]
    file = path(config.run_dir) / "feedback" / f"simulated-{provenance.digest(contents)[:16]}.sqlite"
    if file.is_file():
        return file
    with tempfile.TemporaryDirectory() as folder:  # a killed writer leaves a journal beside its store
        store = Path(folder) / file.name
        for name in NAMES:
            ratings = simulated.simulate(suite.scenarios, shown, name, config.rater_noise, config.seed)
            rating_store.add(
                store,
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
        files.write_bytes(file, store.read_bytes(), private=True)
    return file


def collected(config: RunConfig) -> tuple[Suite, pd.DataFrame]:
    """The pool, and the ratings of its cases with a column ``row``, the case's number.

    Warns
    -----
    UserWarning
        If the store has ratings of cases outside this run's pool; these are left out.
    """
    suite, ratings = sources.feedback(config), rating_store.current(ratings_in_use(config))
    number = {key: row for row, key in enumerate(suite.keys())}
    ratings["row"] = ratings["key"].map(number)
    foreign = ratings[ratings["row"].isna()]
    if len(foreign):
        warnings.warn(
            f"{ratings_in_use(config)}: {len(foreign)} of {len(ratings)} ratings are of cases that are not in "
            f"this run's pool (first: row {foreign['id'].iloc[0]}, field 'key') and are left out; were "
            "feedback_pairs, feedback_note_pairs, seed and images the same?",
            stacklevel=2,
        )
    known = ratings.drop(foreign.index).reset_index(drop=True)
    return suite, known.astype({"row": int})


def consensus(suite: Suite, ratings: pd.DataFrame) -> pd.DataFrame:
    """The raters' consensus, one row per rated case in the suite's order; ties are left out.

    The majority's verdict is chosen. The severity is the median among the raters who say ERROR, and between
    two levels the more severe one.

    Returns
    -------
    DataFrame with ``row``, ``key``, ``id``, ``chosen``, ``rejected``, ``severity``, ``raters`` (count),
    ``agreement`` (share of the raters who say ``chosen``), ``simulated``, ``pair``.
    """
    records = []
    for row, of_case in ratings.groupby("row"):
        says_error = of_case["verdict"] == "ERROR"
        if says_error.mean() == 0.5:
            continue
        chosen = "ERROR" if says_error.mean() > 0.5 else "CORRECT"
        scenario = suite.scenarios[row]
        records.append(
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
    return pd.DataFrame(records, columns=columns)


def _median(severities: pd.Series) -> str:
    return SEVERITY_LEVELS[int(np.ceil(severities.map(SEVERITY_LEVELS.index).median()))]


def is_heldout(pair: str) -> bool:
    """Whether a counterfactual pair is on the held-out side; by name alone, so that new ratings change nothing."""
    return int.from_bytes(hashlib.sha256(f"held out? {pair}".encode()).digest()[:8], "big") < HELDOUT * 2**64


def training_side(config: RunConfig) -> tuple[Suite, pd.DataFrame]:
    """Rated cases for training, with their `consensus` in the suite's order.

    Shares no counterfactual pair and no image with `heldout_side`.
    """
    return _side(config, heldout=False)


def heldout_side(config: RunConfig) -> tuple[Suite, pd.DataFrame]:
    """Rated cases for measuring a reward model; see `training_side`."""
    return _side(config, heldout=True)


def _side(config: RunConfig, heldout: bool) -> tuple[Suite, pd.DataFrame]:
    suite, ratings = collected(config)
    table = consensus(suite, ratings)
    table = table[table["pair"].map(is_heldout).to_numpy(bool) == heldout].reset_index(drop=True)
    if table.empty:
        raise DataError(
            f"{ratings_in_use(config)}: no case with a consensus on the "
            f"{'held-out' if heldout else 'training'} side; rate more cases"
        )
    return suite.rows(table["row"]), table.drop(columns="row")


def export(config: RunConfig, file: str | Path) -> Path:
    """Write the preferences, which nobody else may read, as JSONL in TRL's conversational shape for images.

    ``datasets.load_dataset("json", data_files=...)`` reads it. Each row has ``prompt``, ``chosen``,
    ``rejected``, ``images`` (file names in the pool's image folder), ``severity``, ``raters``,
    ``agreement``, ``simulated``, ``side`` ("train" or "heldout") and ``key``. It has no comments and no
    pseudonyms.

    Returns
    -------
    Path of the file.
    """
    suite, ratings = collected(config)
    records = []
    for preference in consensus(suite, ratings).to_dict("records"):
        scenario = suite.scenarios[preference["row"]]
        question = f"{INSTRUCTION}\n\n{prompts.clinical_text(scenario)}"
        records.append(
            {
                # TRL inserts the image before a question in plain text
                "prompt": [{"role": "user", "content": question}],
                **{
                    side: [{"role": "assistant", "content": ANSWERS[preference[side]]}]
                    for side in ("chosen", "rejected")
                },
                "images": [scenario.image],
                **{name: preference[name] for name in ("severity", "raters", "agreement", "simulated")},
                "side": "heldout" if is_heldout(preference["pair"]) else "train",
                "key": preference["key"],
            }
        )
    return jsonl.write(path(file), records, private=True)
