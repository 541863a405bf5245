"""How good an auditor is, with intervals.

The input is a table of predictions, one row per scenario, with the columns

==============  ==================================================================
id              scenario id
modality        kind of image
verdict         gold verdict, ``CORRECT`` or ``ERROR``
p_correct       probability that the model gives to ``CORRECT``
predicted       the more likely verdict, ``CORRECT`` or ``ERROR``
severity        ``none``, ``moderate``, ``high`` or ``critical``, missing where not stated
pair            name of the counterfactual pair, missing for a single scenario (optional)
cell            what is not independent beyond that, see `prediction_row` (optional)
generated       free answer of the model (optional)
parsed          verdict found in ``generated``, missing if none was found (optional)
==============  ==================================================================

Rates are fractions (0 to 1) and come as ``{"value", "n", "low", "high"}``, see `proportion`.
What is about the probability more than about the verdict is in `medlib.stats.calibration`.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.metrics import balanced_accuracy_score, brier_score_loss, matthews_corrcoef, roc_auc_score
from statsmodels.stats.proportion import proportion_confint

from medlib.stats.calibration import expected_calibration_error
from medlib.stats.predictions import checked
from medlib.stats.proportions import NAN, RESAMPLES, clustered_proportion, proportion

#: Cases of each modality below which no spread is reported.
FEWEST = 50


def score(predictions: pd.DataFrame) -> dict:
    """Every number reported about one system.

    Parameters
    ----------
    predictions : DataFrame
        One row per scenario, columns as in the module's table.

    Returns
    -------
    dict
        Plain numbers and dicts; ``json.dumps`` writes it. The keys are

        - ``n``: scenarios;
        - ``accuracy``; ``sensitivity``: valid treatments recognised (gold CORRECT called
          CORRECT); ``specificity``: errors caught (gold ERROR called ERROR);
        - ``balanced_accuracy``, ``mcc``, ``auroc``: nan if only one gold verdict occurs;
        - ``brier``; ``ece``: see `expected_calibration_error`, 15 bins;
        - ``constant_answer_share``: share of the most frequent answer (1: always the same);
        - ``per_modality``: accuracy, sensitivity and specificity of each modality;
        - ``spread``: best minus worst accuracy over modalities, in percentage points, nan if
          there is one modality only, or one has fewer than `FEWEST` cases;
        - ``spread_interval``: ``low``, ``high`` and ``p``, see `spread`;
        - ``critical_misses``: ``count`` of critical errors called CORRECT among ``n``, and
          ``upper``, the one-sided 95% Clopper-Pearson limit of their rate; with a column ``cell``
          also ``by_cell``: the same of the cells, a cell with any such miss counting as one;
        - ``accuracy_clustered`` (if there is a column ``pair`` with a value in it) and
          ``accuracy_by_cell`` (likewise ``cell``): the accuracy with the interval of
          `clustered_proportion`, because twins share words or image, and all cases of a cell
          what they show and what is done; a scenario without a name is its own cluster;
        - ``generation`` (if there is a free answer): ``parse_rate``, and ``accuracy`` with
          unparsed answers counted as wrong. Rows whose ``generated`` is missing were not
          generated and do not count; an empty answer is ``""`` and does.

    Raises
    ------
    ValueError
        For no rows, a missing column or a bad value; names row and field.
    """
    frame = checked(predictions, ("modality", "verdict", "p_correct", "predicted", "severity"))
    is_valid = (frame["verdict"] == "CORRECT").to_numpy()
    called_valid = (frame["predicted"] == "CORRECT").to_numpy()
    p_correct = frame["p_correct"].to_numpy(dtype=float)
    has_both = is_valid.any() and not is_valid.all()
    missed = frame[~is_valid & called_valid]
    per_modality = {str(name): _rates(rows) for name, rows in frame.groupby("modality")}
    result = {
        "n": len(frame),
        **_rates(frame),
        "balanced_accuracy": balanced_accuracy_score(is_valid, called_valid) if has_both else NAN,
        "mcc": matthews_corrcoef(is_valid, called_valid) if has_both else NAN,
        "auroc": roc_auc_score(is_valid, p_correct) if has_both else NAN,
        "brier": brier_score_loss(is_valid, p_correct),
        "ece": expected_calibration_error(p_correct, is_valid),
        "constant_answer_share": frame["predicted"].value_counts(normalize=True).max(),
        "per_modality": per_modality,
        **spread([rates["accuracy"] for rates in per_modality.values()]),
        "critical_misses": _critical_misses(frame, missed),
    }
    for key, column in {"accuracy_clustered": "pair", "accuracy_by_cell": "cell"}.items():
        if column in frame and frame[column].notna().any():
            result[key] = clustered_proportion(frame["verdict"] == frame["predicted"], frame[column])
    if "parsed" in frame or "generated" in frame:
        answers = frame[frame["generated"].notna()] if "generated" in frame else frame
        parsed = answers.get("parsed", pd.Series(index=answers.index))  # without a column no answer was parsed
        if len(answers):
            result["generation"] = {
                "parse_rate": proportion(int(parsed.notna().sum()), len(answers)),
                "accuracy": proportion(int((parsed == answers["verdict"]).sum()), len(answers)),
            }
    # numpy scalars are not JSON
    return {k: float(v) if isinstance(v, np.floating) else v for k, v in result.items()}


def spread(rates: list[dict], level: float = 0.95) -> dict:
    """Best minus worst of several rates, in points: an interval, and a test that all are one rate.

    The best of several measured rates is too high and the worst too low, so the difference of rates that do not
    differ is above 0. The interval allows for that: it is made of limits of the single rates that hold at once
    (Wilson, Šidák), so it covers the true difference in at least ``level`` of samples of independent cases.

    Parameters
    ----------
    rates : list of `proportion`

    Returns
    -------
    dict
        ``spread``; ``spread_interval``: ``low``, ``high``, and ``p`` of a chi-squared statistic among `RESAMPLES`
        random divisions of the same cases. All nan unless there are two rates or more of `FEWEST` cases each.
    """
    n = np.array([rate["n"] for rate in rates])
    if len(n) < 2 or n.min() < FEWEST:
        return {"spread": NAN, "spread_interval": {"low": NAN, "high": NAN, "p": NAN}}
    right = np.array([round(rate["value"] * rate["n"]) for rate in rates])
    limits = [proportion(int(k), int(m), level ** (1 / len(n))) for k, m in zip(right, n)]
    low = max(limit["low"] for limit in limits) - min(limit["high"] for limit in limits)
    high = max(limit["high"] for limit in limits) - min(limit["low"] for limit in limits)
    interval = {"low": 100 * max(low, 0.0), "high": 100 * high, "p": _homogeneity(right, n)}
    return {"spread": float(100 * (max(right / n) - min(right / n))), "spread_interval": interval}


def _homogeneity(right: np.ndarray, n: np.ndarray) -> float:
    """Share of random divisions of as many right answers among the groups that are at least as uneven."""
    divisions = np.random.default_rng(0).multivariate_hypergeometric(n, right.sum(), size=RESAMPLES)
    # the chi-squared statistic but for a factor that all divisions share
    uneven, found = (((counts - right.sum() * n / n.sum()) ** 2 / n).sum(-1) for counts in (divisions, right))
    return float((1 + (uneven >= found - 1e-9).sum()) / (1 + RESAMPLES))


def _rates(frame: pd.DataFrame) -> dict:
    right = frame["verdict"] == frame["predicted"]
    return {
        name: proportion(int(right[rows].sum()), int(rows.sum()))
        for name, rows in {
            "accuracy": right.notna(),
            "sensitivity": frame["verdict"] == "CORRECT",
            "specificity": frame["verdict"] == "ERROR",
        }.items()
    }


def _critical_misses(frame: pd.DataFrame, missed: pd.DataFrame) -> dict:
    critical = frame[(frame["verdict"] == "ERROR") & (frame["severity"] == "critical")]
    missed = missed[missed["severity"] == "critical"]
    result = _limited(len(missed), len(critical))
    if "cell" in frame and critical["cell"].notna().any():
        result["by_cell"] = _limited(missed["cell"].nunique(), critical["cell"].nunique())
    return result


def _limited(count: int, n: int) -> dict:
    # the upper end of a two-sided 90% interval is the one-sided 95% limit
    upper = proportion_confint(count, n, alpha=0.10, method="beta")[1] if n else NAN
    return {"count": count, "n": n, "upper": float(upper)}


def by_group(predictions: pd.DataFrame, column: str) -> pd.DataFrame:
    """Accuracy of every group.

    Parameters
    ----------
    predictions : DataFrame
    column : str
        Column that names the group, such as ``source`` or ``error_type``.

    Returns
    -------
    DataFrame
        Columns ``column``, n, accuracy, low, high (95% Wilson); a missing group is "missing".
    """
    frame = checked(predictions, ("verdict", "predicted", column))
    groups = frame[column].astype(object).where(frame[column].notna(), "missing").rename(column)
    right = (frame["verdict"] == frame["predicted"]).groupby(groups)
    rows = []
    for name, values in right:
        rate = proportion(int(values.sum()), len(values))
        rows.append(
            {column: name, "n": rate["n"], "accuracy": rate["value"], "low": rate["low"], "high": rate["high"]}
        )
    return pd.DataFrame(rows)
