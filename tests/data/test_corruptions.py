"""Corruptions: deterministic, graded, and nothing but the pixels changes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from medlib.data import corruptions
from medlib.data.corruptions import KINDS, SEVERITIES
from medlib.data.synthetic.draw import FINDINGS, draw

drawn = st.builds(
    lambda place, seed: (place[0], draw(*place, seed, 112)),
    st.sampled_from([(modality, finding) for modality, names in FINDINGS.items() for finding in names]),
    st.integers(0, 10**6),
)


def change(view, image, key="a.png"):
    """Mean absolute difference from the image, grey levels."""
    shown = np.asarray(corruptions.apply(view, image, key), dtype=float)
    return np.abs(shown - np.asarray(image)).mean()


@settings(max_examples=15, deadline=None)
@given(drawn, st.text(max_size=20))
def test_each_kind_grows_with_severity(modality_and_image, key):
    modality, image = modality_and_image
    for kind in KINDS:
        changes = np.array([change(f"{kind}-{s}", image, key) for s in SEVERITIES])
        if kind == "rotation" and modality == "histopathology":
            changes = changes[:3]  # turned by more than a nucleus, tissue cannot differ any more
        assert (np.diff(changes) > 0).all(), (kind, changes)
        assert changes[0] > 0


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["grey", *corruptions.views()]), st.integers(8, 60), st.integers(8, 60), st.integers(0, 99))
def test_same_pixels_again_and_size_mode_and_input_kept(view, width, height, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    first, second = (corruptions.apply(view, image, "key") for _ in range(2))
    assert first.tobytes() == second.tobytes()
    assert (first.size, first.mode) == (image.size, "RGB")
    assert np.array_equal(np.asarray(image), pixels)


def test_noise_and_rotation_depend_on_the_key():
    image = draw("mri", "normal", 1, 112)
    assert len({corruptions.apply("noise-3", image, str(i)).tobytes() for i in range(8)}) == 8
    assert len({corruptions.apply("rotation-3", image, str(i)).tobytes() for i in range(8)}) == 2
    assert len({corruptions.apply("blur-3", image, str(i)).tobytes() for i in range(8)}) == 1


def test_a_grey_scan_stays_grey_and_a_grey_view_shows_nothing():
    image = draw("xray", "consolidation", 1, 112)
    for view in corruptions.views():
        pixels = np.asarray(corruptions.apply(view, image, "a")).astype(int)
        assert np.ptp(pixels, axis=2).max() <= 1, view
    assert corruptions.apply("grey", image, "a").getcolors() == [(112 * 112, (127, 127, 127))]


def test_blur_is_relative_to_the_size():
    """A large image loses the same share of its contrast as a small one of the same scene."""
    large = draw("ultrasound", "simple_cyst", 4, 448)
    small = large.resize((112, 112), Image.Resampling.BOX)
    left = [np.asarray(corruptions.apply("blur-5", p, "a").convert("L")).std() for p in (large, small)]
    assert left[0] == pytest.approx(left[1], rel=0.05)


@pytest.mark.parametrize("view", ["", "noise", "noise-0", "noise-6", "fog-1", "noise-3-1"])
def test_an_unknown_view_is_refused_with_the_known_ones(view):
    with pytest.raises(ValueError, match=r"one of grey, noise-1, .*contrast-5"):
        corruptions.apply(view, Image.new("RGB", (8, 8)), "a")


def test_there_are_25_views():
    assert len(set(corruptions.views())) == 25
