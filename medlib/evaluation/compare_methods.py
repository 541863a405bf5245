"""Which way of learning from feedback to use: tables over the predictions of every method and seed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import pandas as pd

from medlib import stats
from medlib.config import METHODS, RunConfig
from medlib.evaluation.results import Results
from medlib.feedback.rl.rewards import severity_weights
from medlib.feedback.rl.runs import seeds
from medlib.stats.text import number, over_seeds, p_text, percent

SUPERVISED = "medgemma-lora"
#: The systems that are compared.
COMPARED = (SUPERVISED, *(f"medgemma-{method}" for method in METHODS))
#: Suites on which a method is chosen; the held-out ones are only looked at afterwards.
CHOSEN_ON = ("calibration", "val_contradiction")


def run_names(config: RunConfig) -> list[str]:
    """The supervised adapter, and every run of every method; that of the first seed carries no number."""
    runs = [
        f"medgemma-{method}" + ("" if seed == config.seed else f":{seed}")
        for method in config.rl_methods
        for seed in seeds(config)
    ]
    return [SUPERVISED, *runs]


def weighted_error(frame: pd.DataFrame) -> float:
    """Wrong verdicts per 1,000 cases, each weighted by the severity of what it lets through.

    A critical error missed counts four times a false alarm, by `rewards.SEVERITY_WEIGHT`.
    """
    wrong = (frame["verdict"] != frame["predicted"]).to_numpy()
    return float(1000 * (wrong * severity_weights(frame["severity"])).mean())


@lru_cache(maxsize=4)
def validation_errors(results: Results) -> dict[str, list[float]]:
    """`weighted_error` of each system and seed on the suites of `CHOSEN_ON` together."""
    suites = [suite for suite in CHOSEN_ON if results.has(SUPERVISED, suite)]
    errors = {
        system: [
            weighted_error(pd.concat([results.of(run, suite) for suite in suites]))
            for run in results.seeds(system, CHOSEN_ON[0])
            if all(results.has(run, suite) for suite in suites)
        ]
        for system in COMPARED
    }
    return {system: values for system, values in errors.items() if values}


def _ranking(results: Results) -> dict[str, float]:
    """Mean weighted error on validation by system, least first."""
    means = {system: float(np.mean(values)) for system, values in validation_errors(results).items()}
    return dict(sorted(means.items(), key=lambda item: item[1]))


def recommended(results: Results) -> str | None:
    """The system of least mean weighted error on validation; None before any method was asked about it."""
    ranking = _ranking(results)
    return next(iter(ranking)) if len(ranking) > 1 else None


def table(results: Results) -> pd.DataFrame:
    """Every system with its figures on validation and held-out cases, a list over seeds each."""
    rows = []
    for system in COMPARED:
        runs = results.seeds(system, "heldout")
        if not runs:
            continue
        scores = [results.score(run, "heldout") for run in runs]
        contradiction = [results.score(run, "contradiction") for run in results.seeds(system, "contradiction")]
        rows.append(
            {
                "system": system,
                "seeds": len(runs),
                "n": scores[0]["n"],
                "validation_errors": validation_errors(results).get(system, []),
                "accuracy": [s["accuracy"]["value"] for s in scores],
                "contradiction": [s["accuracy"]["value"] for s in contradiction],
                "critical_misses": [s["critical_misses"]["count"] for s in scores],
                "critical": scores[0]["critical_misses"]["n"],
                "false_alarms": [1 - s["sensitivity"]["value"] for s in scores],
                "spread": [s["spread"] for s in scores],
            }
        )
    return pd.DataFrame(rows)


# --- in words -----------------------------------------------------------------------------------------


def recommendation(results: Results, names: Mapping[str, str]) -> str:
    """Which system to use, chosen on validation, and what it does on cases that played no part in the choice."""
    best = recommended(results)
    if best is None:
        return ""
    means = _ranking(results)
    next_best = list(means)[1]
    n = sum(len(results.of(best, suite)) for suite in CHOSEN_ON if results.has(best, suite))
    why = (
        f"on {n:,} validation cases its errors, weighted by severity, were the fewest: "
        f"{over_seeds(validation_errors(results)[best])} per 1,000"
    )
    others = f"{number(means[next_best], '.1f')} with {names[next_best]}"
    if best == SUPERVISED:
        return f"Keep {names[best]}: {why}, against {others}, the best that learned from feedback."
    if next_best != SUPERVISED:
        others = f"{number(means[SUPERVISED], '.1f')} before feedback and {others}"
    return f"Use {names[best]}: {why}, against {others}. {_afterwards(results, best)}"


def _afterwards(results: Results, system: str) -> str:
    """The chosen system (first seed) against the supervised adapter."""
    changes = []
    suites = {"heldout": "on the held-out suite", "contradiction": "where note and image contradict each other"}
    for suite, title in suites.items():
        if not results.has(system, suite):
            continue
        test = stats.compare(results.of(system, suite), results.of(SUPERVISED, suite), cluster="pair")
        changes.append(
            f"from {percent(test['accuracy_b'])} to {percent(test['accuracy_a'])} {title} "
            f"(n = {test['n']:,}, {p_text(test['p_cluster'])} by whole pair)"
        )
    return f"On cases that played no part in the choice, accuracy changed {' and '.join(changes)}."
