"""Which way of learning from feedback to use: tables over the predictions of every method and seed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import pandas as pd

from medlib import stats
from medlib.config import METHODS, SEVERITIES, RunConfig
from medlib.evaluation.results import Results
from medlib.feedback.rl import runs as rl_runs
from medlib.stats import prevalence
from medlib.stats.text import number, over_seeds, p_text, percent

SUPERVISED = "medgemma-lora"
#: The systems that are compared.
COMPARED = (SUPERVISED, *(f"medgemma-{method}" for method in METHODS))
#: Suites on which a method is chosen; the held-out ones are only looked at afterwards.
CHOSEN_ON = ("tuning", "val_contradiction")


def run_names(config: RunConfig) -> list[str]:
    """The supervised adapter, and every run of every method; that of the first seed carries no number."""
    runs = [
        f"medgemma-{method}" + ("" if seed == config.seed else f":{seed}")
        for method in config.rl_methods
        for seed in rl_runs.seeds(config)
    ]
    return [SUPERVISED, *runs]


def weights(config: RunConfig) -> dict[str, float]:
    """What a wrong verdict weighs by severity; a query without need weighs 1."""
    return {"none": 1.0, **dict(zip(SEVERITIES, config.miss_weights))}


def by_suite(results: Results, config: RunConfig) -> dict[str, list[tuple[float, ...]]]:
    """`prevalence.expected_error` on each suite of `CHOSEN_ON`, by system and seed."""
    return _by_suite(results, config.error_prevalence, tuple(weights(config).items()))


@lru_cache(maxsize=4)
def _by_suite(results: Results, share: float, weighed: tuple) -> dict[str, list[tuple[float, ...]]]:
    suites = [suite for suite in CHOSEN_ON if results.has(SUPERVISED, suite)]
    errors = {
        system: [
            tuple(prevalence.expected_error(results.of(run, suite), share, dict(weighed)) for suite in suites)
            for run in results.seeds(system, CHOSEN_ON[0])
            if all(results.has(run, suite) for suite in suites)
        ]
        for system in COMPARED
    }
    return {system: values for system, values in errors.items() if values}


def validation_errors(results: Results, config: RunConfig) -> dict[str, list[float]]:
    """Expected weight of the errors in 1,000 cases by system and seed, at the prevalences of the configuration."""
    return {
        system: [_mixed(errors, config.note_prevalence) for errors in seeds]
        for system, seeds in by_suite(results, config).items()
    }


def _mixed(errors: tuple[float, ...], notes: float) -> float:
    """Of cases of which this share has a contradicting note; without such cases there is nothing to mix."""
    return errors[0] if len(errors) == 1 else (1 - notes) * errors[0] + notes * errors[1]


def _ranking(results: Results, config: RunConfig, notes: float | None = None) -> dict[str, float]:
    """Mean expected weight of errors on validation by system, least first; none where a verdict does not occur."""
    notes = config.note_prevalence if notes is None else notes
    means = {
        system: float(np.mean([_mixed(errors, notes) for errors in seeds]))
        for system, seeds in by_suite(results, config).items()
    }
    known = {system: mean for system, mean in means.items() if not np.isnan(mean)}
    return dict(sorted(known.items(), key=lambda item: item[1]))


def recommended(results: Results, config: RunConfig) -> str | None:
    """The system of least expected error on validation; None before any method was asked about it.

    Where these cases do not hold both verdicts, nothing is shown to be better than the supervised adapter.

    The rule stands before any held-out figure is seen: it reads `CHOSEN_ON` and the prevalences only.
    """
    ranking = _ranking(results, config)
    if len(ranking) > 1:
        return next(iter(ranking))
    return SUPERVISED if len(by_suite(results, config)) > 1 else None


def flips(results: Results, config: RunConfig, most: float = 0.5) -> list[tuple[float, str]]:
    """(share of contradicting notes, system recommended from there on), in steps of 0.1 points."""
    found: list[tuple[float, str]] = []
    for notes in np.arange(0, most + 1e-9, 0.001):
        best = next(iter(_ranking(results, config, float(notes))))
        if not found or found[-1][1] != best:
            found.append((float(notes), best))
    return found


def table(results: Results, config: RunConfig) -> pd.DataFrame:
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
                "validation_errors": validation_errors(results, config).get(system, []),
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


def recommendation(results: Results, config: RunConfig, names: Mapping[str, str]) -> str:
    """Which system to use, chosen on validation, and what it does on cases that played no part in the choice."""
    best = recommended(results, config)
    if best is None:
        return ""
    means = _ranking(results, config)
    if best not in means:
        why = "the validation cases do not hold both verdicts, so nothing shows that feedback helped"
        return f"Keep {names[best]}: {why}."
    next_best = list(means)[1]
    suites = [suite for suite in CHOSEN_ON if results.has(best, suite)]
    n = sum(len(results.of(best, suite)) for suite in suites)
    notes = f" and {percent(config.note_prevalence)} contradicting notes" if len(suites) > 1 else ""
    why = (
        f"at an assumed {percent(config.error_prevalence)} errors{notes} the expected weight of its errors is "
        f"least on {n:,} validation cases: {over_seeds(validation_errors(results, config)[best])} per 1,000"
    )
    others = f"{number(means[next_best], '.1f')} with {names[next_best]}"
    turns = _flips_sentence(results, config, names) if len(suites) > 1 else ""
    if best == SUPERVISED:
        return f"Keep {names[best]}: {why}, against {others}, the best that learned from feedback. {turns}".strip()
    if next_best != SUPERVISED:
        others = f"{number(means[SUPERVISED], '.1f')} before feedback and {others}"
    return " ".join(
        filter(None, [f"Use {names[best]}: {why}, against {others}.", turns, _afterwards(results, best)])
    )


def _flips_sentence(results: Results, config: RunConfig, names: Mapping[str, str]) -> str:
    """Where another share of contradicting notes would change the recommendation."""
    (_, first), *others = flips(results, config)
    if not others:
        return f"That holds for any share of contradicting notes up to 50%: {names[first]}."
    turns = ", ".join(f"from {percent(notes)} on {names[system]}" for notes, system in others)
    return f"It depends on the share of contradicting notes: at first {names[first]}, {turns}."


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
