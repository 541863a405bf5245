"""Temperature against known answers, selective accuracy against chance, thresholds by hand."""

import math
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from medlib import stats


def answers(p, right):
    """A predictions table with these probabilities, each answer right or wrong."""
    p, right = np.asarray(p, dtype=float), np.asarray(right, dtype=bool)
    said = p >= 0.5
    names = np.array(["ERROR", "CORRECT"])
    return pd.DataFrame(
        {
            "id": np.arange(len(p)),
            "p_correct": p,
            "predicted": names[said.astype(int)],
            "verdict": names[(said == right).astype(int)],
        }
    )


def drawn(temperature, n=20_000, seed=0):
    """Labels drawn from true probabilities, and a model whose logits are ``temperature`` times those."""
    rng = np.random.default_rng(seed)
    true = expit(2 * rng.normal(size=n))
    return expit(temperature * logit(true)), rng.random(n) < true


# --- temperature ----------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_the_temperature_is_found_and_calibrates_other_scenarios(temperature):
    p, y = drawn(temperature)
    found = stats.fit_temperature(p, y)
    assert found == pytest.approx(temperature, rel=0.05)
    p, y = drawn(temperature, seed=1)
    after = stats.expected_calibration_error(stats.apply_temperature(p, found), y)
    assert after < 0.015
    if temperature != 1:
        assert after < 0.3 * stats.expected_calibration_error(p, y)


def test_the_fitted_temperature_is_the_best_on_a_grid():
    p, y = drawn(2.5, n=200)

    def loss(temperature):  # with the prior on log T
        return (
            len(p) * stats.log_loss(stats.apply_temperature(p, temperature), y)
            + abs(np.log(temperature)) / stats.PRIOR
        )

    assert loss(stats.fit_temperature(p, y)) <= min(map(loss, np.geomspace(0.05, 20, 500))) + 1e-6


def rarely_wrong(n, seed):
    """Calibrated probabilities of a model that is wrong in about 0.5% of its verdicts, and the gold verdicts."""
    rng = np.random.default_rng(seed)
    wrong = expit(-np.abs(rng.normal(6.0, 1.3, n)))
    says_correct = rng.random(n) < 0.5
    is_correct = says_correct ^ (rng.random(n) < wrong)
    return np.where(says_correct, 1 - wrong, wrong), is_correct


def test_probabilities_that_are_right_are_left_alone():
    """192 cases with one mistake or none say nothing of the temperature; smoothed targets made it 1.6."""
    found, worse = [], []
    for seed in range(100):
        found.append(stats.fit_temperature(*rarely_wrong(192, seed)))
        p, y = rarely_wrong(2000, 1000 + seed)
        worse.append(stats.log_loss(stats.apply_temperature(p, found[-1]), y) - stats.log_loss(p, y))
    assert 0.9 <= np.median(found) <= 1.1
    assert np.mean(np.array(found) > 1) < 0.2
    assert np.mean(worse) < 2e-4


def test_a_temperature_that_does_not_carry_over_to_other_cases_is_not_used():
    # one group is too sure, the other too unsure: whichever is left out gets the other one's temperature
    p = np.repeat([0.99, 0.6], 100)
    y = np.concatenate([np.arange(100) < 60, np.arange(100) < 99])
    groups = pd.Series(np.repeat(["a", "b"], 100))
    assert stats.fit_temperature(p, y, groups) == 1.0
    assert stats.fit_temperature(p, y) != 1.0


def test_a_validation_suite_without_a_mistake_gives_no_unlimited_certainty():
    p, y = np.repeat([0.9, 0.1], 50), np.repeat([True, False], 50)
    sure = stats.apply_temperature(p, stats.fit_temperature(p, y))
    assert 0.9 < sure[0] < 0.995


def test_probabilities_of_exactly_0_and_1():
    # 1 of 10 wrong at full certainty: the best certainty is 0.9, with smoothed targets a little less
    p, y = [1.0] * 500 + [0.0] * 500, [True] * 500 + [False] * 400 + [True] * 100
    q = stats.apply_temperature([0.0, 0.5, 1.0], stats.fit_temperature(p, y))
    assert q == pytest.approx([0.1, 0.5, 0.9], abs=2e-3)


def test_temperature_stays_within_its_bounds():
    cold, warm = stats.TEMPERATURES
    p, y = np.repeat([0.6, 0.4], 10**6), np.repeat([True, False], 10**6)
    assert stats.fit_temperature(p, y) == pytest.approx(cold, rel=1e-3)
    assert stats.fit_temperature([0.9, 0.1] * 1000, [0, 1] * 1000) == pytest.approx(warm, rel=1e-3)
    assert stats.fit_temperature([0.9, 0.1], [0, 1]) == 1.0  # two cases prove nothing
    assert stats.fit_temperature([0.5, 0.5], [1, 0]) == 1.0


@given(st.floats(0, 1), st.floats(0.05, 20))
def test_no_value_crosses_one_half(p, temperature):
    q = float(stats.apply_temperature(p, temperature))
    assert 0 <= q <= 1
    assert q >= 0.5 if p >= 0.5 else q <= 0.5
    back = stats.apply_temperature(1 - q, temperature)
    assert stats.apply_temperature(q, 1.0) == pytest.approx(q, abs=1e-9)
    assert back == pytest.approx(1 - float(stats.apply_temperature(q, temperature)), abs=1e-9)


def test_calibrated_changes_only_the_probabilities():
    frame = answers([0.9, 0.2, 0.5], [True, False, True])
    changed = stats.calibrated(frame, 2.0)
    assert changed["p_correct"].tolist() == pytest.approx([0.75, 1 / 3, 0.5])
    assert changed.drop(columns="p_correct").equals(frame.drop(columns="p_correct"))
    assert frame["p_correct"].tolist() == [0.9, 0.2, 0.5]


@pytest.mark.parametrize("p, y", [([], []), ([0.5], [1, 0]), ([1.1], [1]), ([math.nan], [1]), ([0.4], [3])])
def test_fit_refuses_bad_input(p, y):
    with pytest.raises(ValueError):
        stats.fit_temperature(p, y)


@pytest.mark.parametrize("p, temperature", [(0.5, 0), (0.5, -1), (0.5, math.nan), (0.5, math.inf), (1.5, 1)])
def test_apply_refuses_bad_input(p, temperature):
    with pytest.raises(ValueError):
        stats.apply_temperature(p, temperature)


# --- slope and intercept --------------------------------------------------------------------


@pytest.mark.parametrize("temperature, slope", [(1.0, 1.0), (2.0, 0.5), (0.5, 2.0)])
def test_the_slope_is_the_inverse_of_the_temperature(temperature, slope):
    line = stats.calibration_line(*drawn(temperature))
    assert line["slope"]["value"] == pytest.approx(slope, rel=0.05)
    assert line["slope"]["low"] < slope < line["slope"]["high"]
    assert line["intercept"]["low"] < 0 < line["intercept"]["high"]


def test_slope_and_intercept_are_those_of_a_logistic_regression():
    p, y = drawn(1.7, n=500)
    fitted = LogisticRegression(C=np.inf, tol=1e-8).fit(logit(p)[:, None], y)
    line = stats.calibration_line(p, y)
    assert line["slope"]["value"] == pytest.approx(fitted.coef_[0, 0], rel=1e-3)
    shifted = stats.calibration_line(expit(logit(p) - 1), y)["intercept"]["value"]
    assert shifted == pytest.approx(stats.calibration_line(p, y)["intercept"]["value"] + 1)


def test_the_interval_of_the_slope_covers_it_where_twins_share_their_luck():
    rng, covered = np.random.default_rng(0), []
    for _ in range(200):
        pairs = rng.normal(size=150)
        true = np.repeat(expit(pairs), 2)
        y = np.repeat(rng.random(150), 2) < true  # one draw for both twins
        line = stats.calibration_line(true, y, pd.Series(np.repeat(np.arange(150), 2)))["slope"]
        covered.append(line["low"] <= 1 <= line["high"])
    assert np.mean(covered) > 0.91


def test_a_constant_certainty_and_a_model_without_a_mistake_have_no_slope():
    y = np.arange(200) % 2 == 0
    always_sure = np.where(np.arange(200) < 199, y, ~y).astype(float)  # 99.5% right, always certain
    assert stats.expected_calibration_error(always_sure, y) <= 0.05  # so the old target was met
    assert math.isnan(stats.calibration_line(always_sure, y)["slope"]["value"])
    never_wrong = np.where(y, 0.7, 0.3) + np.linspace(0, 0.1, 200)
    assert math.isnan(stats.calibration_line(never_wrong, y)["slope"]["value"])


@pytest.mark.parametrize(
    "p",
    [
        [0.9, 0.8, 0.95, 0.99, 0.1, 0.2, 0.05, 0.01],
        [1 - 1e-9, 0.999999, 1, 1, 1e-9, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 1, 1, 1],  # always wrong
        [0.9, 0.8, 0.7, 0.6, 0.6, 0.3, 0.2, 0.1],  # they touch
    ],
)
def test_verdicts_that_a_value_separates_have_neither_slope_nor_intercept(p):
    line = stats.calibration_line(p, [1, 1, 1, 1, 0, 0, 0, 0])
    assert all(math.isnan(number) for part in line.values() for number in part.values())


@pytest.mark.parametrize("p", [[1, 1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0, 1]])
def test_certain_and_wrong_is_no_intercept_of_quadrillions(p):
    intercept = stats.calibration_line(p, [1, 1, 1, 1, 0, 0, 0, 0])["intercept"]
    assert all(math.isnan(number) for number in intercept.values())


# --- selective accuracy ---------------------------------------------------------------------


def test_selective_by_hand():
    # certainties 0.4, 0.3, 0.2, 0.1; the least certain is wrong
    table = stats.selective(answers([0.1, 0.8, 0.3, 0.6], [1, 1, 1, 0]), [0.25, 0.5, 0.75, 1])
    assert table["n"].tolist() == [1, 2, 3, 4]
    assert table["accuracy"].tolist() == [1, 1, 1, 0.75]
    for row in table.itertuples():
        wilson = stats.proportion(round(row.accuracy * row.n), row.n)
        assert (row.low, row.high) == pytest.approx((wilson["low"], wilson["high"]))


def test_0_point_8_is_no_more_certain_than_0_point_2():
    table = stats.selective(answers([0.8, 0.2], [1, 0]), [0.5, 1])
    assert table["accuracy"].tolist() == [0.5, 0.5]
    assert stats.certainty(0.8) == stats.certainty(0.2)


@given(st.lists(st.tuples(st.sampled_from([0.1, 0.3, 0.4, 0.6, 0.9]), st.booleans()), min_size=1, max_size=6))
def test_ties_count_by_their_expectation(rows):
    p, right = zip(*rows)
    n = len(rows)
    # every order of the rows, stably sorted by certainty, is a way of breaking the ties
    ways = []
    for order in permutations(range(n)):
        chosen = sorted(order, key=lambda i: -round(abs(p[i] - 0.5), 9))
        ways.append(np.cumsum([right[i] for i in chosen]) / np.arange(1, n + 1))
    expected = np.mean(ways, axis=0)
    frame = answers(p, right)
    table = stats.selective(frame, np.arange(1, n + 1) / n)
    assert table["accuracy"].to_numpy() == pytest.approx(expected)
    assert table["n"].tolist() == list(range(1, n + 1))
    assert (table["low"] <= table["accuracy"]).all() and (table["accuracy"] <= table["high"]).all()
    turned = stats.selective(frame.iloc[::-1], [0.5, 1])
    assert turned.equals(stats.selective(frame, [0.5, 1]))


def test_a_certainty_that_says_nothing_gives_the_error_rate():
    frame = answers([0.9] * 60 + [0.1] * 40, [True] * 75 + [False] * 25)
    assert stats.selective(frame)["accuracy"].to_numpy() == pytest.approx(0.75)
    assert len(stats.selective(frame)) == 20


@pytest.mark.parametrize("coverages", [[0], [1.1], [math.nan]])
def test_selective_refuses_bad_coverages(coverages):
    with pytest.raises(ValueError, match="coverages"):
        stats.selective(answers([0.9], [1]), coverages)


def test_selective_names_a_missing_column_and_no_rows():
    frame = answers([0.9], [1])
    with pytest.raises(ValueError, match="no column 'verdict'"):
        stats.selective(frame.drop(columns="verdict"))
    with pytest.raises(ValueError, match="non-empty"):
        stats.selective(frame[:0])


# --- abstention -----------------------------------------------------------------------------


def test_threshold_by_coverage_keeps_that_share_of_validation():
    rng = np.random.default_rng(0)
    p, y = rng.random(200), rng.random(200) < 0.5
    threshold = stats.abstention_threshold(p, y, coverage=0.95)
    assert (stats.certainty(p) < threshold).sum() == 10
    assert (stats.certainty(p) < np.nextafter(threshold, 1)).sum() > 10
    assert stats.abstention_threshold(p, y, coverage=1.0) == stats.certainty(p).min()


def test_threshold_by_accuracy_answers_as_many_as_it_can():
    p = [0.95, 0.10, 0.80, 0.25, 0.60, 0.45]
    y = [True, False, False, False, False, False]  # wrong at 0.80 and 0.60
    pick = stats.abstention_threshold
    assert pick(p, y, target_accuracy=1.0) == pytest.approx(0.40)
    assert pick(p, y, target_accuracy=0.75) == pytest.approx(0.25)  # 3 of 4
    assert pick(p, y, target_accuracy=4 / 6) == pytest.approx(0.05)  # all
    assert pick([0.9, 0.8], [False, True], target_accuracy=0.9) == math.inf
    # a tie is answered as a whole or not at all
    assert pick([0.9, 0.9], [True, False], target_accuracy=0.9) == math.inf


@pytest.mark.parametrize(
    "goal", [{}, {"coverage": 0}, {"target_accuracy": 1.2}, {"coverage": 0.9, "target_accuracy": 0.9}]
)
def test_threshold_needs_one_goal(goal):
    with pytest.raises(ValueError, match="one of coverage and target_accuracy"):
        stats.abstention_threshold([0.9], [True], **goal)
