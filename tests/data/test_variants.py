"""Derived suites: what changes, what stays, and what pairs with what."""

import json
import time
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from medlib.config import ANSWERS, DataError, RunConfig
from medlib.data import corruptions, ood, sources, variants
from medlib.data.cases import read_scenarios
from medlib.data.images import check_images
from medlib.data.ood import EXPECTED, OUTSIDE
from medlib.data.suite import Suite
from medlib.data.synthetic import grammar
from medlib.data.synthetic.grammar import PAIR_KINDS
from medlib.data.synthetic.lexicon import CARE_ORDER, DEGREES, FINDINGS
from medlib.data.variants import ABLATIONS, MASK

WORDS = ("finding", "treatment")
NAMED = {(finding.modality, finding.name): finding for finding in FINDINGS}


def generated(split="test", pairs=48, seed=0):
    """A suite whose images are not drawn."""
    return Suite(split, grammar.generate(split, pairs, seed), Path("nowhere"))


def changed_fields(before, after):
    return {
        name
        for b, a in zip(before.scenarios, after.scenarios, strict=True)
        for name in type(b).model_fields
        if getattr(b, name) != getattr(a, name)
    }


@pytest.mark.parametrize(
    "name, fields",
    [
        ("text_only", set()),
        ("image_only", {"patient", *WORDS}),
        ("swapped", {"image"}),
        ("masked_words", set(WORDS)),
    ],
)
def test_an_ablation_withholds_its_part_and_no_other(name, fields):
    suite = generated()
    assert changed_fields(suite, variants.ablate(suite, name)) == fields
    assert variants.ablate(suite, name).name != suite.name
    assert name in ABLATIONS


def test_an_auditor_is_shown_what_an_ablation_says(suite):
    small = Suite("small", *suite)
    grey = variants.ablate(small, "text_only")
    assert grey.image(grey.scenarios[0]).getcolors() == [(224 * 224, (127, 127, 127))]
    asked = [small, *(variants.ablate(small, name) for name in ABLATIONS)]
    assert len({tuple(s.keys()) for s in asked}) == len(asked)


def test_swapped_images_are_another_one_of_the_modality():
    suite = generated()
    swapped = variants.ablate(suite, "swapped", seed=3)
    modality_of = {s.image: s.modality for s in suite.scenarios}
    for before, after in zip(suite.scenarios, swapped.scenarios):
        assert after.image != before.image and modality_of[after.image] == before.modality
    assert swapped.sha256 != variants.ablate(suite, "swapped", seed=4).sha256
    assert len(swapped) == len(suite)
    one = suite.rows([0])
    assert len(variants.ablate(one, "swapped")) == 0  # there is no other image


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="text_only, image_only"):
        variants.ablate(generated(), "sound_only")
    with pytest.raises(ValueError, match="noise-1"):
        variants.corrupted(generated(), "grey-ish")
    with pytest.raises(ValueError, match="already"):
        variants.corrupted(variants.corrupted(generated(), "blur-1"), "noise-1")


@pytest.mark.parametrize(
    "finding, masked",
    [
        ("Normal breast parenchyma, BI-RADS 1", "___ breast parenchyma, ___"),
        ("Spiculated mass, taller than wide, with shadowing", "___, taller than wide, with shadowing"),
        ("No lesion, BI-RADS 1", "___"),
        ("Marked hazy opacities in both lower zones", "___ hazy ___ in both lower zones"),
        ("Glioblastoma, ring-enhancing with necrotic core", "___ with necrotic core"),
    ],
)
def test_label_words_are_masked(finding, masked):
    scenario = generated().scenarios[0].model_copy(update={"finding": finding})
    assert variants.mask_words(scenario).finding == masked


def test_no_label_is_left_and_the_care_can_be_read():
    for scenario in generated(pairs=240).scenarios:
        masked = variants.mask_words(scenario)
        for word in (*DEGREES, "normal", "benign", "malignant", "carcinoma", "pneumonia", "mass"):
            assert word.lower() not in masked.finding.lower()
        kept = masked.treatment.replace(MASK, "").split()
        assert len(kept) >= 2, (scenario.treatment, masked.treatment)


@settings(max_examples=10, deadline=None)
@given(st.sampled_from(["train", "val", "test"]), st.integers(0, 10**6))
def test_a_paraphrase_says_the_same_in_other_words(split, seed):
    suite = generated(split, 24, seed)
    other = variants.paraphrase(suite, seed)
    assert changed_fields(suite, other) <= set(WORDS)
    known, sides = set(grammar.phrases(split)), defaultdict(dict)
    for before, after in zip(suite.scenarios, other.scenarios):
        assert {after.finding, after.treatment} <= known
        finding = NAMED[before.modality, before.factors["note_finding"]]
        assert after.finding in {grammar.fill(t, d) for t in finding.phrases[split] for d in DEGREES}
        stated = [d for d in DEGREES if d.lower() in before.finding.lower()]
        assert [d for d in DEGREES if d.lower() in after.finding.lower()] in ([], stated)
        for name in WORDS:  # equal words in a pair stay equal
            texts = sides[before.factors["pair"], name]
            texts.setdefault(getattr(before, name), set()).add(getattr(after, name))
    assert all(len(texts) == 1 for table in sides.values() for texts in table.values())


def test_words_of_unknown_meaning_are_not_paraphrased():
    scenario = generated().scenarios[0]
    for field in WORDS:
        odd = Suite("odd", [scenario.model_copy(update={field: "Something else"})], Path("nowhere"))
        with pytest.raises(DataError, match="test_00000_a: 'Something else'"):
            variants.paraphrase(odd)
    bare = Suite("bare", [scenario.model_copy(update={"factors": {}})], Path("nowhere"))
    with pytest.raises(DataError, match="generated suites only"):
        variants.paraphrase(bare)


@settings(max_examples=10, deadline=None)
@given(st.sampled_from(["train", "val", "test"]), st.integers(0, 10**6))
def test_note_pairs_contradict_the_image_and_only_the_treatment_differs(split, seed):
    scenarios = grammar.note_pairs(split, 24, seed)
    assert Counter((s.modality, s.verdict) for s in scenarios) == Counter(
        {(m, v): 6 for m in CARE_ORDER for v in ("CORRECT", "ERROR")}
    )
    for right, wrong in zip(scenarios[::2], scenarios[1::2]):
        assert right.factors["pair"] == wrong.factors["pair"] and right.factors["pair_kind"] == "note"
        assert (right.image, right.patient, right.finding) == (wrong.image, wrong.patient, wrong.finding)
        assert right.treatment != wrong.treatment
        shown, noted = (NAMED[right.modality, right.factors[name]] for name in ("image_finding", "note_finding"))
        assert shown.care != noted.care
        assert (right.verdict, right.factors["care"]) == ("CORRECT", shown.care)
        assert (wrong.error_type, wrong.factors["care"]) == ("contradiction", noted.care)
        assert wrong.cost_impact > 0
    others = {s.image for s in grammar.generate(split, 240, seed)}
    assert not others & {s.image for s in scenarios}
    assert all(900_000 <= s.factors["image_seed"] % 1_000_000 < 1_000_000 for s in scenarios)


def test_the_contradiction_suite_is_drawn_once(tmp_path, monkeypatch):
    config = RunConfig(seed=1)
    monkeypatch.setattr(sources, "SUITES_DIR", tmp_path)
    suite = sources.contradiction(config, "test", 4)
    check_images(suite.scenarios, suite.images_dir)
    assert read_scenarios(suite.images_dir.parent / "scenarios.jsonl") == suite.scenarios
    stamps = {p: p.stat().st_mtime_ns for p in suite.images_dir.iterdir()}
    assert sources.contradiction(config, "test", 4).sha256 == suite.sha256
    assert stamps == {p: p.stat().st_mtime_ns for p in suite.images_dir.iterdir()}
    assert len(stamps) == 4


def test_corruptions_are_shown_on_the_same_balanced_pairs():
    views = variants.corruption_suites(generated(pairs=120), pairs=24)
    assert tuple(views) == corruptions.views()
    assert len({s.sha256 for s in views.values()}) == 1
    suite = views["blur-2"]
    assert suite.view == "blur-2"
    assert Counter((s.modality, s.factors["pair_kind"], s.verdict) for s in suite.scenarios) == Counter(
        {(m, k, v): 2 for m in CARE_ORDER for k in PAIR_KINDS for v in ("CORRECT", "ERROR")}
    )
    assert set(Counter(s.factors["pair"] for s in suite.scenarios).values()) == {2}


def test_a_small_suite_gives_as_many_pairs_as_it_has():
    assert len(variants.balanced(generated(pairs=14), 48)) == 24  # 4, 4, 3 and 3 pairs: 3 of each


def test_a_corrupted_suite_shows_the_corruption(suite):
    small = Suite("small", *suite)
    scenario = small.scenarios[0]
    shown = variants.corrupted(small, "contrast-5").image(scenario)
    assert np.asarray(shown).std() < 0.3 * np.asarray(small.image(scenario)).std()
    assert small.view == ""


def test_out_of_distribution_images_are_real_distinct_and_bare(tmp_path):
    pytest.importorskip("nilearn")
    suite = ood.out_of_distribution(tmp_path)
    assert len(suite) == len(OUTSIDE)
    check_images(suite.scenarios, suite.images_dir)
    assert len({suite.image(s).tobytes() for s in suite.scenarios}) == len(suite)
    for scenario in suite.scenarios:
        with Image.open(suite.images_dir / scenario.image) as image:
            assert image.info == {} and max(image.size) <= 896
        assert scenario.factors["expected"] == EXPECTED == "abstain"
        origin = ("source_package", "source_file", "source_version", "licence")
        assert all(scenario.factors[name] for name in origin)
    assert set(Counter(s.modality for s in suite.scenarios)) == set(CARE_ORDER)
    assert read_scenarios(tmp_path / "scenarios.jsonl") == suite.scenarios
    assert json.loads((tmp_path / "suite.json").read_text())["sha256"] == suite.sha256


def test_a_template_slice_is_at_its_place():
    """A cut near the midline shows more brain than one far to the side, and the brainstem below."""
    pytest.importorskip("nilearn")
    middle, side = (np.asarray(ood._template_slice("sagittal", mm))[..., 0] > 40 for mm in (4, -60))
    assert middle.sum() > 1.5 * side.sum() > 0
    rows = np.flatnonzero(middle.any(axis=1))
    top, bottom = middle[rows[0] + 10], middle[rows[-1] - 10]
    assert top.sum() > 1.5 * bottom.sum()


def test_a_missing_optional_package_leaves_its_images_out_and_says_so(tmp_path, monkeypatch):
    find_spec = ood.find_spec
    monkeypatch.setattr(ood, "find_spec", lambda name: None if name == "nilearn" else find_spec(name))
    with pytest.warns(UserWarning, match="nilearn is not installed.*left out"):
        suite = ood.out_of_distribution(tmp_path)
    assert len(suite) == sum(row[0] != "nilearn" for row in OUTSIDE) >= 12


def test_a_long_word_is_masked_in_time(suite):
    scenario = suite[0][0].model_copy(update={"finding": "a" * 50_000, "treatment": "a-" * 25_000 + "malignant"})
    started = time.perf_counter()
    masked = variants.mask_words(scenario)
    assert masked.finding == scenario.finding and masked.treatment == MASK
    assert time.perf_counter() - started < 5


def test_an_order_asks_for_the_wrong_answer_and_changes_nothing_else(suite):
    plain = Suite("plain", suite[0], suite[1])
    ordered = variants.orders(plain)
    for before, after in zip(plain.scenarios, ordered.scenarios):
        wrong, right = ("ERROR", "CORRECT") if before.verdict == "CORRECT" else ("CORRECT", "ERROR")
        order = after.finding.removeprefix(f"{before.finding}. ")
        assert ANSWERS[wrong] in order and ANSWERS[right] not in order
        assert after.model_copy(update={"finding": before.finding}) == before
    assert any("<start_of_turn>model" in s.finding for s in ordered.scenarios)
