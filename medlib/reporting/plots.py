"""Figures, made to be read on a phone: 7 inches wide, letters of 11 points or more.

Every function returns a matplotlib ``Figure`` that pyplot does not know, so nothing is shown
twice in a notebook and nothing has to be closed. Save one with ``figure.savefig(path)``.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.path import Path
from matplotlib.textpath import text_to_path
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter
from matplotlib.transforms import Bbox
from PIL import Image, ImageOps
from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix

from medlib import stats
from medlib.config import VERDICTS

WIDTH = 7.0  # inches
LETTERS = 11  # points
LINE = LETTERS * 1.25 / 72  # inches from line to line
PALETTE = sns.color_palette("colorblind")
BLUE, ORANGE, _, RED, *_ = PALETTE
MARKERS = "osD^vPX<>*"  # colour is never the only difference between lines
GREY = "0.35"
RATE_NAMES = {"accuracy": "Accuracy", "sensitivity": "Valid treatments recognised", "specificity": "Errors caught"}
STYLE = {
    "font.size": LETTERS,
    "axes.labelsize": LETTERS,
    "axes.titlesize": LETTERS + 1,
    "xtick.labelsize": LETTERS,
    "ytick.labelsize": LETTERS,
    "legend.fontsize": LETTERS,
    "figure.titlesize": LETTERS + 2,
    "figure.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "grid.color": "0.88",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.dpi": 110,
    "savefig.dpi": 150,
    "text.parse_math": False,  # "$500 ... $2,000" is money, not a formula
}
styled = mpl.rc_context(STYLE)


def _text_inches(line: str, size: float) -> float:
    width, *_ = text_to_path.get_text_width_height_descent(line, FontProperties(size=size), False)
    return width / 72


def _wrap(text: str, inches: float, size: float = LETTERS) -> str:
    """Break text into the longest lines that are no wider than ``inches``."""
    wrapper = textwrap.TextWrapper(break_on_hyphens=False)
    wrapper.wordsep_simple_re = re.compile(r"([ \t\n]+|(?<=\w\+)(?=\w))")  # also after the + of a name
    for wrapper.width in range(int(inches * 72 / size * 3), 1, -1):
        lines = wrapper.wrap(str(text))
        if all(_text_inches(line, size) <= inches for line in lines):
            break
    return "\n".join(lines)


def _new_figure(height: float, title: str) -> Figure:
    """A figure with a wrapped title and ``height`` inches for what stands below it."""
    size = LETTERS + 2
    heading = _wrap(title, 0.9 * WIDTH, 1.1 * size)  # bold letters are wider
    figure = Figure(
        figsize=(WIDTH, height + (heading.count("\n") + 1) * size * 1.25 / 72 + 0.1), layout="constrained"
    )
    figure.suptitle(heading)
    return figure


def _finish(figure: Figure) -> Figure:
    # lays out the figure and makes the ticks while the style holds
    figure.draw_without_rendering()
    return figure


def _needed(what: str, items) -> None:
    if len(items) == 0:
        raise ValueError(f"{what}: nothing to draw")


def _needed_columns(what: str, table: pd.DataFrame, *columns: str) -> None:
    _needed(what, table)
    absent = [column for column in columns if column not in table]
    if absent:
        raise ValueError(f"{what}: no column {', '.join(map(repr, absent))}")


def _per_cent(axis) -> None:
    axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))


def _range_text(numbers) -> str:
    low, high = min(numbers), max(numbers)
    return f"n = {low:,}" + (f" to {high:,}" if high > low else "")


@styled
def forest(scores: Mapping[str, dict], title: str, bar: float | None = None) -> Figure:
    """Accuracy of every system with its 95% interval and n, first system on top.

    Parameters
    ----------
    scores : mapping of str to dict
        Results of `medlib.stats.scores.score` by name of the system.
    title : str
    bar : float, optional
        An accuracy to mark by a dashed line, such as a target.
    """
    _needed("forest", scores)
    figure, axes = _rate_rows(scores, title)
    for row, result in enumerate(scores.values()):
        rate = result["accuracy"]
        if rate["n"]:
            axes.plot([rate["low"], rate["high"]], [row, row], color=BLUE, linewidth=2.5)
            axes.plot(rate["value"], row, "o", color=BLUE, markersize=8)
    lows = [result["accuracy"]["low"] for result in scores.values() if result["accuracy"]["n"]]
    lows += [bar] if bar is not None else []
    axes.set_xlim(max(0.0, min(lows, default=0.0) - 0.05), 1.01)
    if bar is not None:
        _mark(axes, bar, f"target {100 * bar:.0f}%")
    return _finish(figure)


@styled
def ablation_bars(scores: Mapping[str, dict], chance: float = 0.5, title: str = "What each part brings") -> Figure:
    """Accuracy bars from 0 to 100% with 95% intervals and the chance level.

    Parameters
    ----------
    scores : mapping of str to dict
        Results of `medlib.stats.scores.score` by name of the variant.
    chance : float
        Accuracy of a guess.
    """
    _needed("ablation_bars", scores)
    figure, axes = _rate_rows(scores, title)
    for row, result in enumerate(scores.values()):
        rate = result["accuracy"]
        if rate["n"]:
            axes.barh(row, rate["value"], height=0.6, color=BLUE, alpha=0.75)
            axes.plot([rate["low"], rate["high"]], [row, row], color="black", linewidth=1.5)
    axes.set_xlim(0, 1.01)
    _mark(axes, chance, f"chance {100 * chance:.0f}%")
    return _finish(figure)


def _rate_rows(scores: Mapping[str, dict], title: str):
    """Axes with a row per system: its name at the left, accuracy and n at the right."""
    names = [_wrap(name, 1.9) for name in scores]
    tallest = max(2, *(name.count("\n") + 1 for name in names))
    figure = _new_figure(0.9 + len(names) * (tallest * LINE + 0.12), title)
    axes = figure.subplots()
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel("Accuracy with 95% interval")
    _per_cent(axes.xaxis)
    axes.grid(axis="x")
    for row, result in enumerate(scores.values()):
        rate = result["accuracy"]
        value = f"{100 * rate['value']:.1f}%" if rate["n"] else "no data"
        axes.annotate(
            f"{value}\nn = {rate['n']:,}",
            (1.03, row),
            va="center",
            xycoords=("axes fraction", "data"),
            annotation_clip=False,
        )
    return figure, axes


def _mark(axes, value: float, name: str) -> None:
    axes.axvline(value, color=ORANGE, linestyle="--", linewidth=2, label=name)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0))


@styled
def modality_heatmap(scores: Mapping[str, dict], rate: str = "sensitivity", title: str | None = None) -> Figure:
    """One rate of every system on every modality.

    Parameters
    ----------
    scores : mapping of str to dict
        Results of `medlib.stats.scores.score` by name of the system.
    rate : {'sensitivity', 'specificity', 'accuracy'}
    title : str, optional
        The name of the rate by default.
    """
    _needed("modality_heatmap", scores)
    if rate not in RATE_NAMES:
        raise ValueError(f"rate: {rate!r} is none of {', '.join(RATE_NAMES)}")
    cells = pd.DataFrame(
        {
            name: pd.Series({m: rates[rate]["value"] for m, rates in result["per_modality"].items()})
            for name, result in scores.items()
        }
    ).T.astype(float)
    counts = {
        modality: {
            result["per_modality"][modality][rate]["n"]
            for result in scores.values()
            if modality in result["per_modality"]
        }
        for modality in cells.columns
    }
    sizes = {modality: _range_text(n).removeprefix("n = ") for modality, n in counts.items()}
    one_size = len(set(sizes.values())) == 1
    listed = ", ".join(f"{m} {n}" for m, n in sizes.items())
    counted = f"{next(iter(sizes.values()))} each" if one_size else listed
    columns = cells.shape[1]
    cells.index = [_wrap(name, 2.2) for name in cells.index]
    cells.columns = [_wrap(name, max(0.5, 4.72 / columns)) for name in cells.columns]
    tallest = max(name.count("\n") + 1 for name in cells.index)
    figure = _new_figure(1.0 + len(cells) * (tallest * LINE + 0.15), title or RATE_NAMES[rate])
    axes = figure.subplots()
    axes.set_title(_wrap(f"per cent of n: {counted}", 4.5), color=GREY, fontsize=LETTERS)
    axes.set_facecolor("0.9")
    sns.heatmap(
        100 * cells,
        ax=axes,
        cmap="cividis",
        vmin=0,
        vmax=100,
        annot=True,
        fmt=".0f",
        linewidths=1,
        annot_kws={"size": LETTERS + 1},
        cbar=False,
    )
    _contrast(axes.texts, 100 * cells.to_numpy()[cells.notna().to_numpy()])
    for row, column in np.argwhere(cells.isna().to_numpy()):
        axes.text(column + 0.5, row + 0.5, "n/a", ha="center", va="center", color=GREY)
    axes.tick_params(length=0, rotation=0)
    return _finish(figure)


def _contrast(texts, per_cent) -> None:
    """Black letters on the lighter half of cividis, where white ones are hard to read."""
    for text, value in zip(texts, per_cent, strict=True):
        text.set_color("white" if value < 45 else "black")


TESTS = {"p_holm": "exact McNemar test by scenario", "p_cluster_holm": "exact sign test by cluster"}
STARS = {"***": 0.001, "**": 0.01, "*": 0.05}


@styled
def significance_matrix(
    comparisons: pd.DataFrame,
    order: Sequence[str] | None = None,
    p: str = "p_holm",
    title: str = "Which differences are more than chance",
) -> Figure:
    """Accuracy of the row's system minus that of the column's, with stars for its p-value.

    Parameters
    ----------
    comparisons : DataFrame
        Result of `medlib.stats.paired.compare_all`.
    order : sequence of str, optional
        Systems from top to bottom; by default in order of appearance.
    p : {'p_holm', 'p_cluster_holm'}
        Column of adjusted p-values that decides what counts as a difference.
    title : str
    """
    if p not in TESTS:
        raise ValueError(f"p: {p!r} is none of {', '.join(TESTS)}")
    _needed_columns("significance_matrix", comparisons, "first", "second", "n", "difference", p)
    found = list(dict.fromkeys([*comparisons["first"], *comparisons["second"]]))
    order = found if order is None else list(order)
    unknown = [name for name in order if name not in found]
    if unknown:
        raise ValueError(f"order: not compared: {', '.join(unknown)}")
    points, p_values = (pd.DataFrame(np.nan, index=order, columns=order) for _ in range(2))
    shown = comparisons[comparisons["first"].isin(order) & comparisons["second"].isin(order)]
    for row in shown.to_dict("records"):
        first, second = row["first"], row["second"]
        points.loc[first, second] = 100 * row["difference"]
        points.loc[second, first] = -100 * row["difference"]
        p_values.loc[first, second] = p_values.loc[second, first] = row[p]
    names = [_wrap(f"{i}  {name}", 1.9) for i, name in enumerate(order, start=1)]
    tallest = max(2, *(name.count("\n") + 1 for name in names))
    figure = _new_figure(2.0 + len(names) * (tallest * LINE + 0.15), title)
    axes = figure.subplots()
    axes.set_title(_range_text(shown["n"]), color=GREY)
    axes.set_facecolor("0.93")
    sns.heatmap(
        points.where(p_values < 0.05).to_numpy(),
        ax=axes,
        cmap="PuOr_r",
        center=0,
        vmin=-100,
        vmax=100,
        linewidths=1,
        cbar=False,
        yticklabels=names,
        xticklabels=[str(i) for i in range(1, len(names) + 1)],
    )
    decimals = 1 if len(names) < 10 else 0  # what fits into a cell
    for (row, column), value in np.ndenumerate(points.round(decimals).to_numpy() + 0.0):  # no -0
        p_value = p_values.iat[row, column]
        stars = next((mark for mark, limit in STARS.items() if p_value < limit), "")
        text = "–" if np.isnan(value) else f"{value:+.{decimals}f}\n{stars}".strip()
        dark = stars and abs(value) > 65
        axes.text(
            column + 0.5,
            row + 0.5,
            text.replace("-", "\N{MINUS SIGN}"),
            ha="center",
            va="center",
            color="white" if dark else "black" if stars else GREY,
        )
    axes.tick_params(length=0, rotation=0)
    axes.set_xlabel(
        _wrap(
            "Accuracy of the row minus that of the column, points. "
            + ", ".join(f"{mark}~p~<~{limit:g}" for mark, limit in reversed(STARS.items())).replace(
                "~", "\N{NO-BREAK SPACE}"
            )
            + f" ({TESTS[p]}, Holm-corrected over {len(comparisons)} pairs); grey: not significant.",
            4.8,
        )
    )
    return _finish(figure)


@styled
def cost_latency(table: pd.DataFrame, title: str = "What accuracy costs in time and money") -> Figure:
    """Accuracy against seconds a case, and below it the price of 1,000 cases where one is known.

    Parameters
    ----------
    table : DataFrame
        One row per system: system, accuracy with low and high (fractions), seconds (a case), and
        optionally usd_per_1000 (nan: no price) and n (scenarios). Less than a microsecond is drawn
        as one; a system without seconds is left out and named.
    title : str
    """
    _needed_columns("cost_latency", table, "system", "accuracy", "low", "high", "seconds")
    prices = table.get("usd_per_1000", pd.Series(np.nan, index=table.index)).astype(float)
    timed, untimed = table[table["seconds"].notna()], table[table["seconds"].isna()]
    _needed("cost_latency: no system has seconds, so", timed)
    notes = [_range_text(table["n"])] if "n" in table else []
    notes += [] if prices.notna().any() else ["no price for any system"]
    notes += [f"not timed: {', '.join(untimed['system'])}"] if len(untimed) else []
    heights, around = [2.5 + 0.25 * len(timed)], 0.9  # inches of the panels, and of what is around
    if prices.notna().any():
        priced = {_wrap(name, 1.9): price for name, price in zip(table["system"], prices) if price >= 0}
        unpriced = ", ".join(table["system"][prices.isna()])
        unpriced = _wrap(f"no price: {unpriced}", 4.6) if unpriced else ""
        heights.append(len(priced) * (max(name.count("\n") + 1 for name in priced) * LINE + 0.2))
        around += 0.8 + (unpriced.count("\n") + 1) * LINE
    figure = _new_figure(sum(heights) + around, title)
    panels = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    axes = panels[0]
    axes.set_title(_wrap("; ".join(notes), 6), color=GREY, fontsize=LETTERS)
    seconds, accuracy = timed["seconds"].clip(lower=1e-6).to_numpy(), timed["accuracy"].to_numpy()
    axes.errorbar(
        seconds,
        accuracy,
        [accuracy - timed["low"], timed["high"] - accuracy],
        fmt="o",
        color=BLUE,
        markersize=8,
        linewidth=2,
    )
    room = max(6, 2 * (seconds.max() / seconds.min()) ** 0.15)
    axes.set(
        xscale="log",
        xlim=(seconds.min() / room, seconds.max() * room),
        ylim=(max(0.0, timed["low"].min() - 0.1), 1.06),
        xlabel="Time a case (log scale)",
        ylabel="Accuracy with 95% interval",
    )
    axes.xaxis.set_major_locator(LogLocator(numticks=7))
    axes.xaxis.set_major_formatter(EngFormatter("s"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    _per_cent(axes.yaxis)
    axes.grid()
    if len(panels) > 1:
        panels[1].set_title(unpriced, color=GREY, fontsize=LETTERS)
        _price_rows(panels[1], priced)
    _finish(figure)
    figure.set_layout_engine("none")  # labels are placed in pixels, so nothing may move any more
    _label_points(axes, timed["system"].to_list(), seconds, timed["low"], accuracy, timed["high"])
    return _finish(figure)


def _price_rows(axes, prices: Mapping[str, float]) -> None:
    bars = axes.barh(range(len(prices)), prices.values(), height=0.6, color=BLUE, alpha=0.75)
    axes.bar_label(bars, [f"${price:,.2f}" for price in prices.values()], padding=4)
    axes.set_yticks(range(len(prices)), prices)
    axes.set(
        ylim=(len(prices) - 0.5, -0.5),
        xlim=(0, 1.25 * max(prices.values()) or 1),
        xlabel="US dollars per 1,000 cases",
    )
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.grid(axis="x")


def _label_points(axes, names, x, low, middle, high) -> None:
    """Put every name at the nearest place that is free of names, markers and interval bars."""
    inch, frame = axes.figure.dpi, axes.get_window_extent()  # in pixels, as all lengths here
    points, lows, highs = (axes.transData.transform(np.column_stack([x, y])) for y in (middle, low, high))
    marker = 0.09 * inch  # half its width
    taken = [
        Bbox.from_extents(px - marker, min(py - marker, bottom), px + marker, max(py + marker, top))
        for (px, py), bottom, top in zip(points, lows[:, 1], highs[:, 1])
    ]
    centres = [Bbox.from_bounds(*(point - 3), 6, 6) for point in points]
    labels: list[Bbox] = []
    for i in np.lexsort((points[:, 1], points[:, 0])):
        name = _wrap(names[i], 2.2)
        size = (
            np.array(
                [max(_text_inches(part, LETTERS) for part in name.split("\n")), (name.count("\n") + 1) * LINE]
            )
            * inch
        )
        beside = size[0] / 2 + np.arange(0.13, WIDTH, 0.4) * inch
        places = np.array(
            [
                (dx, lines * LINE * inch)
                for lines in sorted(np.arange(-30, 30.5, 0.5), key=abs)
                for dx in (*np.column_stack([beside, -beside]).ravel(), 0)
            ]
        )
        gaps = np.hypot(*np.maximum(np.abs(places) - size / 2, 0).T)  # from the point to the name
        places = places[np.argsort(gaps.round(), kind="stable")]
        free = []
        for place in places:
            box = Bbox.from_bounds(*(points[i] + place - size / 2), *size)
            inside = (frame.min <= box.min).all() and (box.max <= frame.max).all()
            if inside and not box.count_overlaps(taken + labels):
                edge = points[i] + place - np.sign(place[0]) * np.array([size[0] / 2, 0])
                leader = Path([points[i], edge])
                others = labels + centres[:i] + centres[i + 1 :]
                free.append((any(leader.intersects_bbox(other) for other in others), place, box))
                if not free[-1][0]:
                    break
        _, place, box = min(free, key=lambda found: found[0], default=(True, places[0], taken[i]))
        labels.append(box)
        leader = {
            "arrowstyle": "-",
            "color": GREY,
            "linewidth": 0.8,
            "shrinkA": 0,
            "shrinkB": 5,
            "relpos": (0.5 - np.sign(place[0]) / 2, 0.5),
        }
        is_far = abs(place[1]) > LINE * inch or abs(place[0]) > beside[0]
        axes.annotate(
            name,
            (x[i], middle[i]),
            place * 72 / inch,
            ha="center",
            va="center",
            textcoords="offset points",
            arrowprops=leader if is_far else None,
        )


@styled
def coverage_curve(
    tables: Mapping[str, pd.DataFrame], title: str = "Accuracy when the unsure cases are left out"
) -> Figure:
    """Accuracy among the most certain scenarios against the share that is answered.

    Parameters
    ----------
    tables : mapping of str to DataFrame
        Results of `medlib.stats.calibration.selective` by name of the system.
    title : str
    """
    _needed("coverage_curve", tables)
    names = [_wrap(name, 2.6) for name in tables]
    rows = -(-len(names) // 2) * max(name.count("\n") + 1 for name in names)
    figure = _new_figure(4.2 + rows * LINE * 1.15, title)
    axes = figure.subplots()
    for i, (name, table) in enumerate(zip(names, tables.values())):
        _needed_columns(f"coverage_curve, {name}", table, "coverage", "n", "accuracy", "low", "high")
        colour, marker = PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)]
        axes.fill_between(table["coverage"], table["low"], table["high"], color=colour, alpha=0.12, linewidth=0)
        axes.plot(table["coverage"], table["accuracy"], color=colour, marker=marker, markersize=5, label=name)
    axes.set_title(
        _range_text([table["n"].max() for table in tables.values()]) + " at full coverage, band: 95% interval",
        color=GREY,
        fontsize=LETTERS,
    )
    axes.set(
        xlim=(0, 1.02),
        xlabel="Share of scenarios answered, most certain first",
        ylabel="Accuracy on those answered",
    )
    axes.set_ylim(top=1.02)
    _per_cent(axes.xaxis)
    _per_cent(axes.yaxis)
    axes.grid()
    figure.legend(loc="outside lower center", ncols=2)
    return _finish(figure)


@styled
def decision_curve(table: pd.DataFrame, title: str = "Net benefit") -> Figure:
    """Net benefit against the probability of an error from which one queries, beside querying all and nothing.

    Parameters
    ----------
    table : DataFrame
        From `medlib.stats.prevalence.decision_curve`.
    title : str
    """
    _needed_columns("decision_curve", table, "threshold", "net_benefit", "low", "high", "query_all")
    figure = _new_figure(4.6, title)
    axes = figure.subplots()
    x = table["threshold"]
    axes.fill_between(x, table["low"], table["high"], color=BLUE, alpha=0.15, linewidth=0)
    axes.plot(x, table["net_benefit"], "o-", color=BLUE, markersize=5, label="the system, band: 95% interval")
    axes.plot(x, table["query_all"], "--", color=ORANGE, label="query everything")
    axes.axhline(0, color=GREY, linestyle=":", label="query nothing")
    # querying everything soon costs more than there is to gain
    top = table["high"].max()
    axes.set(
        ylim=(-0.6 * top, 1.1 * top),
        xlabel="Query from this probability of an error on",
        ylabel="Net benefit, errors caught\nin 1,000 cases",
    )
    _per_cent(axes.xaxis)
    axes.grid()
    figure.legend(loc="outside lower center", ncols=2)
    return _finish(figure)


@styled
def corruption_lines(
    table: pd.DataFrame, clean: Mapping | float, title: str = "Accuracy when the image gets worse"
) -> Figure:
    """Accuracy against severity, one panel for each kind of corruption.

    Parameters
    ----------
    table : DataFrame
        kind, severity, accuracy, low, high (fractions), and optionally n.
    clean : mapping or float
        Accuracy on the untouched images, as in `medlib.stats.proportions.proportion` or bare.
    title : str
    """
    _needed_columns("corruption_lines", table, "kind", "severity", "accuracy", "low", "high")
    bare = clean["value"] if isinstance(clean, Mapping) else clean
    untouched = f"untouched images: {100 * bare:.1f}%"
    untouched += f" (n = {clean['n']:,})" if isinstance(clean, Mapping) else ""
    kinds = list(dict.fromkeys(table["kind"]))
    columns = min(2, len(kinds))
    rows = -(-len(kinds) // columns)
    figure = _new_figure(1.1 + 2.1 * rows, title)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, kind in zip(grid.flat, kinds):
        part = table[table["kind"] == kind].sort_values("severity")
        accuracy = part["accuracy"]
        axes.axhline(bare, color=ORANGE, linestyle="--", linewidth=2, label=untouched)
        axes.errorbar(
            part["severity"],
            accuracy,
            [accuracy - part["low"], part["high"] - accuracy],
            fmt="o-",
            color=BLUE,
            linewidth=1.5,
            label="with 95% interval",
        )
        for severity, value, low in zip(part["severity"], accuracy, part["low"]):
            axes.annotate(
                f"{100 * value:.0f}", (severity, low), (0, -3), ha="center", va="top", textcoords="offset points"
            )
        axes.set_title(kind + (f", {_range_text(part['n'])}" if "n" in part else ""), fontsize=LETTERS, color=GREY)
        axes.grid()
    severities = sorted(table["severity"].unique())
    lowest = min(table["low"].min(), bare)
    grid[0, 0].set(
        xlim=(severities[0] - 0.4, severities[-1] + 0.4),
        xticks=severities,
        ylim=(lowest - 0.18 * (1.02 - lowest), 1.02),
    )  # room for the numbers
    _per_cent(grid[0, 0].yaxis)
    for axes in grid.flat[len(kinds) :]:
        axes.remove()
    for axes in grid.flat[max(0, len(kinds) - columns) : len(kinds)]:  # the lowest of each column
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("Severity")
    figure.supylabel("Accuracy", fontsize=LETTERS)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return _finish(figure)


@styled
def certainty_histogram(
    groups: Mapping[str, Sequence[float]],
    threshold: float,
    title: str = "How certain the answers are",
    bins: int = 25,
) -> Figure:
    """Certainty of the answers in each group, and the threshold below which to abstain.

    Parameters
    ----------
    groups : mapping of str to sequence of float
        Probabilities of CORRECT by name of the group, such as held-out and out-of-distribution.
    threshold : float
        A certainty, 0 to 0.5, as from `medlib.stats.calibration.abstention_threshold`.
    title : str
    bins : int
        Equal-width bins on [0, 0.5].
    """
    _needed("certainty_histogram", groups)
    figure = _new_figure(1.1 + 1.7 * len(groups), title)
    panels = figure.subplots(len(groups), 1, sharex=True, squeeze=False)[:, 0]
    for i, (axes, (name, p_correct)) in enumerate(zip(panels, groups.items())):
        _needed(f"certainty_histogram, {name}", p_correct)
        values = stats.certainty(p_correct)
        axes.hist(
            values,
            bins,
            range=(0, 0.5),
            weights=np.full(len(values), 1 / len(values)),
            color=PALETTE[i % len(PALETTE)],
            edgecolor="white",
            hatch="" if i == 0 else "///",
        )
        axes.axvline(min(threshold, 0.5), color="black", linestyle="--", linewidth=2)
        rate = stats.proportion(int((values < threshold).sum()), len(values))
        axes.set_title(
            _wrap(
                f"{name}: abstains on {100 * rate['value']:.1f}% [{100 * rate['low']:.1f}, "
                f"{100 * rate['high']:.1f}], n = {rate['n']:,}",
                5.8,
            ),
            color=GREY,
            fontsize=LETTERS,
        )
        axes.yaxis.set_major_locator(MaxNLocator(3))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
        axes.grid(axis="y")
    limit = "always abstain" if threshold > 0.5 else f"abstain left of {threshold:.3g} (dashed)"
    panels[-1].set(xlim=(0, 0.505), xlabel=f"Certainty, |probability of CORRECT − 0.5|; {limit}")
    figure.supylabel("Share of answers", fontsize=LETTERS)
    return _finish(figure)


@styled
def confusion(predictions: pd.DataFrame, title: str) -> Figure:
    """Gold against predicted verdict: counts, and per cent of the gold verdict.

    Parameters
    ----------
    predictions : DataFrame
        Columns ``verdict`` and ``predicted``.
    title : str
    """
    _needed("confusion", predictions)
    counts = confusion_matrix(predictions["verdict"], predictions["predicted"], labels=VERDICTS)
    with np.errstate(invalid="ignore"):
        share = 100 * counts / counts.sum(axis=1, keepdims=True)
    words = [
        [f"{count:,}\n" + ("n/a" if np.isnan(part) else f"{part:.1f}%") for count, part in zip(*row)]
        for row in zip(counts, share)
    ]
    figure = _new_figure(4.4, title)
    axes = figure.subplots()
    axes.set_title(f"n = {len(predictions):,}", color=GREY)
    sns.heatmap(
        np.nan_to_num(share),
        ax=axes,
        annot=words,
        fmt="",
        cmap="cividis",
        vmin=0,
        vmax=100,
        annot_kws={"size": LETTERS + 5},
        linewidths=1,
        cbar_kws={"label": "% of the gold verdict"},
        xticklabels=list(VERDICTS),
        yticklabels=[f"{verdict}\nn = {n:,}" for verdict, n in zip(VERDICTS, counts.sum(axis=1))],
    )
    _contrast(axes.texts, np.nan_to_num(share).ravel())
    axes.set(xlabel="Predicted verdict", ylabel="Gold verdict")
    axes.tick_params(length=0, rotation=0)
    return _finish(figure)


@styled
def reliability(predictions: pd.DataFrame, title: str, bins: int = 15) -> Figure:
    """Reliability diagram of P(CORRECT), its calibration error, and the count of every bin.

    Parameters
    ----------
    predictions : DataFrame
        Columns ``verdict`` and ``p_correct``.
    title : str
    bins : int
        Equal-width bins on [0, 1].
    """
    _needed("reliability", predictions)
    figure = _new_figure(5.8, title)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[2.4, 1])
    error = _reliability_panels(upper, lower, predictions, bins)
    upper.set_title(f"ECE = {error:.3f} ({bins} bins), n = {len(predictions):,}", color=GREY)
    upper.legend(loc="upper left")
    lower.set_xlabel("Predicted probability of CORRECT")
    return _finish(figure)


def _reliability_panels(upper, lower, predictions: pd.DataFrame, bins: int) -> float:
    """Diagram above, counts below; returns the calibration error."""
    is_valid = (predictions["verdict"] == "CORRECT").to_numpy()
    p_correct = predictions["p_correct"].to_numpy(dtype=float)
    observed, mean_p = calibration_curve(is_valid, p_correct, n_bins=bins)
    counts, edges = np.histogram(p_correct, bins=bins, range=(0, 1))
    upper.plot([0, 1], [0, 1], "--", color=GREY, label="calibrated")
    upper.plot(mean_p, observed, "o-", color=BLUE, markersize=7, label="observed")
    upper.set(ylim=(-0.04, 1.04), ylabel="Share of valid\ntreatments in the bin")
    bars = lower.bar(edges[:-1], counts, width=1 / bins, align="edge", color=BLUE, edgecolor="white")
    lower.bar_label(bars, [f"{n:,}" if n else "" for n in counts], rotation=90, padding=3)
    lower.set(xlim=(-0.02, 1.02), ylim=(0, 1.7 * counts.max()), ylabel="Scenarios")
    lower.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    for axes in (upper, lower):
        axes.grid()
    return stats.expected_calibration_error(p_correct, is_valid, bins)


@styled
def learning_curve(history: Sequence[Mapping], title: str = "Learning curve") -> Figure:
    """Training and validation loss over steps.

    Parameters
    ----------
    history : sequence of mappings
        Each with ``step`` and ``loss`` or ``eval_loss`` or both; others are passed over.
    title : str

    Raises
    ------
    ValueError
        If no entry has a loss.
    """
    curves = {
        key: [(entry["step"], entry[key]) for entry in history if entry.get(key) is not None]
        for key in ("loss", "eval_loss")
    }
    _needed("learning_curve", curves["loss"] + curves["eval_loss"])
    figure = _new_figure(3.6, title)
    axes = figure.subplots()
    if curves["loss"]:
        axes.plot(
            *zip(*curves["loss"]),
            color=BLUE,
            label="training",
            marker="o" if len(curves["loss"]) < 30 else None,
            markersize=4,
        )
    if curves["eval_loss"]:
        axes.plot(*zip(*curves["eval_loss"]), "s-", color=ORANGE, label="validation", linewidth=2)
        step, best = min(curves["eval_loss"], key=lambda point: point[1])
        axes.plot(
            step,
            best,
            "*",
            color=RED,
            markersize=16,
            zorder=3,
            label=f"best validation: {best:.3f} at step {step:,}",
        )
    axes.set(xlabel="Optimiser step", ylabel="Loss")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.grid()
    axes.legend()
    return _finish(figure)


@styled
def contact_sheet(
    images: Sequence[Image.Image], captions: Sequence[str], columns: int = 4, banner: str = "synthetic"
) -> Figure:
    """Images in a grid, each with its whole caption below, under a banner.

    Parameters
    ----------
    images : sequence of PIL images
        Of any size and mode; shown whole, not stretched.
    captions : sequence of str
        One for each image.
    columns : int
    banner : str
        What all images are; empty for none.
    """
    _needed("contact_sheet", images)
    if len(images) != len(captions):
        raise ValueError(f"contact_sheet: {len(images)} images but {len(captions)} captions")
    banner = _wrap(banner.upper(), WIDTH - 1, LETTERS + 4)
    # inches, as all lengths here
    gap, header = 0.15, 0.3 + (banner.count("\n") + 1) * 1.4 * LINE if banner else 0.1
    side = min((WIDTH - gap) / min(columns, len(images)), 3.5) - gap
    wrapped = [_wrap(caption, side) for caption in captions]
    starts = range(0, len(images), columns)
    rows = [
        side + max(caption.count("\n") + 2 for caption in wrapped[start : start + columns]) * LINE
        for start in starts
    ]
    height = header + sum(rows)
    figure = Figure(figsize=(WIDTH, height))
    if banner:
        figure.text(
            0.5,
            1 - header / 2 / height,
            banner,
            size=LETTERS + 3,
            weight="bold",
            ha="center",
            va="center",
            color="white",
            bbox={"facecolor": RED, "edgecolor": "none", "boxstyle": "square,pad=0.3"},
        )
    for index, (image, caption) in enumerate(zip(images, wrapped)):
        row, column = divmod(index, columns)
        left, bottom = gap + column * (side + gap), height - header - sum(rows[:row]) - side
        axes = figure.add_axes([left / WIDTH, bottom / height, side / WIDTH, side / height], xlabel=caption)
        _show(axes, image)
    return _finish(figure)


def _show(axes, image: Image.Image) -> None:
    # one square size for all, so that rows align and a large scan costs no memory
    axes.imshow(np.asarray(ImageOps.pad(image.convert("RGB"), (384, 384), color="black")))
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
