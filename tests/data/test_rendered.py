"""Images that are shown otherwise than they lie: a page, a small copy, filling the square."""

import numpy as np
import pytest
from PIL import Image

from medlib.config import DataError
from medlib.data import own, rendered
from medlib.data.cases import Case
from medlib.data.images import load_image
from medlib.data.suite import shown


@pytest.fixture
def folder(tmp_path):
    """Three rows: a stack of three pages, a single page, a file that is no image."""
    place = tmp_path / "set"
    place.mkdir()
    pages = [Image.new("L", (60, 30), grey) for grey in (0, 100, 200)]
    pages[0].save(place / "stack.tif", save_all=True, append_images=pages[1:])
    pages[2].save(place / "single.png")
    (place / "broken.png").write_bytes(b"no image")
    lines = ["id,image,finding,treatment,verdict"]
    lines += [f"{name},{name},a mass,biopsy,yes" for name in ("stack.tif", "single.png", "broken.png")]
    (place / "cases.csv").write_text("\n".join(lines))
    return place


def read(folder, card="", **options):
    (folder / "dataset.yaml").write_text(card)
    return own.read(folder, strict=False, extract_to=folder.parent / "extracted", **options)


def test_without_a_word_in_the_card_images_stay_where_they_are(folder):
    assert read(folder, "name: set").images_dir == folder.resolve()


def test_a_page_of_a_stack_is_shown_and_what_cannot_be_read_is_named(folder):
    data = read(folder, "frame: 1")
    assert [case.image for case in data.cases] == ["stack.tif.png", "single.png.png"]
    assert np.unique(np.asarray(load_image(data.images_dir / "stack.tif.png"))).tolist() == [100]
    assert len(data.problems) == 1 and "row 4" in data.problems[0] and "broken.png" in data.problems[0]
    assert str(folder) not in data.problems[0] and data.unread == 1 and len(data.places) == 2
    with pytest.raises(DataError, match=r"3 pages.*frame.*dataset.yaml"):
        shown(folder, "stack.tif")


def test_an_image_is_written_again_when_it_has_changed(folder):
    before = read(folder, "frame: 0")
    file = before.images_dir / "single.png.png"
    written = file.stat().st_mtime_ns
    assert read(folder, "frame: 0").sha256 == before.sha256 and file.stat().st_mtime_ns == written
    Image.new("L", (60, 30), 7).save(folder / "single.png")
    assert read(folder, "frame: 0").sha256 != before.sha256


def test_a_small_copy_and_a_square_that_is_filled(folder):
    small = read(folder, "frame: 2\nthumbnail: 56")
    assert load_image(small.images_dir / "single.png.png").size == (56, 28)
    filled = read(folder, "frame: 2\npad: false")
    image = shown(filled.images_dir, "stack.tif.png")
    assert image.size == (60, 60) and np.unique(np.asarray(image)).tolist() == [200]
    assert filled.images_dir != small.images_dir


def test_an_unknown_page_is_a_problem_of_its_row(folder):
    problems = " ".join(read(folder, "frame: 9\nthumbnail: 64").problems)
    assert "stack.tif" in problems and "frame" in problems.lower()


def test_one_case_is_shown_as_asked(folder, tmp_path):
    case = Case(id="a", image="stack.tif", finding="a mass", treatment="biopsy")
    assert rendered.one(case, folder, tmp_path, None, None) == (case, folder)
    other, place = rendered.one(case, folder, tmp_path, frame=2, thumbnail=None)
    assert np.unique(np.asarray(load_image(place / other.image))).tolist() == [200] and place == tmp_path
