"""How far the probability of CORRECT can be trusted: temperature, and when to abstain.

``p_correct`` is the probability that a model gives to the verdict ``CORRECT``; ``is_correct`` says
whether that is the gold verdict (not whether the model is right). Temperature and threshold are
fitted on validation scenarios and then applied to others. Tables are those of `medlib.stats.scores`.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit
from scipy.stats import binned_statistic
from statsmodels.genmod.families import Binomial
from statsmodels.genmod.generalized_linear_model import GLM
from statsmodels.stats.proportion import proportion_confint

from medlib.stats.proportions import NAN, cluster_numbers


def expected_calibration_error(p, y, bins: int = 15) -> float:
    """Expected calibration error of the probability of CORRECT.

    The mean over ``bins`` equal-width bins on [0, 1], weighted by their counts, of
    ``|mean p - share of y|``. It is about P(CORRECT) itself, not about the confidence in the
    predicted verdict, so it is the mean gap in the reliability diagram.

    Parameters
    ----------
    p : array_like of float, shape (n,)
        Probability of CORRECT.
    y : array_like of bool, shape (n,)
        True where the gold verdict is CORRECT.

    Returns
    -------
    float
        0 (calibrated) to 1.

    References
    ----------
    C. Guo et al. (2017), "On calibration of modern neural networks", ICML.
    """
    p, y = checked_probabilities(p, y)
    # count x |mean p - mean y| of a bin is |sum of (p - y)| in it
    gaps = binned_statistic(p, p - y, statistic="sum", bins=bins, range=(0, 1)).statistic
    return float(np.abs(gaps).sum() / p.size)


def checked_probabilities(p, y) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and labels as two float arrays (n,); ValueError unless they can be that."""
    p, y = np.asarray(p, dtype=float), np.asarray(y, dtype=float)
    if p.shape != y.shape or p.ndim != 1 or not p.size:
        raise ValueError(f"p and y need one equal, non-empty axis, got {p.shape} and {y.shape}")
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("p holds values outside [0, 1]")
    if not np.isin(y, (0, 1)).all():
        raise ValueError("y holds values other than 0 and 1")
    return p, y


TEMPERATURES = 0.05, 20.0  # coolest and warmest that are tried
PRIOR = 0.25  # scale of the Laplace prior on log T
FOLDS = 5  # of the cross-validation of a temperature
SMALLEST = 1e-12  # probabilities are kept this far from 0 and 1, so that their logits are finite


def fit_temperature(p_correct, is_correct, groups=None) -> float:
    """The temperature that makes validation probabilities most likely, or 1 if that does not carry over.

    Minimises the negative log-likelihood of ``expit(logit(p_correct) / T)`` over T from 0.05 to 20, with a
    Laplace prior on log T of mean 0 and scale `PRIOR`: few mistakes say little, and without a prior a validation
    suite without a mistake would call for unlimited certainty. Above 1 the model was too sure of
    itself, below 1 not sure enough. In cross-validation the temperatures of the other folds must make the cases
    of a fold likelier than they are, or the answer is 1.

    Parameters
    ----------
    p_correct : array_like of float, shape (n,)
        Probability of CORRECT on validation scenarios; exactly 0 and 1 are allowed.
    is_correct : array_like of bool, shape (n,)
        True where the gold verdict is CORRECT.
    groups : Series, optional
        Names of what is not independent, such as pairs; a group is in one fold.

    Returns
    -------
    float
        1.0 also if every probability is 0.5, which no temperature changes.

    Raises
    ------
    ValueError
        For unequal or empty input, or values out of range.

    References
    ----------
    C. Guo et al. (2017), "On calibration of modern neural networks", ICML.
    """
    p, y = checked_probabilities(p_correct, is_correct)
    margin = np.where(y == 1, 1, -1) * _logits(p)  # in favour of the gold verdict
    fold = (np.arange(len(p)) if groups is None else cluster_numbers(groups)) % FOLDS
    if not margin.any() or len(np.unique(fold)) < 2:
        return 1.0
    gains = [
        _loss(held) - _loss(held / _likeliest(rest))
        for held, rest in ((margin[fold == k], margin[fold != k]) for k in np.unique(fold))
    ]
    return _likeliest(margin) if sum(gains) > 0 else 1.0


def _likeliest(margin: np.ndarray) -> float:
    def loss(log_temperature: float) -> float:
        return _loss(margin * np.exp(-log_temperature)) + abs(log_temperature) / PRIOR

    optimum = minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(optimum.x)) if abs(optimum.x) > 1e-4 else 1.0


def _loss(margin: np.ndarray) -> float:
    """Negative log-likelihood of the gold verdicts, in nats."""
    return float(np.logaddexp(0, -margin).sum())


def log_loss(p_correct, is_correct) -> float:
    """Mean negative log-likelihood of the gold verdicts, in nats."""
    p, y = checked_probabilities(p_correct, is_correct)
    return _loss(np.where(y == 1, 1, -1) * _logits(p)) / len(p)


def apply_temperature(p_correct, temperature: float) -> np.ndarray:
    """Probabilities of CORRECT after division of their logits by a temperature.

    Parameters
    ----------
    p_correct : array_like of float
        Any shape.
    temperature : float
        Above 0.

    Returns
    -------
    ndarray of float
        Same shape. 0.5 stays 0.5 and no value crosses it, so no verdict changes.
    """
    if not 0 < temperature < np.inf:
        raise ValueError(f"temperature: {temperature} is not a positive number")
    p = np.asarray(p_correct, dtype=float)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("p_correct holds values outside [0, 1]")
    return expit(_logits(p) / temperature)


def calibration_line(p_correct, is_correct, groups=None) -> dict[str, dict]:
    """Slope and intercept of the gold verdicts' log-odds over those that a model gives; 1 and 0 if calibrated.

    The slope is that of a logistic regression on ``logit(p_correct)``: below 1 the model is too sure. The
    intercept is that with the slope held at 1: above 0 the model says CORRECT with too low a probability.
    A model of constant certainty has no slope, so neither it nor one without a mistake passes as calibrated.

    Parameters
    ----------
    p_correct, is_correct : array_like, shape (n,)
    groups : Series, optional
        Names of what is not independent, such as pairs.

    Returns
    -------
    dict
        ``slope`` and ``intercept``: ``value``, ``low``, ``high`` (95%, cluster-robust, t distribution); nan where
        they do not exist, because a value of p separates the verdicts or one verdict is missing, or where so many
        probabilities are certain that they cannot be told.

    References
    ----------
    D. R. Cox (1958), "Two further applications of a model for binary regression".
    B. Van Calster et al. (2019), "Calibration: the Achilles heel of predictive analytics", BMC Medicine.
    """
    p, y = checked_probabilities(p_correct, is_correct)
    x, ones = _logits(p), np.ones(len(p))
    groups = np.arange(len(p)) if groups is None else cluster_numbers(groups)
    # where p separates the verdicts the likelihood has no maximum
    if len(np.unique(y)) < 2 or len(np.unique(groups)) < 3 or _separated(x[y == 1], x[y == 0]):
        return {"slope": UNKNOWN, "intercept": UNKNOWN}
    intercept = _regression(y, ones, x, groups)
    # beyond what a probability can be moved by at all, no number says anything
    known = np.abs(list(intercept.values())).max() <= _logits(np.ones(1))[0]
    has_line = len(np.unique(np.abs(x))) > 1  # with two certainties there is none
    return {
        "slope": _regression(y, np.column_stack([x, ones]), None, groups) if has_line else UNKNOWN,
        "intercept": intercept if known else UNKNOWN,
    }


UNKNOWN = {"value": NAN, "low": NAN, "high": NAN}


def _separated(correct: np.ndarray, error: np.ndarray) -> bool:
    """Whether a value lies between the log-odds of all CORRECT and those of all ERROR cases, either way round."""
    return bool(correct.min() >= error.max() or correct.max() <= error.min())


def _regression(y, columns, offset, groups) -> dict:
    """First coefficient of a logistic regression with its interval."""
    options = {"cov_type": "cluster", "cov_kwds": {"groups": groups}, "use_t": True}
    with np.errstate(over="ignore"):  # of probabilities that are certain and wrong
        fit = GLM(y, columns, family=Binomial(), offset=offset).fit(**options)
    numbers = [np.asarray(fit.params)[0], *np.asarray(fit.conf_int())[0]]
    if not np.isfinite(numbers).all():  # of probabilities so certain that nothing is left to fit
        return UNKNOWN
    return dict(zip(UNKNOWN, map(float, numbers)))


def _logits(p: np.ndarray) -> np.ndarray:
    return logit(np.clip(p, SMALLEST, 1 - SMALLEST))


def calibrated(frame: pd.DataFrame, temperature: float) -> pd.DataFrame:
    """A predictions table with ``p_correct`` at that temperature; the verdicts stay as they are."""
    return frame.assign(p_correct=apply_temperature(frame["p_correct"], temperature))


def certainty(p_correct) -> np.ndarray:
    """Distance of the probability of CORRECT from 0.5; 0 (a toss-up) to 0.5 (sure)."""
    # rounded, or 0.8 would count as more certain than 0.2 because of the last binary digit
    return np.abs(np.asarray(p_correct, dtype=float) - 0.5).round(12)


def selective(frame: pd.DataFrame, coverages=None) -> pd.DataFrame:
    """Accuracy on the most certain scenarios, when the auditor abstains on the rest.

    Scenarios of one certainty are kept in random order: the accuracy is its expectation, so it
    does not depend on the order of the rows.

    Parameters
    ----------
    frame : DataFrame
        Predictions, columns ``verdict``, ``predicted`` and ``p_correct``.
    coverages : array_like of float, optional
        Shares of scenarios to keep, above 0 and up to 1; by default 0.05, 0.10, ..., 1.

    Returns
    -------
    DataFrame
        coverage (share kept), n (scenarios kept, rounded up), accuracy, low, high (95% Wilson,
        scenarios taken as independent).

    References
    ----------
    Y. Geifman and R. El-Yaniv (2017), "Selective classification for deep neural networks", NeurIPS.
    """
    coverages = np.linspace(0.05, 1, 20) if coverages is None else np.asarray(coverages, dtype=float)
    if not ((coverages > 0) & (coverages <= 1)).all():
        raise ValueError("coverages: every one must be above 0 and at most 1")
    right = _right_among_most_certain(*_certainty_and_right(frame))
    counts = _count(coverages, len(right))
    right = right[counts - 1]
    low, high = proportion_confint(right, counts, method="wilson")
    return pd.DataFrame(
        {
            "coverage": coverages,
            "n": counts,
            "accuracy": right / counts,
            "low": np.clip(low, 0, right / counts),
            "high": np.clip(high, right / counts, 1),
        }
    )


def _certainty_and_right(frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    absent = [name for name in ("verdict", "predicted", "p_correct") if name not in frame]
    if absent:
        raise ValueError(f"predictions: no column {', '.join(map(repr, absent))}")
    right = (frame["verdict"] == frame["predicted"]).to_numpy()
    p, right = checked_probabilities(frame["p_correct"], right)
    return certainty(p), right


def _right_among_most_certain(certainties: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Expected number of right verdicts among the k most certain, k = 1 to n."""
    levels, level = np.unique(-certainties, return_inverse=True)
    sizes, hits = np.bincount(level), np.bincount(level, right)
    # in a group of ties the expected number grows evenly
    return np.interp(np.arange(1, len(right) + 1), np.append(0, sizes.cumsum()), np.append(0, hits.cumsum()))


def _count(coverage, n: int):
    # the small step: 0.95 * 20 is a hair above 19
    return np.ceil(np.asarray(coverage) * n - 1e-9).astype(int).clip(1)


def abstention_threshold(
    p_correct, is_correct, *, coverage: float | None = None, target_accuracy: float | None = None
) -> float:
    """The certainty below which to abstain, chosen on validation scenarios.

    Parameters
    ----------
    p_correct : array_like of float, shape (n,)
    is_correct : array_like of bool, shape (n,)
        True where the gold verdict is CORRECT.
    coverage : float
        Share of validation scenarios that must be answered; the highest such threshold.
    target_accuracy : float
        Accuracy that the answered validation scenarios must reach; the threshold that answers
        most. Give this or ``coverage``.

    Returns
    -------
    float
        A certainty, see `certainty`: answer where it is reached, abstain below. ``inf`` (abstain
        always) if no threshold reaches the target.

    Raises
    ------
    ValueError
        Unless one of the two is given, above 0 and at most 1.
    """
    p, y = checked_probabilities(p_correct, is_correct)
    goals = [goal for goal in (coverage, target_accuracy) if goal is not None]
    if len(goals) != 1 or not 0 < goals[0] <= 1:
        raise ValueError(
            f"give one of coverage and target_accuracy, above 0 and at most 1, got {coverage=}, {target_accuracy=}"
        )
    certainties = certainty(p)
    if coverage is not None:
        return float(np.sort(certainties)[::-1][_count(coverage, len(p)) - 1])
    levels, level = np.unique(-certainties, return_inverse=True)  # most certain first
    hits = np.bincount(level, (p >= 0.5) == y)
    reached = np.flatnonzero(hits.cumsum() >= target_accuracy * np.bincount(level).cumsum() - 1e-9)
    return float(-levels[reached[-1]]) if reached.size else np.inf
