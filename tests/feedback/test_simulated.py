"""Simulated raters: as noisy as stated, called simulated, the same for the same seed."""

import numpy as np
import pytest

from medlib.config import SEVERITIES
from medlib.feedback import simulated


@pytest.fixture(scope="module")
def scenarios(suite):
    return suite[0] * 100


def shown(scenarios):
    return ["CORRECT", "ERROR"] * (len(scenarios) // 2)


def test_without_noise_a_rater_holds_the_gold_verdict_and_its_severity(scenarios):
    said = simulated.simulate(scenarios, shown(scenarios), "simulated-1", noise=0)
    for scenario, verdict, rating in zip(scenarios, shown(scenarios), said):
        assert rating["agree"] == (verdict == scenario.verdict)
        assert rating["severity"] == scenario.severity
        assert rating["simulated"] and rating["noise"] == 0 and rating["rater"] == "simulated-1"


def test_noise_is_the_share_of_wrong_ratings_and_of_severities_one_step_off(scenarios):
    said = simulated.simulate(scenarios, shown(scenarios), "simulated-1", noise=0.2)
    right = np.array([r["agree"] == (v == s.verdict) for s, v, r in zip(scenarios, shown(scenarios), said)])
    assert abs((~right).mean() - 0.2) < 0.03
    steps = np.array(
        [
            abs(SEVERITIES.index(r["severity"]) - SEVERITIES.index(s.severity))
            for s, r, ok in zip(scenarios, said, right)
            if ok and s.verdict == "ERROR"
        ]
    )
    assert steps.max() == 1 and abs(steps.mean() - 0.2) < 0.03


def test_severity_goes_with_the_verdict_that_the_rater_holds(scenarios):
    said = simulated.simulate(scenarios, shown(scenarios), "simulated-2", noise=0.4)
    for verdict, rating in zip(shown(scenarios), said):
        says_error = (verdict == "ERROR") == rating["agree"]
        assert (rating["severity"] != "none") == says_error


def test_a_name_and_a_seed_choose_the_mistakes(scenarios):
    first = simulated.simulate(scenarios, shown(scenarios), "simulated-1", 0.2)
    assert first == simulated.simulate(scenarios, shown(scenarios), "simulated-1", 0.2)
    agrees = [r["agree"] for r in first]
    assert agrees != [
        r["agree"] for r in simulated.simulate(scenarios, shown(scenarios), "simulated-1", 0.2, seed=1)
    ]
    assert agrees != [r["agree"] for r in simulated.simulate(scenarios, shown(scenarios), "simulated-2", 0.2)]


def test_a_simulated_rater_cannot_have_the_name_of_another(scenarios):
    with pytest.raises(ValueError, match="simulated-"):
        simulated.simulate(scenarios, shown(scenarios), "reader-1", 0.1)
