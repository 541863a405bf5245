"""Two systems on the same scenarios: exact McNemar tests, paired differences, Holm correction, power."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.stats import binom, binomtest
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import NormalIndPower
from statsmodels.stats.proportion import proportion_effectsize

from medlib.stats.predictions import checked
from medlib.stats.proportions import RESAMPLES, bootstrap_interval, cluster_numbers, proportion


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
    numbers = cluster_numbers(a[cluster]) if cluster else np.arange(len(a))
    gains, sizes = np.bincount(numbers, a_right * 1.0 - b_right), np.bincount(numbers)
    low, high = bootstrap_interval(gains, sizes, floor=-1.0, level=level, seed=seed)
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
        result |= {
            "clusters": len(sizes),
            "clusters_a": more_a,
            "clusters_b": more_b,
            "p_cluster": float(p_cluster),
        }
    return result


def flip_test(a: pd.DataFrame, b: pd.DataFrame, cluster: str, seed: int = 0) -> float:
    """Two-sided p of "neither system is better", where the gains of whole clusters may have either sign.

    Few large clusters differ in how much they gain, which a sign test ignores: a system that is far better on half
    of them and a little worse on the rest would not be better by it.

    Parameters
    ----------
    a, b, cluster
        As for `compare`.
    seed : int
        Of `RESAMPLES` random signs of the clusters' gains; no p is below 1 / (1 + `RESAMPLES`).
    """
    columns = ["id", "verdict", "predicted", cluster]
    a, b = _by_id("a", a, columns).sort_index(), _by_id("b", b, columns).sort_index()
    if not a.index.equals(b.index):
        raise ValueError("the systems saw different scenarios")
    right = [(frame["verdict"] == frame["predicted"]).to_numpy(float) for frame in (a, b)]
    gains = np.bincount(cluster_numbers(a[cluster]), right[0] - right[1])
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(RESAMPLES, len(gains)))
    return float((1 + (np.abs(signs @ gains) >= abs(gains.sum()) - 1e-9).sum()) / (1 + RESAMPLES))


def _by_id(name: str, table: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    table = checked(table, tuple(columns))[columns].set_index("id")
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
    frames: Mapping[str, pd.DataFrame], level: float = 0.95, seed: int = 0, cluster: str | None = None
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
    names = {
        "accuracy_a": "accuracy_first",
        "accuracy_b": "accuracy_second",
        "b": "only_first",
        "c": "only_second",
        "clusters_a": "clusters_first",
        "clusters_b": "clusters_second",
    }
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
            adjusted = list(holm({str(row): p for row, p in enumerate(table[column])}).values())
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
        raise ValueError(f"field 'id': none is in a ({_listed(a.index, 2)}) and in b ({_listed(b.index, 2)}) too")
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


def cases_needed(true_accuracy: float, target: float = 0.90, power: float = 0.8, level: float = 0.95) -> int:
    """Cases needed to show that the accuracy is above a target.

    The test is the one-sided exact binomial test of "accuracy <= target" at ``1 - level``. Its power
    is a saw-tooth in n; the answer is the n from which the power stays at ``power`` or more.

    Parameters
    ----------
    true_accuracy : float
        Accuracy that the system is believed to have, above ``target``.
    target, power, level : float

    Returns
    -------
    int
        Number of independent cases; above 100,000 the normal approximation.

    Raises
    ------
    ValueError
        Unless ``0 < target < true_accuracy <= 1``: no number of cases shows what is not so.
    """
    if not 0 < target < true_accuracy <= 1:
        raise ValueError(f"need 0 < target < true_accuracy <= 1, got {target=}, {true_accuracy=}")
    approximate = NormalIndPower().solve_power(  # ratio=0: one sample
        proportion_effectsize(true_accuracy, target), alpha=1 - level, power=power, ratio=0, alternative="larger"
    )
    if approximate > 100_000:
        return int(np.ceil(approximate))
    n = np.arange(1, int(2 * approximate) + 200)
    most_by_chance = binom.isf(1 - level, n, target)  # the test rejects above this many hits
    enough = binom.sf(most_by_chance, n, true_accuracy) >= power
    return int(n[~enough][-1]) + 1
