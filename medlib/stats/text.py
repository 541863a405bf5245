"""Numbers as text: the one place that formats rates, points, p-values, counts and tables of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

SPACE = "\N{NO-BREAK SPACE}"

#: In place of a spread where a modality has too few cases.
TOO_FEW = "n/a: too few cases of a modality"

# --- numbers ----------------------------------------------------------------------------------------


def number(value: float | None, form: str = ".3f") -> str:
    """A number in a format; ``n/a`` if it is undefined (None is what a written file has in place of nan)."""
    return "n/a" if pd.isna(value) else format(value, form)


def cell(value, form: str | None = None) -> str:
    """Text of a table entry: fractions to three decimals, a dash for what is undefined."""
    if pd.isna(value):
        return "–"
    if not isinstance(value, float):
        return str(value)
    if form or abs(value) >= 1:
        return format(value, form or ",.1f")
    return f"{value:.3f}" if abs(value) >= 0.001 or value == 0 else f"{value:.1e}"


def percent(value: float | None, digits: int = 1) -> str:
    """``91.2%`` of a fraction; ``n/a`` if it is undefined."""
    return number(value, f".{digits}%")


def rate_text(rate: Mapping, n: bool = False) -> str:
    """A rate of `medlib.stats.proportions.proportion`: ``91.2% [89.3, 92.8]``, with ``(n=1,024)`` if wanted."""
    if pd.isna(rate["value"]):
        return "n/a (n=0)" if n else "n/a (no case)"
    low, high = (percent(rate[end])[:-1] for end in ("low", "high"))
    return f"{percent(rate['value'])} [{low},{SPACE}{high}]" + (f" (n={rate['n']:,})" if n else "")


def interval_text(figure: Mapping, form: str = ".2f") -> str:
    """A figure that is no rate, with its interval: ``0.94 [0.71, 1.17]``; n/a if it is undefined."""
    if pd.isna(figure["value"]):
        return "n/a"
    low, high = (number(figure[end], form) for end in ("low", "high"))
    return f"{number(figure['value'], form)} [{low},{SPACE}{high}]"


def points(value: float | None, sign: bool = False) -> str:
    """A difference in percentage points, to one decimal."""
    return number(value, "+.1f" if sign else ".1f")


def spread_text(score: Mapping) -> str:
    """Spread over modalities: ``2.0 [0.0, 4.5], p = 0.31`` in points; the p of a test that they are one rate."""
    if pd.isna(score["spread"]):
        return "n/a"
    if not (interval := score.get("spread_interval")):  # of a file that an earlier version wrote
        return points(score["spread"])
    low, high = points(interval["low"]), points(interval["high"])
    return f"{points(score['spread'])} [{low},{SPACE}{high}], {p_text(interval['p'])}"


def difference_text(test: Mapping) -> str:
    """Difference of two rates in points with its interval: ``+4.2 [+1.0, +7.5]``, from `medlib.stats.compare`."""
    value, low, high = (points(100 * test[key], sign=True) for key in ("difference", "low", "high"))
    return f"{value} [{low},{SPACE}{high}]"


def p_text(p: float) -> str:
    """A p-value to two digits, never as zero."""
    return f"p{SPACE}<{SPACE}0.0001" if p < 0.0001 else f"p{SPACE}={SPACE}{p:.2g}"


def misses_text(missed: Mapping, digits: int = 1) -> str:
    """Misses among critical errors with the one-sided 95% limit of their rate: ``5 of 50 (≤ 20.0%)``.

    If the cells are known, they follow: ``in 1 of 9 cells (≤ 42.9%)``.
    """
    limit = f" (≤ {percent(missed['upper'], digits)})" if missed["n"] else ""
    cells = f", in {_cells_text(missed['by_cell'])}" if missed.get("by_cell") else ""
    return f"{missed['count']:,} of {missed['n']:,}{limit}{cells}"


def _cells_text(cells: Mapping) -> str:
    return f"{cells['count']:,} of {cells['n']:,} cells (≤ {percent(cells['upper'])})"


def cells_text(rate: Mapping | None) -> str:
    """The interval of a rate's clusters: ``[80.3, 96.3] (33 cells)``; n/a without clusters."""
    return f"{rate_text(rate).partition(' ')[2]} ({rate['clusters']:,} cells)" if rate else "n/a"


def two_digits(value: float) -> str:
    """Two significant digits: what is assumed is not exact."""
    if pd.isna(value):
        return "n/a"
    places = 1 - int(np.floor(np.log10(abs(value)))) if value else 0
    return f"{round(value, places):,.{max(0, places)}f}"


def threshold_text(threshold: float) -> str:
    """A probability with two digits of its distance from the nearer end, so 0.99954 is not 1.00."""
    if threshold > 1:
        return "never"
    distance = min(threshold, 1 - threshold)
    digits = 2 if distance <= 0 else max(2, 1 - int(np.floor(np.log10(distance))))
    return f"{threshold:.{digits}f}"


def over_seeds(values: Sequence[float], form: str = ".1f") -> str:
    """Mean over seeds, and least and greatest marked as such: ``5.5 (5.0 to 6.0, 3 seeds)`` is no interval."""
    if len(values) == 0:
        return "not run"
    mean, low, high = (format(of(values), form) for of in (np.mean, np.min, np.max))
    return mean if len(values) == 1 else f"{mean} ({low.rstrip('%')} to {high}, {len(values)} seeds)"


# --- tables -----------------------------------------------------------------------------------------


def results_table(scores: Mapping[str, dict], full: bool = False) -> pd.DataFrame:
    """The table of results, one row per system, ready to print.

    Parameters
    ----------
    scores : mapping of str to dict
        Results of `medlib.stats.score` by name of the system.
    full : bool
        Also balanced accuracy, MCC, AUROC, Brier score, calibration error, critical misses (with
        the one-sided 95% limit of their rate).

    Returns
    -------
    DataFrame
        Strings only, rates as ``91.2% [89.3, 92.8] (n=1,024)``.
    """
    rows = []
    for system, score in scores.items():
        row = {
            "System": system,
            "n": f"{score['n']:,}",
            "Accuracy (95% CI)": rate_text(score["accuracy"], n=True),
            "95% CI by cell": cells_text(score.get("accuracy_by_cell")),
            "Valid treatments recognised": rate_text(score["sensitivity"], n=True),
            "Errors caught": rate_text(score["specificity"], n=True),
            "Spread (points)": spread_text(score),
        }
        if full:
            row |= {
                "Balanced": percent(score["balanced_accuracy"]),
                "MCC": number(score["mcc"]),
                "AUROC": number(score["auroc"]),
                "Brier": number(score["brier"]),
                "ECE": number(score["ece"]),
                "Critical misses": misses_text(score["critical_misses"]),
            }
        rows.append(row)
    return pd.DataFrame(rows)


def targets_table(rows: Sequence[tuple[str, str, str, bool]], name: str = "Figure") -> pd.DataFrame:
    """(what, target, measured, whether it is met) as a table with a plain yes or no."""
    table = pd.DataFrame(rows, columns=[name, "Target", "Measured", "Met"])
    return table.assign(Met=["yes" if met else "no" for met in table["Met"]])


def to_markdown(table: pd.DataFrame) -> str:
    """A table as GitHub Markdown; the first column left, the others right aligned."""

    def line(cells) -> str:
        texts = (str(cell).replace("|", r"\|").replace("\n", " ") for cell in cells)
        return "| " + " | ".join(texts) + " |"

    ruler = "|" + "|".join([":---"] + ["---:"] * (table.shape[1] - 1)) + "|"
    rows = table.itertuples(index=False, name=None)
    return "\n".join([line(table.columns), ruler, *(line(row) for row in rows)]) + "\n"
