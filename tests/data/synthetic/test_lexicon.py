"""The lexicon as data: what the files hold, what a user adds, and what is refused."""

import re
from collections import Counter

import pytest
import yaml

from medlib.config import MODALITIES, DataError
from medlib.data.cases import scenario_hash
from medlib.data.synthetic import draw, grammar, lexicon
from medlib.data.synthetic.lexicon import LEXICON, SPLITS

#: (split, use, seed) -> start of the hashes of 240 pairs and of 48 note pairs, before the lexicon became data.
SUITES = {
    ("train", None, 0): ("5a80f2256daef226", "7c70210cd0d38fad"),
    ("train", None, 42): ("10a3013bc3aaa643", "6fbc7e93dd9516bf"),
    ("val", None, 0): ("8839307b72e474c2", "fb6153f3c8701702"),
    ("val", None, 1): ("a9db103e20d07028", "7b13317e70f42710"),
    ("test", None, 0): ("1d878706d28db072", "6c82735d4bf5ef24"),
    ("test", None, 42): ("826e81a08faf67b7", "1a827165d199e5ae"),
    ("train", "feedback", 0): ("02a4cd72c2f1ba93", "729b3da60fd603df"),
    ("val", "calibration", 1): ("b631bd9fc57aa8e5", "5166274c873b85e5"),
    ("val", "tuning", 1): ("a1dc646344b66d55", "ec8471eb62206758"),
    ("val", "probe", 0): ("e796a05d8c6bff08", "e229d0e799003b83"),
}


@pytest.mark.parametrize("split, use, seed", SUITES)
def test_generated_suites_stay_as_they_were(split, use, seed):
    suites = grammar.generate(split, 240, seed, use), grammar.note_pairs(split, 48, seed, use)
    assert tuple(scenario_hash(suite)[:16] for suite in suites) == SUITES[split, use, seed]


def test_the_tuning_suite_has_the_cases_that_settings_were_tuned_on():
    """They were called calibration cases then; only the names in them have changed."""

    def renamed(s):
        factors = s.factors | {"pair": s.factors["pair"].replace("tuning", "calibration")}
        return s.model_copy(update={"id": s.id.replace("tuning", "calibration"), "factors": factors})

    suite = [renamed(s) for s in grammar.generate("val", 240, 1, "tuning")]
    assert scenario_hash(suite)[:16] == "fa2131f02987de29"


def everything():
    return [finding for modality in LEXICON.modalities for finding in LEXICON.findings_of(modality)]


def test_the_generator_gets_what_can_be_drawn_and_nothing_else():
    drawn = {(f.modality, f.name) for f in lexicon.FINDINGS}
    assert drawn == {(modality, name) for modality, names in draw.FINDINGS.items() for name in names}
    assert len(everything()) == len(drawn) + 4
    assert list(lexicon.CARE_ORDER) == list(MODALITIES)
    assert all("pituitary" not in phrase.lower() for phrase in grammar.phrases())


def test_every_phrase_belongs_to_one_split():
    sides = {split: set() for split in SPLITS}
    for split in SPLITS:
        for f in everything():
            sides[split] |= {p.lower() for p in (*f.phrases[split], *(f.plain_phrases or f.phrases)[split])}
        for entry in LEXICON.modalities.values():
            sides[split] |= {p.lower() for care in entry.care for p in care.treatments[split]}
    assert not sides["train"] & sides["val"] | sides["train"] & sides["test"] | sides["val"] & sides["test"]


def test_no_plain_phrase_means_two_findings_or_states_a_degree():
    for modality in LEXICON.modalities:
        plain = [(f.plain_phrases or f.phrases)[split] for f in LEXICON.findings_of(modality) for split in SPLITS]
        counts = Counter(phrase.lower() for phrases in plain for phrase in phrases)
        assert max(counts.values()) == 1
        assert not any("{" in phrase for phrase in counts)


def test_plain_phrases_promise_no_sign_that_a_label_does_not():
    signs = {
        "spiculated_mass": "spicul|shadow|angular|taller",
        "ground_glass": "glass|hazy|peripheral|bilateral",
        "consolidation": "lobar|lobe|air bronch|dense",
        "ring_enhancing_mass": "ring|rim|necro|grade|blastoma",
        "well_circumscribed_mass": "circumscribed|dural|convexity|homogen",
        "simple_cyst": "anechoic|thin|round|oval",
    }
    for finding in everything():
        for phrase in (p for ps in (finding.plain_phrases or {}).values() for p in ps):
            assert not re.search(signs.get(finding.name, "{"), phrase, re.IGNORECASE), (finding.name, phrase)


def test_children_and_findings_are_spared_what_does_not_suit_them():
    squamous = LEXICON.finding("histopathology", "squamous_carcinoma")
    adeno = LEXICON.finding("histopathology", "adenocarcinoma")
    infiltrates = LEXICON.finding("xray", "diffuse_infiltrates")
    for split in SPLITS:
        assert LEXICON.treatments(squamous, split)
        assert not any("argeted" in phrase for phrase in LEXICON.treatments(squamous, split))
        assert LEXICON.treatments(infiltrates, split, child=True)
        assert not any("irmatrelvir" in phrase for phrase in LEXICON.treatments(infiltrates, split, child=True))
    assert any("argeted" in phrase for phrase in LEXICON.treatments(adeno, "train"))
    assert "Pre-employment check" in LEXICON.complaints("xray")
    assert "Pre-employment check" not in LEXICON.complaints("xray", child=True)


def test_a_benign_mass_may_be_biopsied_and_must_not_be_ignored():
    mass = LEXICON.finding("ultrasound", "benign_mass")
    assert mass.fits("short_interval_follow_up") and mass.fits("biopsy") and not mass.fits("observation")
    assert LEXICON.loss("observation", mass)[0] == "undertreatment"
    kind, loss = LEXICON.loss("short_interval_follow_up", LEXICON.finding("ultrasound", "normal"))
    assert (kind, loss.severity) == ("overtreatment", "moderate")


WORDS = {split: [f"{split} words"] for split in SPLITS}
DRAINAGE = {
    "name": "drainage",
    "rank": 30,
    "over": {"severity": "high", "cost": 15_000},
    "under": {"severity": "critical", "cost": 60_000},
    "treatments": WORDS,
}
PNEUMOTHORAX = {
    "name": "pneumothorax",
    "label": "pneumothorax",
    "care": "drainage",
    "guideline": {"name": "A book", "year": 2023, "section": "A chapter"},
    "phrases": WORDS,
}


def written(folder, **content):
    entry = {"modality": "xray", "care": [DRAINAGE], "findings": [PNEUMOTHORAX]} | content
    (folder / "mine.yaml").write_text(yaml.safe_dump(entry))
    return folder


def test_a_folder_adds_a_finding_with_care_of_its_own(tmp_path):
    ours = lexicon.load([tmp_path / "none", written(tmp_path)])
    assert ours.finding("xray", "pneumothorax").care == "drainage"
    assert [care.name for care in ours.modalities["xray"].care] == [*lexicon.CARE_ORDER["xray"], "drainage"]
    assert len(ours.findings_of("xray")) == len(LEXICON.findings_of("xray")) + 1
    assert "pneumothorax" not in {f.name for f in LEXICON.findings_of("xray")}


def test_the_example_of_the_readme_works(tmp_path):
    text = (lexicon.FOLDER / "README.md").read_text().split("```yaml\n")[1].split("```")[0]
    (tmp_path / "mine.yaml").write_text(text)
    assert lexicon.load([tmp_path]).finding("xray", "pneumothorax").guideline.checked is False


def test_a_new_modality(tmp_path):
    wait = {"name": "observation", "rank": 0, "treatments": WORDS}
    naevus = PNEUMOTHORAX | {"name": "naevus", "care": "observation"}
    melanoma = PNEUMOTHORAX | {"name": "melanoma"}
    content = {
        "modality": "skin",
        "care": [DRAINAGE, wait],
        "complaints": ["Spot"],
        "findings": [naevus, melanoma],
    }
    ours = lexicon.load([written(tmp_path, **content)])
    assert list(ours.modalities) == [*MODALITIES, "skin"]
    assert [f.benign for f in ours.findings_of("skin")] == [True, False]


@pytest.mark.parametrize(
    "content, message",
    [
        ({"colour": "red"}, "key 'colour': Extra inputs"),
        (
            {"findings": [PNEUMOTHORAX | {"care": "prayer"}]},
            "key 'findings.pneumothorax.care': 'prayer' is not one of",
        ),
        ({"findings": [PNEUMOTHORAX | {"accepts": ["prayer"]}]}, "key 'findings.pneumothorax.accepts': 'prayer'"),
        ({"findings": [PNEUMOTHORAX | {"name": "normal"}]}, "key 'findings': 'normal' is used twice"),
        (
            {"findings": [PNEUMOTHORAX | {"phrases": {"train": ["a"]}}]},
            "'findings.0.phrases': .*no phrase for val, test",
        ),
        (
            {"findings": [PNEUMOTHORAX | {"phrases": WORDS | {"dev": ["a"]}}]},
            "'findings.0.phrases': .*dev: not one of",
        ),
        (
            {"findings": [PNEUMOTHORAX | {"phrases": WORDS | {"val": ["Train words"]}}]},
            "'findings.0.phrases': .*listed twice: train words",
        ),
        (
            {"findings": [{k: v for k, v in PNEUMOTHORAX.items() if k != "guideline"}]},
            "'findings.0.guideline': Field req",
        ),
        (
            {"findings": [PNEUMOTHORAX | {"unsuited": ["tea"]}]},
            "'findings.pneumothorax.unsuited': 'tea' is no treatment",
        ),
        ({"care": [{k: v for k, v in DRAINAGE.items() if k != "under"}]}, "key 'care.drainage.under': missing"),
        ({"care": [DRAINAGE | {"rank": 10}]}, "key 'care': 'rank 10' is used twice"),
        ({"modality": "skin"}, "key 'complaints': missing"),
        ({"adults_only": ["Beer"]}, "key 'adults_only': 'Beer' is no complaint"),
    ],
)
def test_a_bad_file_is_named_with_its_key(tmp_path, content, message):
    with pytest.raises(DataError, match=rf"mine\.yaml, .*{message}"):
        lexicon.load([written(tmp_path, **content)])


def test_what_is_no_yaml_and_an_empty_file(tmp_path):
    for text, message in (("a: [", "not readable as YAML"), ("", "key 'modality'"), ("\x00", "not readable")):
        (tmp_path / "mine.yaml").write_text(text)
        with pytest.raises(DataError, match=rf"mine\.yaml.*{message}"):
            lexicon.load([tmp_path])


def test_an_unknown_finding_lists_the_known_ones_and_says_what_to_do():
    with pytest.raises(DataError, match=r"'gout' of modality 'xray'.*consolidation.*lexicon/\*.yaml"):
        LEXICON.finding("xray", "gout")
    with pytest.raises(DataError, match="none of modality 'skin'"):
        LEXICON.finding("skin", "naevus")


def test_every_rule_names_its_source():
    for finding in everything():
        assert finding.guideline.name and finding.guideline.section and 1990 < finding.guideline.year < 2027
