"""No group stands on two sides, whoever drew the split."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import gaussian_filter

from medlib.config import DataError
from medlib.data.split import assign, dicom_patients


def scan(seed: int, size: int = 96) -> Image.Image:
    rng = np.random.default_rng(seed)
    field = sum(gaussian_filter(rng.normal(size=(size, size)), width) * width for width in (2, 4, 8))
    return Image.fromarray((255 * (field - field.min()) / np.ptp(field)).astype(np.uint8))


def prints(files) -> pd.DataFrame:
    """Fingerprints of images that have nothing in common, without any image."""
    rng = np.random.default_rng(0)
    names = sorted(set(files))
    bits = list(rng.random((len(names), 8, 256)) < 0.5)
    return pd.DataFrame({"image": names, "modality": "ct", "sha256": names, "bits": bits})


def frame(labels, groups=None, split="", modality="ct") -> pd.DataFrame:
    n = len(labels)
    return pd.DataFrame(
        {
            "id": [f"c{i}" for i in range(n)],
            "file": [f"{i}.png" for i in range(n)],
            "modality": modality,
            "label": labels,
            "group": groups if groups is not None else "",
            "split": split,
        }
    )


def sides_of(assignment, column="group"):
    return assignment.table.groupby(column)["split"].nunique()


def test_shares_strata_and_groups():
    rows = frame(["ERROR", "CORRECT"] * 300, groups=[f"g{i // 3}" for i in range(600)])
    result = assign(rows, "", prints=prints(rows["file"]))
    share = result.table["split"].value_counts(normalize=True)
    assert share["train"] == pytest.approx(0.70, abs=0.03) and share["test"] == pytest.approx(0.15, abs=0.02)
    assert (sides_of(result) == 1).all() and result.grouped_by == "column" and not result.given
    for side in ("train", "val", "test"):
        assert rows["label"][result.rows(side)].eq("ERROR").mean() == pytest.approx(0.5, abs=0.05)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xy"), st.integers(0, 9)), min_size=8, max_size=60)
)
def test_any_data_set_is_divided_by_group_or_refused(drawn):
    rows = frame(
        [label for label, _, _ in drawn], [f"g{g}" for _, _, g in drawn], modality=[m for _, m, _ in drawn]
    )
    try:
        result = assign(rows, "", prints=prints(rows["file"]))
    except DataError as error:
        assert len({g for _, _, g in drawn}) < 3 or "cannot be divided" in str(error)
    else:
        assert (sides_of(result) == 1).all()
        assert set(result.table["split"]) == {"train", "val", "test"}
        assert result.table["group"].nunique() == len({g for _, _, g in drawn})


def test_a_seed_draws_the_same_split_and_is_written(tmp_path):
    rows = frame(["a", "b"] * 40)
    known = prints(rows["file"])
    first, again = (assign(rows, "", seed=3, prints=known, folder=tmp_path / "out") for _ in range(2))
    assert first.table.equals(again.table)
    assert not first.table.equals(assign(rows, "", seed=4, prints=known).table)
    assert pd.read_csv(tmp_path / "out" / "split.csv").equals(first.table)
    facts = json.loads((tmp_path / "out" / "split.json").read_text())
    assert facts["seed"] == 3 and facts["grouped_by"] == "near-duplicate images" and not facts["given"]
    assert sum(side["rows"] for side in facts["counts"].values()) == 80


def test_near_duplicates_are_one_group_and_join_others(tmp_path):
    for i in range(12):
        scan(i).save(tmp_path / f"{i}.png")
    scan(0).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "12.png")
    scan(1).save(tmp_path / "13.jpg", quality=60)
    rows = frame(["a", "b"] * 7).assign(file=[f"{i}.png" for i in range(13)] + ["13.jpg"])
    result = assign(rows, tmp_path)
    group = result.table["group"]
    assert group[0] == group[12] and group[1] == group[13] and group.nunique() == 12
    assert result.grouped_by == "near-duplicate images" and set(result.duplicates["turn"]) >= {"flip left right"}
    result = assign(rows.assign(group=[f"g{i // 2}" for i in range(14)]), tmp_path)
    group = result.table["group"]
    assert group[0] == group[1] == group[12] == group[13] and group.nunique() == 6
    assert "2 near-duplicate pairs crossed groups, which were joined" in result.notes


def test_rows_of_one_image_stay_together_and_blank_groups_stay_apart():
    rows = frame(["a", "b"] * 10, groups=["p"] * 4 + [""] * 16)
    rows["file"] = [f"{i // 2}.png" for i in range(20)]
    result = assign(rows, "", prints=prints(rows["file"]))
    assert (sides_of(result, "file") == 1).all() and result.table["group"].nunique() == 9
    assert "16 rows state no group: each image is one of its own" in result.notes


def test_a_stated_split_that_divides_nothing_is_kept():
    split = ["train"] * 6 + ["val"] * 2 + ["test"] * 2
    rows = frame(["a", "b"] * 5, split=split)
    result = assign(rows, "", prints=prints(rows["file"]))
    assert result.given and list(result.table["split"]) == split and result.stamp == ""


def test_a_stated_split_that_shares_is_refused_with_the_pairs(tmp_path):
    for i in range(6):
        scan(i).save(tmp_path / f"{i}.png")
    scan(0).save(tmp_path / "6.png")
    scan(1).resize((48, 48)).save(tmp_path / "7.png")
    rows = frame(["a", "b"] * 4, split=["train"] * 4 + ["test"] * 4)
    rows["group"] = ["", "", "Doe", "", "Doe", "", "", ""]
    rows.loc[5, "id"] = "c3"
    with pytest.raises(DataError) as error:
        assign(rows, tmp_path)
    text = str(error.value)
    assert "c3 (train) and c3 (test): one id" in text
    assert "c2 (train) and c4 (test): one group" in text and "Doe" not in text
    assert "0.png (train) and 6.png (test): the same pixels" in text
    assert "1.png (train) and 7.png (test): near-duplicates" in text and "--allow-shared-groups" in text
    result = assign(rows, tmp_path, allow_shared=True)
    assert result.stamp.startswith("The sides of the split share 1 id, 1 group, 1 image, 1 near-duplicate")
    assert list(result.table["split"].where(result.table["split"] != "val", "train")) == list(rows["split"])


def test_a_split_of_two_sides_is_completed_by_group():
    groups = [f"g{i // 2}" for i in range(80)]
    rows = frame(["a", "b"] * 40, groups, split=["train"] * 60 + ["val"] * 20)
    result = assign(rows, "", prints=prints(rows["file"]))
    assert set(result.rows("test")) == set(range(60, 80)) and 6 <= len(result.rows("val")) <= 16
    assert (sides_of(result) == 1).all()
    assert any("stated validation side is the held-out test" in note for note in result.notes)
    result = assign(rows.replace({"split": {"val": "test"}}), "", prints=prints(rows["file"]))
    assert set(result.rows("test")) == set(range(60, 80)) and len(result.rows("val"))


@pytest.mark.parametrize(
    ("split", "said"),
    [
        (["train"] * 9 + [""], "stated by some rows only; not by c9"),
        (["val"] * 5 + ["test"] * 5, "no training rows, only test, val"),
    ],
)
def test_a_split_that_cannot_be_used(split, said):
    rows = frame(["a", "b"] * 5, split=split)
    with pytest.raises(DataError, match=said):
        assign(rows, "", prints=prints(rows["file"]))


def test_one_stated_side_is_no_split():
    rows = frame(["a", "b"] * 10, split="train")
    result = assign(rows, "", prints=prints(rows["file"]))
    assert not result.given and len(result.rows("test")) and "read as no split at all" in " ".join(result.notes)


def test_a_label_that_a_side_lacks_is_noted():
    rows = frame(["a"] * 30 + ["rare"])
    notes = assign(rows, "", prints=prints(rows["file"])).notes
    assert any(note.endswith("has no ct rare") for note in notes)


def test_patients_of_dicom_files_are_hashed_and_never_shown(tmp_path):
    from tests.data.test_cases import dicom

    for i, patient in enumerate(("SECRET-1", "SECRET-1", "SECRET-2", "")):
        pixels = np.asarray(scan(i, 32)).astype(np.uint16) * 10
        dicom(tmp_path / f"{i}.dcm", PatientID=patient, PixelData=pixels.tobytes())
    (tmp_path / "4.dcm").write_text("broken")
    files = [f"{i}.dcm" for i in range(5)]
    patients = dicom_patients(files, tmp_path)
    assert patients["0.dcm"] == patients["1.dcm"] != patients["2.dcm"] and set(patients) == {
        "0.dcm",
        "1.dcm",
        "2.dcm",
    }
    assert patients["0.dcm"] != dicom_patients(files, tmp_path)["0.dcm"]  # the salt is new and kept nowhere
    rows = frame(["a", "b"] * 2).assign(file=files[:4])
    result = assign(rows, tmp_path, folder=tmp_path / "out")
    assert result.grouped_by == "DICOM patient" and result.table["group"].tolist() == [0, 0, 1, 2]
    written = "".join(file.read_text() for file in (tmp_path / "out").iterdir())
    assert "SECRET" not in written + repr(result) and patients["0.dcm"] not in written
