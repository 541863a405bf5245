"""Letters and calipers in an image that has none of its own."""

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

from medlib.data import marks


def scan(seed: int = 0, size: int = 256) -> Image.Image:
    field = gaussian_filter(np.random.default_rng(seed).normal(size=(size, size)), (3, 9))
    return Image.fromarray((40 + 120 * (field - field.min()) / np.ptp(field)).astype(np.uint8))


def test_a_scan_has_no_strokes():
    assert [marks.stroke_count(scan(seed)) for seed in range(5)] == [0] * 5


def test_letters_and_crosses_are_suspected():
    written = scan()
    ImageDraw.Draw(written).text((30, 200), "RT 12 UOQ", fill=255)
    assert marks.stroke_count(written) >= marks.SUSPECTED
    measured = scan(1)
    for x, y in ((60, 80), (150, 90), (100, 40), (110, 140)):
        ImageDraw.Draw(measured).line((x - 5, y, x + 5, y), fill=255)
        ImageDraw.Draw(measured).line((x, y - 5, x, y + 5), fill=255)
    assert marks.stroke_count(measured) == 8  # the level arm cuts the upright one in two


def test_sizes_that_are_no_scan():
    assert marks.stroke_count(Image.new("RGB", (5, 300))) == 0
    assert marks.stroke_count(Image.new("L", (3000, 40), 9)) == 0
