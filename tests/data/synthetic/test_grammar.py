"""The suites: what a pair is, what a split shares with another, what words alone can tell."""

from collections import Counter, defaultdict

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medlib import stats
from medlib.config import MODALITIES
from medlib.data.synthetic import grammar
from medlib.data.synthetic.grammar import SEED_BASE
from medlib.data.synthetic.lexicon import CARE_ORDER, FINDINGS
from medlib.systems import text

CARE = {(finding.modality, finding.name): finding.care for finding in FINDINGS}


def pairs_of(scenarios):
    pairs = defaultdict(list)
    for scenario in scenarios:
        pairs[scenario.factors["pair"]].append(scenario)
    return list(pairs.values())


def shared_words(scenario):
    return scenario.modality, scenario.patient


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), split=st.sampled_from(["train", "val", "test"]))
def test_pairs_differ_in_one_factor_that_flips_the_verdict(seed, split):
    for right, twin in pairs_of(grammar.generate(split, 24, seed)):
        kind = right.factors["pair_kind"]
        assert (right.verdict, twin.verdict) == ("CORRECT", "ERROR")
        assert shared_words(right) == shared_words(twin)
        changed = {
            name for name in ("image", "finding", "treatment") if getattr(right, name) != getattr(twin, name)
        }
        assert changed == {"treatment": {"treatment"}, "finding": {"image", "finding"}, "image": {"image"}}[kind]
        changed = {
            name for name in ("image_finding", "note_finding", "care") if right.factors[name] != twin.factors[name]
        }
        assert (
            changed
            == {"treatment": {"care"}, "finding": {"image_finding", "note_finding"}, "image": {"image_finding"}}[
                kind
            ]
        )


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), dozens=st.integers(1, 5))
def test_balance_over_modality_kind_and_verdict(seed, dozens):
    scenarios = grammar.generate("train", 12 * dozens, seed)
    counts = Counter((s.modality, s.factors["pair_kind"], s.verdict) for s in scenarios)
    assert len(counts) == 4 * 3 * 2
    assert set(counts.values()) == {dozens}


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), pairs=st.integers(1, 40))
def test_verdict_follows_from_what_the_image_shows(seed, pairs):
    for s in grammar.generate("test", pairs, seed):
        called_for = CARE[s.modality, s.factors["image_finding"]]
        assert (s.verdict == "CORRECT") == (s.factors["care"] == called_for)
        contradicts = s.factors["image_finding"] != s.factors["note_finding"]
        assert (s.error_type == "contradiction") == contradicts
        assert contradicts == (s.factors["pair_kind"] == "image" and s.id.endswith("_b"))
        if s.error_type in ("overtreatment", "undertreatment"):
            rank = CARE_ORDER[s.modality].index
            over = rank(s.factors["care"]) > rank(called_for)
            assert s.error_type == ("overtreatment" if over else "undertreatment")


def test_same_seed_same_scenarios_and_another_seed_others():
    assert grammar.generate("val", 24, 5) == grammar.generate("val", 24, 5)
    assert grammar.generate("val", 24, 5) != grammar.generate("val", 24, 6)


def test_images_are_the_same_again(tmp_path):
    for name in "ab":
        grammar.build_suite(name, "val", 4, 0, tmp_path)
    files = sorted(file.name for file in (tmp_path / "a" / "images").iterdir())
    assert len(files) >= 4
    for file in files:
        assert (tmp_path / "a" / "images" / file).read_bytes() == (tmp_path / "b" / "images" / file).read_bytes()


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="'dev'"):
        grammar.generate("dev", 1)


@pytest.mark.parametrize("one, other", [("train", "val"), ("train", "test"), ("val", "test")])
def test_splits_share_no_words_and_no_image(one, other):
    words = [{phrase.lower() for phrase in grammar.phrases(split)} for split in (one, other)]
    assert not words[0] & words[1]
    for seed in (0, 1):
        a, b = (grammar.generate(split, 300, seed) for split in (one, other))
        for name in ("finding", "treatment", "image", "id"):
            assert not {getattr(s, name).lower() for s in a} & {getattr(s, name).lower() for s in b}, name
    used = {s.factors["image_seed"] for s in a} & {s.factors["image_seed"] for s in b}
    assert not used


def test_no_two_uses_can_draw_the_same_image():
    bases = sorted(SEED_BASE.values())
    assert min(b - a for a, b in zip(bases, bases[1:])) >= 100_000
    for split in ("train", "val", "test"):
        seeds = [s.factors["image_seed"] - SEED_BASE[split] for s in grammar.generate(split, 300)]
        assert 0 <= min(seeds) and max(seeds) < 900_000
        above = [b for b in bases if b > SEED_BASE[split]]
        assert not above or min(above) - SEED_BASE[split] >= 900_000


def test_no_image_is_drawn_twice_in_a_suite():
    seeds = defaultdict(set)
    for s in grammar.generate("train", 1200):
        seeds[s.factors["image_seed"]].add((s.modality, s.factors["image_finding"]))
    assert all(len(contents) == 1 for contents in seeds.values())


@pytest.mark.parametrize("split", ["train", "test"])
def test_no_treatment_and_no_finding_gives_the_verdict_away(split):
    scenarios = grammar.generate(split, 1200)
    by_care, by_treatment, by_finding = (defaultdict(Counter) for _ in range(3))
    for s in scenarios:
        by_care[s.modality, s.factors["care"]][s.verdict] += 1
        by_treatment[s.treatment][s.verdict] += 1
        by_finding[s.modality, s.factors["note_finding"]][s.verdict] += 1
    assert set(by_care) == {(m, care) for m in MODALITIES for care in CARE_ORDER[m]}
    for table in (by_care, by_treatment, by_finding):
        for name, counts in table.items():
            assert min(counts["CORRECT"], counts["ERROR"]) > 0, name


def test_words_alone_are_at_chance_on_image_pairs():
    test = grammar.generate("test", 300)
    fitted = text.fit_keywords(grammar.generate("train", 600))
    probe, rules, constant = (
        stats.predictions_table(test, pd.DataFrame({"p_correct": p}))
        for p in (fitted.predict_proba(text.words(test))[:, 1], [text.rule(s) for s in test], np.ones(600))
    )
    for system in (probe, rules, constant):
        image_pairs = system[system.pair_kind == "image"]
        assert (image_pairs.predicted == image_pairs.verdict).mean() == 0.5
        assert image_pairs.groupby("pair").p_correct.nunique().max() == 1
    # bag of words: no relation between finding and treatment, so little above chance over all
    assert (probe.predicted == probe.verdict).mean() < 0.70


def test_what_a_kill_or_a_power_cut_left_is_made_again(tmp_path):
    scenarios = grammar.build_suite("s", "train", 2, 0, tmp_path)
    files = {file: file.read_bytes() for file in (tmp_path / "s").rglob("*.*") if file.is_file()}
    torn = [tmp_path / "s" / "scenarios.jsonl", *(tmp_path / "s" / "images" / s.image for s in scenarios[:2])]
    for file in torn:
        file.write_bytes(files[file][:-20])
    torn[1].write_bytes(b"")
    assert grammar.build_suite("s", "train", 2, 0, tmp_path) == scenarios
    assert {file: file.read_bytes() for file in files} == files
