"""What the data audit shows: tables, sentences and images made from `medlib.data.leakage`.

Every sentence is written from the numbers it states, so that it reads right whatever they are.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from medlib import stats
from medlib.config import RunConfig
from medlib.data import blind, leakage, own_suites, quality
from medlib.data.blind import BlindScore
from medlib.data.cases import LabelledCase
from medlib.data.leakage import COPIES, HASH_SIDE, MAX_DISTANCE, NOT_SHOWN, STRANGERS
from medlib.data.quality import Issue
from medlib.data.suite import Suite
from medlib.reporting import plots
from medlib.reporting.plots import BLUE, GREY, LINE, ORANGE, RED
from medlib.reporting.show import ALPHA
from medlib.stats.text import p_text, percent, rate_text

FITTED = ("core_train", "train", "val")  # suites that training or early stopping sees; others test
IMAGE_CHECKS = ("broken image", "mask", "exact duplicate", "overlap", "letters or calipers")
DRAWN_FACTORS = ("wording", "modality", "sex", "age", "image shows")  # the figure has no room for all
MARKS = (("s", ORANGE), ("o", BLUE), ("D", RED), ("^", GREY))


def _crossing(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows that compare a suite to fit on with one to test on; what else is shared does no harm."""
    fitted = frame["one"].isin(FITTED), frame["two"].isin(FITTED)
    ends = {"one": "two", "distinct_one": "distinct_two", "image_one": "image_two"}
    swapped = frame.rename(columns=ends | {two: one for one, two in ends.items()})
    parts = [frame[fitted[0] & ~fitted[1]], swapped[~fitted[0] & fitted[1]]]
    return pd.concat(parts).reset_index(drop=True)


# ---- the data set ------------------------------------------------------------------------------


def data_notes(config: RunConfig) -> str:
    """What was read, guessed and left out of a data set of one's own, and how it was divided."""
    if not config.data_dir:
        return "This run uses generated cases. `data_dir` takes a data set of your own."
    return "\n".join(f"- {html.escape(note)}" for note in own_suites.of(config).notes())


def blind_scores(suite: Suite, seed: int = 0) -> dict[str, BlindScore]:
    """Both blind auditors on the verdict and, where images are labelled, image statistics on the finding."""
    cases, groups = (
        suite.scenarios,
        [str(s.factors.get("group", s.factors.get("pair", s.image))) for s in suite.scenarios],
    )
    files = {name: blind.statistics_of_file(suite.images_dir / name) for name in {s.image for s in cases}}
    verdicts, statistics = [s.verdict for s in cases], pd.DataFrame([files[s.image] for s in cases])
    scores = {
        "verdict, words only": blind.blind_words_accuracy(cases, verdicts, groups, seed),
        "verdict, image statistics only": blind.blind_image_accuracy(verdicts, statistics, groups, seed=seed),
    }
    findings = {
        s.image: (s.factors.get("image_finding"), s.modality, s.factors.get("group", s.image)) for s in cases
    }
    if None not in {finding for finding, *_ in findings.values()}:
        labels, within, of_image = zip(*findings.values())
        scores["finding, image statistics only"] = blind.blind_image_accuracy(
            labels, pd.DataFrame([files[name] for name in findings]), of_image, within, seed
        )
    return scores


def blind_table(scores: Mapping[str, BlindScore]) -> pd.DataFrame:
    """`blind_scores` in words."""
    return pd.DataFrame(
        [
            {
                "Asked, and what is seen": asked,
                "Measure": score.measure,
                "Right": rate_text({"value": score.value, "low": score.low, "high": score.high, "n": score.n}),
                "By chance": percent(score.chance),
            }
            for asked, score in scores.items()
        ]
    )


def blind_sentence(scores: Mapping[str, BlindScore]) -> str:
    """How far the verdicts can be passed without reading the image."""
    return blind.sentence([score for asked, score in scores.items() if asked.startswith("verdict")])


# ---- images ------------------------------------------------------------------------------------


def leak_table(suites: Mapping[str, Suite], leaks: pd.DataFrame) -> pd.DataFrame:
    """Pairs of images of `leakage.image_leaks`, for every suite to fit on and to test on."""
    crossing, rows = _crossing(leaks), []
    images = {name: len({s.image for s in suite.scenarios}) for name, suite in suites.items()}
    for fitted in (name for name in FITTED if name in suites):
        for tested in (name for name in suites if name not in FITTED):
            kinds = crossing.loc[(crossing["one"] == fitted) & (crossing["two"] == tested), "kind"]
            rows.append(
                {
                    "Fitted on": fitted.replace("_", " "),
                    "Tested on": tested.replace("_", " "),
                    "Images compared": f"{images[fitted]:,} with {images[tested]:,}",
                    "Same pixels": int((kinds == "exact").sum()),
                    "Copies by hash": int((kinds == "perceptual").sum()),
                }
            )
    return pd.DataFrame(rows)


def leak_sentence(suites: Mapping[str, Suite], leaks: pd.DataFrame) -> str:
    """Whether an image of a test was there to learn from."""
    crossing, table = _crossing(leaks), leak_table(suites, leaks)
    if crossing.empty:
        return (
            "**No image of a test stands in a suite to fit on**, neither as it is nor "
            f"recompressed, resized, mirrored or turned (pairs of suites compared: {len(table)})."
        )
    first = crossing.iloc[0]
    tested = ", ".join(sorted(crossing["two"].str.replace("_", " ").unique()))
    return (
        f"**Pairs of images on both sides: {len(crossing):,}**, such as {first['image_one']} and "
        f"{first['image_two']} ({first['kind']}, {first['distance']} bits apart), so scores on "
        f"{tested} are too good."
    )


def detection_table(distances: pd.DataFrame) -> pd.DataFrame:
    """Of `leakage.detection`."""
    found = leakage.detection(distances)
    return pd.DataFrame(
        {
            "Compared with the image": found["kind"],
            "n": found["n"],
            "Bits apart: least": found["least"].astype(int),
            "median": found["median"].astype(int),
            "most": found["most"].astype(int),
            "Called a copy (95% CI)": [rate_text(row) for row in found.to_dict("records")],
        }
    )


def detection_sentence(distances: pd.DataFrame) -> str:
    """What the threshold finds, misses and flags without cause."""
    rates = leakage.detection(distances).set_index("kind")
    copies = rates.drop(index=STRANGERS, errors="ignore")["value"]
    missed = list(copies[copies < 0.95].index)
    found = len(copies) - len(missed)
    text = f"At {MAX_DISTANCE} bits, copies of {found} of {len(copies)} kinds are found"
    if missed:
        text += f" (not reliably: {', '.join(missed)})"
    if STRANGERS not in rates.index:
        return f"{text}; with no second image there is no false-alarm rate."
    alarm = rates.loc[STRANGERS]
    return (
        f"{text}, and {rate_text(alarm)} of the images have a stranger that close: the "
        f"false-alarm rate, over {int(alarm['n']):,} images."
    )


@plots.styled
def distance_figure(distances: pd.DataFrame, max_distance: int = MAX_DISTANCE) -> Figure:
    """Histograms of `leakage.hash_distances`: copies, crops and strangers, by modality."""
    plots._needed("distance_figure", distances)
    names = {STRANGERS: STRANGERS} | {
        kind: "cropped copy" if kind.startswith("crop") else "uncropped copy" for kind in COPIES
    }
    colours = {"uncropped copy": BLUE, "cropped copy": GREY, STRANGERS: ORANGE}
    frame = distances.assign(what=distances["kind"].map(names))
    modalities = list(dict.fromkeys(frame["modality"]))
    title = "How far apart are the hashes of two images?"
    figure = plots._new_figure(1.15 * len(modalities) + 1.1, title)
    grid = figure.subplots(len(modalities), 1, sharex=True, squeeze=False)[:, 0]
    # distances are even, as half of the bits of every hash are set
    bins = np.arange(0, frame["distance"].max() + 6, 4) - 1
    for axes, modality in zip(grid, modalities):
        for what, colour in colours.items():
            part = frame[(frame["modality"] == modality) & (frame["what"] == what)]
            sns.histplot(
                x=part["distance"].astype(float),
                bins=bins,
                stat="percent",
                ax=axes,
                color=colour,
                element="step",
                alpha=0.4,
                label=what,
            )
        axes.axvline(max_distance + 1, color="black", linestyle="--", label=f"threshold, {max_distance} bits")
        axes.set(ylabel=f"{modality}\n%", xlabel="")
    grid[-1].set_xlabel(f"Bits that differ, of {HASH_SIDE**2}, in the best of eight turns")
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return plots._finish(figure)


def image_issues(found: Sequence[Issue]) -> list[Issue]:
    """The issues of `medlib.data.quality` that are about images."""
    return [issue for issue in found if issue.check in IMAGE_CHECKS]


def image_sentence(found: Sequence[Issue]) -> str:
    """How many faults the images have."""
    about = image_issues(found)
    faults = [issue for issue in about if issue.severity != "info"]
    if not faults:
        return (
            "The images in use have **no fault**: none is broken or a mask, no "
            "two show one field. What the audit says of their words and labels is in `01_data`."
        )
    counts = pd.Series([issue.check for issue in faults]).value_counts()
    listed = ", ".join(f"{check} ({count})" for check, count in counts.items())
    files = sorted({file for issue in faults for file in issue.files})
    return (
        f"The images in use have **faults: {listed}**, in {len(files)} files. All "
        "that the audit finds, in words and labels too, is in `01_data`."
    )


# ---- phrases and findings ------------------------------------------------------------------------


def phrase_table(phrases: pd.DataFrame) -> pd.DataFrame:
    """Shared phrases of `leakage.phrase_leaks`, for every suite to fit on and to test on."""
    rows = []
    for (fitted, tested), part in _crossing(phrases).groupby(["one", "two"], sort=False):
        part = part.set_index("text")
        rows.append(
            {"Fitted on": fitted.replace("_", " "), "Tested on": tested.replace("_", " ")}
            | {f"{text.capitalize()}s of the test that were seen": _seen(part.loc[text]) for text in part.index}
            | {"Findings most alike": part.loc["finding", "closest"].replace(" | ", " / ")}
        )
    return pd.DataFrame(rows)


def _seen(row: pd.Series) -> str:
    return f"{row['shared']:,} of {row['distinct_two']:,}"


def phrase_sentence(phrases: pd.DataFrame) -> str:
    """Whether words of a test were there to learn from."""
    crossing = _crossing(phrases)
    telling = crossing[crossing["text"] != "complaint"]
    shared = telling[telling["shared"] > 0]
    complaints = crossing.loc[crossing["text"] == "complaint", "shared"].sum()
    text = "**No finding and no treatment of a test is worded as in a suite to fit on.**"
    if len(shared):
        listed = "; ".join(
            f"{row.text}s of {row.two} in {row.one}: {row.shared} ({row.examples})" for row in shared.itertuples()
        )
        text = f"**Words of a test were seen**, {listed.replace('_', ' ')}."
    if complaints:
        text += (
            " Complaints are shared: they come from one list, and whether one goes with a verdict is tested below."
        )
    return text


def finding_table(suites: Mapping[str, Suite]) -> pd.DataFrame:
    """Of `leakage.finding_balance`: scenarios of each suite and the share of CORRECT."""
    counts = leakage.finding_balance(suites)
    table = counts[["modality", "finding"]].rename(columns=str.capitalize)
    table["Finding"] = table["Finding"].str.replace("_", " ")
    for name in (name for name in suites if name in counts):
        table[name.replace("_", " ").capitalize()] = [
            f"{n:,} ({100 * correct / n:.0f}%)" if n else "0"
            for n, correct in zip(counts[name], counts[f"{name} CORRECT"])
        ]
    return table


def finding_sentence(suites: Mapping[str, Suite]) -> str:
    """Whether a test shows something that training never did."""
    counts = leakage.finding_balance(suites)
    fitted = counts[[name for name in FITTED if name in counts]].sum(axis=1)
    tested = counts[[name for name in suites if name in counts and name not in FITTED]].sum(axis=1)
    unknown = counts[(tested > 0) & (fitted == 0)]
    new = [f"{row.modality}: {row.finding}".replace("_", " ") for row in unknown.itertuples()]
    text = f"{(tested > 0).sum()} findings are tested"
    if new:
        return f"{text}; {len(new)} of them are in no suite to fit on: {', '.join(new)}."
    return (
        f"{text}, and each of them occurs in a suite to fit on, in other images and words. So the "
        "tests show how well known findings are recognised, **not what happens with an unknown "
        "one**."
    )


# ---- labels --------------------------------------------------------------------------------------


def telling(balance: pd.DataFrame) -> pd.DataFrame:
    """Rows of `leakage.label_balance` that an auditor can see and that chance does not explain."""
    seen = balance[~balance["factor"].isin(NOT_SHOWN)]
    return seen[seen["p_holm"] < ALPHA].sort_values("p", kind="stable")


def balance_table(balance: pd.DataFrame, rows: int = 10) -> pd.DataFrame:
    """The groups of `leakage.label_balance` that are furthest from one half, by p-value."""
    first = balance.sort_values("p", kind="stable").head(rows)
    return pd.DataFrame(
        {
            "Factor": [f + " (never shown)" * (f in NOT_SHOWN) for f in first["factor"]],
            "Group": first["level"],
            "n": first["n"],
            "CORRECT (95% CI)": [
                rate_text({"value": r.share, "n": r.n, "low": r.low, "high": r.high}) for r in first.itertuples()
            ],
            "p, binomial": first["p"].map(p_text),
            "p, Holm": first["p_holm"].map(p_text),
        }
    )


def balance_sentence(balance: pd.DataFrame, name: str) -> str:
    """Whether some group that an auditor can see gives the verdict away."""
    seen = balance[~balance["factor"].isin(NOT_SHOWN)]
    found = telling(balance)
    if found.empty:
        least = seen["p_holm"].min() if len(seen) else 1.0
        return (
            f"In {name} **no group predicts the verdict**: of {len(seen)} groups that an auditor "
            f"can tell apart, none differs from one half more than chance explains (least Holm "
            f"{p_text(least)})."
        )
    listed = "; ".join(
        f"{row.factor} *{row.level}* ({row.correct:,} of {row.n:,} CORRECT)" for row in found.head(4).itertuples()
    )
    more = f" and {len(found) - 4} more" if len(found) > 4 else ""
    return (
        f"In {name} **groups that predict the verdict** beyond chance (Holm, {percent(ALPHA)}): "
        f"{len(found)} of {len(seen)}, {listed}{more}."
    )


@plots.styled
def balance_figure(balances: Mapping[str, pd.DataFrame], factors: Sequence[str] = DRAWN_FACTORS) -> Figure:
    """Share of CORRECT in every group, with 95% intervals, for several sets side by side.

    Parameters
    ----------
    balances : mapping of str to DataFrame
        Results of `leakage.label_balance` by name of the set, at most four.
    """
    plots._needed("balance_figure", balances)
    rows: list[tuple] = []  # (label, factor or None for a heading, level)
    for factor in factors:
        levels = pd.concat([b.loc[b["factor"] == factor, "level"] for b in balances.values()]).unique()
        if len(levels):
            rows.append((factor.capitalize(), None, None))
            rows += [(level, factor, level) for level in levels]
    labels = [plots._wrap(label, 2.6) for label, *_ in rows]
    height = sum(0.08 + LINE * (1 + label.count("\n")) for label in labels) + 1.2
    figure = plots._new_figure(height, "Does a group give the verdict away?")
    axes = figure.subplots()
    for number, ((name, balance), (marker, colour)) in enumerate(zip(balances.items(), MARKS)):
        known = balance.set_index(["factor", "level"])
        here = [(y, known.loc[row[1:]]) for y, row in enumerate(rows) if row[1:] in known.index]
        shift = 0.16 * (2 * number - len(balances) + 1)
        for y, group in here:
            axes.plot([group["low"], group["high"]], [y + shift] * 2, color=colour, linewidth=2)
        axes.plot(
            [group["share"] for _, group in here],
            [y + shift for y, _ in here],
            marker,
            color=colour,
            markersize=6,
            label=name,
        )
    axes.axvline(0.5, color="black", linestyle="--", linewidth=1)
    axes.set_yticks(range(len(rows)), labels)
    for tick, (_, heading, _) in zip(axes.get_yticklabels(), rows):
        tick.set_fontweight("bold" if heading is None else "normal")
    axes.set(xlim=(-0.02, 1.02), ylim=(len(rows) - 0.4, -0.6), xlabel="Share of CORRECT with 95% interval")
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    axes.grid(axis="x")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return plots._finish(figure)


# ---- shortcuts -----------------------------------------------------------------------------------


def shortcut_table(sets: Mapping[str, Sequence[LabelledCase]]) -> pd.DataFrame:
    """What the words alone give, a column for every set of scenarios."""
    columns = {}
    for name, scenarios in sets.items():
        rule = leakage.normal_rule(scenarios)
        found = quality.check_word_shortcuts(list(scenarios))
        words = found[0].evidence if found else {}
        columns[name] = {
            "Sounds normal and is an ERROR": f"{rule['normal_error']:,} of {rule['normal']:,}",
            "Sounds abnormal and is CORRECT": f"{rule['abnormal_correct']:,} of {rule['abnormal']:,}",
            "Verdicts that this one rule gets": f"{rule['right']:,} of {rule['n']:,}, "
            + rate_text(stats.proportion(rule["right"], rule["n"])),
            "Verdicts by the best single word, on new findings": percent(words.get("one_word_rule", math.nan)),
            "Verdicts by all words, on new findings": percent(words.get("tfidf_logistic", math.nan)),
        }
    return pd.DataFrame(columns).rename_axis("Reading the finding alone").reset_index()


def shortcut_sentence(sets: Mapping[str, Sequence[LabelledCase]]) -> str:
    """How far 'normal means error' gets on each set."""
    parts = []
    for name, scenarios in sets.items():
        rule = leakage.normal_rule(scenarios)
        rate = stats.proportion(rule["right"], rule["n"])
        meaning = (
            "chance"
            if rate["low"] <= 0.5 <= rate["high"]
            else ("all there is to know" if rule["right"] == rule["n"] else "better than chance")
        )
        parts.append(f"{rule['right']:,} of {rule['n']:,} verdicts of {name} ({meaning})")
    return f"Whether the finding sounds normal gives {' and '.join(parts)}."


def word_table(sets: Mapping[str, Sequence[LabelledCase]], rows: int = 6) -> pd.DataFrame:
    """The most telling words of every set, most telling first."""
    parts = []
    for name, scenarios in sets.items():
        words = leakage.word_shortcuts(scenarios).head(rows)
        parts.append(
            pd.DataFrame(
                {
                    "Set": name,
                    "Word": words["word"],
                    "Of the": words["text"],
                    "n": words["n"],
                    "CORRECT": [f"{r.correct:,} ({100 * r.share:.0f}%)" for r in words.itertuples()],
                    "p, Fisher": words["p"].map(p_text),
                    "p, Holm": words["p_holm"].map(p_text),
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def word_sentence(sets: Mapping[str, Sequence[LabelledCase]]) -> str:
    """How many single words predict the verdict beyond chance, in each set."""
    parts = []
    for name, scenarios in sets.items():
        words = leakage.word_shortcuts(scenarios)
        proven = words[words["p_holm"] < ALPHA]
        part = f"in {name}, {len(proven)} of {len(words):,} words predict the verdict beyond chance"
        pure = words[(words["n"] >= 5) & words["share"].isin([0.0, 1.0])]
        if len(pure):
            listed = ", ".join(
                f"*{r.word}* ({r.n} times {'CORRECT' if r.share else 'ERROR'})" for r in pure.head(3).itertuples()
            )
            part += f"; of those that occur five times or more, {len(pure)} go with one verdict: {listed}"
        parts.append(part)
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."
