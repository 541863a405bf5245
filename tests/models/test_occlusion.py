import json

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from medlib.data.suite import Suite
from medlib.data.synthetic import draw, grammar
from medlib.models import occlusion
from medlib.models.verdict_model import VerdictModel
from medlib.reporting import maps

SCENARIO = grammar.generate("test", 12)[0]


def toy(monkeypatch, place=(2, 5), grid=8, side=80, weight=10.0, offset=-3.0):
    """A stub whose log-odds are the brightness of one patch, and an image bright there only."""
    pixels = np.full((side, side, 3), 20, np.uint8)
    row, column = (slice(p * side // grid, (p + 1) * side // grid) for p in place)
    pixels[row, column] = 250
    asked = []

    def log_odds(model, scenario, images):
        asked.append(len(images))
        seen = np.array([np.asarray(p, float)[row, column].mean() / 250 for p in images])
        return weight * seen + offset

    monkeypatch.setattr(occlusion, "_log_odds", log_odds)
    return Image.fromarray(pixels), asked


@pytest.mark.parametrize("place", [(0, 0), (2, 5), (7, 7), (7, 0)])
def test_map_peaks_at_the_patch_that_decides(monkeypatch, place):
    image, asked = toy(monkeypatch, place)
    drop, log_odds = occlusion.occlusion_map(None, SCENARIO, image, batch_size=16)
    assert drop.shape == (8, 8) and np.unravel_index(drop.argmax(), drop.shape) == place
    assert log_odds == pytest.approx(7)
    mean = np.asarray(image, float).mean()
    assert drop[place] == pytest.approx(10 * (1 - round(mean) / 250))
    assert np.delete(drop.ravel(), drop.argmax()) == pytest.approx(0)
    assert sum(asked) == 65 and max(asked) == 16


def test_drop_is_of_the_models_own_verdict(monkeypatch):
    """Evidence for ERROR is positive where ERROR is the verdict, and negative against the verdict."""
    image, _ = toy(monkeypatch, weight=-10, offset=3)
    drop, log_odds = occlusion.occlusion_map(None, SCENARIO, image)
    assert log_odds == pytest.approx(-7) and drop[2, 5] > 8
    image, _ = toy(monkeypatch, weight=-10, offset=12)  # still CORRECT, in spite of the patch
    drop, log_odds = occlusion.occlusion_map(None, SCENARIO, image)
    assert log_odds == pytest.approx(2) and drop[2, 5] < -8


def test_patches_cover_the_image_once_even_if_the_grid_does_not_divide_it():
    pixels = np.random.default_rng(0).integers(0, 255, (50, 37, 3), dtype=np.uint8)
    changed = sum((occlusion._hide(pixels, np.array([p]), 8) != pixels).any(axis=2) for p in range(64))
    mean = pixels.mean(axis=(0, 1)).round()
    assert changed.max() == 1 and (changed == (pixels != mean).any(axis=2)).all()
    everything = occlusion._hide(pixels, np.arange(64), 8)
    assert (everything == mean).all()


def test_deletion_check_tells_a_map_that_means_something_from_one_that_does_not(monkeypatch):
    image, asked = toy(monkeypatch)
    drop, _ = occlusion.occlusion_map(None, SCENARIO, image)
    asked.clear()
    good = occlusion.deletion_check(None, SCENARIO, image, drop, k=4, draws=40)
    assert sum(asked) == 42
    assert good["top"] > 8 > 3 > good["random"] and good["share_below"] > 0.8
    assert good["log_odds"] == pytest.approx(7)
    bad = occlusion.deletion_check(None, SCENARIO, image, -drop, k=4, draws=40)
    assert bad["top"] == pytest.approx(0) and bad["share_below"] == 0
    again = occlusion.deletion_check(None, SCENARIO, image, drop, k=4, draws=40)
    assert again == good
    others = [occlusion.deletion_check(None, SCENARIO, image, drop, k=4, seed=s) for s in range(9)]
    assert {other["top"] for other in others} == {good["top"]}
    assert len({other["random"] for other in others}) > 1


@pytest.mark.parametrize(
    ("shape", "k", "message"), [((8, 7), 4, "square"), ((8, 8), 0, "k=0"), ((8, 8), 65, "64 patches")]
)
def test_deletion_check_refuses_what_is_no_map(shape, k, message):
    with pytest.raises(ValueError, match=message):
        occlusion.deletion_check(None, SCENARIO, None, np.zeros(shape), k=k)


def test_overlay_is_symmetric_and_clear_where_nothing_matters():
    axes = Figure().subplots()
    drop = np.array([[0.0, 2.0], [-2.0, 0.0]])
    colours = maps.overlay(axes, Image.new("RGB", (60, 30)), drop, 2.0, "CORRECT, p(CORRECT) = 0.9")
    assert colours.get_clim() == (-2, 2) and axes.get_title().startswith("CORRECT")
    shade = np.asarray(axes.images[1].get_array())
    assert shade[0, 0, 3] == shade[1, 1, 3] == 0 and shade[0, 1, 3] == shade[1, 0, 3] > 0.5
    # orange for, purple against
    assert shade[0, 1, 0] > shade[0, 1, 2] and shade[1, 0, 2] > shade[1, 0, 0]
    assert axes.get_aspect() == 0.5


def suite_of(folder, modality="mri", finding="ring_enhancing_mass", count=3):
    rows = []
    for number in range(count):
        draw.save(draw.draw(modality, finding, number, size=96), folder / f"{number}.png")
        update = {"id": f"case_{number}", "modality": modality, "image": f"{number}.png"}
        rows.append(SCENARIO.model_copy(update=update))
    return Suite("test", rows, folder)


def test_lesion_patches_are_where_the_drawing_put_the_lesion(tmp_path):
    suite = suite_of(tmp_path)
    for row in suite.scenarios:
        with Image.open(tmp_path / row.image) as image:
            x, y = json.loads(image.info["content"])["centre"]
        lesion = occlusion.lesion_patches(tmp_path / row.image)
        assert lesion[int(y * 8), int(x * 8)] and 0 < lesion.mean() < 0.4
    text = PngInfo()
    text.add_text("content", "from the scanner")  # another program's text is not ours
    Image.new("RGB", (50, 50)).save(tmp_path / "real.png", pnginfo=text)
    Image.new("RGB", (50, 50)).save(tmp_path / "real.jpeg")
    for name in ("real.png", "real.jpeg"):
        assert occlusion.lesion_patches(tmp_path / name) is None
    draw.save(draw.draw("mri", "normal", 0, size=96), tmp_path / "normal.png")
    assert occlusion.lesion_patches(tmp_path / "normal.png") is None


def test_check_maps_scores_a_model_that_looks_at_the_lesion(monkeypatch, tmp_path):
    suite = suite_of(tmp_path)
    whole = {s.image: np.asarray(suite.image(s), float) for s in suite.scenarios}

    def looks(model, scenario, images):
        """Log-odds fall as the lesion's patches lose their own pixels."""
        patches = occlusion.lesion_patches(tmp_path / scenario.image)
        lesion, original = np.kron(patches, np.ones((12, 12)))[..., None], whole[scenario.image]
        change = [(np.abs(np.asarray(p, float) - original) * lesion).sum() for p in images]
        return 5 - 1e-4 * np.array(change)

    monkeypatch.setattr(occlusion, "_log_odds", looks)
    checks = occlusion.check_maps(suite, None, cases=2)
    assert len(checks) == 2 and checks["on_lesion"].all() and (checks["share_below"] == 1).all()
    assert "in 2 of 2 images" in maps.checks_sentence(checks)
    blind = checks.assign(on_lesion=False)
    assert "not shown to be more than chance" in maps.checks_sentence(blind)
    assert "could not be checked" in maps.checks_sentence(checks.head(0))


def test_gallery_shows_rows_in_order_and_names_an_unknown_id(monkeypatch, tmp_path):
    suite = suite_of(tmp_path)
    fixed = lambda model, scenario, images: np.linspace(-2, 1, len(images))  # noqa: E731
    monkeypatch.setattr(occlusion, "_log_odds", fixed)
    rows = pd.DataFrame({"id": ["case_2", "case_0", "case_1"]})
    figure = maps.looked_at(rows, suite, None, limit=2, grid=4)
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert len(texts) == 2 and all(text.startswith("ERROR (wrong") for text in texts)
    assert "p(CORRECT) = 0.12" in texts[0] and SCENARIO.finding.split()[0] in texts[0]
    assert "2 of 3" in figure.get_suptitle() and len(figure.axes) == 7  # with one shared colour bar
    with pytest.raises(ValueError, match="'nobody' is not in suite test"):
        maps.looked_at([{"id": "nobody"}], suite, None)
    assert "no case" in maps.looked_at([], suite, None).get_suptitle()


def test_surest_misses_come_first():
    frame = pd.DataFrame(
        {
            "id": list("abcd"),
            "verdict": ["CORRECT"] * 4,
            "p_correct": [0.4, 0.01, 0.9, 0.2],
            "predicted": ["ERROR", "ERROR", "CORRECT", "ERROR"],
        }
    )
    assert maps.surest_misses(frame)["id"].tolist() == ["b", "d", "a"]


def test_real_model_gives_the_log_odds_of_its_evaluation_whatever_the_batch(tmp_path):
    from medlib.models import loading, scoring

    processor, model = loading.load("models/medgemma-nano")
    suite = suite_of(tmp_path, count=1)
    (row,), image = suite.scenarios, suite.image(suite.scenarios[0])
    drop, log_odds = occlusion.occlusion_map(VerdictModel(processor, model), row, image, grid=2)
    again, _ = occlusion.occlusion_map(VerdictModel(processor, model), row, image, grid=2, batch_size=2)
    assert np.isfinite(drop).all() and np.abs(drop).max() > 0
    assert again == pytest.approx(drop, abs=1e-3)
    expected = scoring.p_correct(VerdictModel(processor, model), suite)[0]
    assert 1 / (1 + np.exp(-log_odds)) == pytest.approx(expected, abs=1e-4)
