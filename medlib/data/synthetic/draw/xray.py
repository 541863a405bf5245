"""Synthetic frontal chest radiographs.

The film is built the way it is exposed: tissue attenuates, air in the lungs does not, and a lung
opacity is air replaced by fluid. An opacity therefore hides the vessels and borders it touches
(the silhouette sign) without any extra code.

Coordinates: x and y run from -1 to 1 over the image, y downwards, x > 0 is the patient's left.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from medlib.data.synthetic.draw.fields import bumps, step

FINDINGS = ("normal", "consolidation", "ground_glass", "diffuse_infiltrates")
ZONE_HEIGHT = {"upper": -0.38, "middle": -0.05, "lower": 0.24}  # y of the zone's centre


def draw(finding: str, rng: np.random.Generator, size: int = 224) -> tuple[np.ndarray, dict]:
    """Draw one chest film.

    Parameters
    ----------
    finding : str
        One of ``FINDINGS``.
    rng : np.random.Generator
    size : int
        Width and height in pixels.

    Returns
    -------
    image : np.ndarray
        uint8, shape ``(size, size)``.
    content : dict
        What was drawn. ``centre`` is ``[x, y]``, as fractions of the image width and height.

    Raises
    ------
    ValueError
        If the finding is unknown.
    """
    if finding not in FINDINGS:
        raise ValueError(f"unknown finding {finding!r}, known: {', '.join(FINDINGS)}")
    lesion_rng = rng.spawn(1)[0]  # so that one seed gives one patient, whatever the finding
    x, y = _body_coordinates(rng, size)
    lung = _draw_lungs(rng, x, y)
    tissue = _draw_soft_tissue(rng, x, y)
    bone = _draw_bones(rng, x, y)
    vessels = _draw_vessels(rng, x, y)

    opacity, content = _draw_opacity(finding, lesion_rng, x, y, lung)
    air = lung * (1 - opacity) * (1 - vessels)
    attenuation = tissue * (1 - rng.uniform(0.66, 0.78) * air) + bone
    return _expose(rng, attenuation), {"finding": finding, **content}


def _body_coordinates(rng, size):
    """Pixel grids x, y, shape (size, size), for a patient slightly turned, shifted and scaled."""
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    angle = rng.uniform(-0.06, 0.06)  # radians
    zoom = rng.uniform(0.96, 1.08)
    x = (axis[None, :] - rng.uniform(-0.06, 0.06)) * zoom
    y = (axis[:, None] - rng.uniform(-0.06, 0.06)) * zoom
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return cos * x + sin * y, cos * y - sin * x


def _draw_lungs(rng, x, y):
    """Share of air along each ray, 0 to 1: two fields with domed bases and rounded apices."""
    half_width = rng.uniform(0.78, 0.88)
    apex, base = rng.uniform(-0.88, -0.80), rng.uniform(0.52, 0.68)
    down = np.clip((y - apex) / (base - apex), 0, 1.2)  # 0 at the apex, 1 at the base
    outer = half_width * np.sin(np.minimum(1.5 * down, 1.5)) ** 0.38
    depth = np.abs(x)

    # The heart bulges into the left lung; the right border is nearly straight.
    heart = _bump(y, rng.uniform(0.26, 0.36), 0.27)
    hilum = 0.13 + 0.05 * _bump(y, -0.02, 0.25)
    left = hilum + rng.uniform(0.24, 0.34) * heart + 0.06 * _bump(y, -0.32, 0.09)  # aortic knob
    right = hilum + rng.uniform(0.08, 0.13) * heart
    inner = np.where(x > 0, left, right)

    # The liver lifts the right dome; both fall off steeply at the costophrenic angles.
    dome = base - 0.10 + 0.17 * ((depth - 0.42) / 0.44) ** 2
    dome += np.where(x > 0, rng.uniform(0.02, 0.08), 0)
    return step(depth - inner, 0.05) * step(outer - depth, 0.06) * step(dome - y, 0.04)


def _draw_soft_tissue(rng, x, y):
    """Attenuation of everything soft, 0 outside the body to about 1 in the middle."""
    contour_y = [-1.2, -0.94, -0.80, -0.60, 0.0, 1.2]
    contour_x = np.array([0.30, 0.38, 0.90, 1.04, 1.02, 1.0]) * rng.uniform(0.96, 1.12)
    edge = np.interp(y, contour_y, contour_x).astype(np.float32) - np.abs(x)
    body = step(edge, 0.14)

    tissue = 0.74 + 0.05 * y + 0.14 * _bump(x, 0, 0.20)
    tissue += 0.08 * _ellipse(x, y, 0.14, 0.30, 0.36, 0.32, soft=0.6)  # heart
    tissue += 0.10 * step(y - 0.5, 0.3)  # abdomen
    tissue -= 0.13 * _bump(x, 0.01, 0.05) * step(-0.30 - y, 0.12)  # trachea
    if rng.random() < 0.5:  # breast shadows
        density, height = rng.uniform(0.05, 0.11), rng.uniform(0.26, 0.42)
        tissue += density * _ellipse(np.abs(x), y, 0.54, height, 0.38, 0.30, soft=0.35)
    if rng.random() < 0.6:  # gas in the stomach, below the left dome
        tissue -= 0.20 * _ellipse(x, y, rng.uniform(0.3, 0.5), 0.80, 0.16, 0.09, soft=0.6)
    return tissue * body


def _draw_bones(rng, x, y):
    """Attenuation of ribs, clavicles and spine."""
    depth = np.abs(x)
    spacing, phase = rng.uniform(0.155, 0.185), rng.uniform()
    cage = step(0.92 - depth, 0.1) * step(depth - 0.10, 0.06) * step(y + 0.86, 0.1)
    cage *= step(0.72 - y, 0.35)
    # Ribs of one side are parallel curves, so one periodic profile draws all of them.
    posterior = _stripes((y + 0.34 * depth - 0.62 * depth**2) / spacing + phase, 0.36)
    anterior = _stripes((y - 0.62 * depth) / (1.25 * spacing) + phase, 0.36)
    anterior *= step(depth - 0.35, 0.25) * step(y + 0.65, 0.15)
    bone = rng.uniform(0.08, 0.12) * cage * posterior + rng.uniform(0.03, 0.06) * cage * anterior
    bone += _bump(x, 0, 0.09) * (0.05 + 0.025 * _stripes(y / 0.15 + phase, 0.7))  # vertebrae

    along = (depth - 0.10) / 0.66  # 0 at the sternal end of the clavicle
    middle = rng.uniform(-0.66, -0.58) - 0.17 * along + 0.05 * np.sin(5 * along)
    clavicle = step(0.038 - np.abs(y - middle), 0.03) * step(along, 0.08) * step(1 - along, 0.1)
    return bone + rng.uniform(0.08, 0.13) * clavicle


def _draw_vessels(rng, x, y):
    """Pulmonary vessels branching from both hila, as share of air displaced, 0 to 0.8."""
    size = len(y)
    canvas = Image.new("L", (size, size))
    pen = ImageDraw.Draw(canvas)
    for side in (-1, 1):
        for direction in np.linspace(-1.4, 1.4, 8) + rng.normal(0, 0.15, 8):
            start = _pixel_at(x, y, side * 0.19, -0.04 + 0.09 * direction)
            angle = direction if side > 0 else math.pi - direction
            _draw_branch(rng, pen, start, angle, size * rng.uniform(0.07, 0.12), 3.0 * size / 224)
    tree = ndimage.gaussian_filter(np.float32(canvas) / 255, 0.9 * size / 224, truncate=2.5)
    tree += 0.5 * _ellipse(np.abs(x), y, 0.19, -0.04, 0.12, 0.22, soft=1.2)  # the hila
    return np.minimum(tree * rng.uniform(0.45, 0.70), 0.8)


def _draw_branch(rng, pen, start, angle, length, width):
    """Draw a tube from pixel `start` and its two daughters, until it is thinner than a pixel."""
    if width < 0.7:
        return
    end = start[0] + length * math.cos(angle), start[1] + length * math.sin(angle)
    pen.line([start, end], fill=min(255, int(70 + 55 * width)), width=max(1, round(width)))
    for spread in (-0.3, 0.3):
        turn = spread + rng.uniform(-0.3, 0.3)
        _draw_branch(rng, pen, end, angle + turn, length * rng.uniform(0.7, 1.0), width * 0.66)


def _draw_opacity(finding, rng, x, y, lung):
    """Share of lung air replaced, 0 to 1, shape of x, and what was drawn."""
    if finding == "consolidation":
        return _draw_consolidation(rng, x, y, lung)
    if finding == "ground_glass":
        return _draw_ground_glass(rng, x, y)
    if finding == "diffuse_infiltrates":
        return _draw_diffuse_infiltrates(rng, x, y)
    return np.zeros_like(x), {}


def _draw_consolidation(rng, x, y, lung):
    """One dense opacity in one zone of one lung, at times with air bronchograms."""
    side = rng.choice(["right", "left"])
    zone = rng.choice(list(ZONE_HEIGHT))
    sign = 1 if side == "left" else -1
    # Below, the heart leaves less lung on the left, so the centre moves outwards.
    centre_x = sign * (rng.uniform(0.38, 0.50) + (0.10 if (side, zone) == ("left", "lower") else 0))
    centre_y = ZONE_HEIGHT[zone] + rng.uniform(-0.06, 0.06)
    radius_x, radius_y = rng.uniform(0.32, 0.40), rng.uniform(0.30, 0.38)
    distance = np.hypot((x - centre_x) / radius_x, (y - centre_y) / radius_y)
    distance += 0.16 * bumps(rng, len(y), 9) + 0.07 * bumps(rng, len(y), 24)
    opacity = rng.uniform(0.85, 0.97) * step(1.05 - distance, 0.45)
    opacity *= 1 - 0.06 * bumps(rng, len(y), 30)

    fissure = bool(rng.random() < 0.4) and zone == "upper"
    if fissure:  # the lobe ends at a fissure: one straight, sharp border
        opacity *= step(centre_y + 0.4 * radius_y + 0.1 * (np.abs(x) - 0.4) - y, 0.03)
    bronchograms = bool(rng.random() < 0.5)
    if bronchograms:
        size = len(y)
        canvas = Image.new("L", (size, size))
        start = _pixel_at(x, y, centre_x - sign * 0.6 * radius_x, centre_y)
        for angle in rng.uniform(-0.7, 0.7, 3):
            angle = angle if sign > 0 else math.pi - angle
            _draw_branch(rng, ImageDraw.Draw(canvas), start, angle, size * 0.06, 2.6 * size / 224)
        tubes = ndimage.gaussian_filter(np.float32(canvas) / 255, 0.8 * size / 224, truncate=2.5)
        opacity *= 1 - 0.5 * tubes
    opacity = np.clip(opacity, 0, 1)

    middle_y, middle_x = ndimage.center_of_mass(opacity * lung)
    return opacity, {
        "side": str(side),
        "zone": str(zone),
        "centre": [round(float(middle_x) / len(y), 3), round(float(middle_y) / len(y), 3)],
        "radius": round(float(np.sqrt(radius_x * radius_y)) / 2, 3),
        "air_bronchograms": bronchograms,
        "fissure": fissure,
    }


def _draw_ground_glass(rng, x, y):
    """Hazy patches in the periphery and bases of both lungs, thin enough to see vessels through."""
    haze = np.zeros_like(x)
    patches = {}
    warp = 0.18 * bumps(rng, len(y), 8)
    for side, sign in (("right", -1), ("left", 1)):
        count = int(rng.integers(2, 5))
        for height in np.linspace(0.30, -0.18, count).tolist():
            height += rng.uniform(-0.08, 0.08)
            radius = rng.uniform(0.26, 0.34)
            centre = sign * rng.uniform(0.52, 0.64)
            patch = step(1.1 - np.hypot((x - centre) / radius, (y - height) / radius) + warp, 0.8)
            haze = np.maximum(haze, patch * rng.uniform(0.85, 1.0))
        patches[side] = count
    density = rng.uniform(0.48, 0.58)
    texture = 1 + 0.06 * bumps(rng, len(y), 40)
    return density * haze * texture, {"patches": patches, "density": round(density, 2)}


def _draw_diffuse_infiltrates(rng, x, y):
    """Coarse fluffy nodules and a net of lines in every zone of both lungs."""
    size = len(y)
    canvas = Image.new("L", (size, size))
    pen = ImageDraw.Draw(canvas)
    count = int(rng.integers(330, 450))  # over the whole image, about half fall on lung
    for column, row, radius in rng.uniform([0, 0, 0.009], [1, 1, 0.026], (count, 3)) * size:
        pen.ellipse([column - radius, row - radius, column + radius, row + radius], fill=255)
    nodules = ndimage.gaussian_filter(np.float32(canvas) / 255, 1.8 * size / 224, truncate=2.5)
    nodules *= 0.95 + 0.2 * bumps(rng, size, 50) + 0.2 * bumps(rng, size, 20)

    # The zero crossings of a noise field form a net.
    field = bumps(rng, size, 26) + 0.5 * bumps(rng, size, 60)
    net = _bump(field, 0, 0.3)
    reticular = rng.uniform(0.3, 0.6)  # strength of the lines relative to the nodules
    density = rng.uniform(0.75, 0.95)
    opacity = density * np.maximum(nodules, reticular * net) + 0.10
    return np.clip(opacity, 0, 0.9), {
        "nodules": count,
        "density": round(density, 2),
        "reticular": round(reticular, 2),
    }


def _expose(rng, attenuation):
    """Turn attenuation into uint8 grey: blur, scatter, quantum noise, gamma and window."""
    size = len(attenuation)
    film = ndimage.gaussian_filter(attenuation, 0.7 * size / 224, truncate=2.5)
    film += 0.012 * bumps(rng, size, 5)
    film += rng.uniform(0.008, 0.02) * rng.standard_normal(film.shape, dtype=np.float32)
    low, high = rng.uniform(-0.03, 0.05), rng.uniform(1.04, 1.22)
    grey = np.clip((film - low) / (high - low), 0, 1) ** rng.uniform(0.9, 1.25)
    return (255 * grey).astype(np.uint8)


def _stripes(position, share):
    """Soft bands of period 1, each covering about `share` of the period."""
    return step(np.cos(2 * np.pi * position) - np.cos(np.pi * share), 0.5)


def _ellipse(x, y, centre_x, centre_y, radius_x, radius_y, soft):
    """Filled ellipse, 1 inside and 0 outside, with an edge `soft` radii wide."""
    distance = np.hypot((x - centre_x) / radius_x, (y - centre_y) / radius_y)
    return step(1 - distance, soft)


def _bump(position, middle, width):
    """Gaussian bump of height 1."""
    return np.exp(-(((position - middle) / width) ** 2))


def _pixel_at(x, y, at_x, at_y):
    """Pixel (column, row) at a point of the body; the grids are affine, so two slopes do."""
    slopes = [[g[0, 1] - g[0, 0], g[1, 0] - g[0, 0]] for g in (x, y)]
    return tuple(np.linalg.solve(slopes, [at_x - x[0, 0], at_y - y[0, 0]]))
