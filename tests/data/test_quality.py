"""The audit must find each planted fault, and nothing where there is none."""

import time
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

from medlib.config import ROOT
from medlib.data import core24
from medlib.data.cases import LabelledCase
from medlib.data.quality import audit, audit_table, diagnoses, is_normal_or_benign

REAL_IMAGES = ROOT.parent / "shared/core24/images"


def scenario(name: str, wrong: bool = False, **changes) -> LabelledCase:
    row = {
        "id": name,
        "modality": "histopathology",
        "image": f"{name}.png",
        "patient": {"age": 50, "sex": "male", "complaint": "cough"},
        "finding": f"tissue {name}",
        "treatment": "follow-up",
        "verdict": "ERROR" if wrong else "CORRECT",
        "error_type": "overtreatment" if wrong else "none",
        "severity": "high" if wrong else "none",
        "cost_impact": 0,
    }
    return LabelledCase.model_validate(row | changes)


def textured_field(seed: int, size: int = 400) -> Image.Image:
    """Blobs of several sizes, as in stained tissue."""
    rng = np.random.default_rng(seed)
    field = sum(gaussian_filter(rng.normal(size=(size, size)), width) * width for width in (2, 4, 8))
    field = (field - field.min()) / np.ptp(field)
    return Image.fromarray((255 * field).astype(np.uint8))


def found(issues, check):
    return [issue for issue in issues if issue.check == check]


def test_overlapping_crops_are_found_and_strangers_are_not(tmp_path):
    field = textured_field(0)
    field.crop((0, 0, 280, 280)).save(tmp_path / "one.png")
    part = field.crop((90, 60, 370, 340)).rotate(20).resize((230, 230))
    part.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "two.jpg", quality=85)
    textured_field(1, 280).save(tmp_path / "three.png")
    textured_field(2, 280).save(tmp_path / "four.png")
    rows = [scenario("one"), scenario("two", image="two.jpg"), scenario("three"), scenario("four")]
    splits = {"one": "train", "two": "val", "three": "train", "four": "val"}
    issues = audit(rows, tmp_path, splits)
    assert not found(issues, "exact duplicate")  # a hash of the content misses the pair
    (issue,) = found(issues, "overlap")
    assert issue.files == ("one.png", "two.jpg") and issue.ids == ("one", "two")
    assert issue.severity == "error" and issue.evidence["across"] == ["split"]
    assert issue.evidence["mirrored"]
    assert issue.evidence["scale"] == pytest.approx(230 / 280, abs=0.02)
    same_side = audit(rows, tmp_path, splits | {"two": "train"})
    assert found(same_side, "overlap")[0].severity == "warning"


def test_images_of_two_modalities_are_not_matched_and_big_sets_are_sampled(tmp_path):
    textured_field(0, 200).save(tmp_path / "one.png")
    textured_field(0, 200).resize((190, 190)).save(tmp_path / "two.png")
    textured_field(1, 200).save(tmp_path / "three.png")
    rows = [scenario("one"), scenario("two", modality="mri"), scenario("three")]
    assert not found(audit(rows, tmp_path), "overlap")
    (issue,) = found(audit(rows, tmp_path, max_images=1), "overlap")
    assert issue.severity == "info" and "sample of 1 of 2" in issue.message


def test_same_pixels_in_another_file_and_one_file_on_two_sides(tmp_path):
    textured_field(0, 100).save(tmp_path / "one.png")
    textured_field(0, 100).save(tmp_path / "two.bmp")
    rows = [scenario("one"), scenario("two", image="two.bmp")]
    (issue,) = found(audit(rows, tmp_path, {"one": "train", "two": "val"}), "exact duplicate")
    assert issue.severity == "error" and issue.files == ("one.png", "two.bmp")
    twins = [scenario("one"), scenario("two", image="one.png")]
    together = audit(twins, tmp_path, {"one": "train", "two": "train"})
    assert not found(together, "exact duplicate")
    apart = audit(twins, tmp_path, {"one": "train", "two": "val"})
    assert found(apart, "exact duplicate")[0].severity == "error"


def test_masks_and_what_their_area_gives_away(tmp_path):
    rows = []
    for number, (radius, wrong) in enumerate([(5, True), (8, True), (20, False), (7, False)]):
        mask = Image.new("L", (100, 100))
        ImageDraw.Draw(mask).ellipse((50 - radius,) * 2 + (50 + radius,) * 2, fill=255)
        mask.save(tmp_path / f"m{number}.png")
        rows.append(scenario(f"m{number}", wrong, modality="ultrasound"))
    textured_field(0, 100).save(tmp_path / "scan.png")
    issues = audit(rows + [scenario("scan", modality="ultrasound")], tmp_path)
    (issue,) = found(issues, "mask")
    assert issue.severity == "error" and issue.ids == ("m0", "m1", "m2", "m3")
    assert (issue.evidence["right"], issue.evidence["of"]) == (3, 4)
    assert not found(issues, "broken image")


def test_letters_are_suspected_in_images_of_ones_own_only(tmp_path):
    cases = [scenario("plain"), scenario("written", factors={"image_finding": "benign_mass"})]
    soft = Image.fromarray(
        (gaussian_filter(np.random.default_rng(0).normal(size=(400, 400)), 9) * 500 + 90).astype(np.uint8)
    )
    for case in cases:
        soft.save(tmp_path / case.image)
        ImageDraw.Draw(soft).text((30, 200), "RT 12 UOQ 3:00", fill=255)
    assert not found(audit(cases, tmp_path), "letters or calipers")
    (issue,) = found(audit(cases, tmp_path, drawn=False), "letters or calipers")
    assert issue.severity == "info" and issue.files == ("written.png",)
    assert "1 of 2 histopathology images (CORRECT 0%, benign_mass 100%)" in issue.message


def test_broken_missing_and_blank_images(tmp_path):
    buffer = BytesIO()
    textured_field(0, 100).save(buffer, "PNG")
    (tmp_path / "cut.png").write_bytes(buffer.getvalue()[:2000])
    Image.new("RGB", (60, 60), "grey").save(tmp_path / "blank.png")
    rows = [scenario("cut"), scenario("again", image="cut.png"), scenario("blank"), scenario("no")]
    broken = found(audit(rows, tmp_path), "broken image")
    assert {issue.files[0]: issue.ids for issue in broken} == {
        "cut.png": ("cut", "again"),
        "blank.png": ("blank",),
        "no.png": ("no",),
    }
    assert all(issue.severity == "error" for issue in broken)


@pytest.mark.parametrize(
    ("name", "changes", "clash"),
    [
        ("squamous_1", {"finding": "Adenocarcinoma, well differentiated"}, True),
        ("case_1", {"finding": "Adenocarcinoma", "image": "squamous_3.png"}, True),
        ("case_1", {"finding": "Adenocarcinoma, no squamous component"}, False),
        ("case_1", {"finding": "Adenocarcinoma", "factors": {"source_class": "lung_n"}}, True),
        ("adenocarcinoma_1", {"finding": "Tumour", "factors": {"source_class": "aca"}}, False),
        ("case_1", {"finding": "Meningioma", "modality": "mri", "factors": {"source_class": "glioma"}}, True),
        (
            "case_1",
            {
                "finding": "Normal ventricles, mass in the left frontal lobe",
                "modality": "mri",
                "factors": {"source_class": "glioma"},
            },
            False,
        ),
        (
            "case_1",
            {
                "finding": "Bacterial pneumonia",
                "modality": "xray",
                "factors": {"source_class": "COVID", "source_file": "Normal/COVID-9.png"},
            },
            True,
        ),
    ],
)
def test_contradicting_diagnoses(tmp_path, name, changes, clash):
    issues = found(audit([scenario(name, **changes)], tmp_path), "contradiction")
    assert bool(issues) == clash
    if clash:
        assert issues[0].ids == (name,) and issues[0].evidence["clashes"]


def test_words_of_findings():
    for finding in ("No masses, BI-RADS 1", "Simple cyst, BI-RADS 2", "Lungs are clear"):
        assert is_normal_or_benign(finding)
    for finding in ("Mass, BI-RADS 5", "Consolidation, no effusion", "Benign? BI-RADS 4A"):
        assert not is_normal_or_benign(finding)
    assert diagnoses("ultrasound", "no malignant features, BI-RADS 2") == {"benign lesion"}
    assert diagnoses("mri", "no mass, normal brain") == {"normal"}


def test_word_shortcut_is_measured_on_held_out_findings(tmp_path):
    organs = ["liver", "lung", "brain", "bone", "skin", "heart", "colon", "nerve"]
    leaking = [scenario(f"n{o}", True, finding=f"normal {o}") for o in organs]
    leaking += [scenario(f"a{o}", finding=f"carcinoma of {o}") for o in organs]
    (issue,) = found(audit(leaking, tmp_path), "word shortcut")
    assert issue.severity == "warning"
    assert issue.evidence["normal_finding_rule"] == issue.evidence["one_word_rule"] == 1.0
    assert issue.evidence["tfidf_logistic"] >= 0.9
    assert issue.evidence["table"]["abnormal"] == {"CORRECT": 8, "ERROR": 0}
    # each finding with both verdicts: words cannot tell
    fair = [
        scenario(f"{kind}{o}{wrong}", wrong, finding=f"{kind} of {o}")
        for o in organs
        for kind in ("normal state", "carcinoma")
        for wrong in (True, False)
    ]
    (issue,) = found(audit(fair, tmp_path), "word shortcut")
    assert issue.severity == "info"
    assert issue.evidence["normal_finding_rule"] == 0.5
    assert issue.evidence["tfidf_logistic"] <= 0.6


def test_balance_and_duplicate_ids(tmp_path):
    rows = [scenario("a"), scenario("b", True), scenario("c"), scenario("c", True)]
    issues = audit(rows[:3], tmp_path, {"a": "train", "b": "train", "c": "val"})
    messages = [issue.message for issue in found(issues, "balance")]
    assert "split: the 1 histopathology cases of val are all CORRECT" in messages
    assert any("33% of 3" in message for message in messages)
    assert found(audit(rows, tmp_path), "id")[0].ids == ("c",)


def test_table_has_one_row_per_issue_errors_first(tmp_path):
    issues = audit([scenario("a"), scenario("b", True)], tmp_path)
    table = audit_table(issues)
    assert list(table.columns) == ["check", "severity", "message", "files", "ids", "evidence"]
    assert len(table) == len(issues) and table["severity"].iloc[0] == "error"
    assert audit_table([]).empty


def test_synthetic_core24_has_no_image_fault(tmp_path):
    core24.build(tmp_path)
    rows = core24.load_facts()
    issues = audit(rows, tmp_path / "images", _sides(rows))
    for check in ("broken image", "mask", "exact duplicate", "overlap"):
        assert not found(issues, check)


def _sides(rows):
    train, val = core24.split(rows)
    return {s.id: "train" for s in train} | {s.id: "val" for s in val}


@pytest.mark.skipif(not REAL_IMAGES.is_dir(), reason="the published images are not here")
def test_every_fault_of_the_published_set_is_found_and_no_other():
    rows = core24.load_facts()
    start = time.perf_counter()
    issues = audit(rows, REAL_IMAGES, _sides(rows))
    assert time.perf_counter() - start < 30
    assert not [i for i in issues if i.check in ("broken image", "exact duplicate", "id")]

    (mask,) = found(issues, "mask")
    assert set(mask.ids) == {s.id for s in rows if s.modality == "ultrasound"}
    assert (mask.evidence["right"], mask.evidence["of"]) == (6, 6)

    (overlap,) = found(issues, "overlap")
    assert overlap.files == ("histopathology_negative.jpeg", "histopathology_negative_2.jpeg")
    assert overlap.evidence["across"] == ["published_split"]

    contradictions = {"_".join(i.ids[0].split("_")[:2]) for i in found(issues, "contradiction")}
    assert contradictions == {"xray_005", "histopath_005", "mri_005", "ultrasound_001", "ultrasound_003"}
    (words,) = found(issues, "word shortcut")
    assert words.evidence["normal_finding_rule"] == 1.0
    unbalanced = [i.message for i in found(issues, "balance") if i.severity == "warning"]
    assert unbalanced == ["published_split: the 2 mri cases of val are all CORRECT"]
