"""Suites beside the three of a run: tuning and calibration share nothing, other patients change nothing else."""

import pytest

from medlib.data import sources, variants
from medlib.data.suite import Suite
from medlib.data.synthetic import grammar


@pytest.fixture
def config(small_config):
    return small_config.model_copy(update={"calibration_pairs": 24})


def test_no_case_serves_both_to_tune_and_to_calibrate(config):
    suites = [sources.tuning(config), sources.calibration(config), sources.suite(config, "val")]
    keys, images = ([set(part) for part in parts] for parts in (map(Suite.keys, suites), map(_images, suites)))
    for sets in (keys, images):
        assert len(set.union(*sets)) == sum(map(len, sets))
    assert len(suites[0]) == len(suites[1]) == 48


def _images(suite):
    return [s.image for s in suite.scenarios]


def test_no_image_that_settings_were_tuned_on_is_ever_one_of_calibration():
    seeds = [
        {s.factors["image_seed"] for s in grammar.generate("val", 240, seed, use)}
        for use in ("tuning", "calibration")
        for seed in (0, 1)
    ]
    assert not (seeds[0] | seeds[1]) & (seeds[2] | seeds[3])


def test_other_patients_differ_in_age_and_sex_and_in_nothing_else():
    scenarios = grammar.generate("test", 48)
    twins = variants.other_patients(Suite("test", scenarios, None)).scenarios
    for before, after in zip(scenarios, twins):
        assert after.model_copy(update={"patient": before.patient}) == before
        assert after.patient.complaint == before.patient.complaint and 25 <= after.patient.age <= 85
        assert before.patient.age + after.patient.age == 110
    changed = {s.modality for s, t in zip(scenarios, twins) if s.patient.sex != t.patient.sex}
    one_sex = {m for m, entry in grammar.LEXICON.modalities.items() if entry.sex}
    assert changed and not changed & one_sex


def test_a_child_stays_a_child_and_what_is_not_stated_stays_so():
    [scenario, *_] = grammar.generate("test", 12)
    for age, expected in ((4, 13), (0, 17), (90, 25), (None, None)):
        patient = scenario.patient.model_copy(update={"age": age, "sex": None})
        suite = Suite("one", [scenario.model_copy(update={"patient": patient})], None)
        [twin] = variants.other_patients(suite).scenarios
        assert (twin.patient.age, twin.patient.sex) == (expected, None)
