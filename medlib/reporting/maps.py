"""Occlusion maps over images, and the cases they explain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image

from medlib import stats
from medlib.audit.answer import MEANING, CaseAudit
from medlib.audit.rationale import certainty, sentences
from medlib.data.cases import LabelledCase
from medlib.data.suite import Suite
from medlib.models import occlusion
from medlib.models.verdict_model import VerdictModel
from medlib.reporting import plots
from medlib.reporting.plots import LINE, WIDTH

COLOURS = "PuOr_r"  # diverging and safe for colour-blind readers: orange held the verdict up
SIDE = 384  # pixels, of an overlay


def checks_sentence(checks: pd.DataFrame) -> str:
    """Whether the maps of `check_maps` are better than chance."""
    if checks.empty:
        return "No image here has a lesion of known place, so the maps could not be checked."
    rate = stats.proportion(int(checks["on_lesion"].sum()), len(checks))
    chance = checks["by_chance"].mean()
    reading = "**not shown to be more than chance**"
    if rate["low"] > chance:
        reading = "more often than chance would"
    return (
        f"The strongest patch lies on the drawn lesion in {checks['on_lesion'].sum()} of "
        f"{len(checks)} images (95% interval {100 * rate['low']:.0f} to "
        f"{100 * rate['high']:.0f}%; chance {100 * chance:.0f}%): {reading}. Hiding the top "
        f"eighth of the patches lowers the verdict's log-odds by {checks['top'].mean():.1f}, hiding "
        f"as many random ones by {checks['random'].mean().round(1) + 0.0:.1f}."
    )  # never "-0.0"


def surest_misses(predictions: pd.DataFrame) -> pd.DataFrame:
    """Rows with a wrong verdict, the one of which the model was most certain first."""
    wrong = predictions[predictions["verdict"] != predictions["predicted"]]
    return wrong.iloc[(wrong["p_correct"] - 0.5).abs().argsort(kind="stable")[::-1]]


def overlay(axes, image: Image.Image, drop: np.ndarray, limit: float, title: str = "") -> ScalarMappable:
    """Draw a map over a grey image.

    Parameters
    ----------
    axes : matplotlib Axes
    image : PIL.Image.Image
    drop : ndarray, shape (grid, grid)
        Of `occlusion_map`.
    limit : float
        Value of the strongest colour, both ways, above 0; give one ``limit`` to maps to be compared.

    Returns
    -------
    matplotlib ScalarMappable
        For ``figure.colorbar``.
    """
    colours = ScalarMappable(Normalize(-limit, limit), COLOURS)
    # patches that do not matter are clear, so that the image shows through
    strength = np.clip(np.abs(drop) / limit, 0, 1)
    extent = (0, SIDE, SIDE, 0)
    axes.imshow(image.convert("L").resize((SIDE, SIDE)), cmap="gray", vmin=0, vmax=255, extent=extent)
    axes.imshow(colours.to_rgba(drop, alpha=0.75 * strength), interpolation="nearest", extent=extent)
    axes.set(xticks=[], yticks=[], aspect=image.height / image.width)
    axes.spines[:].set_visible(False)
    axes.set_title(title)
    return colours


@plots.styled
def looked_at(
    rows: pd.DataFrame | Sequence[Mapping],
    suite: Suite,
    model: VerdictModel,
    limit: int = 4,
    grid: int = 8,
    batch_size: int = 32,
) -> Figure:
    """Cases with the image, where the model looked, and what was asked and answered.

    Parameters
    ----------
    rows : DataFrame or sequence of mappings
        Each with the ``id`` of a scenario of the suite; drawn in this order, for example
        `surest_misses` of a table of predictions.
    limit : int
        Most rows drawn.
    grid, batch_size : int
        See `occlusion_map`.

    Raises
    ------
    ValueError
        If an id is not in the suite.
    """
    rows = rows.to_dict("records") if isinstance(rows, pd.DataFrame) else list(rows)
    known = {s.id: s for s in suite.scenarios}
    if strange := [row["id"] for row in rows if row["id"] not in known]:
        raise ValueError(f"looked_at: id {strange[0]!r} is not in suite {suite.name}")
    if not rows:
        return plots._finish(plots._new_figure(0.5, "Where the model looked: no case to show"))
    cases = []
    for row in rows[:limit]:
        scenario = known[row["id"]]
        image = suite.image(scenario)
        drop, log_odds = occlusion.occlusion_map(model, scenario, image, grid, batch_size)
        cases.append((image, drop, _case_text(scenario, log_odds)))
    return _draw_cases(cases, f"Where the model looked: {len(cases):,} of {len(rows):,} cases")


@plots.styled
def answered(answers: Sequence[CaseAudit], images: Sequence[Image.Image], title: str = "") -> Figure:
    """Answers below each other, each with its image, its map (where it was measured) and its words."""
    cases = [(image, answer.drop, _answer_text(answer)) for answer, image in zip(answers, images)]
    return _draw_cases(cases, title or f"{answers[0].system}: {answers[0].decision}")


def _answer_text(answer: CaseAudit) -> list[str]:
    case = answer.case
    return [
        f"{answer.decision.upper()}: {MEANING[answer.decision]}",
        *(f"because {reason}" for reason in answer.reasons),
        f"{answer.verdict}, calibrated probability {certainty(answer.verdict, answer.probability)}",
        f"Note: {case['finding']}",
        f"Treatment: {case['treatment']}",
        *sentences(answer.verdict, answer.without or {}),
        "Not a medical device." + (" A stand-in, which knows no medicine." if answer.standin else ""),
    ]


def _draw_cases(cases: list[tuple[Image.Image, np.ndarray | None, list[str]]], title: str) -> Figure:
    side, gap = 2.05, 0.15  # inches
    words_wide = WIDTH - 2 * (side + gap) - 0.2
    # a single patch of a close call can outdo all others; the arrows of the bar say that there are more
    drops = [drop for _, drop, _ in cases if drop is not None]
    limit = max(float(np.quantile(np.abs(drops), 0.98)), 1e-6) if drops else 1.0
    texts = ["\n".join(plots._wrap(part, words_wide) for part in lines) for _, _, lines in cases]
    heights = [max(side, (text.count("\n") + 1) * LINE * 1.05) + gap for text in texts]
    figure = plots._new_figure(sum(heights) + 0.75, title)
    grid = figure.subplots(
        len(cases), 3, squeeze=False, height_ratios=heights, width_ratios=[side, side, words_wide]
    )
    colours = None
    for (shown, mapped, words), (image, drop, _), text in zip(grid, cases, texts):
        shown.imshow(image, extent=(0, SIDE, SIDE, 0))
        shown.set(xticks=[], yticks=[], aspect=image.height / image.width)
        shown.spines[:].set_visible(False)
        mapped.axis("off")
        if drop is not None:
            colours = overlay(mapped, image, drop, limit)
        shown.set_anchor("N"), mapped.set_anchor("N")
        words.axis("off")
        words.text(0, 1, text, va="top", linespacing=1.25)
    if colours is None:
        return plots._finish(figure)
    bar = figure.colorbar(colours, ax=grid, location="bottom", shrink=0.6, aspect=30, extend="both")
    bar.set_label(
        "Drop in the verdict's log-odds when the patch is hidden\n"
        "(orange: speaks for the verdict, purple: against it)"
    )
    return plots._finish(figure)


def _case_text(scenario: LabelledCase, log_odds: float) -> list[str]:
    probability = 1 / (1 + np.exp(-np.clip(log_odds, -500, 500)))
    predicted = "CORRECT" if log_odds >= 0 else "ERROR"
    right = "right" if predicted == scenario.verdict else f"wrong, gold: {scenario.verdict}"
    shown = scenario.factors.get("image_finding")
    return [
        f"{predicted} ({right})",
        f"p(CORRECT) = {probability:.2f}",
        f"Note: {scenario.finding}",
        *([f"Image shows: {str(shown).replace('_', ' ')}"] if shown else []),
        f"Treatment: {scenario.treatment}",
    ]
