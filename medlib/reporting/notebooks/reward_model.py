"""Tables, figures and sentences of 06_reward_model; simulated ratings are called so."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import kendalltau

from medlib import stats
from medlib.config import RunConfig
from medlib.data import sources
from medlib.feedback import reward_model
from medlib.feedback.preferences import heldout_side
from medlib.feedback.rating_store import ADAPTER, SEVERITY_LEVELS
from medlib.reporting import plots
from medlib.reporting.notebooks import collect_feedback as collect_feedback_page
from medlib.reporting.notebooks.collect_feedback import KINDS
from medlib.reporting.plots import BLUE, GREY, ORANGE
from medlib.stats.text import p_text, rate_text
from medlib.systems import Session

REWARD, SUPERVISED = "Reward model", "Supervised adapter's own certainty"
SEVERITIES = SEVERITY_LEVELS
Frames = Mapping[str, pd.DataFrame]


def frames(config: RunConfig) -> dict[str, pd.DataFrame]:
    """Predictions of the reward model and of the supervised adapter on the held-out side of the ratings.

    ``verdict`` and ``severity`` are the raters' consensus; ``gold`` is the verdict that a scenario was made
    with, which only simulated raters know of, and ``kind`` what decides the case.
    """
    suite, preferences = heldout_side(config)
    asked = {REWARD: reward_model.asked(config, suite), SUPERVISED: Session(config, {}).ask(ADAPTER, suite)}
    kinds = [KINDS.get(s.factors.get("pair_kind"), "Other") for s in suite.scenarios]
    consensus = {
        "verdict": preferences["chosen"].to_numpy(),
        "severity": preferences["severity"].to_numpy(),
        "agreement": preferences["agreement"].to_numpy(),
        "kind": kinds,
        "simulated": preferences["simulated"].to_numpy(),
    }
    return {name: frame.assign(gold=frame["verdict"], **consensus) for name, frame in asked.items()}


def validation(config: RunConfig) -> dict[str, pd.DataFrame]:
    """The same two on the validation suite, against the gold verdict."""
    suite = sources.suite(config, "val")
    return {REWARD: reward_model.asked(config, suite), SUPERVISED: Session(config, {}).ask(ADAPTER, suite)}


def by_whom(held: Frames) -> str:
    """Whose preferences these are; simulated raters are called so."""
    return collect_feedback_page.by_whom(next(iter(held.values())))


def right(frame: pd.DataFrame, against: str = "verdict") -> dict:
    """Share of cases whose preferred verdict is the one of a column, see `stats.proportion`."""
    return stats.proportion(int((frame["predicted"] == frame[against]).sum()), len(frame))


# --- what it learned -------------------------------------------------------------------------------------


def source_sentence(config: RunConfig) -> str:
    """How many preferences it learned from, and whose they are."""
    known = reward_model.metadata(config)
    whose = "**simulated raters**" if known["simulated"] else "clinicians"
    before = "too sure" if known["temperature"] > 1 else "not sure enough"
    return (
        f"It learned from {known['preferences']:,} preferences of {whose}; "
        f"{known['temperature_preferences']:,} more set its temperature ({known['temperature']:.2f}: it was "
        f"{before})."
    )


@plots.styled
def learning(config: RunConfig) -> Figure:
    """Loss and share of pairs in the raters' order while it learned."""
    known = reward_model.metadata(config)
    history, whose = pd.DataFrame(known["history"]), "simulated raters'" if known["simulated"] else "clinicians'"
    figure = plots._new_figure(3.4, "What the reward model made of its training pairs")
    left, axes = figure.subplots(1, 2)
    left.plot(history["step"], history["loss"], color=BLUE)
    left.axhline(np.log(2), color=GREY, linestyle="--", label="guessing")
    left.set(xlabel="Optimiser step", ylabel="Loss", ylim=(0, None))
    left.legend()
    axes.plot(history["step"], history["accuracy"], color=ORANGE)
    axes.set(xlabel="Optimiser step", ylabel=f"Pairs in {whose} order", ylim=(0, 1.02))
    plots._per_cent(axes.yaxis)
    for panel in (left, axes):
        panel.grid()
    return plots._finish(figure)


def accuracy_table(held: Frames, val: Frames) -> pd.DataFrame:
    """Preference accuracy against raters and on validation, beside the least and, if known, the most there is.

    Only a simulated rater's errors are known to be errors, so only there stand the gold verdict of held-out
    cases and the share that somebody reaches who always knows it.
    """
    agrees, known = f"As the {by_whom(held)}", next(iter(held.values()))
    rows = [
        {
            "Preferred by": name,
            agrees: right(frame),
            "As the gold verdict": right(frame, "gold"),
            "Validation suite, gold": right(val[name]),
        }
        for name, frame in held.items()
    ]
    rows.append(
        {
            "Preferred by": "Always the more frequent verdict",
            **{
                column: stats.proportion(int(verdicts.value_counts().max()), len(verdicts))
                for column, verdicts in (
                    (agrees, known["verdict"]),
                    ("As the gold verdict", known["gold"]),
                    ("Validation suite, gold", val[REWARD]["verdict"]),
                )
            },
        }
    )
    simulated = bool(known["simulated"].all())
    if simulated:
        ceiling = stats.proportion(int((known["verdict"] == known["gold"]).sum()), len(known))
        rows.append({"Preferred by": "Who always knows the gold verdict", agrees: ceiling})
    table = pd.DataFrame(
        [
            {name: rate_text(value) if isinstance(value, dict) else value for name, value in row.items()}
            for row in rows
        ]
    ).fillna("")
    return table if simulated else table.drop(columns="As the gold verdict")


def accuracy_sentence(held: Frames) -> str:
    """Is the reward model above chance, and does it prefer better than the adapter it judges?"""
    ours, theirs = held[REWARD], held[SUPERVISED]
    test = stats.compare(ours, theirs, cluster="pair")
    rate = right(ours)
    start = (
        f"On {rate['n']:,} held-out preferences it agrees with the {by_whom(held)} in "
        f"{rate_text(rate)}, "
        f"{100 * test['difference']:+.1f} points [{100 * test['low']:+.1f}, {100 * test['high']:+.1f}] "
        f"against the adapter that it is to judge (McNemar {p_text(test['p'])}; "
        "both intervals are over cases, and another seed makes another reward model)."
    )
    if test["p"] >= 0.05:
        return f"{start} So many cases cannot tell the two apart."
    return (
        f"{start} It has learned something that the adapter did not know."
        if test["difference"] > 0
        else (f"{start} It is the worse judge, and a policy trained on it alone would lose.")
    )


def kind_table(held: Frames) -> pd.DataFrame:
    """Agreement with the raters by what decides a case."""
    rows = []
    for kind, ours in held[REWARD].groupby("kind"):
        theirs = held[SUPERVISED].loc[ours.index]
        rows.append(
            {
                "What decides": kind,
                "Cases": len(ours),
                REWARD: rate_text(right(ours)),
                SUPERVISED: rate_text(right(theirs)),
            }
        )
    return pd.DataFrame(rows)


# --- how sure, how severe ----------------------------------------------------------------------------------


def calibration_sentence(held: Frames) -> str:
    """Calibration error against the raters, beside that of the adapter's own certainty."""
    errors = {name: stats.score(frame)["ece"] for name, frame in held.items()}
    return (
        f"Calibration error against the {by_whom(held)} {errors[REWARD]:.3f} (0 is perfect; "
        f"{errors[SUPERVISED]:.3f} for the adapter's own certainty), on {len(held[REWARD]):,} cases in 15 "
        f"bins, where chance alone makes it about {chance_error(held[REWARD]):.3f}."
    )


def reliability(held: Frames) -> Figure:
    """Reliability diagram of the reward model against the raters of held-out cases."""
    return plots.reliability(held[REWARD], f"Reward model against held-out {by_whom(held)}", bins=8)


def chance_error(frame: pd.DataFrame, draws: int = 200) -> float:
    """Mean calibration error of as many cases if every probability were exactly right."""
    rng = np.random.default_rng(0)
    p = frame["p_correct"].to_numpy(float)
    return float(np.mean([stats.expected_calibration_error(p, rng.random(len(p)) < p) for _ in range(draws)]))


def severity_table(held: Frames) -> pd.DataFrame:
    """By the raters' severity: agreement, and the median reward by which their verdict is ahead."""
    frame, rows, whose = held[REWARD], [], by_whom(held)
    ahead = margin_for_chosen(frame)
    for severity in SEVERITIES:
        here = (frame["severity"] == severity).to_numpy()
        if here.any():
            low, middle, high = np.quantile(ahead[here], [0.25, 0.5, 0.75])
            rows.append(
                {
                    f"Severity by the {whose}": severity if severity != "none" else "none (CORRECT)",
                    "Cases": int(here.sum()),
                    "Prefers their verdict": rate_text(right(frame[here])),
                    "Reward ahead: median [quartiles]": f"{middle:.2f} [{low:.2f}, {high:.2f}]",
                }
            )
    return pd.DataFrame(rows)


def margin_for_chosen(frame: pd.DataFrame) -> np.ndarray:
    """Reward of the raters' verdict minus reward of the other, float array (n,)."""
    return np.where(frame["verdict"] == "CORRECT", 1, -1) * frame["margin"].to_numpy(float)


def severity_agreement(frame: pd.DataFrame, draws: int = 1000) -> dict:
    """Kendall's tau-b between the raters' severity of an error and the reward by which ERROR is ahead.

    Returns
    -------
    dict with ``value``, ``n`` and the 95% bootstrap interval ``low``, ``high``; nan with one severity only.
    """
    errors = frame[frame["verdict"] == "ERROR"]
    level, ahead = errors["severity"].map(SEVERITIES.index).to_numpy(), margin_for_chosen(errors)
    rng = np.random.default_rng(0)
    draws = [rng.integers(len(errors), size=len(errors)) for _ in range(draws)]
    taus = [kendalltau(level[d], ahead[d]).statistic for d in draws]
    low, high = np.nanquantile(taus, [0.025, 0.975]) if np.isfinite(taus).any() else (np.nan, np.nan)
    return {
        "value": float(kendalltau(level, ahead).statistic),
        "n": len(errors),
        "low": float(low),
        "high": float(high),
    }


def severity_sentence(held: Frames) -> str:
    """Is the reward larger where more is at stake? It was not asked to be: the weights are given, not learned."""
    tau = severity_agreement(held[REWARD])
    if not np.isfinite(tau["value"]):
        return "All errors among these cases have one severity, so nothing can be said about it."
    means = (
        "it is surer of more severe errors"
        if tau["low"] > 0
        else "it is less sure of more severe errors"
        if tau["high"] < 0
        else "no relation can be told from chance"
    )
    return (
        f"Kendall's tau between severity by the {by_whom(held)} and margin is {tau['value']:+.2f} "
        f"[{tau['low']:+.2f}, {tau['high']:+.2f}] on {tau['n']} errors: {means}. The reward model "
        "knows no severity, so 07_rl weighs its opinion by the severity that the raters gave."
    )


def meaning_sentence(held: Frames) -> str:
    """What the next step may rest on."""
    rate = right(held[REWARD])
    if rate["low"] <= 0.5:
        return (
            "**It cannot be told from guessing, so nothing should be trained on it.** More ratings, or a "
            "smaller learning rate, come first."
        )
    return (
        f"Of 100 verdicts that the {by_whom(held)} hold, it prefers about {100 * rate['value']:.0f}; a "
        f"policy that is paid by it is paid wrongly in up to {100 * (1 - rate['low']):.0f} of 100 new cases, "
        "which is why 07_rl keeps the policy near the supervised adapter and watches what the reward does not "
        "see."
    )
