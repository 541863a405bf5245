"""The second renderer: every finding, reproducible, unlike the first one, and with its sign where it should be."""

import numpy as np
import pytest

from medlib.data.synthetic import draw
from medlib.data.synthetic.draw import sketch

CLASSES = [(modality, finding) for modality, names in draw.FINDINGS.items() for finding in names]
SEEDS = range(6)


def drawn(modality, finding, seed, size=224):
    return np.asarray(draw.draw(modality, finding, seed, size, "sketch").convert("L"), float)


def test_it_draws_every_modality():
    assert sketch.DRAW.keys() == draw.MODALITIES.keys()


@pytest.mark.parametrize("modality, finding", CLASSES)
def test_same_seed_same_pixels_and_unlike_the_first_renderer(modality, finding):
    image = drawn(modality, finding, 3)
    assert np.array_equal(image, drawn(modality, finding, 3))
    assert np.abs(image - drawn(modality, finding, 4)).mean() > 3
    first = np.asarray(draw.draw(modality, finding, 3).convert("L"), float)
    assert np.abs(image - first).mean() > 10
    assert abs(np.corrcoef(image.ravel(), first.ravel())[0, 1]) < 0.95  # nor is it the first one, filtered


@pytest.mark.parametrize("size", [64, 224])
@pytest.mark.parametrize("modality, finding", CLASSES)
def test_an_image_is_rgb_of_its_size_and_uses_the_grey_scale(modality, finding, size):
    image = draw.draw(modality, finding, 0, size, "sketch")
    assert (image.mode, image.size) == ("RGB", (size, size))
    low, high = np.percentile(np.asarray(image.convert("L")), [5, 95])
    assert high - low > 60


def test_an_image_says_that_it_is_synthetic_and_by_which_renderer(tmp_path):
    image = draw.draw("mri", "normal", 1, 64, "sketch")
    assert (image.info["source"], image.info["renderer"]) == ("synthetic", "sketch")
    assert "renderer" not in draw.draw("mri", "normal", 1, 64).info  # the files of the first stay as they were
    with pytest.raises(ValueError, match="unknown renderer 'oil', known: '', 'sketch'"):
        draw.draw("mri", "normal", 1, 64, "oil")


def lungs(image):
    """Both lung fields, less their borders: (rows, columns) around the hilum on each side."""
    return np.concatenate([image[70:145, 55:95], image[70:145, 130:165]], axis=1)


def grain(image):
    """How much neighbouring patches of 4 x 4 pixels differ: noise is averaged out of them."""
    patches = image[: len(image) // 4 * 4, : image.shape[1] // 4 * 4]
    patches = patches.reshape(len(patches) // 4, 4, -1, 4).mean(axis=(1, 3))
    return np.abs(np.diff(patches, axis=0)).mean()


def test_air_is_replaced_in_one_lung_by_consolidation_and_in_both_by_ground_glass():
    for seed in SEEDS:
        clear = lungs(drawn("xray", "normal", seed)).mean()
        assert lungs(drawn("xray", "consolidation", seed)).mean() > clear + 5
        film = drawn("xray", "ground_glass", seed)
        lower = film[110:150, 45:65].mean(), film[110:150, 158:178].mean()
        assert min(lower) > clear and max(lower) < lungs(film).max()


def test_diffuse_infiltrates_are_coarse():
    coarse, hazy = (
        [grain(lungs(drawn("xray", f, s))) for s in SEEDS] for f in ("diffuse_infiltrates", "ground_glass")
    )
    assert np.mean(coarse) > 1.2 * np.mean(hazy)


def test_behind_a_cyst_it_is_bright_and_behind_a_mass_dark():
    def below(finding):
        return [drawn("ultrasound", finding, seed)[145:170, 60:165] for seed in SEEDS]

    normal, cyst, mass = (below(f) for f in ("normal", "simple_cyst", "spiculated_mass"))
    for n, c, m in zip(normal, cyst, mass):
        assert c.mean(axis=0).max() > n.mean(axis=0).max() + 25
        assert m.mean(axis=0).min() < n.mean(axis=0).min() - 40


def test_tissue_is_open_glandular_or_solid():
    def shares(finding):
        images = [drawn("histopathology", finding, seed) for seed in SEEDS]
        return np.mean([i > 205 for i in images]), np.mean([i < 100 for i in images])

    (open_, few), (lumen, some), (none, many) = map(shares, draw.FINDINGS["histopathology"])
    assert open_ > 0.4 > lumen > 0.03 > none
    assert few < some < many


def test_a_glioblastoma_is_a_ring_and_a_meningioma_is_solid():
    def bright(finding, seed):
        return drawn("mri", finding, seed) > 185

    for seed in SEEDS:
        ring, solid = bright("ring_enhancing_mass", seed), bright("well_circumscribed_mass", seed)
        assert bright("normal", seed).sum() < 0.3 * min(ring.sum(), solid.sum())
        for mask, is_ring in ((ring, True), (solid, False)):
            rows, columns = np.nonzero(mask)
            middle = drawn("mri", "ring_enhancing_mass" if is_ring else "well_circumscribed_mass", seed)
            centre = middle[int(np.median(rows)) - 2 : int(np.median(rows)) + 3, int(np.median(columns)) - 2 :][
                :, :5
            ]
            assert (centre.mean() < 90) == is_ring
