"""What 09_error_analysis shows."""

from __future__ import annotations

import functools

import pandas as pd
from matplotlib.figure import Figure

from medlib import stats
from medlib.config import ADAPTER, RunConfig, adapter_dir
from medlib.data.cases import LabelledCase
from medlib.data.suite import Suite
from medlib.evaluation import summary
from medlib.evaluation.results import Results
from medlib.models import loading, occlusion
from medlib.models.verdict_model import VerdictModel
from medlib.reporting import maps, plots, show
from medlib.reporting.notebooks import evaluate as evaluate_page
from medlib.reporting.notebooks.evaluate import ABLATION_NAMES
from medlib.reporting.show import GROUPS
from medlib.stats import prevalence
from medlib.stats.text import interval_text, misses_text, number, percent, points, rate_text

# ---- errors --------------------------------------------------------------------------------------


def with_factors(frame: pd.DataFrame, scenarios: list[LabelledCase]) -> pd.DataFrame:
    """Predictions with what the image shows and what the scenario says, by id."""
    known = pd.DataFrame(
        [
            {
                "id": s.id,
                "image_finding": f"{s.modality}: {s.factors.get('image_finding', 'unknown')}",
                "finding": s.finding,
                "treatment": s.treatment,
                "image": s.image,
                **{name: s.factors.get(name) for name in ("dataset", "population")},
            }
            for s in scenarios
        ]
    )
    return frame.merge(known, on="id", how="left", validate="one_to_one")


def gains(frame: pd.DataFrame) -> pd.DataFrame:
    """What solving each group would buy: its share of all misses, in points of accuracy."""
    parts = []
    for column, label in show.groups(frame).items():
        part = stats.by_group(frame, column).rename(columns={column: "Group"})
        parts.append(part.assign(Grouped=label, Group=part["Group"].str.replace("_", " ")))
    groups = pd.concat(parts, ignore_index=True)
    misses = (groups["n"] * (1 - groups["accuracy"])).round().astype(int)
    right = int((frame["verdict"] == frame["predicted"]).sum())
    table = pd.DataFrame(
        {
            "Grouped by": groups["Grouped"],
            "Group": groups["Group"],
            "n": groups["n"],
            "Misses": misses,
            "Accuracy there": groups["accuracy"].map(percent),
            "Accuracy of all, were it solved": ((right + misses) / len(frame)).map(percent),
            "Points gained": (100 * misses / len(frame)).map(points),
        }
    )
    return table.sort_values("Misses", ascending=False, kind="stable").reset_index(drop=True)


def gain_sentence(gained: pd.DataFrame) -> str:
    """Which group to work on first, counting error sources only."""
    sources = gained[gained["Grouped by"] == GROUPS["source"]]
    if not sources["Misses"].sum():
        return "There are no misses on this suite: it is too easy to show what to work on next."
    first = sources.iloc[0]
    return (
        f"The source with most misses is **{first['Group']}**: {first['Misses']:,} of "
        f"{first['n']:,} scenarios there are wrong. Solving that group alone would add "
        f"{first['Points gained']} points."
    )


def error_cost(results: Results, config: RunConfig) -> pd.DataFrame:
    """Critical errors let through, and what the system would do at the assumed prevalence of errors, by system."""
    names, projected = summary.figure_names(config), summary.at_prevalence(config, results).set_index("System")
    rows = []
    for name, score in results.scores("heldout").items():
        label = names.get(name, name)
        rows.append(
            {
                "System": label,
                "Critical errors missed (true share at most, 95%)": misses_text(score["critical_misses"]),
                **(projected.loc[label].to_dict() if label in projected.index else {}),
            }
        )
    return pd.DataFrame(rows)


def error_cost_sentence(results: Results, config: RunConfig) -> str:
    """The critical errors that got through, and how many queries are right where errors are rare."""
    missed = results.score(ADAPTER, "heldout")["critical_misses"]
    if not missed["n"]:
        return "The suite has no critical error, so nothing is known about those."
    cells = f", in {misses_text(missed['by_cell'])} kinds of cases" if "by_cell" in missed else ""
    return (
        f"The adapter lets {missed['count']:,} of {missed['n']:,} critical errors through; the true share may be "
        f"as high as {percent(missed['upper'])}{cells}. At an assumed {percent(config.error_prevalence)} errors "
        f"{_needless(results, config)} Set `error_prevalence` and `miss_weights` to what holds for you."
    )


def decision_curve(results: Results, config: RunConfig) -> Figure | None:
    """Net benefit of the adapter at the assumed prevalence of errors; None without both verdicts."""
    frame = results.of(ADAPTER, "heldout")
    if frame["verdict"].nunique() < 2:
        return None
    title = f"Net benefit at {percent(config.error_prevalence)} errors"
    return plots.decision_curve(prevalence.decision_curve(frame, config.error_prevalence), title)


def _needless(results: Results, config: RunConfig) -> str:
    frame = results.of(ADAPTER, "heldout")
    if frame["verdict"].nunique() < 2:
        return "nothing can be said: the suite has one gold verdict only."
    figures = prevalence.per_1000(frame, config.error_prevalence)
    return (
        f"it queries {interval_text(figures['queries'], '.0f')} of 1,000 treatments, and "
        f"{rate_text(figures['ppv'])} of the queries are right."
    )


def calibration_sentence(frame: pd.DataFrame, sure: float = 0.9) -> str:
    """How often the model is right where it is sure."""
    p = frame["p_correct"]
    certain = frame[(p >= sure) | (p <= 1 - sure)]
    error = stats.score(frame)["ece"]
    line = summary.calibration_line(frame)
    slope = f"slope {interval_text(line['slope'])}, intercept {interval_text(line['intercept'])}"
    if certain.empty:
        return (
            f"Calibration {slope}; error {number(error)}. The model is never {percent(sure)} sure of "
            "anything, so no threshold sorts out the safe verdicts."
        )
    hits = int((certain["verdict"] == certain["predicted"]).sum())
    right = stats.proportion(hits, len(certain))
    verb = "is **overconfident**" if right["high"] < sure else "keeps what it promises"
    return (
        f"Calibration {slope} (1 and 0 if calibrated; 95% intervals by cell); error {number(error)}. Where the "
        f"model is at least "
        f"{percent(sure)} sure ({len(certain):,} of {len(frame):,} scenarios) it is right in "
        f"{rate_text(right)}: there it {verb}."
    )


def reliance_sentence(results: Results) -> str:
    """What can be scored without the image, or without the words."""
    rates = {name: score["accuracy"] for name, score in evaluate_page.ablation_scores(results).items()}
    words, image, swapped = (
        rates.get(f"adapter: {ABLATION_NAMES[a]}") for a in ("text_only", "image_only", "swapped")
    )
    full = rates[f"adapter: {ABLATION_NAMES['']}"]
    if not (words and image and swapped):
        return "The ablations were switched off for this run, so nothing is known about shortcuts."
    return (
        f"With everything the adapter gets {rate_text(full)}; with the words alone "
        f"{rate_text(words)}, with the image alone {rate_text(image)}, and with a wrong "
        f"image {rate_text(swapped)}. What the words alone reach is no evidence of looking; "
        f"the image adds {points(100 * (full['value'] - words['value']), sign=True)} points."
    )


def reliability(results: Results) -> list[Figure]:
    """Reliability diagrams of the adapter on the held-out suite and on every harder one."""
    return [
        plots.reliability(results.of(ADAPTER, suite), f"Adapter: {title}")
        for suite, title in summary.SUITES.items()
        if results.has(ADAPTER, suite)
    ]


# --- where it looked --------------------------------------------------------------------------------


def looked(results: Results, config: RunConfig, suite: Suite, limit: int = 6) -> Figure:
    """Most confident errors: what the adapter was shown, asked and said, and an occlusion map."""
    misses = maps.surest_misses(results.of(ADAPTER, "heldout"))
    return maps.looked_at(misses, suite, adapted(config), limit)


def looked_sentence(config: RunConfig, suite: Suite, cases: int = 12) -> str:
    """Whether such maps mean something: hiding what they point at against hiding anything."""
    return maps.checks_sentence(occlusion.check_maps(suite, adapted(config), cases, seed=config.seed))


@functools.lru_cache(maxsize=1)
def adapted(config: RunConfig) -> VerdictModel:
    """The base model with the adapter on it."""
    return loading.load_for(config).with_adapter(adapter_dir(config))


def misses_sentence(frame: pd.DataFrame, limit: int = 100) -> str:
    """How many misses there are, and how many of them the table shows."""
    count = int((frame["verdict"] != frame["predicted"]).sum())
    return f"The {min(limit, count):,} most confident of {count:,} misses among {len(frame):,} scenarios."


def every_miss(frame: pd.DataFrame, limit: int = 100) -> pd.DataFrame:
    """Every wrong verdict in words, most confident first."""
    rows = maps.surest_misses(frame).head(limit)
    return pd.DataFrame(
        {
            "Scenario": rows["id"],
            "Image shows": rows["image_finding"].str.replace("_", " "),
            "Note says": rows["finding"],
            "Treatment": rows["treatment"],
            "Gold verdict": rows["verdict"],
            "Given": rows["predicted"],
            "p(CORRECT)": rows["p_correct"].round(3),
            "Severity": rows["severity"],
        }
    )
