"""Rates with Wilson intervals, and the bootstrap over clusters."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import t
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


def clustered_proportion(successes, names: pd.Series, level: float = 0.95) -> dict:
    """A proportion with a Wilson interval for as many cases as the clusters are worth.

    The effective number of cases is ``value * (1 - value)`` over the variance that the clusters show, at most as
    many as there are, and less for few clusters (t distribution). Where no cluster differs from another nothing
    is known of that variance, and every cluster counts as one case.

    Parameters
    ----------
    successes : array_like of bool, shape (n,)
    names : Series
        Cluster of every case; see `cluster_numbers`.
    level : float

    Returns
    -------
    dict
        ``value``, ``n``, ``low``, ``high`` as of `proportion`; ``clusters``, ``effective_n``.

    References
    ----------
    E. L. Korn and B. I. Graubard (1998), "Confidence intervals for proportions with small expected number of
    positive counts estimated from survey data", Survey Methodology 24.
    """
    right, numbers = np.asarray(successes, dtype=float), cluster_numbers(names)
    n, value = len(right), float(right.mean())
    surplus = np.bincount(numbers, right - value)  # of a cluster over what the mean would give it
    clusters = len(surplus)
    if clusters < 2:
        return {"value": value, "n": n, "low": 0.0, "high": 1.0, "clusters": clusters, "effective_n": 1.0}
    variance = clusters / (clusters - 1) * float((surplus**2).sum()) / n**2
    effective = float(clusters)
    if variance > 1e-12:
        few = t.ppf((1 + level) / 2, n - 1) / t.ppf((1 + level) / 2, clusters - 1)
        effective = min(value * (1 - value) / variance * few**2, float(n))
    low, high = proportion_confint(value * effective, effective, alpha=1 - level, method="wilson")
    low, high = min(max(float(low), 0.0), value), max(min(float(high), 1.0), value)
    return {"value": value, "n": n, "low": low, "high": high, "clusters": clusters, "effective_n": effective}


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
