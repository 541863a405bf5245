"""Synthetic axial brain MRI with the look of a T1-weighted image after gadolinium contrast.

The head is drawn in its own coordinates, one unit being half the image width: ``right`` and
``down`` from the middle of the head, with the forehead up.  By radiological convention the
patient's right is at the left of the image.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image
from scipy import ndimage

from medlib.data.synthetic.draw.fields import smooth_noise, soft_step

FINDINGS: tuple[str, ...] = ("normal", "ring_enhancing_mass", "well_circumscribed_mass")

# Signal of each tissue on T1 after contrast, as a share of the brightest.
SIGNAL = {
    "air": 0.0,
    "scalp_fat": 0.72,
    "bone": 0.07,
    "marrow": 0.22,
    "fluid": 0.10,
    "grey_matter": 0.36,
    "white_matter": 0.54,
    "edema": 0.25,
    "necrosis": 0.10,
    "enhancement": 0.95,
}


def draw(finding: str, rng: np.random.Generator, size: int = 224) -> tuple[np.ndarray, dict]:
    """Draw one axial slice at the level of the lateral ventricles.

    Parameters
    ----------
    finding : str
        One of ``FINDINGS``.
    rng : numpy.random.Generator
        Source of every random choice: the same state gives the same slice.
    size : int, default 224
        Width and height in pixels.

    Returns
    -------
    image : numpy.ndarray of uint8, shape (size, size)
        Grey values, 0 is air.
    content : dict
        What was drawn, JSON-able: for a mass ``centre`` as ``[x, y]`` and ``radius``, fractions of
        the image width, the patient's ``side`` and the ``half`` of the head it lies in.

    Raises
    ------
    ValueError
        If `finding` is not one of ``FINDINGS``.
    """
    if finding not in FINDINGS:
        raise ValueError(f"mri: unknown finding {finding!r}, known: {FINDINGS}")
    head = {
        "tilt": rng.normal(0, np.deg2rad(4)),
        "row": rng.normal(0, 0.03),
        "column": rng.normal(0, 0.03),
        "half_width": rng.uniform(0.70, 0.76),
        "half_length": rng.uniform(0.86, 0.92),
    }
    right, down = head_coordinates(size, head)
    depth = depth_below_scalp(right, down, head)
    skull = rng.uniform(0.105, 0.13)  # Thickness of scalp and bone together.
    brain = soft_step(depth - skull, 0.012)

    mass = None if finding == "normal" else place_mass(finding, rng, head, skull)
    anatomy_right, anatomy_down = (right, down) if mass is None else push_away(right, down, mass, brain)
    signal, white_matter = draw_brain(rng, anatomy_right, anatomy_down, depth - skull, head)
    if finding == "ring_enhancing_mass":
        signal = add_ring(signal, rng, right, down, mass, white_matter)
    elif finding == "well_circumscribed_mass":
        signal = add_meningioma(signal, rng, right, down, mass, depth - skull)
    signal = add_skull(signal, rng, depth, skull, brain)

    content = {} if mass is None else describe(mass, head)
    return acquire(signal, rng), {"finding": finding, **content}


# ------------------------------------------------------------------------------- the healthy head


def draw_brain(rng, right, down, depth, head):
    """Signal inside the skull and a 0 to 1 map of the white matter, each (size, size)."""
    size = len(depth)
    # Folds: gyri of alternate sign side by side around the brain; a sulcus runs inwards along each
    # line where the sign changes, with cortex on both its walls.
    gyri = 2 * int(rng.integers(12, 16))
    height = rng.uniform(0.5, 1.5, (4, gyri)) * np.where(np.arange(gyri) % 2, 1, -1)
    height *= np.where(rng.random(gyri) < 0.12, -1, 1)
    fine = ndimage.zoom(height.astype(np.float32), 8, grid_mode=True, mode="grid-wrap")
    direction = np.arctan2(down, right) + 0.09 * smooth_noise(rng, size, 12)
    place = np.stack([depth / 0.10, direction * np.float32(gyri / (2 * np.pi))])
    folds = np.abs(ndimage.map_coordinates(fine, 8 * place, order=1, mode="grid-wrap"))
    near_surface = np.clip(1 - depth / rng.uniform(0.19, 0.24), 0, 1)
    sulcus = soft_step(rng.uniform(0.12, 0.28) * np.sqrt(near_surface) - folds, 0.16)
    sulcus *= near_surface > 0
    cortex = soft_step(0.75 * np.sqrt(near_surface) - folds, 0.25) * (near_surface > 0)
    cortex = np.maximum(cortex, soft_step(0.045 - depth, 0.02))

    # Interhemispheric fissure, in front of and behind the corpus callosum, lined by cortex.
    bend = 0.012 * np.sin(9 * down + rng.uniform(0, 6))
    from_midline = np.abs(right + bend)
    outside_callosum = soft_step(np.abs(down + 0.02) - 0.36, 0.03)
    fissure = soft_step(0.013 - from_midline, 0.012) * outside_callosum
    cortex = np.maximum(cortex, soft_step(0.055 - from_midline, 0.02) * outside_callosum)

    # Deep grey matter: caudate, lentiform nucleus, thalamus and insula of each side.
    deep = paired_ellipses(right, down, (
        (0.115, -0.20, 0.045, 0.10, 0.1), (0.27, -0.06, 0.065, 0.15, -0.25),
        (0.10, 0.10, 0.075, 0.12, 0.35), (0.42, -0.04, 0.03, 0.17, -0.1),
    ))  # fmt: skip
    grey = np.maximum(cortex, 0.8 * deep)

    signal = SIGNAL["white_matter"] + grey * (SIGNAL["grey_matter"] - SIGNAL["white_matter"])
    signal += 0.012 * smooth_noise(rng, size, 28)

    # Lateral ventricles: frontal horns, bodies, atria; and the slit of the third ventricle.
    wide = rng.uniform(0.8, 1.35)
    ventricles = paired_ellipses(right, down, (
        (0.085, -0.24, 0.035 * wide, 0.13, -0.35), (0.075, -0.10, 0.022 * wide, 0.10, 0.15),
        (0.185, 0.27, 0.045 * wide, 0.15, 0.35), (0.0, 0.06, 0.012 * wide, 0.10, 0.0),
    ))  # fmt: skip
    fluid = np.maximum(np.maximum(sulcus, fissure), ventricles)
    signal += fluid * (SIGNAL["fluid"] - signal)

    # Contrast brightens the choroid plexus, the falx and the veins, in healthy heads too.
    falx = 0.45 * soft_step(0.006 - from_midline, 0.008) * outside_callosum
    vessels = [(0.19, 0.25, 0.014, 0.04, 0.35), (0.0, head["half_length"] - 0.155, 0.04, 0.03, 0.0)]
    for _ in range(int(rng.integers(1, 4))):
        angle, reach = rng.uniform(-1.2, 1.2), rng.uniform(0.78, 0.82)
        across = reach * head["half_width"] * math.cos(angle)
        along = reach * head["half_length"] * math.sin(angle)
        vessels.append((across, along, 0.012, 0.014, 0.0))
    for bright in (falx, 0.8 * paired_ellipses(right, down, vessels)):
        signal += bright * (SIGNAL["enhancement"] - signal)
    return signal, np.clip(1 - grey - fluid, 0, 1)


def add_skull(signal, rng, depth, skull, brain):
    """Put the scalp, the two tables of bone with marrow between them, and the dura around it."""
    size = len(depth)
    scalp = skull * rng.uniform(0.36, 0.46)
    marrow = soft_step(0.25 * skull - np.abs(depth - 0.70 * skull), 0.012)
    shell = SIGNAL["bone"] + marrow * (SIGNAL["marrow"] - SIGNAL["bone"])
    fat = soft_step(scalp - depth, 0.01) * (1 + 0.10 * smooth_noise(rng, size, 10))
    shell += fat * (SIGNAL["scalp_fat"] - shell)
    shell *= soft_step(depth, 0.01)
    dura = 0.35 * soft_step(0.006 - np.abs(depth - skull - 0.004), 0.008)
    signal = shell + brain * (signal - shell)
    return signal + dura * (0.8 - signal)


# --------------------------------------------------------------------------------------- the masses


def place_mass(finding, rng, head, skull):
    """Centre and radius of the mass in head coordinates: inside a hemisphere, or on its dura."""
    side = rng.choice([-1.0, 1.0])
    if finding == "ring_enhancing_mass":
        radius = rng.uniform(0.225, 0.27)
        right, down = side * rng.uniform(0.25, 0.30), rng.uniform(-0.36, 0.36)
    else:
        radius = rng.uniform(0.24, 0.30)
        angle = rng.uniform(-1.1, 1.1)  # From the patient's ear towards forehead or occiput.
        below_dura = 0.55 * radius + skull
        right = side * (head["half_width"] - below_dura) * np.cos(angle)
        down = (head["half_length"] - below_dura) * np.sin(angle)
    return {"right": float(right), "down": float(down), "radius": float(radius)}


def push_away(right, down, mass, brain):
    """Coordinates of the anatomy before the mass displaced it (mass effect, midline shift)."""
    across, along = right - mass["right"], down - mass["down"]
    distance = np.hypot(across, along) + 1e-3
    push = 0.32 * mass["radius"] * np.exp(-((distance / (2.0 * mass["radius"])) ** 2)) * brain
    return right - push * across / distance, down - push * along / distance


def add_ring(signal, rng, right, down, mass, white_matter):
    """Irregular enhancing ring around a necrotic core, with edema along the white matter."""
    size = len(signal)
    across, along = right - mass["right"], down - mass["down"]
    warp = 0.03 * smooth_noise(rng, size, 7) + 0.022 * smooth_noise(rng, size, 16)
    distance = np.hypot(across, along) + warp

    # Edema spreads in fingers along the white matter and spares the cortex.
    fingers = 0.06 * smooth_noise(rng, size, 9)
    edema = soft_step(rng.uniform(1.4, 1.7) * mass["radius"] + fingers - distance, 0.05)
    signal = signal + edema * white_matter * (SIGNAL["edema"] - signal)

    thickness = rng.uniform(0.055, 0.075) * (1 + 0.3 * smooth_noise(rng, size, 10))
    inside = mass["radius"] - distance
    core = SIGNAL["necrosis"] + 0.03 * smooth_noise(rng, size, 14)
    rim = SIGNAL["enhancement"] * (1 + 0.06 * smooth_noise(rng, size, 14))
    ring = rim + soft_step(inside - np.maximum(thickness, 0.035), 0.018) * (core - rim)
    return signal + soft_step(inside, 0.015) * (ring - signal)


def add_meningioma(signal, rng, right, down, mass, depth):
    """Solid homogeneous mass on the dura, with a fluid cleft to the brain and a dural tail."""
    size = len(signal)
    across, along = right - mass["right"], down - mass["down"]
    squeeze = rng.uniform(0.92, 1.08)
    distance = np.hypot(across * squeeze, along / squeeze)
    inside = mass["radius"] - distance + 0.012 * smooth_noise(rng, size, 5)
    edema = 0.5 * soft_step(inside + rng.uniform(0.03, 0.08), 0.05)
    cleft = 0.8 * soft_step(inside + 0.025, 0.012)
    signal = signal + edema * (SIGNAL["grey_matter"] - signal)
    signal = signal + cleft * (SIGNAL["fluid"] - signal)

    # The tail thins out along the dura beyond both shoulders of the mass.
    beyond = np.clip(1 - (distance - mass["radius"]) / (0.55 * mass["radius"]), 0, 1)
    tail = soft_step(0.035 * beyond - np.abs(depth - 0.01), 0.01) * (beyond > 0)
    solid = rng.uniform(0.80, 0.92) * (1 + 0.025 * smooth_noise(rng, size, 28))
    mask = np.maximum(soft_step(inside, 0.012), tail)
    return signal + mask * (solid - signal)


# ------------------------------------------------------------------------------------ shared parts


def head_coordinates(size, head):
    """Coordinates `right` and `down` from the middle of the head, each (size, size)."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) * 2 / size - 1
    down, right = np.meshgrid(axis - head["row"], axis - head["column"], indexing="ij")
    cosine, sine = np.float32(np.cos(head["tilt"])), np.float32(np.sin(head["tilt"]))
    return right * cosine + down * sine, down * cosine - right * sine


def describe(mass, head):
    """Centre and radius as fractions of the image width, and the place in the patient's terms."""
    cosine, sine = math.cos(head["tilt"]), math.sin(head["tilt"])
    x = mass["right"] * cosine - mass["down"] * sine + head["column"]
    y = mass["right"] * sine + mass["down"] * cosine + head["row"]
    return {
        "centre": [round((x + 1) / 2, 3), round((y + 1) / 2, 3)],
        "radius": round(mass["radius"] / 2, 3),
        "side": "left" if mass["right"] > 0 else "right",
        "half": "posterior" if mass["down"] > 0 else "anterior",
    }


def depth_below_scalp(right, down, head):
    """Distance inside the outline of the head, negative outside, in units of half the image."""
    # The occiput is broader than the forehead.
    half_width = head["half_width"] * (1 + 0.06 * down)
    relative = np.sqrt((right / half_width) ** 2 + (down / head["half_length"]) ** 2)
    slope = np.hypot(right / half_width**2, down / head["half_length"] ** 2)
    return (1 - relative) * np.maximum(relative, 1e-3) / np.maximum(slope, 1e-3)


def paired_ellipses(right, down, places):
    """Soft mask, shape (size, size), of ellipses that mirror each other across the midline.

    Each place is (across, along, half_width, half_length, turn): the centre right of the midline
    and below the middle of the head, the half axes, and the turn in radians.
    """
    # Drawn at half resolution: these outlines are softer than a pixel anyway.
    mirrored, down = np.abs(right[::2, ::2]), down[::2, ::2]
    mask = np.zeros_like(mirrored)
    for across, along, half_width, half_length, turn in places:
        x, y = mirrored - across, down - along
        cosine, sine = math.cos(turn), math.sin(turn)
        u = x * (cosine / half_width) + y * (sine / half_width)
        v = y * (cosine / half_length) - x * (sine / half_length)
        # Near the outline 1 - r^2 is twice the distance 1 - r, and cheaper.
        inside = soft_step(1 - u * u - v * v, 0.024 / min(half_width, half_length))
        mask = np.maximum(mask, inside)
    size = (right.shape[1], right.shape[0])
    return np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.BILINEAR))


def acquire(signal, rng):
    """Scan the slice: coil shading, Rician noise, display window."""
    size = len(signal)
    shading = 1 + 0.06 * smooth_noise(rng, size, 3)
    noise = rng.uniform(0.010, 0.030)
    real, imaginary = noise * rng.standard_normal((2, size, size), dtype=np.float32)
    magnitude = np.hypot(np.maximum(signal, 0) * shading + real, imaginary)
    display = rng.uniform(0.88, 1.08) * magnitude ** np.float32(rng.uniform(0.88, 1.12))
    return (255 * np.clip(display, 0, 1)).astype(np.uint8)
