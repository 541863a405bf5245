"""What 09_error_analysis shows."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from medlib import stats
from medlib.config import ADAPTER, RunConfig, adapter_dir
from medlib.data.cases import LabelledCase
from medlib.data.suite import Suite
from medlib.evaluation.results import Results
from medlib.models import loading, occlusion
from medlib.models.verdict_model import VerdictModel
from medlib.reporting import maps, show
from medlib.reporting.notebooks import evaluate as evaluate_page
from medlib.reporting.notebooks.evaluate import ABLATION_NAMES
from medlib.reporting.show import GROUPS
from medlib.stats.text import misses_text, number, percent, points, rate_text, usd

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


def error_cost(scores: Mapping[str, dict]) -> pd.DataFrame:
    """Critical errors let through, and dollars lost, by system."""
    return pd.DataFrame(
        [
            {
                "System": name,
                "Critical errors missed (true share at most, 95%)": misses_text(s["critical_misses"]),
                "US dollars lost per 1,000 decisions": round(s["expected_cost"]["per_1000"]),
                "Valid treatments flagged": percent(1 - s["sensitivity"]["value"]),
            }
            for name, s in scores.items()
        ]
    )


def error_cost_sentence(score: Mapping) -> str:
    """The critical errors that got through, with the limit that none of them would leave."""
    missed = score["critical_misses"]
    if not missed["n"]:
        return "The suite has no critical error, so nothing is known about those."
    return (
        f"The adapter lets {missed['count']:,} of {missed['n']:,} critical errors through; the "
        f"true share may be as high as {percent(missed['upper'])}. Missed errors would cost "
        f"${usd(score['expected_cost']['per_1000'])} per 1,000 decisions at the costs that the "
        "scenarios state."
    )


def calibration_sentence(frame: pd.DataFrame, sure: float = 0.9) -> str:
    """How often the model is right where it is sure."""
    p = frame["p_correct"]
    certain = frame[(p >= sure) | (p <= 1 - sure)]
    error = stats.score(frame)["ece"]
    if certain.empty:
        return (
            f"Calibration error {number(error)}. The model is never {percent(sure)} sure of "
            "anything, so no threshold sorts out the safe verdicts."
        )
    hits = int((certain["verdict"] == certain["predicted"]).sum())
    right = stats.proportion(hits, len(certain))
    verb = "is **overconfident**" if right["high"] < sure else "keeps what it promises"
    return (
        f"Calibration error {number(error)} (0 is perfect). Where the model is at least "
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
