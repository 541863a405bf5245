"""Agreement of raters beyond chance: Cohen's and Fleiss' kappa, Krippendorff's alpha, with intervals."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from statsmodels.stats.inter_rater import cohens_kappa, fleiss_kappa

from medlib.config import SEVERITIES, VERDICTS
from medlib.stats.proportions import proportion

NAN = float("nan")
RESAMPLES = 2_000
#: What raters judge -> its levels, in order, and the scale of measurement.
SCALES = {"verdict": (VERDICTS, "nominal"), "severity": (SEVERITIES, "ordinal")}


def by_case(ratings: pd.DataFrame, what: str = "verdict") -> pd.DataFrame:
    """Ratings as a table, one row per case and one column per rater; NaN where a rating is missing.

    Parameters
    ----------
    ratings : DataFrame
        Columns ``key``, ``rater`` and ``what``, as from `medlib.feedback.rating_store.current`.
    what : {"verdict", "severity"}
        The raters' own verdict, or the severity of what they call an error: a case that a rater calls
        CORRECT has none and counts as not rated by them.

    Returns
    -------
    DataFrame of level numbers (float), by `SCALES`.

    Raises
    ------
    ValueError
        If a rater has two ratings of one case, or a level is not in `SCALES`.
    """
    levels, _ = SCALES[what]
    wide = ratings.pivot(index="key", columns="rater", values=what)
    answers = wide.where(wide.notna() & (wide != "none"))
    if unknown := set(answers.stack().dropna()) - set(levels):
        raise ValueError(f"{what}: {', '.join(sorted(map(str, unknown)))} not in {', '.join(levels)}")
    return answers.apply(lambda column: column.map({level: float(i) for i, level in enumerate(levels)}))


def raw(wide: pd.DataFrame) -> dict:
    """Share of the cases with two or more ratings on which all raters agree, with Wilson's interval."""
    shared = wide[wide.notna().sum(axis=1) >= 2]
    return proportion(int((shared.nunique(axis=1) == 1).sum()), len(shared))


def cohen(first: Sequence[float], second: Sequence[float], levels: int, ordered: bool = False) -> dict:
    """Cohen's kappa of two raters over the cases that both rated; linearly weighted if levels are ordered.

    Parameters
    ----------
    first, second : sequences of float
        Level numbers of the same cases; NaN for a case that the rater did not rate.
    levels : int
        Number of levels.

    Returns
    -------
    dict
        ``value``, ``low``, ``high`` (95%, by the normal approximation of statsmodels) and ``n``. NaN if
        undefined, with all ratings the same; limits are also NaN without a disagreement to estimate from.

    References
    ----------
    J. Cohen (1960), "A coefficient of agreement for nominal scales"; J. L. Fleiss, J. Cohen and
    B. S. Everitt (1969), "Large sample standard errors of kappa and weighted kappa".
    """
    pairs = np.array([first, second], dtype=float).T
    pairs = pairs[~np.isnan(pairs).any(axis=1)].astype(int)
    if len(np.unique(pairs)) < 2:
        return _result(NAN, NAN, NAN, len(pairs))
    table = np.zeros((levels, levels))
    np.add.at(table, tuple(pairs.T), 1)
    result = cohens_kappa(table, wt="linear" if ordered else None)
    if result.kappa == 1:
        return _result(1.0, NAN, NAN, len(pairs))
    return _result(result.kappa, result.kappa_low, min(result.kappa_upp, 1.0), len(pairs))


def fleiss(wide: pd.DataFrame, levels: int, seed: int = 0) -> dict:
    """Fleiss' kappa over the cases that every rater rated, since it allows no gaps; see `cohen` for the result.

    The limits are a percentile bootstrap over cases.

    References
    ----------
    J. L. Fleiss (1971), "Measuring nominal scale agreement among many raters".
    """
    complete = _counts(wide.dropna(), levels)
    return _bootstrapped(complete, fleiss_kappa, seed) if wide.shape[1] > 1 else _result(NAN, NAN, NAN, 0)


def alpha(wide: pd.DataFrame, levels: int, measurement: str = "nominal", seed: int = 0) -> dict:
    """Krippendorff's alpha over the cases with two or more ratings; see `cohen` for the result.

    The limits are a percentile bootstrap over cases.

    Parameters
    ----------
    wide : DataFrame of `by_case`
        Any number of raters; gaps are allowed.
    measurement : {"nominal", "ordinal"}

    References
    ----------
    K. Krippendorff (2004), "Content Analysis", chapter 11; values from 0.800 are called reliable
    there, values from 0.667 good for tentative conclusions. K. Krippendorff (2011), "Computing Krippendorff's
    alpha-reliability", has the formulas and the example that the tests compare with.
    """
    counts = _counts(wide, levels)
    distance = DISTANCES[measurement]
    return _bootstrapped(counts[counts.sum(axis=1) >= 2], lambda drawn: _alpha(drawn, distance), seed)


def _alpha(counts: np.ndarray, distance: Callable[[np.ndarray], np.ndarray]) -> float:
    """Krippendorff's alpha of counts (cases, levels), each case with two or more ratings: 1 - observed / expected.

    A pair of ratings of one case weighs 1 / (ratings of the case - 1); ``distance`` takes the number of ratings of
    each level and says how far apart two levels are, squared.
    """
    weighted = counts / (counts.sum(axis=1, keepdims=True) - 1)
    coincidences = counts.T @ weighted - np.diag(weighted.sum(axis=0))
    totals = counts.sum(axis=0).astype(float)
    squared = distance(totals)
    return 1 - (totals.sum() - 1) * (coincidences * squared).sum() / (np.outer(totals, totals) * squared).sum()


def _nominal(totals: np.ndarray) -> np.ndarray:
    return 1 - np.eye(len(totals))


def _ordinal(totals: np.ndarray) -> np.ndarray:
    """Squared number of ratings from the middle of one level to the middle of the other."""
    middle = np.cumsum(totals) - totals / 2
    return (middle[:, None] - middle) ** 2


DISTANCES = {"nominal": _nominal, "ordinal": _ordinal}


def _counts(wide: pd.DataFrame, levels: int) -> np.ndarray:
    """Number of raters who chose each level, int array (cases, levels)."""
    return np.stack([(wide == level).sum(axis=1) for level in range(levels)], axis=1)


def _bootstrapped(counts: np.ndarray, statistic: Callable[[np.ndarray], float], seed: int) -> dict:
    """A statistic of counts with its percentile interval over cases.

    Cases with the same counts are interchangeable, so it draws how often each pattern of counts occurs.
    """
    if (counts.sum(axis=0) > 0).sum() < 2:
        return _result(NAN, NAN, NAN, len(counts))
    value = float(statistic(counts))
    if ((counts > 0).sum(axis=1) == 1).all():  # without disagreement a bootstrap interval has no width
        return _result(value, NAN, NAN, len(counts))
    patterns, frequency = np.unique(counts, axis=0, return_counts=True)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(counts), frequency / len(counts), size=RESAMPLES)
    samples = (np.repeat(patterns, times, axis=0) for times in drawn)
    # a sample with a single level has no chance agreement to compare with
    values = [statistic(sample) for sample in samples if (sample.sum(axis=0) > 0).sum() > 1]
    low, high = np.quantile(values, [0.025, 0.975])
    return _result(value, low, high, len(counts))


def _result(value: float, low: float, high: float, n: int) -> dict:
    return {"value": float(value), "low": float(low), "high": float(high), "n": n}


def summary(ratings: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """All measures of agreement, on verdicts and on the severity of what raters call an error.

    Returns
    -------
    DataFrame
        ``what`` ("verdict" or "severity"), ``measure``, ``raters`` (their pseudonyms), ``value``, ``low``,
        ``high``, ``n`` (cases); empty if no two raters rated.
    """
    results = []
    for what, (levels, measurement) in SCALES.items():
        wide = by_case(ratings, what)
        everybody, ordered = ", ".join(wide.columns), measurement == "ordinal"
        if wide.shape[1] < 2:
            continue
        results.append((what, "same answer by all", everybody, raw(wide)))
        for a, b in itertools.combinations(wide.columns, 2):
            name = "Cohen's kappa, linear weights" if ordered else "Cohen's kappa"
            results.append((what, name, f"{a}, {b}", cohen(wide[a], wide[b], len(levels), ordered)))
        results.append((what, "Fleiss' kappa", everybody, fleiss(wide, len(levels), seed)))
        results.append(
            (what, f"Krippendorff's alpha, {measurement}", everybody, alpha(wide, len(levels), measurement, seed))
        )
    columns = ["what", "measure", "raters", "value", "low", "high", "n"]
    return pd.DataFrame(
        [
            {"what": what, "measure": measure, "raters": names, **result}
            for what, measure, names, result in results
        ],
        columns=columns,
    )
