"""How good an auditor is, with intervals.

The input is a table of predictions, one row per scenario, with the columns

==============  ==================================================================
id              scenario id
modality        kind of picture
verdict         gold verdict, ``CORRECT`` or ``ERROR``
p_correct       probability that the model gives to ``CORRECT``
predicted       the more likely verdict, ``CORRECT`` or ``ERROR``
severity        ``none``, ``moderate``, ``high`` or ``critical``
cost_impact     US dollars lost if the error goes through
generated       free answer of the model (optional)
parsed          verdict found in ``generated``, missing if none was found (optional)
==============  ==================================================================

Rates are fractions (0 to 1) and come as ``{"value", "n", "low", "high"}``, see `proportion`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy.stats import binned_statistic, binom, bootstrap
from sklearn.metrics import (
    balanced_accuracy_score,
    brier_score_loss,
    matthews_corrcoef,
    roc_auc_score,
)
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import NormalIndPower
from statsmodels.stats.proportion import proportion_confint, proportion_effectsize

from medlib.schema import VERDICTS

NAN = float("nan")


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
    p, y = np.asarray(p, dtype=float), np.asarray(y, dtype=float)
    if p.shape != y.shape or p.ndim != 1 or not p.size:
        raise ValueError(f"p and y need one equal, non-empty axis, got {p.shape} and {y.shape}")
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("p holds values outside [0, 1]")
    # count x |mean p - mean y| of a bin is |sum of (p - y)| in it
    gaps = binned_statistic(p, p - y, statistic="sum", bins=bins, range=(0, 1)).statistic
    return float(np.abs(gaps).sum() / p.size)


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
          ``upper``, the one-sided 95 % Clopper-Pearson limit of their rate;
        - ``expected_cost``: US dollars lost through missed errors, ``total`` and ``per_1000``
          scenarios;
        - ``generation`` (if there is a free answer): ``parse_rate``, and ``accuracy`` with
          unparsed answers counted as wrong. Rows whose ``generated`` is missing were not
          generated and do not count; an empty answer is ``""`` and does.

    Raises
    ------
    ValueError
        For no rows, a missing column or a bad value; names row and field.
    """
    frame = _checked(
        predictions, ("modality", "verdict", "p_correct", "predicted", "severity", "cost_impact")
    )
    is_valid = (frame["verdict"] == "CORRECT").to_numpy()
    called_valid = (frame["predicted"] == "CORRECT").to_numpy()
    p_correct = frame["p_correct"].to_numpy(dtype=float)
    has_both = is_valid.any() and not is_valid.all()
    missed = frame[~is_valid & called_valid]
    per_modality = {str(name): _rates(rows) for name, rows in frame.groupby("modality")}
    accuracies = [rates["accuracy"]["value"] for rates in per_modality.values()]
    cost = float(missed["cost_impact"].sum())
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
    if "parsed" in frame:
        asked = frame[frame["generated"].notna()] if "generated" in frame else frame
        if len(asked):
            right = int((asked["parsed"] == asked["verdict"]).sum())
            result["generation"] = {
                "parse_rate": proportion(int(asked["parsed"].notna().sum()), len(asked)),
                "accuracy": proportion(right, len(asked)),
            }
    # numpy scalars are not JSON
    return {k: float(v) if isinstance(v, np.floating) else v for k, v in result.items()}


def _checked(predictions: pd.DataFrame, columns: tuple[str, ...]) -> pd.DataFrame:
    """The table itself if it has the columns and good values, else a ValueError (row, field)."""
    absent = [column for column in columns if column not in predictions]
    if absent:
        raise ValueError(f"predictions: no column {', '.join(map(repr, absent))}")
    if predictions.empty:
        raise ValueError("predictions: no rows")
    good = {
        "verdict": lambda values: values.isin(VERDICTS),
        "predicted": lambda values: values.isin(VERDICTS),
        "parsed": lambda values: values.isin(VERDICTS) | values.isna(),
        "p_correct": lambda values: values.between(0, 1),
        "cost_impact": lambda values: values >= 0,
        "modality": lambda values: values.notna(),
    }
    for column, is_good in good.items():
        if column in predictions:
            bad = np.flatnonzero(~is_good(predictions[column]).to_numpy(dtype=bool))
            if len(bad):
                first = predictions.iloc[bad[0]]
                raise ValueError(
                    f"predictions, row {bad[0] + 1} ({first.get('id', 'no id')}), field "
                    f"'{column}': bad value {first[column]!r} ({len(bad)} such row(s))"
                )
    return predictions


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
    # the upper end of a two-sided 90 % interval is the one-sided 95 % limit
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
        Columns ``column``, n, accuracy, low, high (95 % Wilson); a missing group is "missing".
    """
    frame = _checked(predictions, ("verdict", "predicted", column))
    groups = frame[column].astype(object).where(frame[column].notna(), "missing").rename(column)
    right = (frame["verdict"] == frame["predicted"]).groupby(groups)
    rows = []
    for name, values in right:
        rate = proportion(int(values.sum()), len(values))
        rows.append({column: name, "n": rate["n"], "accuracy": rate["value"],
                     "low": rate["low"], "high": rate["high"]})
    return pd.DataFrame(rows)


def compare(a: pd.DataFrame, b: pd.DataFrame, level: float = 0.95, seed: int = 0) -> dict:
    """Two systems on the same scenarios: exact McNemar test and paired accuracy difference.

    Parameters
    ----------
    a, b : DataFrame
        Predictions of either system, columns ``id``, ``verdict``, ``predicted``; any row order.
    level : float
        Confidence level of the interval.
    seed : int
        Of the paired percentile bootstrap (10,000 resamples of scenarios).

    Returns
    -------
    dict
        ``n``; ``accuracy_a``, ``accuracy_b``; ``b`` and ``c``: McNemar's discordant counts (only
        ``a`` right, only ``b`` right); ``difference``: accuracy of ``a`` minus that of ``b``, with
        ``low`` and ``high``; ``p``: two-sided.

    Raises
    ------
    ValueError
        If an id is missing on one side, is used twice, or has two gold verdicts.
    """
    columns = ("id", "verdict", "predicted")
    tables = {}
    for name, table in {"a": a, "b": b}.items():
        table = _checked(table, columns)[list(columns)].set_index("id")
        twice = table.index[table.index.duplicated()].unique()
        if len(twice):
            raise ValueError(f"{name}, field 'id': used twice: {_listed(twice)}")
        tables[name] = table
    a, b = tables["a"], tables["b"]
    missing = {"a": b.index.difference(a.index), "b": a.index.difference(b.index)}
    problems = [f"missing in {name}: {_listed(ids)}" for name, ids in missing.items() if len(ids)]
    if problems:
        raise ValueError(f"the systems saw different scenarios; ids {'; '.join(problems)}")
    # one order for both, so that the bootstrap does not depend on the order of the rows
    a, b = a.sort_index(), b.loc[a.sort_index().index]
    clash = a.index[a["verdict"] != b["verdict"]]
    if len(clash):
        raise ValueError(f"field 'verdict': a and b disagree on ids {_listed(clash)}")

    a_right = (a["verdict"] == a["predicted"]).to_numpy()
    b_right = (b["verdict"] == b["predicted"]).to_numpy()
    table = pd.crosstab(pd.Categorical(a_right, [True, False]),
                        pd.Categorical(b_right, [True, False]), dropna=False).to_numpy()
    low, high = _paired_interval(a_right.astype(int) - b_right.astype(int), level, seed)
    return {
        "n": len(a),
        "accuracy_a": float(a_right.mean()),
        "accuracy_b": float(b_right.mean()),
        "b": int(table[0, 1]),
        "c": int(table[1, 0]),
        "difference": float(a_right.mean() - b_right.mean()),
        "low": low,
        "high": high,
        "p": float(mcnemar(table, exact=True).pvalue),
    }


def _paired_interval(differences: np.ndarray, level: float, seed: int) -> tuple[float, float]:
    """Interval of the mean of per-scenario differences in {-1, 0, 1}."""
    n = len(differences)
    if (differences == differences[0]).all():
        # a bootstrap of equal values has no width: bound the share of other values, never seen
        centre = float(differences[0])
        reach = (1 + abs(centre)) * float(proportion_confint(0, n, 1 - level, method="beta")[1])
        return max(centre - reach, -1.0), min(centre + reach, 1.0)
    interval = bootstrap(
        (differences,), np.mean, n_resamples=10_000, batch=500, method="percentile",
        confidence_level=level, rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def _listed(ids, limit: int = 10) -> str:
    more = f" and {len(ids) - limit} more" if len(ids) > limit else ""
    return ", ".join(map(str, ids[:limit])) + more


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm-adjusted p-values, family-wise error controlled over all that are passed together.

    Parameters
    ----------
    p_values : mapping of str to float
        Raw p-values by comparison.

    Returns
    -------
    dict of str to float
        Adjusted p-values under the same names.
    """
    bad = [name for name, p in p_values.items() if not 0 <= p <= 1]
    if bad:
        raise ValueError(f"holm: not a p-value: {', '.join(f'{k}={p_values[k]}' for k in bad)}")
    if not p_values:
        return {}
    adjusted = multipletests(list(p_values.values()), method="holm")[1]
    return dict(zip(p_values, map(float, adjusted)))


def cases_needed(
    true_accuracy: float, bar: float = 0.90, power: float = 0.8, level: float = 0.95
) -> int:
    """Cases needed to show that the accuracy is above a bar.

    The test is the one-sided exact binomial test of "accuracy <= bar" at ``1 - level``. Its power
    is a saw-tooth in n; the answer is the n from which the power stays at ``power`` or more.

    Parameters
    ----------
    true_accuracy : float
        Accuracy that the system is believed to have, above ``bar``.
    bar, power, level : float

    Returns
    -------
    int
        Number of independent cases; above 100,000 the normal approximation.

    Raises
    ------
    ValueError
        Unless ``0 < bar < true_accuracy <= 1``: no number of cases shows what is not so.
    """
    if not 0 < bar < true_accuracy <= 1:
        raise ValueError(f"need 0 < bar < true_accuracy <= 1, got {bar=}, {true_accuracy=}")
    approximate = NormalIndPower().solve_power(  # ratio=0: one sample
        proportion_effectsize(true_accuracy, bar), alpha=1 - level, power=power, ratio=0,
        alternative="larger",
    )
    if approximate > 100_000:
        return int(np.ceil(approximate))
    n = np.arange(1, int(2 * approximate) + 200)
    most_by_chance = binom.isf(1 - level, n, bar)  # the test rejects above this many hits
    enough = binom.sf(most_by_chance, n, true_accuracy) >= power
    return int(n[~enough][-1]) + 1


def results_table(scores: Mapping[str, dict]) -> pd.DataFrame:
    """The table of results, one row per system, ready to print.

    Parameters
    ----------
    scores : mapping of str to dict
        Results of `score` by name of the system.

    Returns
    -------
    DataFrame
        Strings only, rates as ``91.2 % [89.3, 92.8] (n=1,024)``.
    """
    columns = ["System", "n", "Accuracy (95 % CI)", "Valid treatments recognised",
               "Errors caught", "Spread (points)"]
    rows = [
        [
            system,
            f"{result['n']:,}",
            *(_rate_text(result[key]) for key in ("accuracy", "sensitivity", "specificity")),
            "n/a" if np.isnan(result["spread"]) else f"{result['spread']:.1f}",
        ]
        for system, result in scores.items()
    ]
    return pd.DataFrame(rows, columns=columns)


def _rate_text(rate: dict) -> str:
    if not rate["n"]:
        return "n/a (n=0)"
    value, low, high = (100 * rate[key] for key in ("value", "low", "high"))
    return f"{value:.1f} % [{low:.1f}, {high:.1f}] (n={rate['n']:,})"


def to_markdown(table: pd.DataFrame) -> str:
    """A table as GitHub Markdown; the first column left, the others right aligned."""
    def line(cells) -> str:
        texts = (str(cell).replace("|", r"\|").replace("\n", " ") for cell in cells)
        return "| " + " | ".join(texts) + " |"

    ruler = "|" + "|".join([":---"] + ["---:"] * (table.shape[1] - 1)) + "|"
    rows = table.itertuples(index=False, name=None)
    return "\n".join([line(table.columns), ruler, *(line(row) for row in rows)]) + "\n"
