"""Pairs around labelled images: what they share, how often an image is used, what is refused."""

from collections import Counter, defaultdict

import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from medlib.config import DataError
from medlib.data import augment, counterfactual, variants
from medlib.data.cases import scenario_hash
from medlib.data.suite import Suite
from medlib.data.synthetic import grammar, lexicon
from medlib.data.synthetic.grammar import PAIR_KINDS
from medlib.data.synthetic.lexicon import LEXICON

#: source, population -> findings with how many images in each split
SOURCES = {
    "xray": {
        ("clinic A", "child 1-5 y"): {"normal": 12, "consolidation": 12, "diffuse_infiltrates": 12},
        ("clinic B", "adult"): {"normal": 12, "pneumonia_unspecified": 12},
        ("clinic C", "adult"): {"ground_glass": 12},
    },
    "ultrasound": {("clinic A", ""): {"normal": 12, "simple_cyst": 12, "benign_mass": 12, "spiculated_mass": 12}},
    "mri": {
        ("clinic D", ""): {"normal": 12},
        ("clinic E", ""): {"pituitary_tumour": 12, "ring_enhancing_mass": 12},
    },
    "histopathology": {("clinic F", ""): {"normal": 12, "squamous_carcinoma": 12, "adenocarcinoma": 12}},
}


def labelled(sources=SOURCES, splits=("train", "val", "test")):
    rows = [
        {
            "file": f"{modality}/{finding}/{source[-1]}{split}{number}.png",
            "modality": modality,
            "finding": finding,
            "group": f"{source[-1]}{finding}{split}{number // 2}",
            "split": split,
            "source": source,
            "population": population,
        }
        for modality, places in sources.items()
        for (source, population), findings in places.items()
        for finding, count in findings.items()
        for split in splits
        for number in range(count)
    ]
    return pd.DataFrame(rows)


TABLE = labelled()


def pairs_of(scenarios):
    pairs = defaultdict(list)
    for scenario in scenarios:
        pairs[scenario.factors["pair"]].append(scenario)
    return list(pairs.values())


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), split=st.sampled_from(["train", "val", "test"]))
def test_pairs_differ_in_one_factor_that_flips_the_verdict(seed, split):
    label = TABLE.set_index("file")
    for right, twin in pairs_of(counterfactual.cases(TABLE, split, 48, seed)):
        kind = right.factors["pair_kind"]
        assert (right.verdict, twin.verdict) == ("CORRECT", "ERROR")
        assert (right.modality, right.patient) == (twin.modality, twin.patient)
        changed = {n for n in ("image", "finding", "treatment") if getattr(right, n) != getattr(twin, n)}
        assert changed == {"treatment": {"treatment"}, "finding": {"image", "finding"}, "image": {"image"}}[kind]
        for case in (right, twin):
            row = label.loc[case.image]
            assert (row.split, row.modality, row.finding) == (split, case.modality, case.factors["image_finding"])
            assert (row.group, row.source) == (case.factors["group"], case.factors["dataset"])
            assert row.population == case.factors.get("population", "")
            finding = LEXICON.finding(case.modality, row.finding)
            assert finding.fits(case.factors["care"]) == (case.verdict == "CORRECT")
            assert case.factors["source"] in (case.error_type, "watchful_waiting", "right_treatment")


def test_balance_over_modality_kind_and_verdict():
    scenarios = counterfactual.cases(TABLE, "train", 96)
    counts = Counter((s.modality, s.factors["pair_kind"], s.verdict) for s in scenarios)
    assert len(counts) == 4 * 3 * 2 and set(counts.values()) == {8}
    findings = defaultdict(Counter)
    for s in scenarios:
        findings[s.modality, s.factors["note_finding"]][s.verdict] += 1
    for name, count in findings.items():
        assert abs(count["CORRECT"] - count["ERROR"]) <= 6, name


def test_same_seed_same_cases_in_any_order_of_rows():
    one = counterfactual.cases(TABLE, "val", 24, 5)
    assert one == counterfactual.cases(TABLE.sample(frac=1, random_state=0), "val", 24, 5)
    assert one != counterfactual.cases(TABLE, "val", 24, 6)
    other = counterfactual.cases(TABLE, "val", 24, 5, use="feedback")
    assert not {s.id for s in one} & {s.id for s in other}


def test_twins_are_of_one_source_where_that_can_be_had():
    scenarios = counterfactual.cases(TABLE, "train", 96)
    for right, twin in pairs_of(scenarios):
        places = {(s.factors["dataset"], s.factors.get("population")) for s in (right, twin)}
        assert (len(places) == 1) == (right.factors["twin"] == "same source" or right.image == twin.image)
        if right.modality == "mri" and {"normal"} < {
            right.factors["image_finding"],
            twin.factors["image_finding"],
        }:
            assert right.factors["twin"] == "same modality"  # clinic D has normal brains only
        if right.modality in ("ultrasound", "histopathology"):
            assert right.factors["twin"] == "same source"
    table = counterfactual.summary(scenarios)
    assert table["pairs"].to_dict() == dict.fromkeys(sorted(SOURCES), 24)
    assert (table[list(counterfactual.TWINS)].sum(axis=1) == 16).all()
    assert table.loc["mri", "same modality"] > 0 and table.loc["xray", "same modality"] == 0


def test_a_twin_of_another_source_is_of_the_same_population():
    xray = {"xray": {place: SOURCES["xray"][place] for place in list(SOURCES["xray"])[1:]}}
    children = {("clinic A", "child 1-5 y"): {"normal": 12}}
    table = labelled({"xray": children | xray["xray"]})
    scenarios = counterfactual.cases(table[table.finding != "pneumonia_unspecified"], "train", 12)
    assert {s.factors["twin"] for s in scenarios} == {"same population"}
    assert {s.factors["population"] for s in scenarios} == {"adult"}


@pytest.mark.parametrize("make", [counterfactual.cases, counterfactual.note_pairs])
@pytest.mark.parametrize("max_uses", [1, 2, 4])
def test_no_image_is_used_too_often_and_none_means_as_many_as_there_are(make, max_uses):
    scenarios = make(TABLE, "test", None, max_uses=max_uses)
    uses = Counter(image for pair in pairs_of(scenarios) for image in {s.image for s in pair})
    assert max(uses.values()) == max_uses
    assert set(Counter(s.modality for s in scenarios).values()) == {len(scenarios) // 4}
    pairs = len(scenarios) // 2
    assert pairs >= 24 * max_uses
    with pytest.raises(
        DataError, match=rf"split 'test': the \w+ images are used up .*at most {pairs} pairs instead of"
    ):
        make(TABLE, "test", pairs + 4, max_uses=max_uses)
    assert make(TABLE, "test", pairs, max_uses=max_uses) == scenarios


def test_note_pairs_show_one_image_beside_a_note_of_another_finding():
    scenarios = counterfactual.note_pairs(TABLE, "test", 48)
    assert len(scenarios) == 96
    for right, twin in pairs_of(scenarios):
        assert (right.image, right.finding, right.patient) == (twin.image, twin.finding, twin.patient)
        image, note = (
            LEXICON.finding(right.modality, str(right.factors[n])) for n in ("image_finding", "note_finding")
        )
        assert image.fits(right.factors["care"]) and not note.fits(right.factors["care"])
        assert note.fits(twin.factors["care"]) and not image.fits(twin.factors["care"])
        assert (right.verdict, twin.verdict, twin.error_type) == ("CORRECT", "ERROR", "contradiction")


def test_words_are_plain_and_of_the_split():
    for split in ("train", "val", "test"):
        plain = {
            phrase
            for modality in LEXICON.modalities
            for f in LEXICON.findings_of(modality)
            for phrase in (f.plain_phrases or f.phrases)[split]
        }
        scenarios = counterfactual.cases(TABLE, split, 48)
        assert {s.finding for s in scenarios} <= plain
        assert {s.treatment for s in scenarios} <= set(grammar.phrases(split, LEXICON))


def test_patients_fit_the_population():
    for s in counterfactual.cases(TABLE, "train", 96):
        if s.factors.get("population") == "child 1-5 y":
            assert 1 <= s.patient.age <= 5
            assert s.patient.complaint != "Pre-employment check" and "irmatrelvir" not in s.treatment
        else:
            assert 25 <= s.patient.age <= 85
        assert s.modality != "ultrasound" or s.patient.sex == "female"


@pytest.mark.parametrize(
    "population, expected",
    [
        ("child 1-5 y", (1, 5)),
        ("65 – 80 years", (65, 80)),
        ("infants, 2 to 11 months", (0, 0)),
        ("children", (1, 17)),
        ("paediatric", (1, 17)),
        ("Neonates", (0, 0)),
        ("adult", (25, 85)),
        ("", (25, 85)),
        ("20-300", (20, 120)),
    ],
)
def test_ages(population, expected):
    assert counterfactual.ages(population) == expected


def test_optional_columns_may_be_missing():
    table = TABLE[["file", "modality", "finding", "split"]]
    for s in counterfactual.cases(table, "train", 12):
        assert s.factors["twin"] == "same source" and not {"group", "dataset", "population"} & set(s.factors)


def test_what_is_missing_is_named():
    with pytest.raises(DataError, match="column finding: missing"):
        counterfactual.cases(TABLE.drop(columns="finding"), "train", 4)
    with pytest.raises(DataError, match=r"field 'file': listed more than once: .*png"):
        counterfactual.cases(pd.concat([TABLE, TABLE.head(1)]), "train", 4)
    with pytest.raises(DataError, match="no image of split 'val'"):
        counterfactual.cases(TABLE[TABLE.split == "train"], "val", 4)
    gout = TABLE.replace({"finding": {"consolidation": "gout", "simple_cyst": "wart"}})
    with pytest.raises(DataError, match=r"'wart' of modality 'ultrasound'(.|\n)*'gout' of modality 'xray'"):
        counterfactual.cases(gout, "train", 4)
    skin = TABLE.replace({"modality": {"mri": "skin"}})
    with pytest.raises(DataError, match="none of modality 'skin'.*lexicon"):
        counterfactual.cases(skin, "train", 4)
    with pytest.raises(ValueError, match="'dev'"):
        counterfactual.cases(TABLE, "dev", 4)
    with pytest.raises(ValueError, match="pair kind 'note'"):
        counterfactual.cases(TABLE, "train", 4, kinds=("note",))


def test_a_modality_needs_two_kinds_of_care():
    benign = TABLE[~TABLE.finding.isin(["benign_mass", "spiculated_mass"])]
    message = "modality 'ultrasound': normal, simple_cyst call for the same care"
    with pytest.warns(UserWarning, match=message):
        left = counterfactual.cases(benign, "train", 6)
    assert left and "ultrasound" not in {s.modality for s in left}
    with pytest.raises(DataError, match=message):
        counterfactual.cases(benign[benign.modality == "ultrasound"], "train", 6)
    accepted = TABLE[~TABLE.finding.isin(["normal", "simple_cyst"]) & (TABLE.modality == "ultrasound")]
    with pytest.raises(DataError, match="or accept it"):
        counterfactual.cases(accepted, "train", 4)


def test_one_kind_of_pair_and_a_lexicon_of_ones_own(tmp_path):
    words = {split: [f"{split} words"] for split in lexicon.SPLITS}
    care = [
        {"name": "observation", "rank": 0, "treatments": words},
        {
            "name": "excision",
            "rank": 1,
            "over": {"severity": "moderate", "cost": 1},
            "under": {"severity": "critical", "cost": 2},
            "treatments": {split: [f"{split} knife"] for split in lexicon.SPLITS},
        },
    ]
    book = {"name": "A book", "year": 2020, "section": "A chapter"}
    findings = [
        {"name": name, "label": name, "care": c, "guideline": book, "phrases": {s: [f"{name} {s}"] for s in words}}
        for name, c in (("naevus", "observation"), ("melanoma", "excision"))
    ]
    entry = {"modality": "skin", "care": care, "complaints": ["Spot"], "findings": findings}
    (tmp_path / "skin.yaml").write_text(yaml.safe_dump(entry))
    ours = lexicon.load([tmp_path])
    table = labelled({"skin": {("clinic", ""): {"naevus": 5, "melanoma": 5}}})
    scenarios = counterfactual.cases(table, "train", 8, lexicon=ours, kinds=("image",))
    assert {s.factors["pair_kind"] for s in scenarios} == {"image"}
    assert {(s.severity, s.cost_impact) for s in scenarios} == {("none", 0), ("moderate", 1), ("critical", 2)}
    # one phrase a split: nothing to change, and no error
    assert variants.paraphrase(Suite("skin", scenarios, tmp_path), lexicon=ours).scenarios == scenarios
    with pytest.raises(DataError, match="no phrase of the lexicon"):
        variants.paraphrase(Suite("skin", scenarios, tmp_path))


def test_other_words_for_real_images(tmp_path):
    suite = Suite("real", counterfactual.cases(TABLE, "train", 48), tmp_path)
    for before, after in zip(suite.scenarios, variants.paraphrase(suite).scenarios, strict=True):
        assert (before.id, before.verdict, before.factors) == (after.id, after.verdict, after.factors)
        assert before.finding != after.finding
        if before.patient.age < 18:
            assert not any(word in after.treatment for word in ("irmatrelvir", "evofloxacin"))
        if "squamous_carcinoma" in (before.factors["image_finding"], before.factors["note_finding"]):
            assert "argeted" not in after.treatment
    assert len(augment.augmented(suite, paraphrase_copies=1).scenarios) == 2 * len(suite)
    test = Suite("real", counterfactual.cases(TABLE, "test", 12), tmp_path)
    with pytest.raises(DataError, match="a phrase kept for validation or test"):
        augment.augmented(test, paraphrase_copies=1)


def test_splits_share_no_image_and_no_words():
    train, test = (counterfactual.cases(TABLE, split, 48) for split in ("train", "test"))
    for name in ("image", "finding", "treatment", "id"):
        assert not {getattr(s, name) for s in train} & {getattr(s, name) for s in test}, name
    assert scenario_hash(train) != scenario_hash(test)
    assert {s.factors["pair_kind"] for s in train} == set(PAIR_KINDS)
