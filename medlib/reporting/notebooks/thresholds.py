"""Table, figure and sentences about the decision threshold, for 07_rl; the numbers come from `medlib.stats.risk`.

Thresholds are chosen on the calibration cases and measured on the held-out suite.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.special import logit
from scipy.stats import binom

from medlib.config import ADAPTER, RunConfig
from medlib.evaluation import summary
from medlib.evaluation.results import Results
from medlib.reporting import plots
from medlib.reporting.plots import LETTERS, PALETTE
from medlib.reporting.show import ALPHA
from medlib.stats import risk
from medlib.stats.risk import Choice
from medlib.stats.text import misses_text, p_text, percent, rate_text, spread_text, threshold_text

#: Probabilities are drawn no nearer to 0 and 1 than this.
EDGE = 1e-5
TICKS = (1e-4, 1e-3, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)


def _or_why_not(instead: Callable) -> Callable:
    """Decorator: ``instead(reason)`` where the calibration cases are too few to choose a threshold on."""

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def guarded(*args, **options):
            try:
                return function(*args, **options)
            except risk.RiskError as error:
                return instead(f"No threshold can be chosen: {error}.")

        return guarded

    return decorate


_reason = _or_why_not(str)
_reason_as_table = _or_why_not(lambda reason: pd.DataFrame({"Threshold": [reason]}))
_no_figure = _or_why_not(lambda reason: None)


def systems(results: Results) -> list[str]:
    """Systems that were asked about the calibration cases and the held-out suite."""
    return [name for name in results.systems("calibration") if results.has(name, "heldout")]


@lru_cache(maxsize=32)
def choices(results: Results, config: RunConfig, name: str = ADAPTER) -> list[Choice]:
    """What each rule chooses for a system; promises hold for all systems there are at once."""
    return risk.rules(
        results.of(name, "calibration"), config.risk_level, config.risk_confidence, len(systems(results))
    )


def at(results: Results, choice: Choice, name: str, suite: str = "heldout") -> dict:
    """What a choice measures on a suite, see `medlib.stats.risk.measure`."""
    return risk.measure(risk.apply(results.of(name, suite), choice.threshold))


@_reason_as_table
def table(results: Results, config: RunConfig) -> pd.DataFrame:
    """Every system at the threshold of every rule: chosen on calibration cases, measured held out.

    In brackets after the misses stands the one-sided 95% limit of their rate.
    """
    names, rows = summary.figure_names(config), []
    for name in systems(results):
        for choice in choices(results, config, name):
            calibration, heldout = (at(results, choice, name, suite) for suite in ("calibration", "heldout"))
            rows.append(
                {
                    "System": names.get(name, name),
                    "Rule": choice.rule,
                    "CORRECT from": threshold_text(choice.threshold),
                    "Promised at most": promised_text(choice),
                    "Critical missed, calibration (95% limit)": misses_text(calibration["critical_misses"]),
                    "Critical missed, held out (95% limit)": misses_text(heldout["critical_misses"]),
                    "False alarms, held out": rate_text(heldout["false_alarms"]),
                    "Accuracy, held out": rate_text(heldout["accuracy"]),
                    "Spread (points)": spread_text(heldout),
                }
            )
    return pd.DataFrame(rows)


def promised_text(choice: Choice) -> str:
    """The promised share of critical errors missed, and that of cells; for the same kinds of cases."""
    if choice.level is None:
        return "nothing"
    by_cell = choice.level_by_cell
    cells = "" if by_cell is None else f"; {percent(by_cell)} of {choice.cells:,} cells"
    return f"{percent(choice.level, 2)} of critical errors{cells}"


@_no_figure
@plots.styled
def curves(results: Results, config: RunConfig, name: str = ADAPTER) -> Figure:
    """Missed critical errors and false alarms at every threshold, and where each rule puts it.

    Parameters
    ----------
    results : Results
    config : RunConfig
    name : str
        The system.
    """
    system = summary.figure_names(config).get(name, name)
    chosen = choices(results, config, name)
    figure = plots._new_figure(5.4, f"{system}: what the threshold trades")
    panels = figure.subplots(2, 1, sharex=True)
    titles = {"critical_misses": "Critical errors called CORRECT", "false_alarms": "Valid treatments called ERROR"}
    for axes, (column, title) in zip(panels, titles.items()):
        for number, suite in enumerate(("calibration", "heldout")):
            _steps(axes, risk.curve(results.of(name, suite)), column, number, suite)
        for number, choice in enumerate(chosen):
            axes.axvline(
                _place(choice.threshold),
                color="black",
                linestyle=(":", "-", "--")[number],
                linewidth=1.6,
                label=f"{choice.rule}: {threshold_text(choice.threshold)}",
            )
        axes.set_title(title, fontsize=LETTERS)
        # few errors and many must both be read, and none at all is the point of it
        axes.set_yscale("symlog", linthresh=0.01, linscale=0.8)
        axes.set_yticks([0, 0.005, 0.01, 0.1, 1], ["0%", "0.5%", "1%", "10%", "100%"])
        axes.minorticks_off()
        axes.set_ylim(-0.0006, 1.4)
        axes.grid()
    panels[1].set_xlabel("CORRECT from this probability on")
    panels[1].set_xticks(logit(TICKS), [f"{tick:g}" for tick in TICKS])
    panels[1].set_xlim(_place(0), _place(1))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=1)
    return plots._finish(figure)


def _place(p):
    return logit(np.clip(p, EDGE, 1 - EDGE))


def _steps(axes, curve: pd.DataFrame, column: str, number: int, suite: str) -> None:
    curve = curve.sort_values("threshold")
    # a row holds from just above the threshold below it up to its own; thresholds end at both edges
    x, y = _place(curve["threshold"].to_numpy()), curve[column].to_numpy()
    axes.step(
        np.concatenate([[_place(0)], x]),
        np.concatenate([y[:1], y]),
        where="pre",
        linewidth=2,
        color=PALETTE[number],
        label={"calibration": "calibration cases", "heldout": "held-out cases"}[suite],
    )


# --- in words ---------------------------------------------------------------------------------------


@_reason
def promise_sentence(results: Results, config: RunConfig, name: str = ADAPTER) -> str:
    """What is promised, and what is not."""
    chosen = choices(results, config, name)
    sentences = [f"**{choice.rule.capitalize()}**: {choice.guarantee}" for choice in chosen[1:]]
    if len(chosen) < 3:
        sentences.append(
            f"A level of {percent(config.risk_level, 2)} cannot be shown with {chosen[0].critical:,} critical "
            f"calibration cases; the lowest that can is {percent(chosen[1].level, 2)}."
        )
    sentences.append(
        "The promise is for the same kinds of cases, without contradicting notes: drawn like the calibration "
        "cases. It says nothing about new kinds of cases, another hospital, other images or other words, about "
        "one modality by itself, or about a single patient. Settings and methods were chosen on the tuning "
        "suite, so nothing but this threshold was chosen on the calibration cases. The held-out suite has other "
        "words, so there the promise is put to the test, not inherited."
    )
    return " ".join(sentences)


@_reason
def heldout_sentence(results: Results, config: RunConfig, name: str = ADAPTER) -> str:
    """What the strict threshold does on cases that played no part in choosing it, in plain words."""
    choice = choices(results, config, name)[1]
    calibration, heldout = results.of(name, "calibration"), results.of(name, "heldout")
    premise, figures = _premise(calibration, heldout), at(results, choice, name)
    missed, alarms = figures["critical_misses"], figures["false_alarms"]
    words = (
        f"A treatment passes only if the model gives it a probability of {threshold_text(choice.threshold)} "
        "or more of being right"
        if choice.threshold <= 1
        else "No treatment passes"
    )
    return (
        f"{words}. Of {choice.critical:,} critical calibration errors this lets none through; of "
        f"{missed['n']:,} critical held-out errors {missed['count']:,} (at most {percent(missed['upper'])}, "
        f"one-sided 95% limit). The price: {_count(alarms):,} of {alarms['n']:,} valid treatments are "
        f"queried without need, {rate_text(alarms)}. {_promise_kept(choice, missed)} "
        f"{premise} {_hindsight(heldout, missed)}"
    ).strip()


def _count(rate: Mapping) -> int:
    return round(rate["value"] * rate["n"])


def _promise_kept(choice: Choice, missed: Mapping) -> str:
    """Whether the promised rate held on the other suite, with the chance of so many misses if it does hold."""
    rate = missed["count"] / missed["n"]
    figures = f"{percent(rate, 2)} missed, at most {percent(choice.level, 2)} promised"
    if rate <= choice.level:
        return f"The measured rate is within the promise ({figures})."
    p = float(binom.sf(missed["count"] - 1, missed["n"], choice.level))
    beyond = "beyond chance: the promise does not carry over" if p < ALPHA else "which may be chance"
    return f"More is missed there than promised, {beyond} ({figures}; so many if it held: {p_text(p)})."


def _premise(calibration: pd.DataFrame, heldout: pd.DataFrame) -> str:
    p = risk.same_distribution(calibration, heldout)
    relation = "differ from" if p < ALPHA else "cannot be told from"
    return (
        f"The probabilities of critical errors there {relation} those on calibration cases (Kolmogorov-Smirnov "
        f"{p_text(p)})."
    )


def _hindsight(heldout: pd.DataFrame, missed: Mapping) -> str:
    """What it would have taken to miss none: for judging the model, never for choosing a threshold."""
    if missed["count"] == 0:
        return ""
    needed = risk.choose(heldout)
    where = f"a threshold of {threshold_text(needed.threshold)}" if needed.threshold <= 1 else "passing nothing"
    return (
        f"Looked up afterwards, and so no choice: to miss none of them would take {where}, with "
        f"{percent(needed.false_alarms['value'])} false alarms."
    )


@_reason
def rules_sentence(results: Results, config: RunConfig, name: str = ADAPTER) -> str:
    """What the rule that tolerates the level does differently, and which of them to use."""
    chosen = choices(results, config, name)
    if len(chosen) < 3:
        return ""
    tolerated = f"{100 * config.risk_level:.3g}%"
    firm, loose = (at(results, choice, name) for choice in chosen[1:])
    if chosen[2].threshold == chosen[1].threshold:
        return f"To tolerate {tolerated} changes nothing: the threshold is the same."
    return (
        f"To tolerate {tolerated} of the critical errors missed lets the threshold fall to "
        f"{threshold_text(chosen[2].threshold)}: {_count(loose['false_alarms']):,} instead of "
        f"{_count(firm['false_alarms']):,} false alarms in {firm['false_alarms']['n']:,}, and "
        f"{loose['critical_misses']['count']:,} instead of {firm['critical_misses']['count']:,} critical errors "
        f"missed in {firm['critical_misses']['n']:,}. Where no critical error may pass, take the strict one."
    )


@_reason_as_table
def targets(results: Results, config: RunConfig) -> pd.DataFrame:
    """The four targets of the last rung for each system, at its strict threshold, on the held-out suite."""
    names, parts = summary.figure_names(config), []
    for name in systems(results):
        strict = choices(results, config, name)[1]
        part = risk.targets(risk.apply(results.of(name, "heldout"), strict.threshold))
        parts.append(part.assign(System=names.get(name, name)))
    return pd.concat(parts, ignore_index=True)[["System", "Figure", "Target", "Measured", "Met"]]
