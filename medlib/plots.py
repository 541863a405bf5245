"""Figures, made to be read on a phone: 7 inches wide, letters of 11 points or more.

Every function returns a matplotlib ``Figure`` that pyplot does not know, so nothing is shown
twice in a notebook and nothing has to be closed. Save one with ``figure.savefig(path)``.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image, ImageOps
from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix

from medlib.metrics import expected_calibration_error
from medlib.schema import VERDICTS

WIDTH = 7.0  # inches
LETTERS = 11  # points
LINE = LETTERS * 1.25 / 72  # inches from line to line
BLUE, ORANGE, _, RED, *_ = sns.color_palette("colorblind")
GREY = "0.35"
RATE_NAMES = {
    "accuracy": "Accuracy",
    "sensitivity": "Valid treatments recognised",
    "specificity": "Errors caught",
}
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
    for letters in range(int(inches * 72 / size * 3), 1, -1):
        lines = textwrap.wrap(str(text), letters, break_on_hyphens=False)
        if all(_text_inches(line, size) <= inches for line in lines):
            break
    return "\n".join(lines)


def _new_figure(height: float, title: str) -> Figure:
    """A figure with a wrapped title and ``height`` inches for what stands below it."""
    size = LETTERS + 2
    heading = _wrap(title, 0.9 * WIDTH, 1.1 * size)  # bold letters are wider
    figure = Figure(figsize=(WIDTH, height + (heading.count("\n") + 1) * size * 1.25 / 72 + 0.1),
                    layout="constrained")
    figure.suptitle(heading)
    return figure


def _finish(figure: Figure) -> Figure:
    # lays out the figure and makes the ticks while the style holds
    figure.draw_without_rendering()
    return figure


def _needed(what: str, items) -> None:
    if len(items) == 0:
        raise ValueError(f"{what}: nothing to draw")


@styled
def forest(scores: Mapping[str, dict], title: str, bar: float | None = None) -> Figure:
    """Accuracy of every system with its 95 % interval and n, first system on top.

    Parameters
    ----------
    scores : mapping of str to dict
        Results of `medlib.metrics.score` by name of the system.
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
        _mark(axes, bar, f"target {100 * bar:.0f} %")
    return _finish(figure)


@styled
def ablation_bars(
    scores: Mapping[str, dict], chance: float = 0.5, title: str = "What each part brings"
) -> Figure:
    """Accuracy bars from 0 to 100 % with 95 % intervals and the chance level.

    Parameters
    ----------
    scores : mapping of str to dict
        Results of `medlib.metrics.score` by name of the variant.
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
    _mark(axes, chance, f"chance {100 * chance:.0f} %")
    return _finish(figure)


def _rate_rows(scores: Mapping[str, dict], title: str):
    """Axes with a row per system: its name at the left, accuracy and n at the right."""
    names = [_wrap(name, 1.9) for name in scores]
    tallest = max(2, *(name.count("\n") + 1 for name in names))
    figure = _new_figure(0.9 + len(names) * (tallest * LINE + 0.12), title)
    axes = figure.subplots()
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel("Accuracy with 95 % interval")
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    axes.grid(axis="x")
    for row, result in enumerate(scores.values()):
        rate = result["accuracy"]
        value = f"{100 * rate['value']:.1f} %" if rate["n"] else "no data"
        axes.annotate(f"{value}\nn = {rate['n']:,}", (1.03, row), va="center",
                      xycoords=("axes fraction", "data"), annotation_clip=False)
    return figure, axes


def _mark(axes, value: float, name: str) -> None:
    axes.axvline(value, color=ORANGE, linestyle="--", linewidth=2, label=name)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0))


@styled
def modality_heatmap(scores: Mapping[str, dict], rate: str = "sensitivity") -> Figure:
    """One rate of every system on every modality.

    Parameters
    ----------
    scores : mapping of str to dict
        Results of `medlib.metrics.score` by name of the system.
    rate : {'sensitivity', 'specificity', 'accuracy'}
    """
    _needed("modality_heatmap", scores)
    if rate not in RATE_NAMES:
        raise ValueError(f"rate: {rate!r} is none of {', '.join(RATE_NAMES)}")
    cells = pd.DataFrame({
        name: pd.Series({m: rates[rate]["value"] for m, rates in result["per_modality"].items()})
        for name, result in scores.items()
    }).T.astype(float)
    counts = {
        modality: {result["per_modality"][modality][rate]["n"] for result in scores.values()
                   if modality in result["per_modality"]}
        for modality in cells.columns
    }
    sizes = ", ".join(
        f"{modality} {min(n):,}" + (f" to {max(n):,}" if len(n) > 1 else "")
        for modality, n in counts.items()
    )
    columns = cells.shape[1]
    cells.index = [_wrap(name, 1.9) for name in cells.index]
    cells.columns = [_wrap(name, max(0.5, 4.8 / columns)) for name in cells.columns]
    tallest = max(2, *(name.count("\n") + 1 for name in cells.index))
    figure = _new_figure(1.3 + len(cells) * (tallest * LINE + 0.15), RATE_NAMES[rate])
    axes = figure.subplots()
    axes.set_title(_wrap(f"per cent of n: {sizes}", 4.8), color=GREY, fontsize=LETTERS)
    axes.set_facecolor("0.9")
    sns.heatmap(
        100 * cells, ax=axes, cmap="cividis", vmin=0, vmax=100, annot=True, fmt=".0f",
        linewidths=1, annot_kws={"size": LETTERS + 1}, cbar=False,
    )
    for row, column in np.argwhere(cells.isna().to_numpy()):
        axes.text(column + 0.5, row + 0.5, "n/a", ha="center", va="center", color=GREY)
    axes.tick_params(length=0, rotation=0)
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
    words = [[f"{count:,}\n" + ("n/a" if np.isnan(part) else f"{part:.1f} %")
              for count, part in zip(*row)] for row in zip(counts, share)]
    figure = _new_figure(4.4, title)
    axes = figure.subplots()
    axes.set_title(f"n = {len(predictions):,}", color=GREY)
    sns.heatmap(
        np.nan_to_num(share), ax=axes, annot=words, fmt="", cmap="cividis", vmin=0, vmax=100,
        annot_kws={"size": LETTERS + 5}, linewidths=1, cbar_kws={"label": "% of the gold verdict"},
        xticklabels=list(VERDICTS),
        yticklabels=[f"{verdict}\nn = {n:,}" for verdict, n in zip(VERDICTS, counts.sum(axis=1))],
    )
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
    is_valid = (predictions["verdict"] == "CORRECT").to_numpy()
    p_correct = predictions["p_correct"].to_numpy(dtype=float)
    error = expected_calibration_error(p_correct, is_valid, bins)
    observed, mean_p = calibration_curve(is_valid, p_correct, n_bins=bins)
    counts, edges = np.histogram(p_correct, bins=bins, range=(0, 1))
    figure = _new_figure(5.8, title)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[2.4, 1])
    upper.set_title(f"ECE = {error:.3f} ({bins} bins), n = {len(predictions):,}", color=GREY)
    upper.plot([0, 1], [0, 1], "--", color=GREY, label="calibrated")
    upper.plot(mean_p, observed, "o-", color=BLUE, markersize=7, label="observed")
    upper.set(ylim=(-0.04, 1.04), ylabel="Share of valid\ntreatments in the bin")
    upper.legend(loc="upper left")
    bars = lower.bar(
        edges[:-1], counts, width=1 / bins, align="edge", color=BLUE, edgecolor="white"
    )
    lower.bar_label(bars, [f"{n:,}" if n else "" for n in counts], rotation=90, padding=3)
    lower.set(xlim=(-0.02, 1.02), ylim=(0, 1.7 * counts.max()), ylabel="Scenarios",
              xlabel="Predicted probability of CORRECT")
    lower.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    for axes in (upper, lower):
        axes.grid()
    return _finish(figure)


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
        axes.plot(*zip(*curves["loss"]), color=BLUE, label="training",
                  marker="o" if len(curves["loss"]) < 30 else None, markersize=4)
    if curves["eval_loss"]:
        axes.plot(*zip(*curves["eval_loss"]), "s-", color=ORANGE, label="validation", linewidth=2)
        step, best = min(curves["eval_loss"], key=lambda point: point[1])
        axes.plot(step, best, "*", color=RED, markersize=16, zorder=3,
                  label=f"best validation: {best:.3f} at step {step:,}")
    axes.set(xlabel="Optimiser step", ylabel="Loss")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.grid()
    axes.legend()
    return _finish(figure)


@styled
def contact_sheet(
    images: Sequence[Image.Image], captions: Sequence[str], columns: int = 4,
    banner: str = "synthetic",
) -> Figure:
    """Pictures in a grid, each with its whole caption below, under a banner.

    Parameters
    ----------
    images : sequence of PIL images
        Of any size and mode; shown whole, not stretched.
    captions : sequence of str
        One for each picture.
    columns : int
    banner : str
        What all pictures are; empty for none.
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
        figure.text(0.5, 1 - header / 2 / height, banner, size=LETTERS + 3, weight="bold",
                    ha="center", va="center", color="white",
                    bbox={"facecolor": RED, "edgecolor": "none", "boxstyle": "square,pad=0.3"})
    for index, (image, caption) in enumerate(zip(images, wrapped)):
        row, column = divmod(index, columns)
        left, bottom = gap + column * (side + gap), height - header - sum(rows[:row]) - side
        axes = figure.add_axes(
            [left / WIDTH, bottom / height, side / WIDTH, side / height], xlabel=caption
        )
        _show(axes, image)
    return _finish(figure)


def _show(axes, image: Image.Image) -> None:
    # one square size for all, so that rows align and a large scan costs no memory
    axes.imshow(np.asarray(ImageOps.pad(image.convert("RGB"), (384, 384), color="black")))
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


@styled
def misses(
    predictions_rows: Sequence[Mapping], images: Sequence[Image.Image], limit: int = 8
) -> Figure:
    """Gallery of wrong verdicts: the picture, and beside it what was asked and answered.

    Parameters
    ----------
    predictions_rows : sequence of mappings
        Each with ``verdict``, ``predicted``, ``p_correct``, ``finding`` and ``treatment``; ``id``,
        ``modality`` and ``shown`` (what the picture was drawn to show) are shown if they are
        there. Right verdicts are passed over.
    images : sequence of PIL images
        One for each row.
    limit : int
        Most rows drawn; the first ones are.
    """
    if len(predictions_rows) != len(images):
        raise ValueError(f"misses: {len(predictions_rows)} rows but {len(images)} images")
    wrong = [(row, image) for row, image in zip(predictions_rows, images)
             if row["verdict"] != row["predicted"]]
    if not wrong:
        figure = _new_figure(1.0, f"No misses among {len(images):,} scenarios")
        return _finish(figure)
    side, shown = 2.1, wrong[:limit]
    texts = [_miss_text(row, WIDTH - side - 0.5) for row, _ in shown]
    heights = [max(side, (text.count("\n") + 1) * LINE * 1.05) + 0.15 for text in texts]
    figure = _new_figure(sum(heights), f"Misses: {len(shown):,} of {len(wrong):,} shown")
    grid = figure.subplots(len(shown), 2, squeeze=False, height_ratios=heights,
                           width_ratios=[side, WIDTH - side])
    for (picture, words), (_, image), text in zip(grid, shown, texts):
        _show(picture, image)
        picture.set_anchor("N")
        words.axis("off")
        words.text(0, 1, text, va="top", linespacing=1.25)
    return _finish(figure)


def _miss_text(row: Mapping, inches: float) -> str:
    head = " · ".join(str(row[key]) for key in ("id", "modality") if key in row)
    parts = [
        head,
        f"Note: {row['finding']}",
        f"Picture shows: {row['shown']}" if "shown" in row else "",
        f"Treatment: {row['treatment']}",
        f"Gold: {row['verdict']}",
        f"Predicted: {row['predicted']}, p(CORRECT) = {row['p_correct']:.2f}",
    ]
    return "\n".join(_wrap(part, inches) for part in parts if part)
