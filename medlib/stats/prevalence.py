"""What an auditor does where errors are rarer than in a suite, of which half the cases are errors.

How often errors are caught and valid treatments queried without need is measured on the suite; a prevalence says
how many of either there are to catch and to query. Severities are taken to be shared out among errors as in the
suite. Intervals come from draws of the two rates: Jeffreys' beta posteriors on as many cases as the clusters are
worth, see `clustered_proportion`. They do not cover that the prevalence itself may be wrong.

Tables are those of `medlib.stats.scores`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.special import expit, logit

from medlib.stats.calibration import SMALLEST
from medlib.stats.proportions import NAN, RESAMPLES, clustered_proportion

#: Shares of errors among decisions for which tables are made.
PREVALENCES = (0.01, 0.03, 0.05, 0.10, 0.20, 0.50)
#: Thresholds of a decision curve: an error is queried from this probability on.
THRESHOLDS = (0.01, 0.02, 0.03, 0.05, 0.10, 0.20, 0.30, 0.50)


def per_1000(frame: pd.DataFrame, prevalence: float) -> dict[str, dict]:
    """Queries, errors caught and missed in 1,000 cases, and the share of queries that are right.

    Parameters
    ----------
    frame : DataFrame
        Predictions with both gold verdicts; ``predicted`` ERROR is a query.
    prevalence : float
        Share of errors, 0 to 1.

    Returns
    -------
    dict
        ``queries``, ``caught``, ``missed`` and ``ppv`` (positive predictive value), each ``value``, ``low``,
        ``high`` (95%); a ``ppv`` without queries is nan.
    """
    caught, alarms = _rates(frame, (frame["predicted"] == "ERROR").to_numpy())
    hits, false = prevalence * caught, (1 - prevalence) * alarms
    with np.errstate(invalid="ignore"):
        ppv = hits / (hits + false)
    figures = {
        "queries": 1000 * (hits + false),
        "caught": 1000 * hits,
        "missed": 1000 * (prevalence - hits),
        "ppv": ppv,
    }
    return {name: _figure(values) for name, values in figures.items()}


def decision_curve(
    frame: pd.DataFrame, prevalence: float, thresholds: Sequence[float] = THRESHOLDS
) -> pd.DataFrame:
    """Net benefit in 1,000 cases of querying from a probability of an error on, against querying all or none.

    A threshold t says that a query without need is worth t / (1 - t) of a caught error. Probabilities are moved
    from the suite's share of errors to the prevalence, as Bayes' theorem says.

    Returns
    -------
    DataFrame
        threshold; net_benefit, low, high (95%): caught errors less the queries without need, weighted, in 1,000
        cases; query_all: the same of querying everything. Querying nothing has a net benefit of 0.

    References
    ----------
    A. J. Vickers and E. B. Elkin (2006), "Decision curve analysis", Medical Decision Making.
    """
    share = float((frame["verdict"] == "ERROR").mean())
    p_error = 1 - frame["p_correct"].to_numpy(float).clip(SMALLEST, 1 - SMALLEST)
    p_error = expit(logit(p_error) - logit(share) + logit(prevalence))
    rows = []
    for threshold in thresholds:
        price = threshold / (1 - threshold)
        caught, alarms = _rates(frame, p_error >= threshold)
        benefit = _figure(1000 * (prevalence * caught - (1 - prevalence) * price * alarms))
        rows.append(
            {
                "threshold": threshold,
                "net_benefit": benefit["value"],
                "low": benefit["low"],
                "high": benefit["high"],
                "query_all": 1000 * (prevalence - (1 - prevalence) * price),
            }
        )
    return pd.DataFrame(rows)


def expected_error(frame: pd.DataFrame, prevalence: float, weights: Mapping[str, float]) -> float:
    """Expected weight of the wrong verdicts in 1,000 cases.

    Parameters
    ----------
    weights : mapping
        What a missed error weighs by severity; ``none`` is what a query without need weighs. An error without a
        severity weighs 1.
    """
    wrong = (frame["verdict"] != frame["predicted"]).to_numpy()
    lost = wrong * np.array([1.0 if pd.isna(s) else weights[s] for s in frame["severity"]])
    is_error = (frame["verdict"] == "ERROR").to_numpy()
    return float(1000 * (prevalence * lost[is_error].mean() + (1 - prevalence) * lost[~is_error].mean()))


def _rates(frame: pd.DataFrame, queried: np.ndarray) -> list[np.ndarray]:
    """Shares of errors and of valid treatments that are queried: first as measured, then drawn."""
    rng, rates = np.random.default_rng(0), []
    for verdict in ("ERROR", "CORRECT"):
        rows = (frame["verdict"] == verdict).to_numpy()
        if not rows.any():
            raise ValueError(
                f"predictions: no case with the gold verdict {verdict}, so there is no rate to project"
            )
        rate = clustered_proportion(queried[rows], _clusters(frame)[rows])
        k, n = rate["value"] * rate["effective_n"], rate["effective_n"]
        rates.append(np.append(rate["value"], rng.beta(k + 0.5, n - k + 0.5, RESAMPLES)))
    return rates


def _clusters(frame: pd.DataFrame) -> pd.Series:
    """Cells where they are known, else pairs, else single cases."""
    for column in ("cell", "pair"):
        if column in frame and frame[column].notna().any():
            return frame[column].reset_index(drop=True)
    return pd.Series(range(len(frame)))


def _figure(values: np.ndarray) -> dict:
    """The first value with the interval of the others; the interval includes it."""
    if np.isnan(values[0]):
        return {"value": NAN, "low": NAN, "high": NAN}
    low, high = np.nanquantile(values[1:], [0.025, 0.975])
    return {"value": float(values[0]), "low": float(min(low, values[0])), "high": float(max(high, values[0]))}
