"""Figures at a prevalence against Bayes' theorem and counts by hand, and their intervals against simulation."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit

from medlib.stats import prevalence


def frame(caught, errors, alarms, valid, **columns):
    """Predictions with so many errors caught and so many valid treatments queried without need."""
    said = (
        ["ERROR"] * caught + ["CORRECT"] * (errors - caught) + ["ERROR"] * alarms + ["CORRECT"] * (valid - alarms)
    )
    gold = ["ERROR"] * errors + ["CORRECT"] * valid
    return pd.DataFrame(
        {
            "verdict": gold,
            "predicted": said,
            "p_correct": [0.9 if word == "CORRECT" else 0.1 for word in said],
            "severity": ["critical" if word == "ERROR" else "none" for word in gold],
            **columns,
        }
    )


def test_at_10_percent_nine_of_ten_right_means_that_every_other_query_is_needless():
    figures = prevalence.per_1000(frame(900, 1000, 100, 1000), 0.1)
    assert figures["ppv"]["value"] == pytest.approx(0.5)
    assert figures["caught"]["value"] == pytest.approx(90) and figures["missed"]["value"] == pytest.approx(10)
    assert figures["queries"]["value"] == pytest.approx(180)
    assert all(f["low"] < f["value"] < f["high"] for f in figures.values())


def test_at_the_prevalence_of_the_suite_the_figures_are_its_own_counts():
    figures = prevalence.per_1000(frame(45, 50, 5, 50), 0.5)
    assert figures["queries"]["value"] == pytest.approx(500)  # 50 of 100
    assert figures["ppv"]["value"] == pytest.approx(45 / 50)


def test_the_interval_of_the_predictive_value_covers_it():
    rng, covered = np.random.default_rng(0), []
    truth = 0.03 * 0.97 / (0.03 * 0.97 + 0.97 * 0.02)
    for _ in range(150):
        found = frame(rng.binomial(500, 0.97), 500, rng.binomial(500, 0.02), 500)
        ppv = prevalence.per_1000(found, 0.03)["ppv"]
        covered.append(ppv["low"] <= truth <= ppv["high"])
    assert np.mean(covered) > 0.9


def test_cells_widen_the_intervals():
    apart = {"cell": ["a"] * 60 + ["b"] * 40 + ["c"] * 50 + ["d"] * 50}
    wide, narrow = (prevalence.per_1000(frame(60, 100, 10, 100, **c), 0.03)["caught"] for c in (apart, {}))
    assert wide["high"] - wide["low"] > 2 * (narrow["high"] - narrow["low"])


def test_the_decision_curve_is_that_of_vickers_and_elkin():
    table = frame(40, 50, 10, 50)
    curve = prevalence.decision_curve(table, 0.5, [0.2]).iloc[0]
    # true positives over n, less false positives over n at the odds of the threshold
    assert curve["net_benefit"] == pytest.approx(1000 * (40 / 100 - 10 / 100 * 0.25))
    assert curve["query_all"] == pytest.approx(1000 * (0.5 - 0.5 * 0.25))
    assert curve["low"] < curve["net_benefit"] < curve["high"]


def test_probabilities_follow_the_prevalence():
    # P(ERROR) of 0.9 among half errors is odds of 9; at 1% errors 9 / 99, so 8.3%
    moved = expit(logit(0.9) + logit(0.01))
    assert moved == pytest.approx(9 / (9 + 99))
    table = frame(50, 50, 0, 50)
    below, above = prevalence.decision_curve(table, 0.01, [moved - 0.001, moved + 0.001])["net_benefit"]
    assert below == pytest.approx(10) and above == 0


def test_the_expected_error_weighs_severities_and_prevalence():
    weights = {"none": 1.0, "moderate": 1.0, "high": 2.0, "critical": 4.0}
    assert prevalence.expected_error(frame(90, 100, 20, 100), 0.03, weights) == pytest.approx(
        1000 * (0.03 * 0.1 * 4 + 0.97 * 0.2)
    )
    dear = weights | {"none": 5.0}
    assert prevalence.expected_error(frame(100, 100, 20, 100), 0.5, dear) == pytest.approx(500)


def test_one_gold_verdict_gives_no_rate():
    with pytest.raises(ValueError, match="no case with the gold verdict CORRECT"):
        prevalence.per_1000(frame(5, 10, 0, 0), 0.1)
