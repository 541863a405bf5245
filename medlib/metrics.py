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
pair            name of the counterfactual pair, missing for a single scenario (optional)
generated       free answer of the model (optional)
parsed          verdict found in ``generated``, missing if none was found (optional)
==============  ==================================================================

Rates are fractions (0 to 1) and come as ``{"value", "n", "low", "high"}``, see `proportion`.
What is about the probability more than about the verdict is in `medlib.calibration`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.stats import binned_statistic, binom, binomtest
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
        - ``accuracy_clustered`` (if there is a column ``pair`` with a value in it): the accuracy
          with a 95 % bootstrap interval that resamples whole pairs, because twins share words or
          picture; ``clusters`` is their number, a scenario without a pair being its own;
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
    if "pair" in frame and frame["pair"].notna().any():
        result["accuracy_clustered"] = _clustered_accuracy(frame)
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


def _clustered_accuracy(frame: pd.DataFrame) -> dict:
    right = (frame["verdict"] == frame["predicted"]).to_numpy()
    cluster = _cluster_numbers(frame["pair"])
    hits, sizes = np.bincount(cluster, right), np.bincount(cluster)
    order = np.lexsort((hits, sizes))  # the draws must not depend on the order of the rows
    low, high = _bootstrap_interval(hits[order], sizes[order], floor=0.0)
    return {"value": float(right.mean()), "n": len(frame), "clusters": len(sizes),
            "low": low, "high": high}


def _cluster_numbers(names: pd.Series) -> np.ndarray:
    """Cluster of every row as 0, 1, ...; a row without a name is a cluster of its own."""
    numbers, found = pd.factorize(names, sort=True)
    single = numbers < 0
    numbers[single] = len(found) + np.arange(single.sum())
    return numbers


def _bootstrap_interval(
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


def compare(
    a: pd.DataFrame, b: pd.DataFrame, level: float = 0.95, seed: int = 0, cluster: str | None = None
) -> dict:
    """Two systems on the same scenarios: exact McNemar test and paired accuracy difference.

    McNemar's test takes the scenarios as independent. Counterfactual twins are not: with
    ``cluster`` the interval and a second test take only the clusters as independent.

    Parameters
    ----------
    a, b : DataFrame
        Predictions of either system, columns ``id``, ``verdict``, ``predicted``; any row order.
    level : float
        Confidence level of the interval.
    seed : int
        Of the paired percentile bootstrap (10,000 resamples of scenarios, or of clusters).
    cluster : str, optional
        Column that names the cluster of a scenario, such as ``pair``; a scenario without a name is
        a cluster of its own.

    Returns
    -------
    dict
        ``n``; ``accuracy_a``, ``accuracy_b``; ``b`` and ``c``: McNemar's discordant counts (only
        ``a`` right, only ``b`` right); ``difference``: accuracy of ``a`` minus that of ``b``, with
        ``low`` and ``high``; ``p``: two-sided, by scenario. With ``cluster`` also ``clusters``;
        ``clusters_a`` and ``clusters_b``: clusters in which ``a`` or ``b`` has more right than the
        other; ``p_cluster``: two-sided exact sign test of these two counts.

    Raises
    ------
    ValueError
        If an id is missing on one side, is used twice, or has two gold verdicts or clusters.
    """
    columns = ["id", "verdict", "predicted"] + ([cluster] if cluster else [])
    a, b = _by_id("a", a, columns), _by_id("b", b, columns)
    missing = {"a": b.index.difference(a.index), "b": a.index.difference(b.index)}
    problems = [f"missing in {name}: {_listed(ids)}" for name, ids in missing.items() if len(ids)]
    if problems:
        raise ValueError(f"the systems saw different scenarios; ids {'; '.join(problems)}")
    # one order for both, so that the bootstrap does not depend on the order of the rows
    a, b = a.sort_index(), b.loc[a.sort_index().index]
    for column in ["verdict"] + ([cluster] if cluster else []):
        _same_values(a, b, column)

    a_right = (a["verdict"] == a["predicted"]).to_numpy()
    b_right = (b["verdict"] == b["predicted"]).to_numpy()
    only_a, only_b = int((a_right & ~b_right).sum()), int((b_right & ~a_right).sum())
    # without a column every scenario is a cluster of its own
    numbers = _cluster_numbers(a[cluster]) if cluster else np.arange(len(a))
    gains, sizes = np.bincount(numbers, a_right * 1.0 - b_right), np.bincount(numbers)
    low, high = _bootstrap_interval(gains, sizes, floor=-1.0, level=level, seed=seed)
    result = {
        "n": len(a),
        "accuracy_a": float(a_right.mean()),
        "accuracy_b": float(b_right.mean()),
        "b": only_a,
        "c": only_b,
        "difference": float(a_right.mean() - b_right.mean()),
        "low": low,
        "high": high,
        # the test looks at the discordant counts only
        "p": float(mcnemar([[0, only_a], [only_b, 0]], exact=True).pvalue),
    }
    if cluster:
        more_a, more_b = int((gains > 0).sum()), int((gains < 0).sum())
        p_cluster = binomtest(more_a, more_a + more_b).pvalue if more_a + more_b else 1.0
        result |= {"clusters": len(sizes), "clusters_a": more_a, "clusters_b": more_b,
                   "p_cluster": float(p_cluster)}
    return result


def _by_id(name: str, table: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    table = _checked(table, tuple(columns))[columns].set_index("id")
    twice = table.index[table.index.duplicated()].unique()
    if len(twice):
        raise ValueError(f"{name}, field 'id': used twice: {_listed(twice)}")
    return table


def _same_values(a: pd.DataFrame, b: pd.DataFrame, column: str) -> None:
    differ = (a[column] != b[column]) & ~(a[column].isna() & b[column].isna())
    if differ.any():
        raise ValueError(f"field '{column}': a and b disagree on ids {_listed(a.index[differ])}")


def _listed(ids, limit: int = 10) -> str:
    more = f" and {len(ids) - limit} more" if len(ids) > limit else ""
    return ", ".join(map(str, ids[:limit])) + more


def compare_all(
    frames: Mapping[str, pd.DataFrame], level: float = 0.95, seed: int = 0,
    cluster: str | None = None,
) -> pd.DataFrame:
    """Every pair of systems on the same scenarios, with p-values adjusted over all pairs.

    Parameters
    ----------
    frames : mapping of str to DataFrame
        Predictions by name of the system, two or more.
    level, seed, cluster
        As in `compare`.

    Returns
    -------
    DataFrame
        One row a pair, in the order of ``frames``: first, second, n, accuracy_first,
        accuracy_second, only_first, only_second (scenarios that only one has right), difference
        (first minus second), low, high, p (exact McNemar), p_holm. With ``cluster`` also clusters,
        clusters_first, clusters_second, p_cluster (exact sign test), p_cluster_holm.

    Raises
    ------
    ValueError
        For fewer than two systems, or two that do not match; see `compare`.
    """
    if len(frames) < 2:
        raise ValueError(f"compare_all: two or more systems are needed, got {len(frames)}")
    names = {"accuracy_a": "accuracy_first", "accuracy_b": "accuracy_second", "b": "only_first",
             "c": "only_second", "clusters_a": "clusters_first", "clusters_b": "clusters_second"}
    rows = []
    for first, second in combinations(frames, 2):
        try:
            test = compare(frames[first], frames[second], level, seed, cluster)
        except ValueError as error:
            raise ValueError(f"a = {first}, b = {second}: {error}") from None
        rows.append({"first": first, "second": second} | test)
    table = pd.DataFrame(rows).rename(columns=names)
    for column in ("p", "p_cluster"):
        if column in table:
            adjusted = list(holm(dict(enumerate(table[column]))).values())
            table.insert(table.columns.get_loc(column) + 1, f"{column}_holm", adjusted)
    return table


def consistency(a: pd.DataFrame, b: pd.DataFrame) -> dict:
    """One system on two suites that should make no difference to it, such as paraphrases.

    Parameters
    ----------
    a, b : DataFrame
        Predictions on either suite, columns ``id``, ``verdict``, ``predicted``. Scenarios are
        matched by id.

    Returns
    -------
    dict
        ``value``, ``n``, ``low``, ``high``: share of the matched scenarios with one and the same
        predicted verdict, as in `proportion`; ``accuracy_a``, ``accuracy_b``: likewise, on them.
        ``unmatched``: ids that only one suite has, which do not count. Whether one suite is harder
        is what `compare` tests.

    Raises
    ------
    ValueError
        If no id matches, an id is used twice, or a scenario has two gold verdicts.
    """
    columns = ["id", "verdict", "predicted"]
    a, b = _by_id("a", a, columns), _by_id("b", b, columns)
    shared = a.index.intersection(b.index)
    if shared.empty:
        raise ValueError(f"field 'id': none is in a ({_listed(a.index, 2)}) and in "
                         f"b ({_listed(b.index, 2)}) too")
    unmatched = len(a.index.union(b.index)) - len(shared)
    a, b = a.loc[shared], b.loc[shared]
    _same_values(a, b, "verdict")

    def share(values: pd.Series) -> dict:
        return proportion(int(values.sum()), len(values))

    return {
        **share(a["predicted"] == b["predicted"]),
        "accuracy_a": share(a["predicted"] == a["verdict"]),
        "accuracy_b": share(b["predicted"] == b["verdict"]),
        "unmatched": unmatched,
    }


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


def power_table(
    bar: float = 0.90, accuracies: Sequence[float] = (0.92, 0.93, 0.95, 0.97, 0.99),
    power: float = 0.8, level: float = 0.95,
) -> pd.DataFrame:
    """Cases needed to show an accuracy above a bar, for several true accuracies.

    Parameters
    ----------
    bar, power, level : float
        As in `cases_needed`.
    accuracies : sequence of float
        Each above ``bar``.

    Returns
    -------
    DataFrame
        true_accuracy; cases: see `cases_needed`; right_needed: of so many cases, the fewest right
        ones with which the test rejects "accuracy <= bar".
    """
    cases = [cases_needed(accuracy, bar, power, level) for accuracy in accuracies]
    right = [int(binom.isf(1 - level, n, bar)) + 1 for n in cases]
    return pd.DataFrame({"true_accuracy": list(accuracies), "cases": cases, "right_needed": right})


def results_table(scores: Mapping[str, dict], full: bool = False) -> pd.DataFrame:
    """The table of results, one row per system, ready to print.

    Parameters
    ----------
    scores : mapping of str to dict
        Results of `score` by name of the system.
    full : bool
        Also balanced accuracy, MCC, AUROC, Brier score, calibration error, critical misses (with
        the one-sided 95 % limit of their rate) and US dollars lost in 1,000 cases.

    Returns
    -------
    DataFrame
        Strings only, rates as ``91.2 % [89.3, 92.8] (n=1,024)``.
    """
    rows = []
    for system, result in scores.items():
        row = {
            "System": system,
            "n": f"{result['n']:,}",
            "Accuracy (95 % CI)": _rate_text(result["accuracy"]),
            "Valid treatments recognised": _rate_text(result["sensitivity"]),
            "Errors caught": _rate_text(result["specificity"]),
            "Spread (points)": _number_text(result["spread"], ".1f"),
        }
        if full:
            missed = result["critical_misses"]
            limit = f" (≤ {100 * missed['upper']:.1f} %)" if missed["n"] else ""
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
    return f"{value:.1f} % [{low:.1f}, {high:.1f}] (n={rate['n']:,})"


def to_markdown(table: pd.DataFrame) -> str:
    """A table as GitHub Markdown; the first column left, the others right aligned."""
    def line(cells) -> str:
        texts = (str(cell).replace("|", r"\|").replace("\n", " ") for cell in cells)
        return "| " + " | ".join(texts) + " |"

    ruler = "|" + "|".join([":---"] + ["---:"] * (table.shape[1] - 1)) + "|"
    rows = table.itertuples(index=False, name=None)
    return "\n".join([line(table.columns), ruler, *(line(row) for row in rows)]) + "\n"
