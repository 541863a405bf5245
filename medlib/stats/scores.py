"""How good an auditor is, with intervals.

The input is a table of predictions, one row per scenario, with the columns

==============  ==================================================================
id              scenario id
modality        kind of image
verdict         gold verdict, ``CORRECT`` or ``ERROR``
p_correct       probability that the model gives to ``CORRECT``
predicted       the more likely verdict, ``CORRECT`` or ``ERROR``
severity        ``none``, ``moderate``, ``high`` or ``critical``, missing where not stated
cost_impact     US dollars lost if the error goes through, missing where not stated
pair            name of the counterfactual pair, missing for a single scenario (optional)
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
from medlib.stats.proportions import NAN, bootstrap_interval, cluster_numbers, proportion


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
          there is one modality only;
        - ``critical_misses``: ``count`` of critical errors called CORRECT among ``n``, and
          ``upper``, the one-sided 95% Clopper-Pearson limit of their rate;
        - ``expected_cost``: US dollars lost through missed errors, ``total`` and ``per_1000``
          scenarios; nan if an error states no cost;
        - ``accuracy_clustered`` (if there is a column ``pair`` with a value in it): the accuracy
          with a 95% bootstrap interval that resamples whole pairs, because twins share words or
          image; ``clusters`` is their number, a scenario without a pair being its own;
        - ``generation`` (if there is a free answer): ``parse_rate``, and ``accuracy`` with
          unparsed answers counted as wrong. Rows whose ``generated`` is missing were not
          generated and do not count; an empty answer is ``""`` and does.

    Raises
    ------
    ValueError
        For no rows, a missing column or a bad value; names row and field.
    """
    frame = checked(predictions, ("modality", "verdict", "p_correct", "predicted", "severity", "cost_impact"))
    is_valid = (frame["verdict"] == "CORRECT").to_numpy()
    called_valid = (frame["predicted"] == "CORRECT").to_numpy()
    p_correct = frame["p_correct"].to_numpy(dtype=float)
    has_both = is_valid.any() and not is_valid.all()
    missed = frame[~is_valid & called_valid]
    per_modality = {str(name): _rates(rows) for name, rows in frame.groupby("modality")}
    accuracies = [rates["accuracy"]["value"] for rates in per_modality.values()]
    costs = pd.to_numeric(frame["cost_impact"])
    cost = NAN if costs[~is_valid].isna().any() else float(costs[missed.index].sum())
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
        "spread": 100 * (max(accuracies) - min(accuracies)) if len(accuracies) > 1 else NAN,
        "critical_misses": _critical_misses(frame, missed),
        "expected_cost": {"total": cost, "per_1000": 1000 * cost / len(frame)},
    }
    if "pair" in frame and frame["pair"].notna().any():
        result["accuracy_clustered"] = _clustered_accuracy(frame)
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
    n = int(((frame["verdict"] == "ERROR") & (frame["severity"] == "critical")).sum())
    count = int((missed["severity"] == "critical").sum())
    # the upper end of a two-sided 90% interval is the one-sided 95% limit
    upper = proportion_confint(count, n, alpha=0.10, method="beta")[1] if n else NAN
    return {"count": count, "n": n, "upper": float(upper)}


def _clustered_accuracy(frame: pd.DataFrame) -> dict:
    right = (frame["verdict"] == frame["predicted"]).to_numpy()
    cluster = cluster_numbers(frame["pair"])
    hits, sizes = np.bincount(cluster, right), np.bincount(cluster)
    order = np.lexsort((hits, sizes))  # the draws must not depend on the order of the rows
    low, high = bootstrap_interval(hits[order], sizes[order], floor=0.0)
    return {"value": float(right.mean()), "n": len(frame), "clusters": len(sizes), "low": low, "high": high}


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
