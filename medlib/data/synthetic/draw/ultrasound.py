"""Synthetic breast ultrasound, B-mode, linear probe.

An echo map in decibels (what the tissue scatters, what lies above it lets through) is multiplied
by speckle, the interference of many scatterers per resolution cell, and log compressed as on a
scanner (Burckhardt 1978, IEEE Trans. Sonics Ultrasonics 25:1).

Coordinates: x (lateral) and z (depth) run from 0 to 1 over the image.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from medlib.data.synthetic.draw.fields import bumps, step

FINDINGS = ("normal", "simple_cyst", "spiculated_mass")


def draw(finding: str, rng: np.random.Generator, size: int = 224) -> tuple[np.ndarray, dict]:
    """Draw one B-mode frame.

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
        What was drawn. ``centre`` is ``[x, z]``; centre and radii are fractions of the image
        width and height.

    Raises
    ------
    ValueError
        If the finding is unknown.
    """
    if finding not in FINDINGS:
        raise ValueError(f"unknown finding {finding!r}, known: {', '.join(FINDINGS)}")
    lesion_rng = rng.spawn(1)[0]  # so that one seed gives one patient, whatever the finding
    axis = np.linspace(0, 1, size, dtype=np.float32)
    x, z = np.meshgrid(axis, axis)
    echo, content = _draw_layers(rng, x, z)
    if finding == "simple_cyst":
        echo, lesion = _draw_cyst(lesion_rng, x, z, echo)
    elif finding == "spiculated_mass":
        echo, lesion = _draw_spiculated_mass(lesion_rng, x, z, echo)
    else:
        lesion = {}
    return _scan(rng, echo, z), {"finding": finding, **content, **lesion}


def _draw_layers(rng, x, z):
    """Echo map in dB of skin, fat, fibroglandular tissue and muscle, and the layers' depths."""
    size = len(z)
    tilt = rng.uniform(-0.06, 0.06) * (x - 0.5)
    wave = 0.018 * bumps(rng, size, 5, 3)
    skin, fat = rng.uniform(0.035, 0.06), rng.uniform(0.18, 0.30)
    muscle = rng.uniform(0.78, 0.88)
    below_skin = step(z - skin - 0.15 * wave, 0.015)
    below_fat = step(z - fat - tilt - 1.6 * wave, 0.04)
    below_gland = step(z - muscle - tilt - 0.8 * wave, 0.02)

    # Septa are the zero crossings of a noise field wider than it is deep: lobules between lines.
    lobules = bumps(rng, size, 7, 12)
    septa = np.exp(-((lobules / 0.12) ** 2))
    fat_echo = -19 + 1.0 * lobules + 9 * septa
    gland_echo = -7 + 2.5 * bumps(rng, size, 10, 16)
    gland_echo += 2.5 * bumps(rng, size, 16, 40)
    muscle_echo = -17 + 4 * bumps(rng, size, 5, 60)
    fascia = 12 * np.exp(-(((z - muscle - tilt - 0.8 * wave) / 0.012) ** 2))

    echo = -2 + below_skin * (fat_echo + 2)
    echo += below_fat * (gland_echo - fat_echo)
    echo += below_gland * (muscle_echo - gland_echo) + fascia
    return echo, {"fat_depth": round(fat, 3), "muscle_depth": round(muscle, 3)}


def _draw_cyst(rng, x, z, echo):
    """A smooth anechoic oval with a thin wall and enhancement behind it."""
    centre_x, centre_z = rng.uniform(0.3, 0.7), rng.uniform(0.36, 0.52)
    radius_x = rng.uniform(0.16, 0.24)
    radius_z = radius_x * rng.uniform(0.75, 1.0)
    across, down = (x - centre_x) / radius_x, (z - centre_z) / radius_z
    distance = np.hypot(across, down)
    inside = step(1 - distance, 0.10)

    # The wall is brightest where the beam meets it head on.
    wall = np.exp(-(((distance - 1.02) / 0.035) ** 2)) * (4 + 8 * np.abs(down))
    behind = step(down - np.sqrt(np.clip(1 - across**2, 0, 1)), 0.1)
    behind *= step(1 - np.abs(across), 0.5)
    fade = np.exp(-np.clip(z - centre_z - radius_z, 0, 1) / 0.5)
    edge_shadow = np.exp(-(((np.abs(across) - 1.04) / 0.07) ** 2)) * step(down, 0.4)
    gain = rng.uniform(8, 12)
    echo = echo + gain * behind * fade - 5 * edge_shadow + wall
    # Faint reverberation of the near wall is allowed in a simple cyst.
    reverberation = rng.uniform(0, 6) * np.exp(-((down + 0.95) / 0.22)) * inside
    echo = echo * (1 - inside) + inside * (-52 + np.minimum(reverberation, 12))
    return echo, {
        "centre": [round(centre_x, 3), round(centre_z, 3)],
        "radius": [round(radius_x, 3), round(radius_z, 3)],
        "posterior_enhancement_db": round(gain, 1),
    }


def _draw_spiculated_mass(rng, x, z, echo):
    """An irregular dark mass with radiating spicules, a bright halo and a shadow behind it."""
    size = len(z)
    centre_x, centre_z = rng.uniform(0.32, 0.68), rng.uniform(0.38, 0.50)
    radius_x = rng.uniform(0.12, 0.165)
    radius_z = radius_x * rng.uniform(0.95, 1.45)
    across, down = (x - centre_x) / radius_x, (z - centre_z) / radius_z
    distance, angle = np.hypot(across, down), np.arctan2(down, across)

    angle += 0.07 * bumps(rng, size, 12, 12)  # bends the spicules

    # One outline in polar form: a few slow lobes, then narrow spikes of unequal length.
    directions = np.linspace(-np.pi, np.pi, 361)
    outline = 1 + sum(
        rng.uniform(0.04, 0.12) * np.cos(k * directions + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 5, 7)
    )
    count = int(rng.integers(12, 19))
    for tip in np.linspace(-np.pi, np.pi, count, endpoint=False):
        offset = np.angle(np.exp(1j * (directions - tip - rng.normal(0, 0.12))))
        length, width = rng.uniform(0.3, 1.2), rng.uniform(0.03, 0.10)
        outline += length * np.exp(-np.abs(offset) / width)
    edge = np.interp(angle, directions, outline).astype(np.float32)
    edge += 0.07 * bumps(rng, size, 36, 36)
    inside = step(edge - distance, 0.3)

    halo = rng.uniform(5, 8) * np.exp(-(((distance - edge - 0.18) / 0.18) ** 2)) * (down < 0.8)
    depth = rng.uniform(14, 20)
    streaks = 1 + 0.15 * bumps(rng, size, 30, 2)
    shadow = depth * streaks * step(0.95 - np.abs(across), 0.5) * step(down - 0.5, 0.9)
    mass_echo = rng.uniform(-31, -27) + 2.0 * bumps(rng, size, 16, 16)
    echo = (echo + halo) * (1 - inside) + inside * mass_echo - shadow * (1 - 0.5 * inside)

    calcifications = int(rng.integers(0, 6))
    for _ in range(calcifications):
        at_x = centre_x + radius_x * rng.uniform(-0.5, 0.5)
        at_z = centre_z + radius_z * rng.uniform(-0.5, 0.5)
        echo += 22 * np.exp(-((x - at_x) ** 2 + (z - at_z) ** 2) / 0.007**2)
    return echo, {
        "centre": [round(centre_x, 3), round(centre_z, 3)],
        "radius": [round(radius_x, 3), round(radius_z, 3)],
        "taller_than_wide": bool(radius_z > radius_x),
        "spicules": count,
        "calcifications": calcifications,
        "posterior_shadow_db": round(depth, 1),
    }


def _scan(rng, echo, z):
    """Turn an echo map in dB into uint8 grey: speckle, depth gain, log compression, blur."""
    size = len(z)
    # The beam is wider than the pulse is long, so speckle grains are wider than deep.
    blur = np.array([rng.uniform(0.6, 0.8), rng.uniform(1.1, 1.6)]) * size / 224
    field = rng.standard_normal((2, size, size), dtype=np.float32)
    power = sum(ndimage.gaussian_filter(part, blur, truncate=2.5) ** 2 for part in field)
    decibel = echo + 10 * np.log10(power / power.mean() + 0.03)
    decibel += rng.uniform(-5, 1) * z + 1.2 * bumps(rng, size, 3, 3)
    dynamic_range, gain = rng.uniform(46, 56), rng.uniform(-2, 4)
    grey = np.clip((decibel + gain + dynamic_range - 8) / dynamic_range, 0, 1)
    grey = ndimage.gaussian_filter(grey, 0.7 * size / 224, truncate=2.5)
    grey += rng.uniform(0.004, 0.015) * rng.standard_normal(grey.shape, dtype=np.float32)
    return (255 * np.clip(grey, 0, 1) ** rng.uniform(1.0, 1.3)).astype(np.uint8)
