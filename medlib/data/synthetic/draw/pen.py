"""What `sketch` draws with: canvas and pen, outlines, and two scanners."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from scipy import ndimage

#: Pixels of a canvas; everything is drawn in these and then reduced.
SIDE = 448
Points = list[tuple[float, float]]


def canvas(grey) -> Image.Image:
    """An even surface: one grey value, or one colour."""
    return Image.new("L" if np.ndim(grey) == 0 else "RGB", (SIDE, SIDE), grey)


def polygon(image: Image.Image, points: Points, fill, soft: float = 0) -> None:
    """Fill an outline, with a blurred edge if asked for."""
    if not soft:
        ImageDraw.Draw(image).polygon(points, fill=fill)
        return
    mask = canvas(0)
    ImageDraw.Draw(mask).polygon(points, fill=255)
    image.paste(fill, (0, 0), mask.filter(ImageFilter.GaussianBlur(soft)))


def oval(x: float, y: float, wide: float, high: float, turn: float = 0) -> Points:
    """Outline of an ellipse."""
    cosine, sine = math.cos(turn), math.sin(turn)
    round_ = [(wide * math.cos(t), high * math.sin(t)) for t in np.linspace(0, 2 * math.pi, 48, endpoint=False)]
    return [(x + a * cosine - b * sine, y + a * sine + b * cosine) for a, b in round_]


def blob(rng: np.random.Generator, x: float, y: float, radius: float, rough: float, stretch: float = 1) -> Points:
    """A closed outline that wavers by so large a share of its radius; ``stretch`` is height over width."""
    turns = np.linspace(0, 2 * math.pi, 40, endpoint=False)
    waver = sum(rng.normal(0, rough / k) * np.cos(k * turns + rng.uniform(0, 6.3)) for k in (2, 3, 4, 6))
    reach = radius * np.maximum(1 + waver, 0.4)
    return [(x + r * math.cos(t), y + stretch * r * math.sin(t)) for t, r in zip(turns, reach)]


def spikes(rng: np.random.Generator, x: float, y: float, core: float) -> Points:
    """Outline of a star with rays of unequal length."""
    turns = np.linspace(0, 2 * math.pi, 2 * int(rng.integers(11, 16)), endpoint=False)
    reach = core * np.where(np.arange(len(turns)) % 2, 0.85, rng.uniform(1.2, 1.9, len(turns)))
    return [(x + r * math.cos(t), y + r * math.sin(t)) for t, r in zip(turns, reach)]


def twig(rng: np.random.Generator, image: Image.Image, x: float, y: float, turn: float, width: float) -> None:
    """A vessel that bends, forks and gets thinner."""
    pen = ImageDraw.Draw(image)
    for _ in range(3):
        end = x + 17 * math.cos(turn), y + 17 * math.sin(turn)
        pen.line([(x, y), end], fill=min(255, int(60 + 32 * width)), width=max(1, round(width)))
        (x, y), turn = end, turn + rng.normal(0, 0.16)
    if width > 1.5:
        for spread in (-0.35, 0.35):
            twig(rng, image, x, y, turn + spread + rng.normal(0, 0.1), 0.6 * width)


def fan(scan: np.ndarray, half_angle: float) -> np.ndarray:
    """Beams side by side as they lie under a curved probe; black outside."""
    down, across = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    apex = 0.45 * SIDE  # above the image
    angle, depth = np.arctan2(across - SIDE / 2, down + apex), np.hypot(across - SIDE / 2, down + apex) - apex
    beam = (angle / half_angle + 1) / 2 * SIDE
    return ndimage.map_coordinates(scan, [depth, beam], order=1, cval=0)


def scanned(rng: np.random.Generator, grey: np.ndarray) -> np.ndarray:
    """A slice as it comes out of k-space: cut off above a frequency, with complex noise."""
    waves = np.fft.fftshift(np.fft.fft2(grey))
    size = len(grey)
    rows, columns = (np.abs(line - size // 2) for line in np.ogrid[:size, :size])
    kept = (rows < 0.36 * size) & (columns < 0.40 * size)
    level = rng.uniform(4, 9) * size
    noise = rng.normal(0, level, (2, size, size))
    return np.abs(np.fft.ifft2(np.fft.ifftshift((waves + noise[0] + 1j * noise[1]) * kept)))


def reduced(grey: np.ndarray, size: int) -> np.ndarray:
    """A canvas of floats (SIDE, SIDE) at (size, size)."""
    return np.asarray(Image.fromarray(np.float32(grey)).resize((size, size), Image.Resampling.BOX))


def uint8(grey: np.ndarray) -> np.ndarray:
    """Grey values or colours of 0 to 255 as bytes."""
    return np.clip(np.rint(grey), 0, 255).astype(np.uint8)
