"""Suites beside the three of a run: tuning and calibration share nothing, other patients change nothing else."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from medlib.config import DataError
from medlib.data import sources, variants
from medlib.data.images import check_images
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


# --- the second renderer ------------------------------------------------------------------------------


def test_the_second_renderer_shows_the_same_cases_in_other_images(config):
    heldout, second = sources.suite(config, "test"), sources.second_renderer(config)
    check_images(second.scenarios, second.images_dir)
    known = {s.id: s for s in heldout.scenarios}
    assert Counter(s.modality for s in second.scenarios) == dict.fromkeys(grammar.MODALITIES, 2)
    for s in second.scenarios:
        before = known[s.id]
        assert s.factors == before.factors | {"renderer": sources.RENDERER}
        assert s.model_copy(update={"image": before.image, "factors": before.factors}) == before
        first, other = (np.asarray(part.image(case), float) for part, case in ((heldout, before), (second, s)))
        assert np.abs(first - other).mean() > 10
        with Image.open(second.images_dir / s.image) as image:
            assert (image.info["source"], image.info["renderer"]) == ("synthetic", sources.RENDERER)


def test_an_image_of_the_second_renderer_is_known_as_drawn(config):
    second = sources.second_renderer(config)
    assert sources.is_drawn(second, second.scenarios[0])
    first = second.scenarios[0].model_copy(update={"factors": second.scenarios[0].factors | {"renderer": ""}})
    assert not sources.is_drawn(second, first)


# --- findings that training never has ------------------------------------------------------------------

LEFT_OUT = ("xray/ground_glass", "histopathology/adenocarcinoma", "mri/well_circumscribed_mass")


def test_held_out_findings_are_in_the_held_out_suites_and_nowhere_else(config):
    without = config.model_copy(update={"held_out_findings": LEFT_OUT, "test_pairs": 48, "train_pairs": 48})
    seen = [sources.suite(without, split) for split in ("train", "val")]
    seen += [sources.core(without, "train"), sources.feedback(without), sources.monitoring(without)]
    seen += [sources.tuning(without), sources.calibration(without), sources.contradiction(without, "val", 12)]
    seen += [sources.contradiction(without, "train", 12), sources.patient_pairs(without, "train", 12)]
    for suite in seen:
        shown = {sources.shown_finding(s) for s in suite.scenarios}
        noted = {f"{s.modality}/{s.factors.get('note_finding')}" for s in suite.scenarios}
        assert shown and not (shown | noted) & set(LEFT_OUT), suite.name
    plain = config.model_copy(update={"test_pairs": 48})
    for make in (lambda c: sources.suite(c, "test"), lambda c: sources.contradiction(c, "test", 12)):
        assert make(without).sha256 == make(plain).sha256
    unseen = sources.unseen_findings(without)
    assert {sources.shown_finding(s) for s in unseen.scenarios} == set(LEFT_OUT)
    assert {s.id for s in unseen.scenarios} < {s.id for s in sources.suite(without, "test").scenarios}
    assert len(sources.unseen_findings(plain)) == 0


def test_without_held_out_findings_nothing_changes(config):
    for split in ("train", "val", "test"):
        assert sources.suite(config, split).scenarios == grammar.generate(split, 12)
        assert grammar.generate(split, 24, left_out=frozenset()) == grammar.generate(split, 24)


@pytest.mark.parametrize(
    "names, message",
    [
        (("xray/gout",), "xray/gout: not one of .*xray/ground_glass"),
        (("ground_glass",), "ground_glass: not one of"),
        (("ultrasound/spiculated_mass",), "what is left of ultrasound calls for one kind of care"),
    ],
)
def test_findings_that_cannot_be_held_out_are_refused(config, names, message):
    with pytest.raises(DataError, match=f"held_out_findings: .*{message}"):
        sources.suite(config.model_copy(update={"held_out_findings": names}), "train")
