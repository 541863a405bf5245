"""Which way of learning from feedback to use: tables over the predictions of every method and seed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from medlib import metrics, rl

SUPERVISED = "medgemma-lora"
#: Suites on which a method is chosen; the held-out ones are only looked at afterwards.
CHOSEN_ON = ("calibration", "val_contradiction")
Frames = Mapping[str, pd.DataFrame]


def row(method: str, seed: int, first: int) -> str:
    """The benchmark's name of a run; that of the first seed carries no number."""
    return f"medgemma-{method}" + ("" if seed == first else f":{seed}")


def rows(config) -> list[str]:
    """The supervised adapter, and every run of every method."""
    return [SUPERVISED, *(row(m, s, config.seed) for m in config.rl_methods for s in rl.seeds(config))]


def is_repeat(name: str) -> bool:
    """True for a further seed of a method, which stands for the spread and is no row of its own."""
    kind, _, variant = name.partition(":")
    return bool(variant) and kind.removeprefix("medgemma-") in rl.METHODS


def runs(frames: Frames, suite: str) -> dict[str, list[pd.DataFrame]]:
    """Frames of one suite by row of the benchmark, a list over seeds."""
    found: dict[str, list[pd.DataFrame]] = {}
    for key, frame in frames.items():
        name, _, shown = key.rpartition("/")
        kind = name.partition(":")[0]
        if shown == suite and kind in (SUPERVISED, *(f"medgemma-{m}" for m in rl.METHODS)) and " " not in name:
            found.setdefault(kind, []).append(frame)
    return found


def harm(frame: pd.DataFrame) -> float:
    """Wrong verdicts per 1,000 cases, each weighted by the severity of what it lets through.

    A critical error missed counts four times a false alarm, by `rl.SEVERITY_WEIGHT`.
    """
    wrong = (frame["verdict"] != frame["predicted"]).to_numpy()
    return float(1000 * (wrong * rl.severity_weights(frame["severity"])).mean())


def validation_harm(frames: Frames) -> dict[str, list[float]]:
    """`harm` of each row and seed on the suites of `CHOSEN_ON` together."""
    by_suite = [runs(frames, suite) for suite in CHOSEN_ON]
    return {name: [harm(pd.concat(parts)) for parts in zip(*(found[name] for found in by_suite))]
            for name in by_suite[0] if all(name in found for found in by_suite)}


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
        scores = [metrics.score(frame) for frame in parts]
        notes = [metrics.score(frame)["accuracy"]["value"] for frame in contradiction.get(name, [])]
        shown.append({
            "row": name, "seeds": len(parts), "n": len(parts[0]),
            "validation_harm": validation.get(name, []),
            "accuracy": [s["accuracy"]["value"] for s in scores],
            "contradiction": notes,
            "critical_misses": [s["critical_misses"]["count"] for s in scores],
            "critical": scores[0]["critical_misses"]["n"],
            "false_alarms": [1 - s["sensitivity"]["value"] for s in scores],
            "spread": [s["spread"] for s in scores],
        })
    return pd.DataFrame(shown)


def tests(frames: Frames, suite: str = "heldout") -> pd.DataFrame:
    """Each method (first seed) against the supervised adapter, paired, Holm-corrected over methods."""
    found = runs(frames, suite)
    against = {name: metrics.compare(parts[0], found[SUPERVISED][0], cluster="pair")
               for name, parts in found.items() if name != SUPERVISED}
    adjusted = metrics.holm({name: test["p_cluster"] for name, test in against.items()}) if against else {}
    return pd.DataFrame([{"row": name, "suite": suite, **test, "p_holm": adjusted[name]}
                         for name, test in against.items()])
