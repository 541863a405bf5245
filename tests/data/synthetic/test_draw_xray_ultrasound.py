"""Synthetic chest films and breast ultrasound: reproducible, varied, and true to their content."""

import json

import numpy as np
import pytest
from PIL import Image

from medlib.data.synthetic import draw
from medlib.data.synthetic.draw import ultrasound, xray

CLASSES = [("xray", f) for f in xray.FINDINGS] + [("ultrasound", f) for f in ultrasound.FINDINGS]
MODULES = {"xray": xray, "ultrasound": ultrasound}
SEEDS = range(8)


def _draw(modality, finding, seed, size=224):
    return MODULES[modality].draw(finding, np.random.default_rng(seed), size)


def _mean_in_disc(pixels, centre, radius):
    """Mean grey in a disc; centre (x, y) and radius are fractions of the width."""
    rows, columns = np.indices(pixels.shape) / len(pixels)
    return pixels[np.hypot(columns - centre[0], rows - centre[1]) < radius].mean()


@pytest.mark.parametrize("modality, finding", CLASSES)
def test_same_seed_same_pixels_other_seed_other_pixels(modality, finding):
    first, content = _draw(modality, finding, 3)
    again, content_again = _draw(modality, finding, 3)
    other, _ = _draw(modality, finding, 4)
    assert np.array_equal(first, again) and content == content_again
    assert np.abs(first.astype(int) - other).mean() > 3


@pytest.mark.parametrize("size", [64, 224])
@pytest.mark.parametrize("modality, finding", CLASSES)
def test_image_is_uint8_square_and_uses_the_grey_scale(modality, finding, size):
    pixels, _ = _draw(modality, finding, 0, size)
    assert pixels.dtype == np.uint8 and pixels.shape == (size, size)
    assert len(np.unique(pixels)) > 100
    # A rounded-off or badly windowed image would sit at the ends of the scale.
    assert ((pixels == 0) | (pixels == 255)).mean() < 0.35
    low, high = np.percentile(pixels, [5, 95])
    assert high - low > 80


@pytest.mark.parametrize("modality, finding", CLASSES)
def test_content_names_the_finding_and_survives_json(modality, finding):
    _, content = _draw(modality, finding, 1)
    assert content["finding"] == finding
    assert json.loads(json.dumps(content)) == content


@pytest.mark.parametrize("modality, finding", [c for c in CLASSES if c[1] != "normal"])
def test_finding_changes_the_image(modality, finding):
    # With one seed patient and exposure are the same, so what differs is the finding.
    normal, _ = _draw(modality, "normal", 5)
    sick, _ = _draw(modality, finding, 5)
    difference = np.abs(normal.astype(int) - sick)
    assert (difference > 25).mean() > 0.03
    assert np.median(difference[:16]) == 0  # neck and skin stay as they are


def test_consolidation_is_denser_than_the_same_place_in_a_normal_film():
    for seed in SEEDS:
        sick, content = _draw("xray", "consolidation", seed)
        normal, _ = _draw("xray", "normal", seed)
        assert (content["side"] == "left") == (content["centre"][0] > 0.5)
        place = content["centre"], 0.06
        assert _mean_in_disc(sick, *place) > _mean_in_disc(normal, *place) + 40


def test_ground_glass_whitens_both_lungs_but_less_than_consolidation():
    gains = {}
    for finding in ("ground_glass", "consolidation"):
        difference = [
            _draw("xray", finding, seed)[0].astype(float) - _draw("xray", "normal", seed)[0] for seed in SEEDS
        ]
        gains[finding] = np.percentile(difference, 97)
        if finding == "ground_glass":
            for image in difference:
                assert image[70:150, 15:70].mean() > 5 and image[70:150, 154:209].mean() > 5
    assert 15 < gains["ground_glass"] < gains["consolidation"]


def test_diffuse_infiltrates_are_coarser_than_ground_glass():
    def texture(finding, seed):
        small = Image.fromarray(_draw("xray", finding, seed)[0]).resize((56, 56), Image.BOX)
        lung = np.asarray(small, float)[14:38, 8:18]
        return np.abs(np.diff(lung, axis=0)).mean()

    for seed in SEEDS:
        assert texture("diffuse_infiltrates", seed) > 1.3 * texture("ground_glass", seed)


def test_cyst_is_anechoic_with_enhancement_and_mass_is_dark_with_shadow():
    for seed in SEEDS:
        normal, _ = _draw("ultrasound", "normal", seed)
        for finding in ("simple_cyst", "spiculated_mass"):
            pixels, content = _draw("ultrasound", finding, seed)
            (x, z), (_, radius_z) = content["centre"], content["radius"]
            below = (x, z + radius_z + 0.08), 0.04
            inside = _mean_in_disc(pixels, (x, z), 0.07)
            behind = _mean_in_disc(pixels, *below) - _mean_in_disc(normal, *below)
            if finding == "simple_cyst":
                assert inside < 15 and behind > 15
            else:
                assert 15 < inside < 90 and behind < -25


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_module_rejects_unknown_finding(module):
    with pytest.raises(ValueError, match="fracture.*normal"):
        module.draw("fracture", np.random.default_rng(0))


def test_package_draw_returns_rgb_with_its_provenance():
    image = draw.draw("xray", "consolidation", seed=7, size=112)
    assert image.mode == "RGB" and image.size == (112, 112)
    content = json.loads(image.info.pop("content"))
    assert content["side"] in ("left", "right")
    assert image.info == {
        "source": "synthetic",
        "modality": "xray",
        "finding": "consolidation",
        "seed": "7",
        "generator_version": "1",
    }


def test_package_draw_names_what_is_unknown_and_what_is_known():
    with pytest.raises(ValueError, match="'pet'.*xray.*mri"):
        draw.draw("pet", "normal", 0)
    with pytest.raises(ValueError, match="'simple_cyst'.*'xray'.*consolidation"):
        draw.draw("xray", "simple_cyst", 0)


def test_package_knows_thirteen_classes_in_four_modalities():
    assert list(draw.FINDINGS) == ["xray", "ultrasound", "histopathology", "mri"]
    assert sum(map(len, draw.FINDINGS.values())) == 13


def test_save_round_trips_pixels_and_info(tmp_path):
    image = draw.draw("ultrasound", "spiculated_mass", seed=2, size=64)
    draw.save(image, tmp_path / "image.png")
    with Image.open(tmp_path / "image.png") as loaded:
        assert loaded.format == "PNG" and loaded.text == image.info
        assert np.array_equal(np.asarray(loaded), np.asarray(image))
