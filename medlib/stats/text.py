"""Numbers as text: the one place that formats rates, p-values and tables of results."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd


def results_table(scores: Mapping[str, dict], full: bool = False) -> pd.DataFrame:
    """The table of results, one row per system, ready to print.

    Parameters
    ----------
    scores : mapping of str to dict
        Results of `score` by name of the system.
    full : bool
        Also balanced accuracy, MCC, AUROC, Brier score, calibration error, critical misses (with
        the one-sided 95% limit of their rate) and US dollars lost in 1,000 cases.

    Returns
    -------
    DataFrame
        Strings only, rates as ``91.2% [89.3, 92.8] (n=1,024)``.
    """
    rows = []
    for system, result in scores.items():
        row = {
            "System": system,
            "n": f"{result['n']:,}",
            "Accuracy (95% CI)": _rate_text(result["accuracy"]),
            "Valid treatments recognised": _rate_text(result["sensitivity"]),
            "Errors caught": _rate_text(result["specificity"]),
            "Spread (points)": _number_text(result["spread"], ".1f"),
        }
        if full:
            missed = result["critical_misses"]
            limit = f" (≤ {100 * missed['upper']:.1f}%)" if missed["n"] else ""
            row |= {
                "Balanced": _number_text(result["balanced_accuracy"], ".1%").replace("%", " %"),
                "MCC": _number_text(result["mcc"], ".3f"),
                "AUROC": _number_text(result["auroc"], ".3f"),
                "Brier": _number_text(result["brier"], ".3f"),
                "ECE": _number_text(result["ece"], ".3f"),
                "Critical misses": f"{missed['count']:,} of {missed['n']:,}{limit}",
                "USD lost / 1,000": _number_text(result["expected_cost"]["per_1000"], ",.0f"),
            }
        rows.append(row)
    return pd.DataFrame(rows)


def _number_text(value: float | None, form: str) -> str:
    # None is what a written file has in place of nan
    return "n/a" if value is None or np.isnan(value) else format(value, form)


def _rate_text(rate: dict) -> str:
    if not rate["n"]:
        return "n/a (n=0)"
    value, low, high = (100 * rate[key] for key in ("value", "low", "high"))
    return f"{value:.1f}% [{low:.1f}, {high:.1f}] (n={rate['n']:,})"


def to_markdown(table: pd.DataFrame) -> str:
    """A table as GitHub Markdown; the first column left, the others right aligned."""

    def line(cells) -> str:
        texts = (str(cell).replace("|", r"\|").replace("\n", " ") for cell in cells)
        return "| " + " | ".join(texts) + " |"

    ruler = "|" + "|".join([":---"] + ["---:"] * (table.shape[1] - 1)) + "|"
    rows = table.itertuples(index=False, name=None)
    return "\n".join([line(table.columns), ruler, *(line(row) for row in rows)]) + "\n"


SPACE = "\N{NO-BREAK SPACE}"


# ---- words and numbers ---------------------------------------------------------------------------


def percent(value: float) -> str:
    """``91.2%`` of a fraction; ``n/a`` if it is undefined."""
    return "n/a" if pd.isna(value) else f"{100 * value:.1f}%"


def rate_text(rate: Mapping) -> str:
    """A rate of `medlib.stats.proportions.proportion` with its interval."""
    if not rate["n"]:
        return "n/a (no case)"
    low, high = (f"{100 * rate[end]:.1f}" for end in ("low", "high"))
    return f"{percent(rate['value'])} [{low},{SPACE}{high}]"


def p_text(p: float) -> str:
    """A p-value to two digits, never as zero."""
    return f"p{SPACE}<{SPACE}0.0001" if p < 0.0001 else f"p{SPACE}={SPACE}{p:.2g}"
