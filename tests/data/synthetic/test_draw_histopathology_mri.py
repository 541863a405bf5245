"""The H&E and MRI generators draw what they say they draw."""

import json

import numpy as np
import pytest

from medlib.data.synthetic.draw import histopathology, mri

MODULES = {"histopathology": histopathology, "mri": mri}
CLASSES = [(name, finding) for name, module in MODULES.items() for finding in module.FINDINGS]
MASSES = [finding for finding in mri.FINDINGS if finding != "normal"]


def draw(name, finding, seed, size=224):
    return MODULES[name].draw(finding, np.random.default_rng(seed), size)


def disc(content, size, inner, outer):
    """Mask of a ring around the drawn mass, between two multiples of its radius."""
    rows, columns = np.mgrid[:size, :size] / size
    distance = np.hypot(columns - content["centre"][0], rows - content["centre"][1])
    return (distance >= inner * content["radius"]) & (distance < outer * content["radius"])


@pytest.mark.parametrize(("name", "finding"), CLASSES)
def test_same_seed_same_image_other_seed_other_image(name, finding):
    first, first_content = draw(name, finding, 7)
    again, again_content = draw(name, finding, 7)
    other, other_content = draw(name, finding, 8)
    assert np.array_equal(first, again) and first_content == again_content
    assert np.mean(np.abs(first.astype(int) - other)) > 3


@pytest.mark.parametrize("size", [112, 224, 256])
@pytest.mark.parametrize(("name", "finding"), CLASSES)
def test_shape_type_and_spread_of_values(name, finding, size):
    image, content = draw(name, finding, 3, size)
    channels = (3,) if name == "histopathology" else ()
    assert image.shape == (size, size, *channels) and image.dtype == np.uint8
    assert len(np.unique(image)) > 60
    assert image.std() > 12
    assert json.loads(json.dumps(content)) == content
    assert content["finding"] == finding


@pytest.mark.parametrize("name", MODULES)
def test_finding_changes_the_image(name):
    images = [draw(name, finding, 5)[0].astype(int) for finding in MODULES[name].FINDINGS]
    for i, image in enumerate(images):
        for other in images[i + 1 :]:
            assert np.mean(np.abs(image - other)) > 4


@pytest.mark.parametrize("name", MODULES)
def test_unknown_finding_is_named_with_the_known_ones(name):
    with pytest.raises(ValueError, match="'fracture'.*normal"):
        draw(name, "fracture", 0)


@pytest.mark.parametrize("seed", range(10))
def test_normal_lung_is_mostly_air_and_the_solid_tumour_has_none(seed):
    air_shares = {}
    for finding in histopathology.FINDINGS:
        image, _ = draw("histopathology", finding, seed)
        air_shares[finding] = np.mean(image.min(axis=-1) > 205)
    assert air_shares["normal"] > 0.6
    assert air_shares["poorly_differentiated"] < 0.05
    assert air_shares["poorly_differentiated"] <= air_shares["adenocarcinoma"] < 0.4


@pytest.mark.parametrize("seed", range(10))
def test_gland_has_a_pale_lumen_inside_a_ring_of_dark_nuclei(seed):
    image, content = draw("histopathology", "adenocarcinoma", seed)
    red = image[..., 0].astype(float)
    gland = content["glands"][0]  # The first always lies well inside the field.
    lumen = red[disc(gland, 224, 0, 0.25)].mean()
    nuclei = red[disc(gland, 224, 0.6, 0.85)].mean()
    assert len(content["glands"]) >= 4
    assert lumen > nuclei + 30


def test_solid_tumour_records_mitoses_inside_the_field_and_no_glands():
    _, content = draw("histopathology", "poorly_differentiated", 1)
    assert content["glands"] == []
    assert 3 <= len(content["mitoses"]) <= 7
    assert all(0 < c < 1 for mitosis in content["mitoses"] for c in mitosis["centre"])


@pytest.mark.parametrize("seed", range(10))
def test_ring_mass_is_dark_inside_and_bright_at_its_rim(seed):
    image, content = draw("mri", "ring_enhancing_mass", seed)
    core = image[disc(content, 224, 0, 0.4)].mean()
    rim = image[disc(content, 224, 0.7, 1.1)].mean()
    assert core < 60 < rim - 40


@pytest.mark.parametrize("seed", range(10))
def test_solid_mass_is_bright_throughout_and_brighter_than_brain(seed):
    image, content = draw("mri", "well_circumscribed_mass", seed)
    solid = image[disc(content, 224, 0, 0.45)]
    assert solid.mean() > 150
    assert solid.std() < 0.12 * solid.mean()


@pytest.mark.parametrize("finding", MASSES)
def test_side_follows_the_radiological_convention_and_both_sides_occur(finding):
    sides = set()
    for seed in range(12):
        _, content = draw("mri", finding, seed, 32)
        x, _ = content["centre"]
        assert content["side"] == ("left" if x > 0.5 else "right")
        assert content["radius"] * 112 * 2 >= 25  # Visible to a small model at 112 px.
        sides.add(content["side"])
    assert sides == {"left", "right"}


def test_normal_brain_is_symmetric_in_brightness_and_has_no_mass():
    for seed in range(5):
        image, content = draw("mri", "normal", seed)
        assert content == {"finding": "normal"}
        left, right = image[:, :112].mean(), image[:, 112:].mean()
        assert abs(left - right) < 0.25 * image.mean()
