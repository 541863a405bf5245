"""Planted leaks and shortcuts must be found, and nothing where there is none."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from medlib.config import MODALITIES, DataError
from medlib.data import core24, leakage
from medlib.data.cases import LabelledCase
from medlib.data.leakage import COPIES, MAX_DISTANCE, NOT_SHOWN, STRANGERS, TURNS
from medlib.data.suite import Suite
from medlib.data.synthetic import draw, grammar

FINDING = {
    "xray": "consolidation",
    "histopathology": "adenocarcinoma",
    "mri": "ring_enhancing_mass",
    "ultrasound": "simple_cyst",
}


def scenario(name, image="a.png", wrong=False, **changes) -> LabelledCase:
    row = {
        "id": name,
        "modality": "xray",
        "image": image,
        "patient": {"age": 50, "sex": "male", "complaint": "cough"},
        "finding": f"Finding {name}",
        "treatment": f"Treatment {name}",
        "verdict": "ERROR" if wrong else "CORRECT",
        "error_type": "overtreatment" if wrong else "none",
        "severity": "high" if wrong else "none",
        "cost_impact": 0,
    }
    return LabelledCase.model_validate(row | changes)


def drawn_suite(folder: Path, name: str, seeds: range) -> Suite:
    """One image of each modality and seed."""
    folder.mkdir()
    rows = []
    for modality in MODALITIES:
        for seed in seeds:
            file = f"{modality}_{seed}.png"
            draw.draw(modality, FINDING[modality], seed, size=112).save(folder / file)
            rows.append(scenario(f"{name}_{modality}_{seed}", file, modality=modality))
    return Suite(name, rows, folder)


@pytest.fixture(scope="module")
def suites(tmp_path_factory):
    folder = tmp_path_factory.mktemp("suites")
    return {
        "train": drawn_suite(folder / "train", "train", range(6)),
        "test": drawn_suite(folder / "test", "test", range(100, 104)),
    }


def planted(suites, folder, image, name="copy.png", **options):
    """The test suite with one more image in it."""
    folder.mkdir()
    for file in suites["test"].images_dir.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    image.save(folder / name, **options)
    rows = [*suites["test"].scenarios, scenario("copy", name)]
    return suites | {"test": Suite("test", rows, folder)}


def test_strangers_of_one_modality_are_no_leak(suites):
    leaks = leakage.image_leaks(suites)
    assert leaks.empty and list(leaks.columns)[:2] == ["one", "two"]


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("turn", list(TURNS))
def test_turned_and_recompressed_copy_is_found_with_its_turn(suites, tmp_path, modality, turn):
    original = Image.open(suites["train"].images_dir / f"{modality}_3.png")
    copy = original if TURNS[turn] is None else original.transpose(TURNS[turn])
    small = copy.resize((90, 90))
    suites = planted(suites, tmp_path / "x", small, "copy.jpg", quality=60)
    (leak,) = leakage.image_leaks(suites).to_dict("records")
    assert (leak["one"], leak["two"]) == ("train", "test")
    assert (leak["image_one"], leak["image_two"]) == (f"{modality}_3.png", "copy.jpg")
    assert leak["kind"] == "perceptual" and 0 <= leak["distance"] <= MAX_DISTANCE
    back = copy if TURNS[leak["turn"]] is None else copy.transpose(TURNS[leak["turn"]])
    assert np.array_equal(np.asarray(back), np.asarray(original))  # the turn lays it on the original


def test_same_pixels_in_another_format_are_exact(suites, tmp_path):
    original = Image.open(suites["train"].images_dir / "mri_0.png")
    suites = planted(suites, tmp_path / "x", original, "copy.bmp")
    (leak,) = leakage.image_leaks(suites).to_dict("records")
    assert (leak["kind"], leak["turn"], leak["distance"]) == ("exact", "as it is", 0)


def test_changed_file_is_hashed_again_and_a_missing_one_is_named(tmp_path):
    path = tmp_path / "a.png"
    suite = Suite("train", [scenario("one")], tmp_path)
    with pytest.raises(DataError, match="a.png: image not found"):
        leakage.fingerprints(suite)
    hashes = set()
    for seed in (1, 2):
        draw.draw("mri", "normal", seed, size=56).save(path)
        hashes.add(leakage.fingerprints(suite)["sha256"][0])
    assert len(hashes) == 2


@given(st.integers(0, 10**6), st.sampled_from(list(TURNS.values())))
@settings(max_examples=20, deadline=None)
def test_hashes_of_all_turns_are_one_set_whichever_way_a_image_lies(seed, turn):
    noise = np.random.default_rng(seed).integers(0, 256, (64, 64), dtype=np.uint8)
    image = Image.fromarray(noise)
    turned = image if turn is None else image.transpose(turn)
    one, two = leakage.hash_bits(image), leakage.hash_bits(turned)
    assert {bits.tobytes() for bits in one} == {bits.tobytes() for bits in two}
    assert one.shape == (8, 256)


def test_threshold_lies_between_copies_and_strangers(suites):
    distances = leakage.hash_distances(suites["train"], sample=12)
    rates = leakage.detection(distances).set_index("kind")
    assert rates.loc[STRANGERS, "value"] == 0 and rates.loc[STRANGERS, "n"] == 24
    assert rates.loc["cropped to 95%", "value"] < 1  # stated in the docstring as a blind spot
    found = rates.drop(index=[STRANGERS, "cropped to 95%"])
    assert (found["value"] == 1).all() and (found["n"] == 12).all() and len(found) == 5
    # a threshold can fail: with the usual one of a third of the bits strangers are copies
    assert leakage.detection(distances, 85).set_index("kind").loc[STRANGERS, "value"] > 0.3


def test_distances_of_a_suite_of_one_or_no_image(suites):
    one = leakage.hash_distances(suites["train"].rows([0]))
    assert set(one["kind"]) == set(COPIES)
    none = suites["train"].rows([])
    assert leakage.hash_distances(none).empty
    assert leakage.image_leaks({"train": suites["train"], "test": none}).empty


def test_phrases_are_compared_without_case_and_punctuation():
    seen = Suite("train", [scenario("a", finding="Clear lungs, no mass"), scenario("b")], Path())
    rows = [scenario("c", finding="clear LUNGS; no mass."), scenario("d", finding="Finding e")]
    tested = Suite("test", rows, Path())
    table = leakage.phrase_leaks({"train": seen, "test": tested}).set_index("text")
    assert table["shared"].to_dict() == {"finding": 1, "treatment": 0, "complaint": 1}
    assert table.loc["finding", "examples"] == "clear lungs no mass"
    assert table.loc["finding", "closest"] == "finding b | finding e"
    assert table.loc["finding", "overlap"] == pytest.approx(1 / 3)  # "finding" of finding, b, e


def test_generated_splits_share_no_phrase():
    suites = {name: Suite(name, grammar.generate(name, 48), Path()) for name in ("train", "test")}
    table = leakage.phrase_leaks(suites).set_index("text")
    assert table.loc[["finding", "treatment"], "shared"].sum() == 0
    assert table.loc["complaint", "shared"] > 0


def test_findings_are_counted_with_their_verdicts():
    rows = grammar.generate("test", 48)
    suites = {"test": Suite("test", rows, Path()), "core": Suite("core", core24.load_facts(), Path())}
    table = leakage.finding_balance(suites)
    assert table["test"].sum() == 96 and table["core"].sum() == 24
    assert table["test CORRECT"].sum() == 48 and table["core CORRECT"].sum() == 12
    cyst = table[table["finding"] == "simple_cyst"].iloc[0]
    shown = [s for s in rows if s.factors["image_finding"] == "simple_cyst"]
    assert cyst["test"] == len(shown)
    assert cyst["test CORRECT"] == sum(s.verdict == "CORRECT" for s in shown)


def test_a_factor_that_tells_stands_out_and_the_others_do_not():
    rows = [
        scenario(
            f"{sex}{i}",
            wrong=sex == "male" if i < 38 else sex == "female",
            patient={"age": 30 + i, "sex": sex, "complaint": "cough"},
        )
        for sex in ("male", "female")
        for i in range(40)
    ]
    table = leakage.label_balance(rows)
    assert list(table.loc[table["p_holm"] < 0.05, "factor"].unique()) == ["sex"]
    male = table[table["level"] == "male"].iloc[0]
    assert (male["n"], male["correct"]) == (40, 2) and male["low"] < male["share"] < male["high"] < 0.2
    assert set(table["factor"]) == {"modality", "sex", "age", "complaint", "wording"}  # no absent factor
    assert set(table.loc[table["factor"] == "age", "level"]) == {"0 to 39", "40 to 59", "60 to 74"}
    assert (table["p_holm"] >= table["p"]).all()


def test_generated_suite_is_balanced_in_all_that_an_auditor_sees():
    table = leakage.label_balance(grammar.generate("test", 240))
    hidden = table["factor"].isin(NOT_SHOWN)
    assert (table.loc[~hidden, "p_holm"] > 0.05).all()
    assert (table.loc[table["factor"] == "verdict source", "p_holm"] < 0.001).all()
    assert table.loc[table["factor"] == "modality", "share"].tolist() == [0.5] * 4


def test_balance_refuses_an_unknown_factor_and_takes_an_empty_set():
    with pytest.raises(ValueError, match="'colour'.*modality"):
        leakage.label_balance([], ["colour"])
    assert leakage.label_balance([]).empty


def test_a_telling_word_comes_first():
    rows = [scenario(f"n{i}", wrong=True, finding=f"Normal lung {'ab'[i % 2]}x") for i in range(20)]
    rows += [scenario(f"c{i}", finding=f"Opacity of lung {'ab'[i % 2]}x") for i in range(20)]
    words = leakage.word_shortcuts(rows)
    assert set(words["word"].head(3)) == {"normal", "opacity", "of"}
    first = words[words["word"] == "normal"].iloc[0]
    assert (first["text"], first["n"], first["correct"], first["share"]) == ("finding", 20, 0, 0.0)
    assert first["p_holm"] < 0.001
    everywhere = words[(words["word"] == "lung") & (words["text"] == "finding")].iloc[0]
    assert everywhere["n"] == 40 and everywhere["p"] == pytest.approx(1)
    assert leakage.word_shortcuts([]).empty


def test_core_set_is_solved_by_one_rule_and_the_generated_suite_is_not():
    core = leakage.normal_rule(core24.load_facts())
    assert core == {"n": 24, "normal": 12, "normal_error": 12, "abnormal": 12, "abnormal_correct": 12, "right": 24}
    generated = leakage.normal_rule(grammar.generate("train", 240))
    assert generated["n"] == 480 and generated["right"] < 0.56 * 480
    table = leakage.label_balance(core24.load_facts())
    assert set(table.loc[table["p_holm"] < 0.05, "factor"]) == {"wording"}
