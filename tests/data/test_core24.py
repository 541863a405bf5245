"""The 24 published scenarios: counts, split, bytes, images."""

import json
from collections import Counter

import pytest
from PIL import Image

from medlib.config import ANSWERS, ROOT, DataError
from medlib.data import core24
from medlib.data.cases import read_scenarios
from medlib.data.core24 import FACTS, VAL_IDS
from medlib.data.images import check_images

SHARED = ROOT.parent / "shared/core24"
REPOSITORY = ROOT


@pytest.fixture(scope="module")
def scenarios():
    return core24.load_facts()


def test_published_counts(scenarios):
    assert len(scenarios) == len({s.id for s in scenarios}) == 24
    assert len({s.image for s in scenarios}) == 24
    assert Counter(s.verdict for s in scenarios) == {"CORRECT": 12, "ERROR": 12}
    assert Counter(s.error_type for s in scenarios) == {"none": 12, "overtreatment": 7, "unnecessary_procedure": 5}
    assert Counter(s.severity for s in scenarios) == {"none": 12, "moderate": 3, "high": 3, "critical": 6}
    assert set(Counter(s.modality for s in scenarios).values()) == {6}
    assert {s.verdict for s in scenarios} == set(ANSWERS)


def test_split_is_stratified_and_keeps_one_field_on_one_side(scenarios):
    train, val = core24.split(scenarios)
    assert (len(train), len(val)) == (16, 8)
    assert set(Counter((s.modality, s.verdict) for s in val).values()) == {1}
    assert set(Counter((s.modality, s.verdict) for s in train).values()) == {2}
    groups = [{s.factors["image_group"] for s in part} for part in (train, val)]
    assert not groups[0] & groups[1]
    moved = {s.id for s in val if s.factors["published_split"] == "train"}
    assert {name[:13] for name in moved} == {"histopath_003", "mri_001_no_tu"}


def test_published_split_would_be_refused(scenarios, monkeypatch):
    published = tuple(s.id for s in scenarios if s.factors["published_split"] == "val")
    monkeypatch.setattr(core24, "VAL_IDS", published)
    with pytest.raises(DataError, match="one case per modality and verdict"):
        core24.split(scenarios)


def test_split_refuses_one_field_on_two_sides(scenarios, monkeypatch):
    swapped = tuple(
        "histopath_002_normal_tissue_unnecessary_surgery" if "histopath_003" in name else name for name in VAL_IDS
    )
    monkeypatch.setattr(core24, "VAL_IDS", swapped)
    with pytest.raises(DataError, match="image_group"):
        core24.split(scenarios)


def test_build_gives_the_expected_bytes(tmp_path, scenarios):
    counts = core24.build(tmp_path, draw_images=False)
    core24.verify(tmp_path)
    core24.verify(REPOSITORY / "data/core24")
    assert counts == json.loads((tmp_path / "dataset_stats.json").read_text())
    assert counts["scenarios"] == {"total": 24, "train": 16, "val": 8}
    assert not (tmp_path / "images").exists()
    written = read_scenarios(tmp_path / "train.jsonl") + read_scenarios(tmp_path / "val.jsonl")
    assert sorted(s.id for s in written) == sorted(s.id for s in scenarios)


def test_verify_names_the_changed_and_the_missing_file(tmp_path):
    core24.build(tmp_path, draw_images=False)
    changed = tmp_path / "val.jsonl"
    changed.write_bytes(changed.read_bytes() + b"\n")
    (tmp_path / "dataset_stats.json").unlink()
    with pytest.raises(DataError) as error:
        core24.verify(tmp_path)
    assert "val.jsonl: SHA-256" in str(error.value)
    assert "dataset_stats.json: no such file" in str(error.value)
    assert "train.jsonl" not in str(error.value)


def test_images_are_drawn_under_the_published_names(tmp_path, scenarios):
    core24.build(tmp_path)
    check_images(scenarios, tmp_path / "images")
    for scenario in scenarios:
        with Image.open(tmp_path / "images" / scenario.image) as image:
            assert image.format == ("PNG" if scenario.image.endswith(".png") else "JPEG")
            assert image.size == (224, 224)


@pytest.mark.parametrize("change", ["missing", "bad value", "not JSON"])
def test_bad_fact_names_file_row_and_field(tmp_path, change):
    lines = FACTS.read_text().splitlines()
    fact = json.loads(lines[4])
    if change == "missing":
        del fact["treatment"]
    else:
        fact["severity"] = "terrible"
    lines[4] = "{" if change == "not JSON" else json.dumps(fact)
    path = tmp_path / "facts.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match="facts.jsonl, row 5") as error:
        core24.load_facts(path)
    expected = {"missing": "treatment", "bad value": "severity", "not JSON": "Expecting"}
    assert expected[change] in str(error.value)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the published files are not here")
def test_facts_agree_with_the_published_rows(scenarios):
    published = {
        row["id"]: row | {"side": side}
        for side in ("train", "val")
        for row in map(json.loads, (SHARED / f"{side}.jsonl").read_text().splitlines())
    }
    assert {s.id for s in scenarios} == set(published)
    for scenario in scenarios:
        row = published[scenario.id]
        facts = row["metadata"]
        assert scenario.image == row["image_file"]
        assert scenario.modality == facts["modality"]
        assert scenario.verdict == row["output"].split(" ")[0]
        assert (scenario.error_type, scenario.severity) == (facts["error_type"], facts["severity"])
        assert scenario.cost_impact == facts["cost_impact"]
        assert scenario.factors["published_split"] == row["side"]
        assert f"- Age: {scenario.patient.age}\n" in row["input"]
        assert f"- Gender: {scenario.patient.sex.title()}\n" in row["input"]
        for number in ("BI-RADS 1", "BI-RADS 2", "BI-RADS 4C", "BI-RADS 5", "BI-RADS 6", "left"):
            assert (number in scenario.finding) == (number in row["input"])
        assert f"\n{scenario.finding}\n" not in row["input"]  # our own wording
