"""Five ways in which an image gets worse between scanner and auditor, each in five steps.

A view is ``grey`` (nothing is shown) or ``<kind>-<severity>`` such as ``blur-3``. The five kinds and
the five steps follow ImageNet-C (Hendrycks and Dietterich 2019, arXiv:1903.12261). The scales are
our own, for images 112 to 896 pixels wide: step 1 is barely visible, step 5 is what a bad scanner
or a photograph of a screen gives.
"""

from __future__ import annotations

import hashlib
import io

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

SEVERITIES = (1, 2, 3, 4, 5)
GREY = (127, 127, 127)

#: Strength of severities 1 to 5.
SCALES = {
    "noise": (0.02, 0.045, 0.08, 0.13, 0.20),  # standard deviation, share of full range
    "blur": (0.003, 0.006, 0.011, 0.018, 0.027),  # standard deviation, share of the shorter side
    "jpeg": (65, 38, 22, 12, 6),  # quality of Pillow, 1 to 95
    "rotation": (2, 4, 7, 11, 16),  # degrees
    "contrast": (0.85, 0.65, 0.45, 0.28, 0.15),  # what is left of the distance to the mean
}
KINDS = tuple(SCALES)


def views() -> tuple[str, ...]:
    """All 25 corrupted views, kind by kind and mildest first; ``grey`` is not among them."""
    return tuple(f"{kind}-{severity}" for kind in KINDS for severity in SEVERITIES)


def apply(view: str, image: Image.Image, key: str) -> Image.Image:
    """The image in that view.

    Parameters
    ----------
    view : str
        ``grey`` or one of `views`.
    image : PIL.Image.Image
        Mode RGB, any size; left as it is.
    key : str
        Names the image: noise and the sense of rotation are drawn from its hash, the same for
        every severity, so that five steps are one defect that grows.

    Returns
    -------
    PIL.Image.Image
        Mode RGB, same size. Same arguments, same pixels.

    Raises
    ------
    ValueError
        If the view is unknown; lists the known ones.
    """
    if view == "grey":
        return Image.new("RGB", image.size, GREY)
    if view not in views():
        raise ValueError(f"view {view!r} is not one of grey, {', '.join(views())}")
    kind, severity = view.rsplit("-", 1)
    digest = hashlib.sha256(f"{kind} {key}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    return globals()[f"_{kind}"](image.convert("RGB"), SCALES[kind][int(severity) - 1], rng)


def _noise(image: Image.Image, deviation: float, rng: np.random.Generator) -> Image.Image:
    # one field for all three channels: a grey scan stays grey
    noise = rng.standard_normal((image.height, image.width, 1), dtype=np.float32)
    return _from_array(np.asarray(image) + 255 * deviation * noise)


def _blur(image: Image.Image, deviation: float, rng: np.random.Generator) -> Image.Image:
    sigma = deviation * min(image.size)
    return _from_array(gaussian_filter(np.asarray(image, dtype=np.float32), (sigma, sigma, 0)))


def _jpeg(image: Image.Image, quality: int, rng: np.random.Generator) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality)
    return Image.open(buffer, formats=["JPEG"]).convert("RGB")


def _rotation(image: Image.Image, degrees: float, rng: np.random.Generator) -> Image.Image:
    pixels = np.asarray(image)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    # the corners take the usual colour of the border: black ones would mark a rotated slide
    fill = tuple(int(value) for value in np.median(border, axis=0))
    sense = 1 if rng.random() < 0.5 else -1
    return image.rotate(sense * degrees, resample=Image.Resampling.BICUBIC, fillcolor=fill)


def _contrast(image: Image.Image, left: float, rng: np.random.Generator) -> Image.Image:
    pixels = np.asarray(image, dtype=np.float32)
    mean = pixels.mean(axis=(0, 1))  # of each channel: a stain keeps its tint
    return _from_array(mean + left * (pixels - mean))


def _from_array(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
