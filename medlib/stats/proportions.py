"""Rates with Wilson intervals, and the bootstrap over clusters."""

from __future__ import annotations

import numpy as np
import pandas as pd
from statsmodels.stats.proportion import proportion_confint

NAN = float("nan")
RESAMPLES = 10_000  # of every bootstrap


def proportion(successes: int, n: int, level: float = 0.95) -> dict:
    """A proportion with its Wilson score interval.

    Parameters
    ----------
    successes, n : int
        Successes among ``n`` trials.
    level : float
        Confidence level of the two-sided interval.

    Returns
    -------
    dict
        ``value``, ``n``, ``low``, ``high``; nan instead of numbers if ``n`` is 0.

    Raises
    ------
    ValueError
        Unless ``0 <= successes <= n``.

    References
    ----------
    E. B. Wilson (1927), "Probable inference, the law of succession, and statistical inference".
    """
    if not 0 <= successes <= n:
        raise ValueError(f"proportion: successes={successes} is not between 0 and n={n}")
    if n == 0:
        return {"value": NAN, "n": 0, "low": NAN, "high": NAN}
    value = float(successes / n)
    low, high = proportion_confint(successes, n, alpha=1 - level, method="wilson")
    # at 0 and n the limit equals the value but for rounding
    low, high = min(max(float(low), 0.0), value), max(min(float(high), 1.0), value)
    return {"value": value, "n": int(n), "low": low, "high": high}


def cluster_numbers(names: pd.Series) -> np.ndarray:
    """Cluster of every row as 0, 1, ...; a row without a name is a cluster of its own."""
    numbers, clusters = pd.factorize(names, sort=True)
    single = numbers < 0
    numbers[single] = len(clusters) + np.arange(single.sum())
    return numbers


def bootstrap_interval(
    totals: np.ndarray, sizes: np.ndarray, floor: float, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap of ``totals.sum() / sizes.sum()`` over clusters.

    Clusters of one total and size are interchangeable, so it is enough to draw how often each kind
    comes up (multinomial): the same distribution as drawing the clusters one by one, and fast.
    A mean lies between ``floor`` and 1.
    """
    means = totals / sizes
    if (means == means[0]).all():
        # a bootstrap of equal values has no width: bound the share of other values, never seen
        centre = float(means[0])
        unseen = float(proportion_confint(0, len(means), 1 - level, method="beta")[1])
        return centre - unseen * (centre - floor), centre + unseen * (1 - centre)
    # kinds in order of appearance, so that swapping two systems mirrors the draws
    kinds = pd.DataFrame({"total": totals, "size": sizes}).groupby(["total", "size"], sort=False)
    counts = kinds.size().rename("count").reset_index()
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(totals), counts["count"] / len(totals), size=RESAMPLES)
    means = (drawn @ counts["total"].to_numpy()) / (drawn @ counts["size"].to_numpy())
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
