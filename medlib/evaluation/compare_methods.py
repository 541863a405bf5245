"""Which way of learning from feedback to use: tables over the predictions of every method and seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from medlib import stats
from medlib.config import METHODS
from medlib.feedback.rl.rewards import severity_weights
from medlib.feedback.rl.runs import seeds

SUPERVISED = "medgemma-lora"
#: Suites on which a method is chosen; the held-out ones are only looked at afterwards.
CHOSEN_ON = ("calibration", "val_contradiction")
Frames = Mapping[str, pd.DataFrame]


def row(method: str, seed: int, first: int) -> str:
    """The benchmark's name of a run; that of the first seed carries no number."""
    return f"medgemma-{method}" + ("" if seed == first else f":{seed}")


def rows(config) -> list[str]:
    """The supervised adapter, and every run of every method."""
    return [SUPERVISED, *(row(m, s, config.seed) for m in config.rl_methods for s in seeds(config))]


def is_repeat(name: str) -> bool:
    """True for a further seed of a method, which stands for the spread and is no row of its own."""
    kind, _, variant = name.partition(":")
    return bool(variant) and kind.removeprefix("medgemma-") in METHODS


def runs(frames: Frames, suite: str) -> dict[str, list[pd.DataFrame]]:
    """Frames of one suite by row of the benchmark, a list over seeds."""
    found: dict[str, list[pd.DataFrame]] = {}
    for key, frame in frames.items():
        name, _, shown = key.rpartition("/")
        kind = name.partition(":")[0]
        if shown == suite and kind in (SUPERVISED, *(f"medgemma-{m}" for m in METHODS)) and " " not in name:
            found.setdefault(kind, []).append(frame)
    return found


def harm(frame: pd.DataFrame) -> float:
    """Wrong verdicts per 1,000 cases, each weighted by the severity of what it lets through.

    A critical error missed counts four times a false alarm, by `rewards.SEVERITY_WEIGHT`.
    """
    wrong = (frame["verdict"] != frame["predicted"]).to_numpy()
    return float(1000 * (wrong * severity_weights(frame["severity"])).mean())


def validation_harm(frames: Frames) -> dict[str, list[float]]:
    """`harm` of each row and seed on the suites of `CHOSEN_ON` together."""
    by_suite = [runs(frames, suite) for suite in CHOSEN_ON]
    return {
        name: [harm(pd.concat(parts)) for parts in zip(*(found[name] for found in by_suite))]
        for name in by_suite[0]
        if all(name in found for found in by_suite)
    }


def recommended(frames: Frames) -> str | None:
    """The row of least mean harm on validation; None before any method was asked about it."""
    found = {name: float(np.mean(values)) for name, values in validation_harm(frames).items()}
    return min(found, key=found.get) if len(found) > 1 else None


def table(frames: Frames) -> pd.DataFrame:
    """Every row over its seeds: mean, least and greatest of each figure on validation and held out."""
    shown = []
    validation = validation_harm(frames)
    heldout, contradiction = runs(frames, "heldout"), runs(frames, "contradiction")
    for name, parts in heldout.items():
        scores = [stats.score(frame) for frame in parts]
        notes = [stats.score(frame)["accuracy"]["value"] for frame in contradiction.get(name, [])]
        shown.append(
            {
                "row": name,
                "seeds": len(parts),
                "n": len(parts[0]),
                "validation_harm": validation.get(name, []),
                "accuracy": [s["accuracy"]["value"] for s in scores],
                "contradiction": notes,
                "critical_misses": [s["critical_misses"]["count"] for s in scores],
                "critical": scores[0]["critical_misses"]["n"],
                "false_alarms": [1 - s["sensitivity"]["value"] for s in scores],
                "spread": [s["spread"] for s in scores],
            }
        )
    return pd.DataFrame(shown)


# --- in words -----------------------------------------------------------------------------------------


def over_seeds(values: Sequence[float], form: str, unit: str = "") -> str:
    """Mean over seeds and, in brackets, least and greatest."""
    if len(values) == 0:
        return "not asked"
    mean = form.format(np.mean(values)) + unit
    if len(values) == 1:
        return mean
    return f"{mean} [{form.format(np.min(values))}, {form.format(np.max(values))}]"


def recommendation(frames: Frames, names: Mapping[str, str]) -> str:
    """Which row to use, chosen on validation, and what it then did on cases that played no part in the choice."""
    best = recommended(frames)
    if best is None:
        return ""
    harms = validation_harm(frames)
    means = {name: float(np.mean(values)) for name, values in harms.items()}
    next_best = min((name for name in means if name != best), key=means.get)
    n = sum(len(runs(frames, suite)[best][0]) for suite in CHOSEN_ON)
    why = (
        f"on {n:,} validation cases its errors, weighted by severity, were the fewest: "
        f"{over_seeds(harms[best], '{:.1f}')} per 1,000"
    )
    beside = f"{means[next_best]:.1f} with {names[next_best]}"
    if best == SUPERVISED:
        return f"Keep {names[best]}: {why}, against {beside}, the best that learned from feedback."
    if next_best != SUPERVISED:
        beside = f"{means[SUPERVISED]:.1f} before feedback and {beside}"
    return f"Use {names[best]}: {why}, against {beside}. {_afterwards(frames, best)}"


def _afterwards(frames: Frames, name: str) -> str:
    """The chosen row (first seed) against the supervised adapter."""
    told = []
    titles = {"heldout": "on the held-out suite", "contradiction": "where note and image contradict each other"}
    for suite, title in titles.items():
        before, after = (runs(frames, suite)[row][0] for row in (SUPERVISED, name))
        test = stats.compare(after, before, cluster="pair")
        rates = [100 * stats.score(frame)["accuracy"]["value"] for frame in (before, after)]
        p = "p < 0.0001" if test["p_cluster"] < 1e-4 else f"p = {test['p_cluster']:.2g}"
        told.append(f"{title} from {rates[0]:.1f}% to {rates[1]:.1f}% (n = {len(after):,}, {p} by whole pair)")
    return f"Looked at afterwards, its accuracy went {' and '.join(told)}."
