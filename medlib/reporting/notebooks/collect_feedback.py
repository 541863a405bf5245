"""Tables, figures and sentences of 05_collect_feedback; every one labels simulated ratings as such."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from medlib import stats
from medlib.audit.rationale import certainty
from medlib.config import SEVERITIES, RunConfig
from medlib.data.suite import Suite
from medlib.feedback import queue, rating_store
from medlib.feedback.preferences import consensus, is_heldout, rating_file
from medlib.reporting import plots
from medlib.reporting.plots import BLUE, ORANGE
from medlib.stats.text import percent, rate_text

KINDS = {
    "image": "Image decides",
    "finding": "Finding decides",
    "treatment": "Treatment decides",
    "note": "Note contradicts the image",
}
#: Krippendorff's thresholds for alpha.
RELIABLE, TENTATIVE = 0.8, 0.667


def by_whom(ratings: pd.DataFrame) -> str:
    """``simulated raters``, ``clinicians``, or both."""
    kinds = ratings["simulated"].astype(bool)
    return (
        "simulated raters"
        if len(kinds) and kinds.all()
        else ("clinicians and simulated raters" if kinds.any() else "clinicians")
    )


# --- what raters see ---------------------------------------------------------------------------------


def cases(suite: Suite, answers: pd.DataFrame, rater: str, seed: int = 0, count: int = 2) -> Figure:
    """The first cases in one rater's order, as the rating view shows them."""
    rows = queue.order(suite.keys(), rater, seed)[:count]
    views = [queue.case(suite, answers, row) for row in rows]
    captions = [
        f"{case['text'].replace(chr(10), ' ')} The model says: {case['shown']}, probability "
        f"{certainty(case['shown'], case['p_correct'])}."
        for case in views
    ]
    return plots.contact_sheet(
        [case["image"] for case in views], captions, columns=2, banner="as raters see it, synthetic"
    )


def where_sentence(config: RunConfig) -> str:
    """Where the rating view writes, and whether this run learns from that."""
    file = rating_file(config)
    name = config.ratings or f"{config.run_dir}/feedback/{file.name}"
    if config.ratings:
        return f"Ratings go to `{name}`, and what follows is computed from it."
    waiting = len(rating_store.current(file)) if file.is_file() else 0
    already = f" Ratings in it that are not used yet: **{waiting:,}**." if waiting else ""
    return (
        f"Ratings go to `{name}`.{already} What follows is computed from **simulated raters** until the "
        f"parameter `ratings` names that file."
    )


# --- ratings so far ----------------------------------------------------------------------------------


def rated_table(suite: Suite, ratings: pd.DataFrame) -> pd.DataFrame:
    """One row per rater: how many cases they rated, how often they agree with the model, and their severities."""
    rows = []
    for rater, own in ratings.groupby("rater"):
        agrees = stats.proportion(int(own["agree"].sum()), len(own))
        noise = own["noise"].dropna()
        rows.append(
            {
                "Rater": rater,
                "Kind": f"simulated, {percent(noise.iloc[0])} wrong" if len(noise) else "clinician",
                "Rated": f"{len(own):,} of {len(suite):,}",
                "Agrees with the model": rate_text(agrees),
                "Says ERROR": int((own["verdict"] == "ERROR").sum()),
                **{level: int((own["severity"] == level).sum()) for level in SEVERITIES},
            }
        )
    columns = ["Rater", "Kind", "Rated", "Agrees with the model", "Says ERROR", *SEVERITIES]
    return pd.DataFrame(rows, columns=columns)


def rated_sentence(ratings: pd.DataFrame) -> str:
    """Who rated how many cases, and what simulated ratings can show."""
    if ratings.empty:
        return "Nobody has rated a case yet."
    start = (
        f"{len(ratings):,} ratings of {ratings['key'].nunique():,} cases by {ratings['rater'].nunique()} "
        f"{by_whom(ratings)}."
    )
    if not ratings["simulated"].any():
        return start
    return (
        f"{start} **A simulated rater knows the gold verdict and errs at the stated rate.** This tests the path "
        "from rating to adapter; it says nothing about what clinicians would answer."
    )


# --- agreement ---------------------------------------------------------------------------------------


def agreement_table(summary: pd.DataFrame) -> pd.DataFrame:
    """`medlib.stats.agreement.summary` in words."""
    names = {"verdict": "Verdict", "severity": "Severity of an ERROR"}
    return pd.DataFrame(
        {
            "Of": summary["what"].map(names),
            "Measure": summary["measure"],
            "Raters": summary["raters"],
            "Value [95% interval]": [_value_text(row) for row in summary.to_dict("records")],
            "Cases": summary["n"],
        }
    )


def _value_text(row: dict) -> str:
    if row["measure"].startswith("same"):
        return rate_text(row)
    if np.isnan(row["value"]):
        return "n/a (one answer only)"
    limits = "no disagreement" if np.isnan(row["low"]) else f"{row['low']:.2f}, {row['high']:.2f}"
    return f"{row['value']:.2f} [{limits}]"


def agreement_sentence(summary: pd.DataFrame, ratings: pd.DataFrame) -> str:
    """What alpha of the verdicts allows us to conclude, and its value expected from noise alone."""
    alphas = summary[(summary["what"] == "verdict") & summary["measure"].str.startswith("Krippendorff")]
    if alphas.empty or alphas["value"].isna().any():
        return "Agreement needs two raters who rated the same cases, and both verdicts among their answers."
    row = alphas.iloc[0]
    low = row["value"] if np.isnan(row["low"]) else row["low"]
    meaning = (
        "**reliable** (the whole interval is above 0.80)"
        if low >= RELIABLE
        else "good for tentative conclusions (the interval reaches below 0.80)"
        if low >= TENTATIVE
        else "**not reliable** (the interval reaches below 0.667)"
    )
    start = f"By Krippendorff's criteria these verdicts are {meaning}."
    if not ratings["simulated"].all():
        return start
    noise = float(ratings["noise"].iloc[0])
    chance = (1 - 2 * noise) ** 2
    return (
        f"{start} The raters are simulated: with {percent(noise)} wrong answers each and both verdicts "
        f"equally frequent, {chance:.2f} is expected, and the figure shows no more than that."
    )


# --- disagreements -----------------------------------------------------------------------------------


def by_kind(suite: Suite, ratings: pd.DataFrame) -> pd.DataFrame:
    """Disagreement among raters, and between their consensus and the model, by kind of case.

    Returns
    -------
    DataFrame with ``kind``, ``among`` and ``with_model``: rates of `stats.proportion` over the cases with
    two or more ratings, and over the cases with a consensus.
    """
    agreed = consensus(suite, ratings)
    verdict_of = ratings.drop_duplicates("row", keep="last").set_index("row")["shown"]
    against = agreed["chosen"].to_numpy() != verdict_of.loc[agreed["row"]].to_numpy()
    of_case = ratings.groupby("row")["verdict"].agg(["size", "nunique"]).query("size > 1")
    kind_of = {row: KINDS.get(str(s.factors.get("pair_kind")), "Other") for row, s in enumerate(suite.scenarios)}
    kinds = [kind for kind in [*KINDS.values(), "Other"] if kind in set(ratings["row"].map(kind_of))]
    rows = []
    for kind in kinds:
        here, there = of_case.index.map(kind_of) == kind, agreed["row"].map(kind_of) == kind
        rows.append(
            {
                "kind": kind,
                "among": stats.proportion(int((of_case["nunique"][here] > 1).sum()), int(here.sum())),
                "with_model": stats.proportion(int(against[there].sum()), int(there.sum())),
            }
        )
    return pd.DataFrame(rows, columns=["kind", "among", "with_model"])


@plots.styled
def disagreements(suite: Suite, ratings: pd.DataFrame) -> Figure:
    """`by_kind` with 95% intervals."""
    table = by_kind(suite, ratings)
    if not any(rate["n"] for column in ("among", "with_model") for rate in table[column]):
        return plots._finish(plots._new_figure(0.3, "Nobody has rated a case yet"))
    figure = plots._new_figure(1.5 + 0.75 * len(table), f"Where verdicts differ ({by_whom(ratings)})")
    axes = figure.subplots()
    marks = {
        "among": ("Raters differ from each other", -0.14, "o", BLUE),
        "with_model": ("Raters' consensus differs from the model", 0.14, "s", ORANGE),
    }
    for column, (label, shift, marker, colour) in marks.items():
        for row, rate in enumerate(table[column]):
            if rate["n"]:
                axes.plot([rate["low"], rate["high"]], [row + shift] * 2, color=colour, linewidth=2.5)
                axes.plot(rate["value"], row + shift, marker, color=colour, markersize=8, label=label)
    names = [
        f"{plots._wrap(row.kind, 1.6)}\nn = {max(row.among['n'], row.with_model['n']):,}"
        for row in table.itertuples()
    ]
    axes.set_yticks(range(len(table)), names)
    highest = max(rate["high"] for column in marks for rate in table[column] if rate["n"])
    axes.set(
        ylim=(len(table) - 0.5, -0.5),
        xlim=(-0.02, min(1, highest + 0.1) + 0.02),
        xlabel="Share of the cases with 95% interval",
    )
    plots._per_cent(axes.xaxis)
    axes.grid(axis="x")
    handles = dict(zip(*reversed(axes.get_legend_handles_labels())))  # one entry a label
    figure.legend(handles.values(), handles.keys(), loc="outside lower center")
    return plots._finish(figure)


def disagreement_sentence(suite: Suite, ratings: pd.DataFrame) -> str:
    """Where the raters' consensus differs most from the model, which has most to learn there."""
    table = by_kind(suite, ratings)
    rated = [row for row in table.itertuples() if row.with_model["n"]]
    if not rated:
        return "There is no consensus yet."
    most = max(rated, key=lambda row: row.with_model["value"])
    if not most.with_model["value"]:
        return "The consensus is the model's verdict in every case: there is nothing to correct."
    kind = "in other cases" if most.kind == "Other" else f"where the *{most.kind[0].lower()}{most.kind[1:]}*"
    return (
        f"The consensus contradicts the model most often {kind}: {rate_text(most.with_model)} of "
        f"{most.with_model['n']:,} cases. The model has most to learn there."
    )


def disputed(suite: Suite, ratings: pd.DataFrame, limit: int = 4) -> Figure:
    """Cases on which raters differ, with the verdict of each."""
    differ = [(row, of_case) for row, of_case in ratings.groupby("row") if of_case["verdict"].nunique() > 1][
        :limit
    ]
    if not differ:
        return plots._finish(plots._new_figure(0.3, "No case on which raters differ"))
    captions = []
    for row, of_case in differ:
        scenario = suite.scenarios[row]
        verdicts = "; ".join(
            f"{r.rater} says {r.verdict}" + (f", {r.severity}" if r.severity != "none" else "")
            for r in of_case.itertuples()
        )
        captions.append(f"Note: {scenario.finding}. Treatment: {scenario.treatment}. {verdicts}.")
    images = [suite.image(suite.scenarios[row]) for row, _ in differ]
    return plots.contact_sheet(images, captions, columns=2, banner=f"{by_whom(ratings)}, synthetic images")


# --- preferences ------------------------------------------------------------------------------


def preference_table(suite: Suite, ratings: pd.DataFrame) -> pd.DataFrame:
    """Cases on each side of the preference set, by chosen verdict and severity of the error."""
    table = consensus(suite, ratings)
    heldout = table["pair"].map(is_heldout).to_numpy(bool)
    rows = [
        {
            "Side": name,
            "Pairs": part["pair"].nunique(),
            "Cases": len(part),
            "CORRECT chosen": int((part["chosen"] == "CORRECT").sum()),
            **{f"ERROR, {level}": int((part["severity"] == level).sum()) for level in SEVERITIES},
        }
        for name, part in (("training", table[~heldout]), ("held out", table[heldout]))
    ]
    return pd.DataFrame(rows)


def preference_sentence(suite: Suite, ratings: pd.DataFrame) -> str:
    """Which cases are left out and why, and what the export omits."""
    table, rated = consensus(suite, ratings), ratings["row"].nunique()
    return (
        f"{len(table):,} of {len(suite):,} cases become preferences, by {by_whom(ratings)}: "
        f"{len(suite) - rated:,} are not rated, and in {rated - len(table):,} the raters tie. No "
        "counterfactual pair and no image is on both sides. The export contains neither comments nor pseudonyms."
    )
