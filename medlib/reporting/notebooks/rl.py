"""What 07_rl shows: methods that learned from feedback, side by side."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from medlib.config import METHODS, RunConfig
from medlib.data import sources
from medlib.data.suite import Suite
from medlib.evaluation import compare_methods, summary
from medlib.evaluation.results import Results
from medlib.feedback import reward_model
from medlib.feedback.preferences import training_side
from medlib.feedback.rl import rewards
from medlib.feedback.rl.runs import constants, seeds
from medlib.reporting import plots
from medlib.reporting.plots import GREY, LETTERS, MARKERS, PALETTE
from medlib.reporting.show import fact
from medlib.stats.text import over_seeds, percent, rate_text
from medlib.training import adapters

WATCHED = {
    "kl": "KL from the supervised adapter (nats)",
    "reward": "Mean reward",
    "accuracy": "Right verdicts",
    "parsed": "Answers that parse",
    "length": "Letters in an answer",
    "same_answer": "Most frequent verdict",
}
SHARES = ("accuracy", "parsed", "same_answer")
#: Beside what the seeds do, a change of this size in what is monitored is reported.
DRIFT = 0.05


@plots.styled
def watched(history: pd.DataFrame, config: RunConfig) -> Figure:
    """What was watched on validation cases while each method learned; a line is the mean over seeds.

    Parameters
    ----------
    history : DataFrame of `medlib.feedback.rl.runs.history`
    """
    probes = history.dropna(subset=["probe_kl"])
    figure = plots._new_figure(7.4, "Watched while learning, on validation cases")
    grid = figure.subplots(3, 2, sharex=True)
    for axes, (name, title) in zip(grid.flat, WATCHED.items()):
        for number, (method, part) in enumerate(probes.groupby("method", sort=False)):
            values = part.groupby("update")[f"probe_{name}"]
            mean = values.mean()
            axes.fill_between(
                mean.index, values.min(), values.max(), alpha=0.15, color=PALETTE[number], linewidth=0
            )
            axes.plot(
                mean.index,
                mean,
                marker=MARKERS[number],
                markersize=4,
                color=PALETTE[number],
                label=METHODS[method],
            )
        axes.set_title(title, fontsize=LETTERS)
        axes.grid()
        if name in SHARES:
            plots._per_cent(axes.yaxis)
            axes.set_ylim(top=1.005)
    if probes["probe_kl"].max() > config.rl_kl_limit / 2:
        grid[0, 0].axhline(config.rl_kl_limit, color=GREY, linestyle="--", label="limit")
    for axes in grid[-1]:
        axes.set_xlabel("Updates")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return plots._finish(figure)


def watched_sentence(history: pd.DataFrame, config: RunConfig) -> str:
    """Did a run leave the supervised adapter too far behind, or earn reward in a way that nobody meant?"""
    probes = history.dropna(subset=["probe_kl"])
    ends = kept(history).sort_values("update").groupby(["method", "seed"])
    first, last = ends.first(), ends.last()
    far = last["probe_kl"].max()
    sentences = [
        f"No run went further than {probes['probe_kl'].max():.2f} nats from the supervised adapter "
        f"(limit {config.rl_kl_limit:g}; {far:.2f} at the end)."
    ]
    if probes["probe_kl"].max() > config.rl_kl_limit:
        sentences = [
            f"A run was stopped at {probes['probe_kl'].max():.2f} nats, above the limit of "
            f"{config.rl_kl_limit:g}; kept is the adapter of the last measurement within it."
        ]
    gain = last["probe_reward"] - first["probe_reward"]
    signs = {
        "fewer answers parse": first["probe_parsed"] - last["probe_parsed"] > DRIFT,
        "one verdict is given more often": last["probe_same_answer"] - first["probe_same_answer"] > 2 * DRIFT,
        "reward rose while right verdicts fell": (gain > 0)
        & (first["probe_accuracy"] - last["probe_accuracy"] > DRIFT),
    }
    for what, where in signs.items():
        if where.any():
            sentences.append(f"Warning: {what} in {_runs_text(where[where].index)}.")
    if len(sentences) == 1:
        right = [percent(ends["probe_accuracy"].mean()) for ends in (first, last)]
        sentences.append(
            f"No sign of a hacked reward on {len(sources.monitoring(config))} validation cases: at "
            f"least {percent(last['probe_parsed'].min(), 0)} of the answers parse, neither verdict takes over, "
            f"and right verdicts go from {right[0]} to {right[1]}."
        )
    return " ".join([*sentences, *_reach(history)])


def kept(history: pd.DataFrame) -> pd.DataFrame:
    """Measurements of adapters that a run may end with: all but those beyond the limit."""
    probes = history.dropna(subset=["probe_kl"])
    return probes[probes["stopped"].isna()] if "stopped" in probes else probes


def _reach(history: pd.DataFrame) -> list[str]:
    """The share of visits that the KL penalty reaches, in a sentence; none without a method that samples."""
    if "informative" not in history:
        return []
    shares = history.groupby("method", sort=False)["informative"].mean().dropna()
    if shares.empty:
        return []
    reached = " and ".join(f"{percent(share, 0)} ({METHODS[method]})" for method, share in shares.items())
    return [
        "To save time only answers that still teach something are learned from, so the KL penalty and the pull "
        f"towards a verdict reach {reached} of the visits; the limit counts all cases."
    ]


def _runs_text(index) -> str:
    return ", ".join(f"{METHODS[method]} (seed {seed})" for method, seed in index)


def methods_table(results: Results, config: RunConfig) -> pd.DataFrame:
    """One row per method, figures over its seeds, see `over_seeds`."""
    names, table = summary.figure_names(config), compare_methods.table(results, config)
    rows = [
        {
            "System": names[row["system"]],
            "Seeds": row["seeds"],
            "Validation: expected errors / 1000": over_seeds(row["validation_errors"]),
            f"Accuracy, held out (n={row['n']:,})": over_seeds(row["accuracy"], ".2%"),
            "Note contradicts image": over_seeds(row["contradiction"], ".1%"),
            f"Critical errors missed of {row['critical']:,}": over_seeds(row["critical_misses"]),
            "False alarms": over_seeds(row["false_alarms"], ".2%"),
            "Spread (points)": over_seeds(row["spread"]),
        }
        for row in table.to_dict(orient="records")
    ]
    return pd.DataFrame(rows)


def cost_table(config: RunConfig) -> pd.DataFrame:
    """Seconds and updates of each method, mean over seeds."""
    rows = []
    for method in config.rl_methods:
        runs = [adapters.rl_metadata(config, method, seed) for seed in seeds(config)]
        runs = [run for run in runs if run]
        if runs:
            rows.append(
                {
                    "Method": METHODS[method],
                    "Runs": len(runs),
                    "Cases": runs[0]["cases"],
                    "Of them rehearsed": runs[0]["rehearsed"],
                    "Visits a run": runs[0]["visits"],
                    "Sampling temperature": fact(constants(method).get("TEMPERATURE")),
                    "Seconds a run": round(float(np.mean([run["wall_seconds"] for run in runs]))),
                    "Device": runs[0]["device"],
                }
            )
    return pd.DataFrame(rows)


def recommendation(results: Results, config: RunConfig) -> str:
    """Which to use, and why; see `medlib.evaluation.compare_methods.recommendation`."""
    return compare_methods.recommendation(results, config, summary.figure_names(config))


def kind_table(results: Results, config: RunConfig) -> pd.DataFrame:
    """Valid treatments recognised and errors caught where note and image disagree, first seeds."""
    names, rows = summary.figure_names(config), []
    for name in compare_methods.COMPARED:
        if results.has(name, "contradiction"):
            score = results.score(name, "contradiction")
            rows.append(
                {
                    "System": names[name],
                    "Valid treatments recognised": rate_text(score["sensitivity"]),
                    "Errors caught": rate_text(score["specificity"]),
                }
            )
    return pd.DataFrame(rows)


# ---- one case --------------------------------------------------------------------------------------


def rated_case(config: RunConfig) -> tuple[Suite, pd.Series]:
    """(suite of one case that raters call a critical error, its preference); the first case if there is none."""
    suite, preferences = training_side(config)
    row = int((preferences["severity"] == "critical").to_numpy().argmax())
    return suite.rows([row]), preferences.iloc[row]


def reward_table(config: RunConfig, case: Suite, preference: pd.Series) -> pd.DataFrame:
    """What each verdict on the case would earn, step by step."""
    earned = rewards.explain(float(reward_model.preferred(config, case)[0]), preference["severity"])
    return pd.DataFrame(
        {
            "Verdict": earned["verdict"],
            "Reward model: share that prefers it": earned["preferred"].map(percent),
            f"Weight of severity {preference['severity']}": earned["weight"],
            "Reward": earned["reward"].map("{:+.2f}".format),
        }
    )


def reward_sentence(table: pd.DataFrame, preference: pd.Series) -> str:
    """Whom the reward follows on this case."""
    paid = table.loc[table["Reward"].str.startswith("+"), "Verdict"].tolist()
    agrees = "with the raters" if paid == [preference["chosen"]] else "**against the raters**"
    return (
        f"The raters prefer {preference['chosen']} (severity: {preference['severity']}). The reward is "
        f"weight × (2 × share − 1); here it is {agrees}."
    )
