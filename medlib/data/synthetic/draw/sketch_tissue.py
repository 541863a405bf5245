"""Lung histopathology by the second renderer; see `sketch`."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from medlib.data.synthetic.draw.pen import SIDE, blob, canvas, oval, polygon, uint8


def draw_histopathology(finding: str, rng: np.random.Generator, size: int = 224) -> tuple[np.ndarray, dict]:
    """Lung tissue in violet and pink; uint8 array of shape (size, size, 3), and what was drawn.

    Normal tissue is thin walls around open spaces, an adenocarcinoma forms glands in pink stroma, a poorly
    differentiated carcinoma is a sheet of large, dark, unequal nuclei without any.
    """
    paint = {"normal": _alveoli, "adenocarcinoma": _glands, "poorly_differentiated": _sheet}[finding]
    field = paint(rng).filter(ImageFilter.GaussianBlur(rng.uniform(0.8, 1.4)))
    colours = np.asarray(field.resize((size, size), Image.Resampling.BOX), np.float32)
    cast = rng.normal(1, 0.015, 3) * rng.uniform(0.92, 1)
    return uint8(colours * cast + rng.normal(0, rng.uniform(1.5, 4), (size, size, 1))), {"finding": finding}


def _nucleus(rng: np.random.Generator, field: Image.Image, x: float, y: float, radius: float, turn=0.0, long=1.2):
    """A dark ellipse, ``long`` times as long as it is wide."""
    dark = rng.uniform(0.75, 1.2)
    colour = tuple(int(min(255, dark * c)) for c in (88, 52, 132))
    ImageDraw.Draw(field).polygon(oval(x, y, long * radius, radius, turn), fill=colour)


def _alveoli(rng: np.random.Generator) -> Image.Image:
    """Open spaces, drawn as holes in a pink ground, with a small nucleus here and there on the walls."""
    field, gap = canvas((226, 164, 190)), rng.uniform(74, 92)
    holes = canvas(0)
    for row in range(-1, 8):
        for column in range(-1, 8):
            x, y = (column + 0.5 * (row % 2)) * gap + rng.normal(0, 5), row * 0.87 * gap + rng.normal(0, 5)
            polygon(holes, blob(rng, x, y, 0.47 * gap, 0.06), 255)
    field.paste((244, 238, 244), mask=holes)
    walls = np.argwhere(np.asarray(holes) == 0)
    for y, x in walls[rng.integers(0, len(walls), 170)]:
        _nucleus(rng, field, x, y, rng.uniform(3, 4.2))
    return field


def _stroma(rng: np.random.Generator) -> Image.Image:
    """Pink ground with strokes of fibres and a few spindle nuclei."""
    field, lie = canvas((228, 150, 184)), rng.uniform(0, math.pi)
    pen = ImageDraw.Draw(field)
    for x, y, tone in rng.uniform([0, 0, -22], [SIDE, SIDE, 22], (260, 3)):
        turn = lie + rng.normal(0, 0.15)
        a, b = 34 * math.cos(turn), 34 * math.sin(turn)
        pen.line([x - a, y - b, x + a, y + b], fill=tuple(int(c + tone) for c in (222, 142, 178)), width=3)
    for x, y in rng.uniform(0, SIDE, (50, 2)):
        _nucleus(rng, field, x, y, 2.6, lie, 3)
    return field


def _glands(rng: np.random.Generator) -> Image.Image:
    """Rings of crowded nuclei around pale spaces."""
    field, placed = _stroma(rng), []
    for x, y, r in rng.uniform([0, 0, 46], [SIDE, SIDE, 78], (300, 3)):
        if len(placed) > 9 or any(math.hypot(x - a, y - b) < r + c + 4 for a, b, c in placed):
            continue
        placed.append((x, y, r))
        high = rng.uniform(0.8, 1.2)
        polygon(field, blob(rng, x, y, r, 0.05, high), (196, 136, 190))
        polygon(field, blob(rng, x, y, 0.48 * r, 0.1, high), (240, 228, 240))
        for ring in (0.86, 0.68):
            for turn in np.arange(0, 2 * math.pi, 13 / (ring * r)):
                a, b = ring * r * math.cos(turn), high * ring * r * math.sin(turn)
                _nucleus(rng, field, x + a, y + b, rng.uniform(5.2, 7.4), turn, 1.35)
    return field


def _sheet(rng: np.random.Generator) -> Image.Image:
    """Large unequal nuclei side by side, some of them dividing."""
    field, gap = canvas((206, 158, 200)), rng.uniform(27, 32)
    for x in np.arange(0, SIDE + gap, gap):
        for y in np.arange(0, SIDE + gap, gap):
            a, b = x + rng.normal(0, 5), y + rng.normal(0, 5)
            _nucleus(rng, field, a, b, rng.uniform(6.5, 13), rng.uniform(0, 3.1), rng.uniform(1, 1.4))
    for x, y in rng.uniform(30, SIDE - 30, (5, 2)):  # plates of chromatin in a cleared cell
        polygon(field, oval(x, y, 17, 17), (226, 190, 218))
        polygon(field, oval(x, y, 11, 4, rng.uniform(0, 3.1)), (46, 20, 80))
    return field
