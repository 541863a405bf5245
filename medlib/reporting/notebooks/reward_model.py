"""Tables, figures and sentences of 06_reward_model; simulated ratings are labelled as such."""

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
    with, which only simulated raters know, and ``kind`` what decides the case.
    """
    suite, preferences = heldout_side(config)
    tables = {REWARD: reward_model.asked(config, suite), SUPERVISED: Session(config, {}).ask(ADAPTER, suite)}
    kinds = [KINDS.get(str(s.factors.get("pair_kind")), "Other") for s in suite.scenarios]
    consensus = {
        "verdict": preferences["chosen"].to_numpy(),
        "severity": preferences["severity"].to_numpy(),
        "agreement": preferences["agreement"].to_numpy(),
        "kind": kinds,
        "simulated": preferences["simulated"].to_numpy(),
    }
    return {name: frame.assign(gold=frame["verdict"], **consensus) for name, frame in tables.items()}


def validation(config: RunConfig) -> dict[str, pd.DataFrame]:
    """Predictions of both on the validation suite, with the gold verdict."""
    suite = sources.suite(config, "val")
    return {REWARD: reward_model.asked(config, suite), SUPERVISED: Session(config, {}).ask(ADAPTER, suite)}


def by_whom(held: Frames) -> str:
    """Whose preferences these are, labelled if simulated."""
    return collect_feedback_page.by_whom(next(iter(held.values())))


def right(frame: pd.DataFrame, against: str = "verdict") -> dict:
    """Share of cases whose preferred verdict is that of a column, see `stats.proportion`."""
    return stats.proportion(int((frame["predicted"] == frame[against]).sum()), len(frame))


# --- what it learned -------------------------------------------------------------------------------------


def source_sentence(config: RunConfig) -> str:
    """How many preferences it learned from, and whose."""
    known = reward_model.metadata(config)
    whose = "**simulated raters**" if known["simulated"] else "clinicians"
    temperature = known["temperature"]
    before = "overconfident" if temperature > 1 else "underconfident" if temperature < 1 else "left as it is"
    return (
        f"It learned from {known['preferences']:,} preferences of {whose}; "
        f"{known['temperature_preferences']:,} more set its temperature ({temperature:.2f}: {before}; log loss "
        f"on them {known['log_loss_before']:.3f} before, {known['log_loss_after']:.3f} after)."
    )


@plots.styled
def learning(config: RunConfig) -> Figure:
    """Training loss and share of pairs that it ranks as the raters do."""
    known = reward_model.metadata(config)
    history, whose = pd.DataFrame(known["history"]), "simulated raters'" if known["simulated"] else "clinicians'"
    figure = plots._new_figure(3.4, "Training of the reward model")
    left, axes = figure.subplots(1, 2)
    left.plot(history["step"], history["loss"], color=BLUE)
    left.axhline(np.log(2), color=GREY, linestyle="--", label="guessing")
    left.set(xlabel="Optimizer step", ylabel="Loss", ylim=(0, None))
    left.legend()
    axes.plot(history["step"], history["accuracy"], color=ORANGE)
    axes.set(xlabel="Optimizer step", ylabel=f"Pairs ranked in {whose} order", ylim=(0, 1.02))
    plots._per_cent(axes.yaxis)
    for panel in (left, axes):
        panel.grid()
    return plots._finish(figure)


def accuracy_table(held: Frames, val: Frames) -> pd.DataFrame:
    """Preference accuracy against raters and on validation, beside the baseline and, if known, the ceiling.

    Only simulated raters have known errors, so only for them the table has the gold verdict of held-out cases
    and the accuracy of a judge who always knows it.
    """
    agreement, first = f"As the {by_whom(held)}", next(iter(held.values()))
    rows = [
        {
            "Preferred by": name,
            agreement: right(frame),
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
                    (agreement, first["verdict"]),
                    ("As the gold verdict", first["gold"]),
                    ("Validation suite, gold", val[REWARD]["verdict"]),
                )
            },
        }
    )
    simulated = bool(first["simulated"].all())
    if simulated:
        ceiling = stats.proportion(int((first["verdict"] == first["gold"]).sum()), len(first))
        rows.append({"Preferred by": "Always the gold verdict", agreement: ceiling})
    table = pd.DataFrame(
        [
            {name: rate_text(value) if isinstance(value, dict) else value for name, value in row.items()}
            for row in rows
        ]
    ).fillna("")
    return table if simulated else table.drop(columns="As the gold verdict")


def accuracy_sentence(held: Frames) -> str:
    """Does the reward model agree with the raters more often than the adapter that it is to judge?"""
    ours, theirs = held[REWARD], held[SUPERVISED]
    test = stats.compare(ours, theirs, cluster="pair")
    rate = right(ours)
    start = (
        f"On {rate['n']:,} held-out preferences it agrees with the {by_whom(held)} in "
        f"{rate_text(rate)}, "
        f"{100 * test['difference']:+.1f} points [{100 * test['low']:+.1f}, {100 * test['high']:+.1f}] "
        f"compared with the adapter that it is to judge (McNemar {p_text(test['p'])}; "
        "both intervals are over cases; the result also varies with the seed)."
    )
    if test["p"] >= 0.05:
        return f"{start} These cases are too few to tell the two apart."
    return (
        f"{start} It has learned something that the adapter did not know."
        if test["difference"] > 0
        else (f"{start} It is the worse judge: a policy trained on it alone would get worse.")
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


# --- calibration and severity ----------------------------------------------------------------------------------


def calibration_sentence(held: Frames) -> str:
    """Calibration error against the raters, beside that of the adapter's own certainty."""
    errors = {name: stats.score(frame)["ece"] for name, frame in held.items()}
    return (
        f"Calibration error against the {by_whom(held)} {errors[REWARD]:.3f} (0 is perfect; "
        f"{errors[SUPERVISED]:.3f} for the adapter's own certainty), on {len(held[REWARD]):,} cases in 15 "
        f"bins, where perfect calibration would give about {chance_error(held[REWARD]):.3f} by chance."
    )


def reliability(held: Frames) -> Figure:
    """Reliability diagram of the reward model against the raters of held-out cases."""
    return plots.reliability(held[REWARD], f"Reward model against held-out {by_whom(held)}", bins=8)


def chance_error(frame: pd.DataFrame, draws: int = 200) -> float:
    """Mean calibration error of this number of cases if every probability were exactly right."""
    rng = np.random.default_rng(0)
    p = frame["p_correct"].to_numpy(float)
    return float(np.mean([stats.expected_calibration_error(p, rng.random(len(p)) < p) for _ in range(draws)]))


def severity_table(held: Frames) -> pd.DataFrame:
    """By the raters' severity: agreement, and the median margin of their verdict."""
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
                    "Margin of reward: median [quartiles]": f"{middle:.2f} [{low:.2f}, {high:.2f}]",
                }
            )
    return pd.DataFrame(rows)


def margin_for_chosen(frame: pd.DataFrame) -> np.ndarray:
    """Reward of the raters' verdict minus reward of the other, float array (n,)."""
    return np.where(frame["verdict"] == "CORRECT", 1, -1) * frame["margin"].to_numpy(float)


def severity_agreement(frame: pd.DataFrame, draws: int = 1000) -> dict:
    """Kendall's tau-b between the raters' severity of an error and the margin of ERROR.

    Returns
    -------
    dict with ``value``, ``n`` and the 95% bootstrap interval ``low``, ``high``; nan with one severity only.
    """
    errors = frame[frame["verdict"] == "ERROR"]
    if errors["severity"].nunique() < 2:
        return {"value": np.nan, "n": len(errors), "low": np.nan, "high": np.nan}
    level, ahead = errors["severity"].map(SEVERITIES.index).to_numpy(), margin_for_chosen(errors)
    rng = np.random.default_rng(0)
    samples = [rng.integers(len(errors), size=len(errors)) for _ in range(draws)]
    taus = [kendalltau(level[d], ahead[d]).statistic for d in samples]
    low, high = np.nanquantile(taus, [0.025, 0.975]) if np.isfinite(taus).any() else (np.nan, np.nan)
    return {
        "value": float(kendalltau(level, ahead).statistic),
        "n": len(errors),
        "low": float(low),
        "high": float(high),
    }


def severity_sentence(held: Frames) -> str:
    """Is the margin larger for more severe errors? It need not be: the weights are given, not learned."""
    tau = severity_agreement(held[REWARD])
    if not np.isfinite(tau["value"]):
        return "These cases do not hold errors of two severities, so no relation can be measured."
    means = (
        "it is more certain about more severe errors"
        if tau["low"] > 0
        else "it is less certain about more severe errors"
        if tau["high"] < 0
        else "no relation distinguishable from chance"
    )
    return (
        f"Kendall's tau between severity by the {by_whom(held)} and margin is {tau['value']:+.2f} "
        f"[{tau['low']:+.2f}, {tau['high']:+.2f}] on {tau['n']} errors: {means}. The reward model "
        "does not see severity, so 07_rl weights its opinion by the raters' severity."
    )


def meaning_sentence(held: Frames) -> str:
    """Whether the next step may rely on it."""
    rate = right(held[REWARD])
    if rate["low"] <= 0.5:
        return (
            "**It is not distinguishable from guessing, so nothing should be trained on it.** Collect more "
            "ratings or lower the learning rate first."
        )
    return (
        f"Of 100 verdicts of the {by_whom(held)} it prefers about {100 * rate['value']:.0f}; its reward is "
        f"wrong in up to {100 * (1 - rate['low']):.0f} of 100 new cases. So 07_rl keeps the policy near the "
        "supervised adapter and monitors figures that the reward does not cover."
    )
