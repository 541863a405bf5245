"""The report on a data set: what it finds, and that nothing in the data stops it."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

from medlib.data import blind
from medlib.data import check as checking
from medlib.data.check import check


@pytest.fixture(autouse=True)
def few_trees(monkeypatch):
    monkeypatch.setattr(blind, "TREES", 30)


def scan(seed: int, size: int = 96) -> Image.Image:
    rng = np.random.default_rng(seed)
    field = sum(gaussian_filter(rng.normal(size=(size, size)), width) * width for width in (2, 4, 8))
    return Image.fromarray((255 * (field - field.min()) / np.ptp(field)).astype(np.uint8))


@pytest.fixture
def folder(tmp_path):
    """20 cases whose treatment gives the verdict away; some images and two rows are faulty."""
    for i in range(20):
        scan(i).save(tmp_path / f"{i}.png")
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:300])
    Image.new("L", (60, 60), 7).save(tmp_path / "4.png")
    mask = Image.new("L", (60, 60))
    ImageDraw.Draw(mask).ellipse((20, 20, 40, 40), fill=255)
    mask.save(tmp_path / "5.png")
    scan(0).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "6.png")
    frame = pd.DataFrame(
        {
            "id": range(20),
            "image": [f"{i}.png" for i in range(20)],
            "modality": "ct",
            "finding": [f"lesion {i}" for i in range(20)],
            "treatment": ["biopsy", "observation"] * 10,
            "verdict": ["yes", "no"] * 10,
        }
    ).astype(str)
    frame.loc[18, "verdict"], frame.loc[19, "image"] = "perhaps", "none.png"
    frame.to_csv(tmp_path / "cases.csv", index=False)
    return tmp_path


def test_the_report_names_every_fault(folder):
    report = check(folder)
    text = report.text()
    assert report.data.unread == 2 and report.assignment is not None and not report.refused
    for said in (
        "18 cases, 2 cannot be read and are left out",
        "cases.csv, row 20, field 'verdict': 'perhaps' is no verdict",
        "cases.csv, row 21, field 'image': image 'none.png' not found",
        "18 files, 3 broken, blank or masks",
        "3.png: truncated or unreadable image",
        "4.png: one-colour image",
        "5.png: two-valued segmentation mask",
        "0.png and 6.png (rotate",
        "Your data can be passed to 100% [",
        "words that give the verdict away: 'biopsy' (treatment, 9 of 9 CORRECT), 'observation' (treatment, 0 of 9",
        "not looked for in 15 ct images",
        "proposed: test",
    ):
        assert said in text, said
    assert str(folder) not in text  # no path of the machine in what is passed on
    assert report.balance().loc["all", "all"] == 18
    group = report.assignment.table.set_index("file")["group"]
    assert group["0.png"] == group["6.png"]


def test_crops_of_one_field_are_found_in_a_small_set(tmp_path):
    field = scan(0, 400)
    field.crop((0, 0, 280, 280)).save(tmp_path / "0.png")
    field.crop((90, 60, 370, 340)).save(tmp_path / "1.png")
    for i in range(2, 4):
        scan(i, 280).save(tmp_path / f"{i}.png")
    frame = pd.DataFrame({"file": [f"{i}.png" for i in range(4)], "finding": ["a", "b"] * 2})
    frame.assign(split=["train", "test"] * 2).to_csv(tmp_path / "metadata.csv", index=False)
    report = check(tmp_path)
    assert len(report.overlaps) == 1 and report.overlaps[0].startswith("0.png, 1.png:")
    assert "on two sides of split" in report.overlaps[0] and "stated: test" in report.text()


def test_a_stated_split_that_shares_is_reported_and_another_proposed(folder):
    frame = pd.read_csv(folder / "cases.csv", dtype=str)
    frame.assign(split=["train"] * 5 + ["test"] * 15).to_csv(folder / "cases.csv", index=False)
    report = check(folder)
    assert "share 1 near-duplicate" in report.refused and report.assignment is not None
    assert not report.assignment.given and report.refused in report.text().replace("\n  ", "\n")


def test_too_few_rows_are_still_reported(tmp_path):
    (tmp_path / "ct" / "mass").mkdir(parents=True)
    scan(0).save(tmp_path / "ct" / "mass" / "0.png")
    report = check(tmp_path)
    assert report.assignment is None and "cannot be divided" in report.text()
    assert "could not be measured" in report.text() and report.data.kind == "images"


def test_suspected_marks_are_counted_by_label(tmp_path):
    rows = []
    for i in range(14):
        image = Image.fromarray((np.asarray(scan(i, 200)) // 3 + 40).astype(np.uint8))
        if i % 2:
            ImageDraw.Draw(image).text((30, 150), "RT 12 UOQ", fill=255)
        image.save(tmp_path / f"{i}.png")
        rows.append((f"{i}.png", "us", ("normal", "mass")[i % 2]))
    pd.DataFrame(rows, columns=["file", "modality", "finding"]).to_csv(tmp_path / "metadata.csv", index=False)
    text = check(tmp_path).text()
    assert "letters or calipers suspected in 7 of 14 ultrasound images (mass 100%, normal 0%)" in text


def test_an_image_is_loaded_once(folder, monkeypatch):
    loaded = []
    load = checking.load_image
    monkeypatch.setattr(checking, "load_image", lambda path: loaded.append(path) or load(path))
    check(folder)
    assert len(loaded) == len(set(loaded)) == 18
