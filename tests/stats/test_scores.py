"""Metrics against hand counts, scikit-learn / statsmodels, and properties."""

import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, chi2_contingency
from scipy.stats import t as student
from sklearn.metrics import accuracy_score, roc_auc_score
from statsmodels.stats.proportion import proportion_confint

from medlib import stats
from medlib.stats.scores import spread
from medlib.stats.text import results_table, to_markdown


def table(gold, predicted, p=None, **columns):
    """Predictions from strings of C (CORRECT) and E (ERROR)."""
    names = {"C": "CORRECT", "E": "ERROR"}
    n = len(gold)
    return pd.DataFrame(
        {
            "id": [f"s{i}" for i in range(n)],
            "modality": ["xray", "mri"] * (n // 2) + ["xray"] * (n % 2),
            "verdict": [names[letter] for letter in gold],
            "predicted": [names[letter] for letter in predicted],
            "p_correct": p if p is not None else [0.9 if x == "C" else 0.1 for x in predicted],
            "error_type": ["none" if x == "C" else "overtreatment" for x in gold],
            "severity": ["none" if x == "C" else "critical" for x in gold],
            "cost_impact": [0 if x == "C" else 1000 for x in gold],
            **columns,
        }
    )


answers = st.text("CE", min_size=1, max_size=40)
paired = st.integers(1, 30).flatmap(lambda n: st.tuples(*[st.text("CE", min_size=n, max_size=n)] * 3))


# --- proportion -----------------------------------------------------------------------------


def test_proportion_is_the_published_wilson_interval():
    # Newcombe (1998), table I: 81 of 263
    rate = stats.proportion(81, 263)
    assert (round(rate["low"], 4), round(rate["high"], 4)) == (0.2553, 0.3662)


def test_proportion_of_nothing_is_nan():
    rate = stats.proportion(0, 0)
    assert rate["n"] == 0
    assert all(math.isnan(rate[key]) for key in ("value", "low", "high"))


@pytest.mark.parametrize("successes, n", [(-1, 3), (4, 3)])
def test_proportion_refuses_impossible_counts(successes, n):
    with pytest.raises(ValueError, match="not between"):
        stats.proportion(successes, n)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_interval_contains_the_estimate(counts):
    rate = stats.proportion(*counts)
    assert 0 <= rate["low"] <= rate["value"] <= rate["high"] <= 1
    assert rate["low"] < rate["high"]
    narrow = stats.proportion(*counts, level=0.5)
    assert narrow["high"] - narrow["low"] < rate["high"] - rate["low"]


# --- score ----------------------------------------------------------------------------------


def test_score_by_hand():
    #       xray mri xray mri xray mri xray mri
    gold, predicted = "CCCCEEEE", "CCCEEECE"
    result = stats.score(table(gold, predicted))
    assert result["n"] == 8
    assert result["accuracy"]["value"] == 6 / 8
    assert (result["sensitivity"]["value"], result["sensitivity"]["n"]) == (3 / 4, 4)
    assert (result["specificity"]["value"], result["specificity"]["n"]) == (3 / 4, 4)
    assert result["balanced_accuracy"] == 0.75
    assert result["mcc"] == pytest.approx((3 * 3 - 1 * 1) / 16)
    assert result["auroc"] == 0.75  # 9 pairs right, 6 ties, 1 wrong of 16
    assert result["brier"] == pytest.approx((6 * 0.01 + 2 * 0.81) / 8)
    assert result["ece"] == pytest.approx((abs(4 * 0.9 - 3) + abs(4 * 0.1 - 1)) / 8)
    assert result["constant_answer_share"] == 0.5
    assert result["per_modality"]["xray"]["sensitivity"]["value"] == 1
    assert result["per_modality"]["mri"]["sensitivity"]["value"] == 1 / 2
    assert result["per_modality"]["xray"]["specificity"]["value"] == 1 / 2
    assert result["critical_misses"] == {"count": 1, "n": 4, "upper": pytest.approx(binom_upper(1, 4))}
    assert "generation" not in result


def binom_upper(count, n):
    return binomtest(count, n, alternative="less").proportion_ci(0.95, method="exact").high


def test_sensitivity_and_specificity_are_not_swapped():
    result = stats.score(table("CCCCEE", "CCCEEC"))
    assert result["sensitivity"]["value"] == 3 / 4
    assert result["specificity"]["value"] == 1 / 2


def test_spread_is_in_points_and_needs_50_cases_a_modality():
    result = stats.score(table("CE" * 50, "CC" * 50))  # xray all right, mri none
    assert result["spread"] == 100 and result["spread_interval"]["low"] > 80
    assert result["spread_interval"]["p"] < 0.001
    few = stats.score(table("CE" * 49, "CC" * 49))  # two cases a modality give 36 points by chance
    assert math.isnan(few["spread"]) and math.isnan(few["spread_interval"]["p"])


def test_the_spread_of_equal_modalities_is_within_its_interval_and_not_significant():
    rng, covered, rejected = np.random.default_rng(0), [], []
    for _ in range(150):
        rates = [stats.proportion(int(k), 500) for k in rng.binomial(500, 0.97, 4)]
        interval = spread(rates)["spread_interval"]
        covered.append(interval["low"] <= 0 <= interval["high"])
        rejected.append(interval["p"] < 0.05)
    assert np.mean(covered) >= 0.95 and np.mean(rejected) < 0.1


def test_the_test_of_the_spread_agrees_with_chi_squared():
    counts = [470, 480, 485, 475]
    p = spread([stats.proportion(k, 500) for k in counts])["spread_interval"]["p"]
    assert p == pytest.approx(chi2_contingency([counts, [500 - k for k in counts]]).pvalue, rel=0.2)


def test_critical_misses_count_only_critical_errors():
    frame = table("EEEE", "CCEE", severity=["critical", "moderate", "critical", "high"])
    misses = stats.score(frame)["critical_misses"]
    assert (misses["count"], misses["n"]) == (1, 2)


def test_no_critical_miss_follows_the_rule_of_three():
    upper = stats.score(table("E" * 300, "E" * 300))["critical_misses"]["upper"]
    assert upper == pytest.approx(3 / 300, rel=0.02)


def test_score_agrees_with_sklearn_on_random_predictions():
    rng = np.random.default_rng(0)
    p = rng.random(200)
    gold = "".join(rng.choice(["C", "E"], 200))
    frame = table(gold, ["C" if value > 0.5 else "E" for value in p], p)
    result = stats.score(frame)
    low, high = proportion_confint(round(result["accuracy"]["value"] * 200), 200, method="wilson")
    assert result["accuracy"]["value"] == accuracy_score(frame["verdict"], frame["predicted"])
    assert (result["accuracy"]["low"], result["accuracy"]["high"]) == (low, high)
    assert result["auroc"] == pytest.approx(roc_auc_score(frame["verdict"] == "CORRECT", p))


@settings(max_examples=40, deadline=None)
@given(answers)
def test_perfect_predictions_score_one(gold):
    result = stats.score(table(gold, gold))
    assert result["accuracy"]["value"] == 1
    assert result["critical_misses"]["count"] == 0
    if len(set(gold)) == 2:
        assert result["balanced_accuracy"] == result["auroc"] == 1
        assert result["mcc"] == pytest.approx(1)
    else:
        assert math.isnan(result["auroc"]) and math.isnan(result["mcc"])


@pytest.mark.parametrize("answer", "CE")
@pytest.mark.parametrize("half", [1, 7, 50])
def test_constant_answer_gets_half(answer, half):
    result = stats.score(table("C" * half + "E" * half, answer * 2 * half))
    assert result["accuracy"]["value"] == result["balanced_accuracy"] == result["auroc"] == 0.5
    assert result["mcc"] == 0
    assert result["constant_answer_share"] == 1
    assert {result["sensitivity"]["value"], result["specificity"]["value"]} == {0, 1}


def test_generation_counts_unparsed_as_wrong():
    frame = table("CCEE", "CCEE", generated=["a", "b", "c", ""], parsed=["CORRECT", "ERROR", "ERROR", None])
    generation = stats.score(frame)["generation"]
    assert generation["parse_rate"]["value"] == 3 / 4
    assert (generation["accuracy"]["value"], generation["accuracy"]["n"]) == (2 / 4, 4)
    # without the text every row counts; rows never generated do not
    assert stats.score(frame.drop(columns="generated"))["generation"] == generation
    frame.loc[3, "generated"] = None
    assert stats.score(frame)["generation"]["parse_rate"] == stats.proportion(3, 3)
    frame["generated"] = None
    assert "generation" not in stats.score(frame)
    nothing = stats.score(table("CE", "CE", generated=["Hm.", "Hm."]))["generation"]  # as a file gives it back
    assert nothing["parse_rate"] == nothing["accuracy"] == stats.proportion(0, 2)


def test_score_is_json():
    frame = table("CCEE" * 25, "CEEE" * 25, generated=list("abcd") * 25, parsed=["CORRECT", None] * 50)
    result = stats.score(frame)
    assert json.loads(json.dumps(result)) == result


@pytest.mark.parametrize(
    "column, value, message",
    [
        ("verdict", "MAYBE", r"row 2 \(s1\), field 'verdict': bad value 'MAYBE'"),
        ("predicted", None, r"row 2 \(s1\), field 'predicted'"),
        ("p_correct", 1.5, r"row 2 \(s1\), field 'p_correct': .*1.5"),
        ("p_correct", float("nan"), "field 'p_correct'"),
        ("modality", None, "field 'modality'"),
        ("cost_impact", -1, "field 'cost_impact'"),
    ],
)
def test_bad_values_are_refused_by_row_and_field(column, value, message):
    frame = table("CEC", "CCE").astype({column: object})
    frame.loc[1, column] = value
    with pytest.raises(ValueError, match=message):
        stats.score(frame)


def test_missing_column_and_no_rows_are_refused():
    with pytest.raises(ValueError, match="no column 'severity'"):
        stats.score(table("CE", "CE").drop(columns="severity"))
    with pytest.raises(ValueError, match="no rows"):
        stats.score(table("CE", "CE")[:0])


def test_clustered_accuracy_knows_that_twins_fall_together():
    # 100 pairs: both right in 80 of them, both wrong in 20
    frame = table("CE" * 100, "CE" * 80 + "EC" * 20, pair=[f"p{i // 2}" for i in range(200)])
    result = stats.score(frame)
    twins = result["accuracy_clustered"]
    assert (twins["value"], twins["n"], twins["clusters"]) == (0.8, 200, 100)
    # as if there were 100 cases, not 200
    assert (twins["low"], twins["high"]) == pytest.approx(proportion_confint(80, 100, method="wilson"), abs=0.002)
    assert twins["high"] - twins["low"] > 1.3 * (result["accuracy"]["high"] - result["accuracy"]["low"])
    assert json.loads(json.dumps(twins)) == twins
    assert stats.score(frame.sample(frac=1, random_state=0))["accuracy_clustered"] == twins


def test_clustered_accuracy_of_a_constant_answer_and_without_pairs():
    pairs = [f"p{i // 2}" for i in range(40)]
    constant = stats.score(table("CE" * 20, "CC" * 20, pair=pairs))["accuracy_clustered"]
    # no pair differs from another, so nothing is known of their spread: 20 pairs count as 20 cases
    assert (constant["low"], constant["high"]) == pytest.approx(proportion_confint(10, 20, method="wilson"))
    perfect = stats.score(table("CE" * 20, "CE" * 20, pair=pairs))["accuracy_clustered"]
    assert (perfect["low"], perfect["high"]) == pytest.approx(proportion_confint(20, 20, method="wilson"))
    assert "accuracy_clustered" not in stats.score(table("CE", "CE", pair=[None, None]))
    assert "accuracy_clustered" not in stats.score(table("CE", "CE"))
    mixed = stats.score(table("CECE", "CEEC", pair=["a", "a", None, None]))["accuracy_clustered"]
    assert mixed["clusters"] == 3


def test_the_effective_number_of_cases_is_that_of_the_design_effect():
    # 12 clusters of 5; by Korn and Graubard: p (1 - p) / variance of the clusters, times the t quantiles' ratio
    right = np.random.default_rng(1).random((12, 5)) < np.linspace(0.3, 1, 12)[:, None]
    rate = stats.clustered_proportion(right.ravel(), pd.Series(np.repeat(np.arange(12), 5)))
    p, means = right.mean(), right.mean(axis=1)
    few = student.ppf(0.975, 59) / student.ppf(0.975, 11)
    assert rate["effective_n"] == pytest.approx(p * (1 - p) / (means.var(ddof=1) / 12) * few**2)
    low, high = proportion_confint(p * rate["effective_n"], rate["effective_n"], method="wilson")
    assert (rate["low"], rate["high"]) == pytest.approx((low, high))


@pytest.mark.parametrize("p, shared, clusters, size", [(0.985, 0.3, 1000, 2), (0.99, 0.02, 33, 60)])
def test_clustered_intervals_cover_near_one(p, shared, clusters, size):
    """The bootstrap that these replace covered 91.5% and 90%."""
    rng, covered = np.random.default_rng(0), []
    names = pd.Series(np.repeat(np.arange(clusters), size))
    odds = (1 - shared) / shared
    for _ in range(400):
        rates = rng.beta(p * odds, (1 - p) * odds, clusters)
        rate = stats.clustered_proportion((rng.random((clusters, size)) < rates[:, None]).ravel(), names)
        covered.append(rate["low"] <= p <= rate["high"])
    assert np.mean(covered) > 0.925


def test_accuracy_and_critical_misses_by_cell():
    cells = ["cyst"] * 20 + ["mass"] * 20
    result = stats.score(table("CE" * 20, "CE" * 10 + "CC" + "CE" * 9, cell=cells))
    assert result["accuracy_by_cell"]["clusters"] == 2 and result["accuracy_by_cell"]["effective_n"] < 40
    assert result["critical_misses"]["by_cell"] == {"count": 1, "n": 2, "upper": pytest.approx(binom_upper(1, 2))}
    assert "by_cell" not in stats.score(table("CE", "CE"))["critical_misses"]


# --- calibration, groups --------------------------------------------------------------------


def test_ece_by_hand():
    # bins of 0.5: mean p 0.2 against 0 of 2; mean p 0.8 against 1 of 2
    ece = stats.expected_calibration_error([0.1, 0.3, 0.7, 0.9], [0, 0, 0, 1], bins=2)
    assert ece == pytest.approx((2 * 0.2 + 2 * 0.3) / 4)
    assert stats.expected_calibration_error([0.0, 1.0], [False, True]) == 0
    assert stats.expected_calibration_error([0.0, 1.0], [True, False]) == 1


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=50))
def test_ece_lies_between_mean_gap_and_one(rows):
    p, y = zip(*rows)
    ece = stats.expected_calibration_error(p, y)
    assert abs(np.mean(p) - np.mean(y)) - 1e-9 <= ece <= 1 + 1e-9


@pytest.mark.parametrize(
    "p, y", [([], []), ([0.5], [1, 0]), ([1.1], [1]), ([math.nan], [1]), ([0.5], [2]), ([0.5], [math.nan])]
)
def test_ece_refuses_bad_input(p, y):
    with pytest.raises(ValueError):
        stats.expected_calibration_error(p, y)


def test_by_group():
    groups = stats.by_group(table("CCEE", "CEEE", source=["a", "a", "b", None]), "source")
    assert list(groups.columns) == ["source", "n", "accuracy", "low", "high"]
    assert groups.set_index("source")["accuracy"].to_dict() == {"a": 0.5, "b": 1, "missing": 1}
    assert groups["n"].sum() == 4
    with pytest.raises(ValueError, match="no column 'hospital'"):
        stats.by_group(table("C", "C"), "hospital")


# --- comparison -----------------------------------------------------------------------------


def test_compare_by_hand():
    gold = "C" * 20
    a = table(gold, "C" * 18 + "E" * 2)
    b = table(gold, "C" * 10 + "E" * 9 + "C")  # a alone right 8 times, b alone once
    result = stats.compare(a, b.sample(frac=1, random_state=1))
    assert (result["b"], result["c"], result["n"]) == (8, 1, 20)
    assert result["p"] == pytest.approx(binomtest(1, 9).pvalue)
    assert result["difference"] == pytest.approx(7 / 20)
    assert 0 < result["low"] < result["difference"] < result["high"] < 1


def test_bootstrap_interval_agrees_with_the_normal_one():
    rng = np.random.default_rng(3)
    gold = "C" * 1000
    a, b = (table(gold, np.where(rng.random(1000) < share, "C", "E")) for share in (0.9, 0.8))
    result = stats.compare(a, b)
    paired = (a["predicted"] == "CORRECT").astype(int) - (b["predicted"] == "CORRECT").astype(int)
    half = 1.96 * paired.std() / math.sqrt(1000)
    assert result["low"] == pytest.approx(result["difference"] - half, abs=0.003)
    assert result["high"] == pytest.approx(result["difference"] + half, abs=0.003)


@settings(max_examples=15, deadline=None)
@given(paired)
def test_swapping_keeps_p_and_mirrors_the_difference(strings):
    gold, first, second = strings
    a, b = table(gold, first), table(gold, second)
    one, other = stats.compare(a, b), stats.compare(b, a)
    assert one["p"] == other["p"] and 0 < one["p"] <= 1
    assert (one["b"], one["c"]) == (other["c"], other["b"])
    assert one["difference"] == pytest.approx(-other["difference"])
    assert (one["low"], one["high"]) == pytest.approx((-other["high"], -other["low"]))
    assert -1 <= one["low"] <= one["difference"] + 1e-9
    assert one["difference"] - 1e-9 <= one["high"] <= 1


def test_equal_systems_do_not_get_a_certain_zero():
    result = stats.compare(table("CE" * 10, "CC" * 10), table("CE" * 10, "CC" * 10))
    assert (result["b"], result["c"], result["p"], result["difference"]) == (0, 0, 1, 0)
    assert result["high"] == -result["low"] == pytest.approx(0.168, abs=0.001)  # of 0 in 20


def test_compare_names_what_does_not_match():
    frame = table("CECE", "CCEE")
    with pytest.raises(ValueError, match="missing in b: s2, s3"):
        stats.compare(frame, frame[:2])
    with pytest.raises(ValueError, match="missing in a: s3; missing in b: s0"):
        stats.compare(frame[:3], frame[1:])
    with pytest.raises(ValueError, match="a, field 'id': used twice: s1"):
        stats.compare(frame.replace({"id": {"s2": "s1"}}), frame)
    with pytest.raises(ValueError, match="disagree on ids s0"):
        stats.compare(frame, frame.assign(verdict=["ERROR", "ERROR", "CORRECT", "ERROR"]))


def test_bootstrap_over_kinds_is_the_bootstrap_over_clusters():
    rng = np.random.default_rng(0)
    totals, sizes = rng.integers(-2, 3, 60), rng.integers(2, 4, 60)
    drawn = rng.integers(0, 60, (20_000, 60))  # one by one
    means = totals[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    interval = stats.bootstrap_interval(totals, sizes, floor=-1.0)
    assert interval == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.01)


def test_compare_by_cluster():
    pair = [f"p{i // 2}" for i in range(40)]
    gold = "CE" * 20
    # a alone has both twins of 6 pairs right, b alone both of one, one twin each in one more
    a = table(gold, "CE" * 12 + "CE" * 6 + "EC" + "CC", pair=pair)
    b = table(gold, "CE" * 12 + "EC" * 6 + "CE" + "EE", pair=pair)
    plain, result = stats.compare(a, b), stats.compare(a, b.iloc[::-1], cluster="pair")
    assert {key: result[key] for key in ("b", "c", "n", "difference", "p")} == {
        key: plain[key] for key in ("b", "c", "n", "difference", "p")
    }
    assert (result["b"], result["c"]) == (13, 3)
    assert (result["clusters"], result["clusters_a"], result["clusters_b"]) == (20, 6, 1)
    assert result["p_cluster"] == pytest.approx(binomtest(1, 7).pvalue)
    assert result["p_cluster"] > plain["p"]
    assert result["high"] - result["low"] > 1.2 * (plain["high"] - plain["low"])
    assert "p_cluster" not in plain and json.dumps(result)


def test_compare_by_cluster_without_a_name_is_by_scenario():
    a, b = table("CE" * 30, "CE" * 25 + "EE" * 5), table("CE" * 30, "CC" * 30)
    plain = stats.compare(a, b)
    single = stats.compare(a.assign(pair=None), b.assign(pair=None), cluster="pair")
    assert single["clusters"] == 60 and single["p_cluster"] == pytest.approx(plain["p"])
    assert (single["low"], single["high"]) == (plain["low"], plain["high"])


def test_equal_systems_by_cluster():
    frame = table("CE" * 10, "CC" * 10, pair=[f"p{i // 2}" for i in range(20)])
    result = stats.compare(frame, frame, cluster="pair")
    assert result["p_cluster"] == 1 and result["low"] < 0 < result["high"]


def test_compare_refuses_clusters_that_differ_or_are_not_there():
    frame = table("CECE", "CCEE", pair=["x", "x", "y", None])
    with pytest.raises(ValueError, match="field 'pair': a and b disagree on ids s1"):
        stats.compare(frame, frame.assign(pair=["x", "z", "y", None]), cluster="pair")
    with pytest.raises(ValueError, match="no column 'pair'"):
        stats.compare(frame, frame.drop(columns="pair"), cluster="pair")


@settings(max_examples=15, deadline=None)
@given(paired)
def test_swapping_mirrors_clusters_too(strings):
    gold, first, second = strings
    pair = [i // 2 for i in range(len(gold))]
    a, b = table(gold, first, pair=pair), table(gold, second, pair=pair)
    one, other = stats.compare(a, b, cluster="pair"), stats.compare(b, a, cluster="pair")
    assert one["p_cluster"] == other["p_cluster"]
    assert (one["clusters_a"], one["clusters_b"]) == (other["clusters_b"], other["clusters_a"])
    assert (one["low"], one["high"]) == pytest.approx((-other["high"], -other["low"]))


def test_compare_all():
    rng = np.random.default_rng(5)
    gold, pair = "CE" * 200, [f"p{i // 2}" for i in range(400)]
    frames = {
        name: table(gold, [x if rng.random() < share else {"C": "E", "E": "C"}[x] for x in gold], pair=pair)
        for name, share in {"low": 0.5, "middle": 0.7, "same": 0.7, "high": 0.95}.items()
    }
    shown = stats.compare_all(frames)
    assert list(zip(shown["first"], shown["second"])) == [
        ("low", "middle"),
        ("low", "same"),
        ("low", "high"),
        ("middle", "same"),
        ("middle", "high"),
        ("same", "high"),
    ]
    one = stats.compare(frames["middle"], frames["high"])
    row = shown.iloc[4]
    assert (row["only_first"], row["only_second"]) == (one["b"], one["c"])
    assert (row["difference"], row["low"], row["high"], row["p"]) == (
        one["difference"],
        one["low"],
        one["high"],
        one["p"],
    )
    assert row["accuracy_first"] == one["accuracy_a"] < row["accuracy_second"] == one["accuracy_b"]
    assert shown["p_holm"].tolist() == list(stats.holm(dict(enumerate(shown["p"]))).values())
    assert (shown["p_holm"] >= shown["p"]).all() and shown["p_holm"].max() > 0.05
    by_pair = stats.compare_all(frames, cluster="pair")
    assert by_pair["p_cluster_holm"].tolist() == list(stats.holm(dict(enumerate(by_pair["p_cluster"]))).values())
    assert by_pair["clusters"].eq(200).all()
    assert (by_pair["clusters_first"] < by_pair["clusters_second"]).iloc[2]


def test_compare_all_names_the_systems_that_do_not_match():
    frame = table("CECE", "CCEE")
    with pytest.raises(ValueError, match="a = x, b = z: .*missing in b: s3"):
        stats.compare_all({"x": frame, "y": frame, "z": frame[:3]})
    with pytest.raises(ValueError, match="two or more"):
        stats.compare_all({"x": frame})


def test_consistency_by_hand():
    a = table("CCEE", "CCEC")
    b = table("CCEE", "CEEC").iloc[::-1]
    result = stats.consistency(a, b)
    same = stats.proportion(3, 4)
    assert {key: result[key] for key in same} == same
    assert result["accuracy_a"] == stats.proportion(3, 4)
    assert result["accuracy_b"] == stats.proportion(2, 4)
    assert result["unmatched"] == 0
    fewer = stats.consistency(a, b[b["id"] != "s1"])
    assert (fewer["value"], fewer["n"], fewer["unmatched"]) == (1, 3, 1)
    assert fewer["accuracy_a"] == stats.proportion(2, 3)


def test_consistency_refuses_what_does_not_match():
    frame = table("CE", "CE")
    with pytest.raises(ValueError, match=r"none is in a \(s0, s1\)"):
        stats.consistency(frame, frame.assign(id=["x", "y"]))
    with pytest.raises(ValueError, match="b, field 'id': used twice: s0"):
        stats.consistency(frame, frame.assign(id="s0"))
    with pytest.raises(ValueError, match="field 'verdict': a and b disagree on ids s1"):
        stats.consistency(frame, frame.assign(verdict="CORRECT"))


def test_holm_by_hand():
    adjusted = stats.holm({"x": 0.04, "y": 0.01, "z": 0.03})
    assert adjusted == pytest.approx({"x": 0.06, "y": 0.03, "z": 0.06})
    assert stats.holm({}) == {}
    with pytest.raises(ValueError, match="x=nan"):
        stats.holm({"x": float("nan")})


# --- power ----------------------------------------------------------------------------------


def power_at(n, true_accuracy, bar):
    """Power of the one-sided exact test at 5%, by trying every count."""
    hits = np.arange(n + 1)
    rejected = binom.sf(hits - 1, n, bar) <= 0.05
    return binom.pmf(hits, n, true_accuracy)[rejected].sum()


@pytest.mark.parametrize("true_accuracy, bar", [(0.95, 0.90), (0.98, 0.90), (0.7, 0.5)])
def test_cases_needed_reach_the_power_and_keep_it(true_accuracy, bar):
    n = stats.cases_needed(true_accuracy, bar)
    assert power_at(n - 1, true_accuracy, bar) < 0.8
    assert all(power_at(more, true_accuracy, bar) >= 0.8 for more in range(n, n + 40))


def test_cases_needed_edges():
    assert stats.cases_needed(1.0) == 29  # 0.9 ** 29 < 0.05
    assert stats.cases_needed(0.92) > stats.cases_needed(0.95)
    assert stats.cases_needed(0.9005) > 100_000
    with pytest.raises(ValueError, match="target < true_accuracy"):
        stats.cases_needed(0.90)


# --- tables ---------------------------------------------------------------------------------


def test_results_table_and_markdown():
    frame = table("CE" * 512, "CE" * 467 + "EC" * 45)
    shown = results_table({"base | 4b": stats.score(frame)})
    assert list(shown.columns) == [
        "System",
        "n",
        "Accuracy (95% CI)",
        "95% CI by cell",
        "Valid treatments recognised",
        "Errors caught",
        "Spread (points)",
    ]
    assert shown.loc[0, "Accuracy (95% CI)"] == "91.2% [89.3,\N{NO-BREAK SPACE}92.8] (n=1,024)"
    space = "\N{NO-BREAK SPACE}"
    assert shown.loc[0, "n"] == "1,024"
    assert shown.loc[0, "Spread (points)"] == f"0.0 [0.0,{space}5.6], p{space}={space}1"
    lines = to_markdown(shown).splitlines()
    assert len(lines) == 3 and lines[1].startswith("|:---|---:")
    assert r"base \| 4b" in lines[2]
    assert {line.replace(r"\|", "").count("|") for line in lines} == {8}


def test_results_table_without_one_verdict():
    shown = results_table({"x": stats.score(table("E", "E"))})
    assert shown.loc[0, "Valid treatments recognised"] == "n/a (n=0)"
    assert shown.loc[0, "Spread (points)"] == "n/a"


def test_results_table_in_full():
    frame = table("CE" * 50, "CE" * 45 + "CC" * 5)
    score = stats.score(frame)
    short, full = results_table({"x": score}), results_table({"x": score}, full=True)
    assert full[short.columns].equals(short) and full.shape[1] == short.shape[1] + 6
    assert full.loc[0, "Balanced"] == "95.0%"
    assert full.loc[0, "MCC"] == f"{score['mcc']:.3f}" and full.loc[0, "ECE"] == f"{score['ece']:.3f}"
    assert full.loc[0, "AUROC"] == "0.950" and full.loc[0, "Brier"] == f"{score['brier']:.3f}"
    assert full.loc[0, "Critical misses"] == f"5 of 50 (≤ {100 * binom_upper(5, 50):.1f}%)"


def test_results_table_in_full_says_what_is_not_defined():
    score = stats.score(table("C", "C"))
    for found in (score, {k: None if v != v else v for k, v in score.items()}):  # None: from a file
        full = results_table({"x": found}, full=True)
        assert (full.loc[0, ["Balanced", "MCC", "AUROC", "Spread (points)"]] == "n/a").all()
        assert full.loc[0, "Critical misses"] == "0 of 0"


def test_severities_that_are_not_stated_are_not_counted():
    frame = pd.DataFrame(
        {
            "modality": "ct",
            "verdict": ["ERROR", "ERROR", "CORRECT"],
            "p_correct": [0.9, 0.1, 0.8],
            "predicted": ["CORRECT", "ERROR", "CORRECT"],
            "severity": None,
            "cost_impact": None,
        }
    )
    result = stats.score(frame)
    assert result["accuracy"]["value"] == pytest.approx(2 / 3)
    assert result["critical_misses"]["n"] == 0


# --- whole cells ----------------------------------------------------------------------------


def test_random_signs_agree_with_all_signs_and_see_how_much_a_cell_gains():
    gains = [9, 7, 8, 6, -1, -1, -1, 5]  # of cells of 10 cases
    cells = [f"c{i}" for i in range(8) for _ in range(10)]
    a_right = [i < gain for gain in gains for i in range(10)]
    b_right = [gain < 0 and i < -gain for gain in gains for i in range(10)]
    a, b = (table("C" * 80, "".join("EC"[r] for r in right), cell=cells) for right in (a_right, b_right))
    every = np.array(list(itertools.product([-1, 1], repeat=8))) @ gains
    exact = (np.abs(every) >= sum(gains)).mean()
    assert stats.flip_test(a, b, "cell") == pytest.approx(exact, rel=0.25)
    assert stats.compare(a, b, cluster="cell")["p_cluster"] > 0.5  # the sign test does not
    assert stats.flip_test(a, b, "cell") == stats.flip_test(b, a, "cell")


def test_random_signs_reject_no_more_than_they_should():
    rng, rejected = np.random.default_rng(0), []
    cells = [f"c{i // 5}" for i in range(100)]
    for _ in range(100):
        luck = np.repeat(rng.normal(size=(2, 20)), 5, axis=1) > -1  # one for all cases of a cell
        a, b = (table("C" * 100, ["EC"[int(r)] for r in right], cell=cells) for right in luck)
        rejected.append(stats.flip_test(a, b, "cell") < 0.05)
    assert np.mean(rejected) <= 0.1
