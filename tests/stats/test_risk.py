"""The threshold against brute force, its guarantee against simulation with a known truth, and its refusals."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mapie.risk_control import MultiLabelClassificationController
from scipy.special import expit, logit
from scipy.stats import norm

from medlib.config import MODALITIES, resolve
from medlib.evaluation.results import Results
from medlib.reporting.notebooks import thresholds as thresholds_page
from medlib.stats import risk
from medlib.stats.risk import EVEN, REFUSE_ALL, Choice, RiskError
from medlib.stats.text import threshold_text

CRITICAL, VALID = (-3.0, 2.0), (3.0, 2.0)  # mean and standard deviation of the simulated logits


def frame(critical, valid, other=()):
    """Predictions: critical errors, valid treatments and moderate errors with these probabilities."""
    rows = [("ERROR", "critical", p) for p in critical] + [("CORRECT", "none", p) for p in valid]
    rows += [("ERROR", "moderate", p) for p in other]
    table = pd.DataFrame(rows, columns=["verdict", "severity", "p_correct"])
    return risk.apply(
        table.assign(
            id=[f"case-{i}" for i in range(len(rows))],
            cost_impact=1000,
            modality=[MODALITIES[i % 4] for i in range(len(rows))],
        ),
        EVEN,
    )


def drawn(seed, critical=348, valid=60):
    rng = np.random.default_rng(seed)
    return frame(
        expit(rng.normal(*CRITICAL, critical)), expit(rng.normal(*VALID, valid)), expit(rng.normal(0, 2, 20))
    )


def true_risk(threshold):
    """Rate of missed critical errors in the distribution that `drawn` draws from."""
    return 0.0 if threshold > 1 else norm.sf(logit(threshold), *CRITICAL)


def measured(table, threshold):
    """(critical errors missed, false alarms), counted in the plainest way."""
    called = risk.apply(table, threshold)["predicted"].to_numpy() == "CORRECT"
    critical, valid = (table["severity"] == "critical").to_numpy(), (table["verdict"] == "CORRECT").to_numpy()
    return int(called[critical].sum()), int((~called[valid]).sum())


def fewest_alarms(table, allowed):
    """Fewest false alarms of any threshold with no more than so many misses, by trying all that differ."""
    p = table["p_correct"].to_numpy()
    every = np.unique([*p, *np.nextafter(p, 2)])[:, None]
    critical, valid = (table["severity"] == "critical").to_numpy(), (table["verdict"] == "CORRECT").to_numpy()
    misses, alarms = (p[critical] >= every).sum(axis=1), (p[valid] < every).sum(axis=1)
    return int(alarms[misses <= allowed].min())


# few distinct values, so that ties and the ends 0 and 1 come up often
probability = st.sampled_from([0.0, 1e-12, 0.01, 0.2, 0.5, 0.7, 0.99, 1 - 1e-12, 1.0]) | st.floats(0, 1)
cases = st.lists(probability, min_size=1, max_size=12)


@settings(max_examples=50, deadline=None)
@given(cases, cases, cases)
def test_no_critical_miss_and_no_other_such_threshold_with_fewer_false_alarms(critical, valid, other):
    table = frame(critical, valid, other)
    choice = risk.choose(table)
    misses, alarms = measured(table, choice.threshold)
    assert misses == choice.misses == 0
    assert alarms == round(choice.false_alarms["value"] * len(valid))
    assert alarms == fewest_alarms(table, 0)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.02, 0.5), st.floats(0.5, 0.99))
def test_the_level_is_spent_on_fewer_false_alarms_and_never_overspent(seed, level, confidence):
    table = drawn(seed, critical=120, valid=30)
    if level < risk.lowest_level(120, confidence):
        with pytest.raises(RiskError):
            risk.choose(table, level, confidence)
        return
    choice = risk.choose(table, level, confidence)
    assert choice.misses <= choice.allowed
    assert risk.upper_limit(choice.allowed, 120, confidence) <= level
    assert risk.upper_limit(choice.allowed + 1, 120, confidence) > level
    alarms = measured(table, choice.threshold)[1]
    # mapie may be stricter than the exact test by one miss, see `risk._learn_then_test`
    assert fewest_alarms(table, choice.allowed) <= alarms <= fewest_alarms(table, max(0, choice.allowed - 1))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_a_stricter_demand_never_lowers_the_threshold(seed):
    table = drawn(seed, critical=150, valid=30)
    chosen = [risk.choose(table, level) for level in (0.3, 0.1, 0.04, 0.02, None)]
    thresholds = [choice.threshold for choice in chosen]
    assert thresholds == sorted(thresholds)
    assert [c.misses for c in chosen] == sorted((c.misses for c in chosen), reverse=True)
    confident = [risk.choose(table, 0.1, c).threshold for c in (0.5, 0.9, 0.99)]
    assert confident == sorted(confident)
    assert risk.choose(table, 0.1, systems=5).threshold >= risk.choose(table, 0.1).threshold


@given(cases, cases, probability, probability)
def test_a_higher_threshold_misses_less_and_alarms_more(critical, valid, one, other):
    table, (low, high) = frame(critical, valid), sorted((one, other))
    (misses_low, alarms_low), (misses_high, alarms_high) = measured(table, low), measured(table, high)
    assert misses_high <= misses_low and alarms_high >= alarms_low


@pytest.mark.parametrize("level", [None, 0.02])
def test_the_promise_holds_in_simulation(level):
    chosen = [risk.choose(drawn(seed), level) for seed in range(300)]
    risks = np.array([true_risk(choice.threshold) for choice in chosen])
    broken = (risks > chosen[0].level).mean()
    assert broken <= 0.1 + 3 * np.sqrt(0.1 * 0.9 / 300)  # three standard errors
    assert risks.mean() <= chosen[0].expected + 3 * risks.std() / np.sqrt(300)
    # nor is it cheap: a rule that refuses everything would keep any promise
    assert broken > 0.01 and np.mean([c.false_alarms["value"] for c in chosen]) < 0.6


def test_the_promise_is_for_the_worst_of_several_systems():
    """Without sharing the error out, picking among six systems would break it far more often than promised."""
    worst = [
        max(true_risk(risk.choose(drawn(6 * draw + k, critical=200, valid=40)).threshold) for k in range(6))
        for draw in range(60)
    ]
    alone, together = (np.mean(np.array(worst) > risk.lowest_level(200, 0.9, systems)) for systems in (1, 6))
    assert alone > 0.2
    assert together <= 0.1 + 3 * np.sqrt(0.1 * 0.9 / 60)


def test_zero_misses_show_what_the_binomial_says():
    assert risk.lowest_level(348, 0.9) == pytest.approx(1 - 0.1 ** (1 / 348), rel=1e-8)
    assert risk.lowest_level(348, 0.9, systems=4) == pytest.approx(1 - 0.025 ** (1 / 348), rel=1e-8)
    choice = risk.choose(drawn(0))
    assert (choice.allowed, choice.critical) == (0, 348)
    assert choice.expected == pytest.approx(1 / 349)
    # the lowest level may be asked for by its number
    assert risk.choose(drawn(0), choice.level).threshold == choice.threshold


@pytest.mark.parametrize("level", [0.05, 0.1, 0.2])
def test_the_mean_bound_is_that_of_conformal_risk_control(level):
    """mapie's conformal risk control, of recall of critical errors, spends ``level`` down to the same miss."""
    p = np.sort(expit(np.random.default_rng(1).normal(*CRITICAL, 60)))[::-1]  # all distinct
    flagged = MultiLabelClassificationController(
        lambda probability: 1 - probability,
        risk="recall",
        method="crc",
        target_level=1 - level,
        predict_params=np.sort(1 - p),
    )
    flagged.calibrate(p[:, None], np.ones((60, 1), dtype=int))
    misses = int((p >= 1 - flagged.best_predict_param[0]).sum())
    bound = [Choice("", 0.5, 60, 0, {}, level, 0.9, allowed=k).expected for k in (misses, misses + 1)]
    assert bound[0] <= level < bound[1]


@pytest.mark.parametrize("p", [0.0, 1.0, 1 - 1e-15, 1e-300])
def test_probabilities_at_the_ends_make_no_trouble(p):
    choice = risk.choose(frame([p] * 3, [p] * 3))
    assert choice.threshold == REFUSE_ALL and choice.false_alarms["value"] == 1
    assert risk.choose(frame([0.0] * 3, [1.0] * 3)).false_alarms["value"] == 0


def test_probabilities_of_half_the_bits_are_compared_in_full():
    table = frame([1.0, 0.2], [1.0, 0.3, 0.1]).astype({"p_correct": "float32"})
    assert measured(table, REFUSE_ALL) == (0, 3)
    # a treatment at the very threshold that was chosen for it passes
    assert measured(table, risk.choose(table[table["p_correct"] < 1]).threshold) == (1, 1)


def test_a_level_that_cannot_be_shown_is_refused():
    with pytest.raises(RiskError, match="no critical error among 3 cases"):
        risk.choose(frame([], [0.9, 0.8], [0.1]))
    with pytest.raises(RiskError, match="no valid treatment among 2 cases"):
        risk.choose(frame([0.1, 0.2], []))
    with pytest.raises(RiskError, match=r"12 critical .* at 90% is 0.175") as error:
        risk.choose(drawn(0, critical=12), 0.02)
    assert risk.choose(drawn(0, critical=12), 0.176).allowed == 0, error
    assert [c.rule for c in risk.rules(drawn(0, critical=12))] == ["one half", "no critical miss on calibration"]
    with pytest.raises(ValueError, match="'severity'"):
        risk.choose(frame([0.1], [0.9]).drop(columns="severity"))
    with pytest.raises(ValueError, match="outside"):
        risk.choose(frame([0.1], [0.9]).assign(p_correct=1.5))


def test_errors_that_are_not_critical_change_no_threshold():
    assert risk.choose(frame([0.3, 0.4], [0.6, 0.9], [0.95] * 9)).threshold == 0.6


def test_a_critical_error_at_the_very_threshold_is_a_miss():
    assert risk.rules(frame([0.5, 0.4], [0.6, 0.9]))[0].misses == 1


def test_every_choice_is_measured_on_both_suites():
    calibration, heldout = drawn(1), drawn(2, critical=500, valid=500)
    choices = risk.rules(calibration)
    assert len({choice.rule for choice in choices}) == 3 and choices[0].threshold == 0.5
    for suite in (calibration, heldout):
        for choice in choices:
            figures = risk.measure(risk.apply(suite, choice.threshold))
            misses, alarms = measured(suite, choice.threshold)
            assert figures["critical_misses"]["count"] == misses
            assert figures["false_alarms"]["value"] == pytest.approx(alarms / figures["false_alarms"]["n"])
            assert figures["critical_misses"]["upper"] == pytest.approx(
                risk.upper_limit(misses, figures["critical_misses"]["n"], 0.95)
            )


def test_the_curve_is_what_every_threshold_does():
    table = drawn(3, critical=40, valid=30)
    for row in risk.curve(table).to_dict(orient="records"):
        misses, alarms = measured(table, row["threshold"])
        assert row["critical_misses"] == pytest.approx(misses / 40)
        assert row["false_alarms"] == pytest.approx(alarms / 30)


def test_the_targets_are_met_one_by_one():
    good = frame([0.1] * 400, [0.9] * 400)
    assert list(risk.targets(good)["Met"]) == ["yes"] * 4
    assert "0 of 400" in risk.targets(good)["Measured"][1] and "0.75%" in risk.targets(good)["Measured"][1]
    missed = good.copy()
    missed.loc[:3, "predicted"] = "CORRECT"  # a miss in each modality
    assert list(risk.targets(missed)["Met"]) == ["yes", "no", "yes", "yes"]
    alarmed = good.copy()
    alarmed.loc[good.index[-20:], "predicted"] = "ERROR"  # 20 of 400 is not below 5%
    assert list(risk.targets(alarmed)["Met"]) == ["yes", "yes", "no", "yes"]
    uneven = good.copy()
    uneven.loc[uneven.query("verdict == 'CORRECT' and modality == 'xray'").index[:4], "predicted"] = "ERROR"
    assert list(risk.targets(uneven)["Met"]) == ["yes", "yes", "yes", "no"]  # 4 of 200: 2.0 points
    assert risk.targets(frame([], [0.9] * 40))["Met"][1] == "no", "none of none proves nothing"


def test_a_shift_is_seen_where_there_is_one():
    same, moved = drawn(5), drawn(6)
    assert risk.same_distribution(drawn(4), same) > 0.01
    moved["p_correct"] = expit(logit(moved["p_correct"]) + 1)
    assert risk.same_distribution(drawn(4), moved) < 0.001


# --- tables, figure and words -----------------------------------------------------------------------


def asked(calibration, heldout, name="medgemma-lora"):
    return Results.join({(name, "calibration"): calibration, (name, "heldout"): heldout})


def test_table_and_words_say_what_was_measured():
    settings_, results = resolve("standin"), asked(drawn(7), drawn(8, critical=600, valid=400))
    table = thresholds_page.table(results, settings_)
    assert list(table["Rule"]) == ["one half", "no critical miss on calibration", "at most 2% missed"]
    threshold = risk.choose(results.of("medgemma-lora", "calibration")).threshold
    misses, alarms = measured(results.of("medgemma-lora", "heldout"), threshold)
    sentence = thresholds_page.heldout_sentence(results, settings_)
    assert f"of 600 critical held-out errors {misses} " in sentence and f"{alarms} of 400 valid" in sentence
    assert table["Critical missed, held out (95% limit)"][1].startswith(f"{misses} of 600")
    assert "0.66%" in thresholds_page.promise_sentence(results, settings_)
    assert "0.29%" in thresholds_page.promise_sentence(results, settings_)
    assert "take the strict one" in thresholds_page.rules_sentence(results, settings_)
    assert len(thresholds_page.targets(results, settings_)) == 4


def test_a_promise_that_does_not_carry_over_is_called_that():
    moved = drawn(8)
    moved["p_correct"] = expit(logit(moved["p_correct"]) + 4)
    assert "does not carry over" in thresholds_page.heldout_sentence(asked(drawn(7), moved), resolve())
    assert "within the promise" in thresholds_page.heldout_sentence(asked(drawn(7), drawn(7)), resolve())


def test_several_systems_share_the_error():
    results = Results.join(asked(drawn(7), drawn(8)).parts | asked(drawn(9), drawn(8), "medgemma-dpo").parts)
    assert "for each of 2 systems at once" in thresholds_page.promise_sentence(results, resolve())
    assert len(thresholds_page.targets(results, resolve())) == 8


def test_too_few_cases_are_told_and_drawn_all_the_same():
    results = asked(drawn(1, critical=12, valid=12), drawn(2, critical=9, valid=9))
    assert "cannot be shown with 12" in thresholds_page.promise_sentence(results, resolve())
    assert thresholds_page.rules_sentence(results, resolve()) == ""
    assert len(thresholds_page.table(results, resolve())) == 2
    assert len(thresholds_page.curves(results, resolve()).axes) == 2


def test_a_model_that_cannot_tell_passes_nothing():
    results = asked(*[frame([1.0] * 40, [1.0] * 40)] * 2)
    assert thresholds_page.heldout_sentence(results, resolve()).startswith("No treatment passes.")
    assert list(thresholds_page.table(results, resolve())["CORRECT from"])[1] == "never"
    thresholds_page.curves(results, resolve())


@pytest.mark.parametrize(
    "threshold, text",
    [
        (0.5, "0.50"),
        (0.99954, "0.99954"),
        (0.999999, "0.9999990"),
        (0.0108, "0.011"),
        (0.0, "0.00"),
        (1.0, "1.00"),
        (REFUSE_ALL, "never"),
    ],
)
def test_thresholds_near_the_ends_stay_readable(threshold, text):
    assert threshold_text(threshold) == text


def test_the_figure_shows_every_rule_and_both_suites():
    figure = thresholds_page.curves(asked(drawn(7), drawn(8)), resolve())
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend[:2] == ["calibration cases", "held-out cases"] and len(legend) == 5
    upper = figure.axes[0].get_lines()[0]
    assert upper.get_ydata()[0] == 1 and upper.get_ydata()[-1] == 0
