"""A second renderer of every finding, written apart from the first one.

The first one computes fields of tissue and puts them through a model of the scanner. This one draws outlines with
a pen on a canvas of twice the size, as an illustrator would, and shares no code with it: other anatomy, other
field of view, other contrast and other noise. An auditor that knows a finding by its sign should know it here as
well; one that knows the first renderer's textures should not. `medlib.data.synthetic.draw.draw` calls it, with
names that it has checked.

- x-ray: a wider film with shoulders and a collimated border, counts of photons as noise;
- ultrasound: a curved probe with a fan-shaped field, speckle of few scatterers;
- MRI: a smaller head, grey white matter, noise and a cut-off in k-space;
- histopathology (`sketch_tissue`): a lower magnification, a stain more violet, noise of the camera alone.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from scipy import ndimage

from medlib.data.synthetic.draw import sketch_tissue
from medlib.data.synthetic.draw.pen import (
    SIDE,
    blob,
    canvas,
    fan,
    oval,
    polygon,
    reduced,
    scanned,
    spikes,
    twig,
    uint8,
)


def draw_xray(finding: str, rng: np.random.Generator, size: int = 224) -> tuple[np.ndarray, dict]:
    """Chest film; uint8 array of shape (size, size), and what was drawn.

    Airspace disease fills part of one lung, ground glass veils the lower outer parts of both so that vessels stay
    visible, diffuse infiltrates are dots and lines all over both.
    """
    width, top, base = rng.uniform(0.92, 1.04), rng.uniform(92, 108), rng.uniform(322, 350)
    film, lungs = canvas(8), canvas(0)
    polygon(film, [(160, -5), (150, 62), (38, 100), (10, 250), (18, 460), (430, 460), (438, 250), (410, 100),
                    (298, 62), (288, -5)], 158)  # fmt: skip
    for side in (-1, 1):
        edge = [(18, top + 20), (48, top), (92, top + 34), (128, top + 130), (134, base - 8), (96, base - 34),
                (52, base - 26), (24, base - 8), (22, top + 110)]  # fmt: skip
        polygon(lungs, [(224 + side * width * x, y) for x, y in edge], 255, soft=3)
    clear = np.asarray(lungs, np.float32) / 255
    heart = canvas(0)
    polygon(heart, blob(rng, 248, 285, 62, 0.06, stretch=1.25), 255, soft=3)
    vessels = canvas(0)
    for side in (-1, 1):
        for angle in np.linspace(-1.3, 1.3, 9) + rng.normal(0, 0.12, 9):
            twig(rng, vessels, 224 + side * 34, 220, angle if side > 0 else math.pi - angle, 6)
    disease = np.asarray(_lung_disease(finding, rng, width), np.float32) / 255
    air = clear * (1 - np.asarray(heart, np.float32) / 255) * (1 - disease)
    air *= 1 - 0.45 * np.asarray(vessels.filter(ImageFilter.GaussianBlur(1)), np.float32) / 255
    grey = np.asarray(film, np.float32) + 34 * np.asarray(_bones(rng), np.float32) / 255
    grey -= rng.uniform(92, 112) * air
    frame = int(rng.integers(8, 22))  # the collimator
    grey[:, :frame], grey[:, -frame:] = 4, 4
    photons = rng.uniform(90, 200)
    grey = 255 * (reduced(np.clip(grey, 2, 250), size) / 255) ** rng.uniform(0.8, 1.0)
    return uint8(rng.poisson(grey / 255 * photons) / photons * 255), {"finding": finding}


def _lung_disease(finding: str, rng: np.random.Generator, width: float) -> Image.Image:
    """Share of air that is replaced, as grey values; what lies outside the lungs does no harm."""
    layer = canvas(0)
    if finding == "consolidation":
        side, row = rng.choice([-1, 1]), rng.choice([150, 215, 280])
        middle = 224 + side * width * (80 if row < 200 else 88)
        polygon(layer, blob(rng, middle, row, rng.uniform(52, 64), 0.14), int(rng.uniform(215, 245)))
        return layer.filter(ImageFilter.GaussianBlur(6))
    if finding == "ground_glass":
        for side in (-1, 1):
            for row in rng.uniform(200, 310, 4):
                centre = 224 + side * width * rng.uniform(92, 122)
                polygon(layer, blob(rng, centre, row, rng.uniform(38, 52), 0.2), int(rng.uniform(105, 135)))
        return layer.filter(ImageFilter.GaussianBlur(12))
    if finding == "diffuse_infiltrates":
        pen = ImageDraw.Draw(layer)
        for x, y, r in rng.uniform([70, 80, 2.5], [378, 350, 6.5], (900, 3)):
            pen.ellipse([x - r, y - r, x + r, y + r], fill=200)
        for x, y, turn in rng.uniform([70, 80, 0], [378, 350, 6.3], (420, 3)):
            pen.line([x, y, x + 16 * math.cos(turn), y + 16 * math.sin(turn)], fill=170, width=2)
        return layer.filter(ImageFilter.GaussianBlur(1.5))
    return layer


def _bones(rng: np.random.Generator) -> Image.Image:
    """Ribs as arcs, collar bones as lines and a column of vertebrae."""
    layer = canvas(0)
    pen = ImageDraw.Draw(layer)
    step, start = rng.uniform(25, 30), rng.uniform(80, 95)
    for number in range(9):
        y, wide = start + number * step, 80 + 62 * math.sin(min(1.5, 0.35 + 0.2 * number))
        for x in (224 - 8 - wide, 224 + 8):
            pen.arc([x, y - 14, x + wide, y + 46], 180, 360, fill=150, width=6)
    for side in (-1, 1):
        pen.line([(224 + side * 22, 104), (224 + side * 90, 88), (224 + side * 168, 84)], fill=220, width=9)
    for y in range(40, 448, 24):
        pen.rounded_rectangle([208, y, 240, y + 18], 4, fill=140)
    return layer.filter(ImageFilter.GaussianBlur(1.5))


def draw_ultrasound(finding: str, rng: np.random.Generator, size: int = 224) -> tuple[np.ndarray, dict]:
    """Breast, curved probe; uint8 array of shape (size, size), and what was drawn.

    A cyst is round, black and bright behind; a spiculated mass is dark, spiky and throws a shadow.
    """
    scan, fat, muscle = canvas(92), rng.uniform(80, 120), rng.uniform(330, 370)
    pen = ImageDraw.Draw(scan)
    polygon(scan, [(0, fat), *[(x, fat + rng.normal(0, 6)) for x in range(40, 448, 40)], (448, fat), (448, 448),
                    (0, 448)], 150)  # fmt: skip
    pen.rectangle([0, muscle, 448, 448], fill=80)
    pen.line([0, muscle, 448, muscle], fill=225, width=5)
    for y in (*rng.uniform(30, fat, 5), *rng.uniform(muscle + 14, 440, 7)):
        pen.line([0, y, 448, y + rng.uniform(-12, 12)], fill=165, width=3)
    pen.rectangle([0, 0, 448, 16], fill=215)
    x, y = rng.uniform(150, 298), rng.uniform(190, 240)
    gain = np.ones((SIDE, SIDE), np.float32)
    down, across = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    if finding == "simple_cyst":
        wide, high = rng.uniform(60, 82), rng.uniform(46, 60)
        gain += 0.75 * (np.abs(across - x) < 0.85 * wide) * (down > y)
        pen.ellipse([x - wide - 3, y - high - 3, x + wide + 3, y + high + 3], fill=205)
        pen.ellipse([x - wide, y - high, x + wide, y + high], fill=2)
    elif finding == "spiculated_mass":
        core = rng.uniform(40, 54)
        gain -= 0.82 * ndimage.gaussian_filter(((np.abs(across - x) < core) & (down > y + 0.5 * core)) * 1.0, 7)
        star = spikes(rng, x, y, core)
        polygon(scan, [(x + 1.18 * (a - x), y + 1.18 * (b - y)) for a, b in star], 195)
        polygon(scan, star, 38)
    echo = np.asarray(scan.filter(ImageFilter.GaussianBlur(2)), np.float32) * ndimage.gaussian_filter(gain, 4)
    speckle = rng.gamma(2.2, 1 / 2.2, (SIDE // 2, SIDE // 2)).astype(np.float32)
    echo *= 0.35 + 0.65 * np.kron(ndimage.gaussian_filter(speckle, (0.4, 1.1)), np.ones((2, 2), np.float32))
    return uint8(reduced(fan(echo, rng.uniform(0.5, 0.62)), size)), {"finding": finding}


def draw_mri(finding: str, rng: np.random.Generator, size: int = 224) -> tuple[np.ndarray, dict]:
    """Axial head after contrast; uint8 array of shape (size, size), and what was drawn.

    A glioblastoma is a bright ring around a dark middle within the brain, with dark oedema; a meningioma is an
    evenly bright lump that sits on the skull with its broad side.
    """
    x, y = rng.uniform(216, 232, 2)
    wide, high = rng.uniform(126, 140), rng.uniform(158, 174)
    head = canvas(0)
    for shrink, grey in ((0, 175), (11, 22), (22, 118)):
        polygon(head, oval(x, y, wide - shrink, high - shrink), grey)
    pen, inside = ImageDraw.Draw(head), (wide - 22, high - 22)
    for turn in np.linspace(0, 2 * math.pi, 46, endpoint=False) + rng.normal(0, 0.03, 46):
        reach = rng.uniform(0.72, 0.88)
        folds = ((1, turn), ((1 + reach) / 2, turn + rng.normal(0, 0.05)), (reach, turn))
        rim = [(x + k * inside[0] * math.cos(t), y + k * inside[1] * math.sin(t)) for k, t in folds]
        pen.line(rim, fill=52, width=int(rng.integers(4, 7)), joint="curve")
    pen.line([x, y - inside[1], x, y + inside[1]], fill=70, width=4)
    for side in (-1, 1):
        horn = [(8, -62), (30, -70), (22, -20), (26, 30), (48, 64), (26, 58), (8, 8)]
        polygon(head, [(x + side * a, y + b) for a, b in horn], 34)
        polygon(head, blob(rng, x + side * 44, y - 8, 15, 0.1, stretch=0.7), 92)
    side = rng.choice([-1, 1])
    if finding == "ring_enhancing_mass":
        a, b, r = x + side * rng.uniform(50, 62), y + rng.uniform(-55, 55), rng.uniform(30, 38)
        polygon(head, blob(rng, a, b, 1.5 * r, 0.2), 66, soft=5)
        polygon(head, blob(rng, a, b, r, 0.13), 238)
        polygon(head, blob(rng, a, b, 0.66 * r, 0.16), 24)
    elif finding == "well_circumscribed_mass":
        turn, r = rng.uniform(-1, 1), rng.uniform(36, 46)
        a, b = (c + s * (i - 0.55 * r) for c, s, i in zip((x, y), (side * math.cos(turn), math.sin(turn)), inside))
        skull, outside = head.copy(), canvas(255)
        polygon(outside, oval(x, y, *inside), 0)
        polygon(head, blob(rng, a, b, r + 5, 0.03), 60, soft=2)
        polygon(head, blob(rng, a, b, r, 0.03), 212)
        head.paste(skull, mask=outside)
    grey = np.asarray(head.filter(ImageFilter.GaussianBlur(1.6)), np.float32)
    grey *= np.linspace(rng.uniform(0.86, 1), rng.uniform(0.86, 1), SIDE, dtype=np.float32)[:, None]
    return uint8(scanned(rng, reduced(grey, size))), {"finding": finding}


DRAW = {
    "xray": draw_xray,
    "ultrasound": draw_ultrasound,
    "histopathology": sketch_tissue.draw_histopathology,
    "mri": draw_mri,
}
