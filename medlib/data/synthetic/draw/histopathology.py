"""Synthetic lung histopathology: haematoxylin and eosin (H&E) fields at about 20x.

The tissue is drawn as two stain density maps, one for haematoxylin (nuclei, blue to purple) and
one for eosin (cytoplasm, stroma, pink), which the Beer-Lambert law then turns into colours, as a
microscope does.  Lengths in this module are pixels of a 224 px field times ``scale``.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

from medlib.data.synthetic.draw.fields import smooth_noise, soft_step, zoom

FINDINGS: tuple[str, ...] = ("normal", "adenocarcinoma", "poorly_differentiated")

# Optical density of haematoxylin and eosin in red, green, blue: the reference stain matrix of
# Macenko et al., "A method for normalizing histology slides for quantitative analysis", ISBI 2009.
STAIN_VECTORS = np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]], dtype=np.float32)


def draw(finding: str, rng: np.random.Generator, size: int = 224) -> tuple[np.ndarray, dict]:
    """Draw one H&E field of lung tissue.

    Parameters
    ----------
    finding : str
        One of ``FINDINGS``.
    rng : numpy.random.Generator
        Source of every random choice: the same state gives the same field.
    size : int, default 224
        Width and height in pixels.

    Returns
    -------
    image : numpy.ndarray of uint8, shape (size, size, 3)
        RGB field on a white slide background.
    content : dict
        What was drawn, JSON-able: the number of nuclei, and the place of each gland and mitosis.
        ``centre`` is ``[x, y]``; centre and lengths are fractions of the image width.

    Raises
    ------
    ValueError
        If `finding` is not one of ``FINDINGS``.
    """
    draw_tissue = {
        "normal": draw_alveoli,
        "adenocarcinoma": draw_glands,
        "poorly_differentiated": draw_solid_sheet,
    }
    if finding not in draw_tissue:
        raise ValueError(f"histopathology: unknown finding {finding!r}, known: {FINDINGS}")
    haematoxylin, eosin, content = draw_tissue[finding](rng, size)
    return stain(haematoxylin, eosin, rng), {"finding": finding, **content}


# ------------------------------------------------------------------------------ the three tissues


def draw_alveoli(rng, size):
    """Thin septa between open airspaces, lined by small uniform nuclei."""
    scale = size / 224
    spacing = rng.uniform(58, 76)
    half_width = rng.uniform(1.9, 2.9)
    distance_to_septum = wall_distance(rng, size, spacing)
    thickness = half_width * (1 + 0.3 * smooth_noise(rng, size, 16))
    septa = soft_step(thickness - distance_to_septum, 0.8)

    eosin = septa * (0.62 + 0.12 * smooth_noise(rng, size, 56))
    haematoxylin = 0.10 * septa

    count = int(rng.integers(110, 170))
    rows, columns = random_positions(rng, distance_to_septum < half_width, count)
    small = {"radius": rng.uniform(2.2, 3.0, count) * scale, "irregularity": 0.08}
    elongation = rng.uniform(1.0, 1.35, count)
    stamp_nuclei(haematoxylin, rng, rows, columns, elongation=elongation, darkness=0.95, **small)

    # A few foamy macrophages lie free in the airspaces of healthy lungs too.
    macrophages = int(rng.integers(0, 5))
    rows, columns = random_positions(rng, distance_to_septum > 12, macrophages)
    cells = np.zeros_like(eosin)
    stamp_nuclei(cells, rng, rows, columns, radius=6 * scale, darkness=0.35)
    off_centre = rng.normal(0, 1.2 * scale, (2, len(rows)))
    at = (rows + off_centre[0], columns + off_centre[1])
    stamp_nuclei(haematoxylin, rng, *at, radius=2.6 * scale, darkness=0.8)
    content = {"nuclei": count, "macrophages": macrophages, "airspace": round(spacing / 224, 3)}
    return haematoxylin, np.maximum(eosin, cells), content


def draw_glands(rng, size):
    """Malignant glands, rings of crowded atypical nuclei around a lumen, in fibrous stroma."""
    scale = size / 224
    fibre_angle = rng.uniform(0, np.pi)
    eosin = fibrous_stroma(rng, size, fibre_angle)
    haematoxylin = np.full_like(eosin, 0.07)
    outside_glands = np.ones((size, size), dtype=bool)

    glands = place_glands(rng, wanted=int(rng.integers(6, 11)))
    nucleus_rows, nucleus_columns, nucleus_angles = [], [], []
    mean_radius = rng.uniform(4.4, 5.4)
    for centre_row, centre_column, gland_radius in glands:
        shape = {
            "radius": gland_radius,
            "squeeze": rng.uniform(1.0, 1.3),
            "tilt": rng.uniform(0, np.pi),
            "waves": rng.normal(0, 0.06, 3).tolist(),
            "phases": rng.uniform(0, 2 * np.pi, 3).tolist(),
        }
        window, rows, columns = window_around(centre_row, centre_column, 1.3 * gland_radius, size)
        rows, columns = rows / scale - centre_row, columns / scale - centre_column
        relative_radius = np.hypot(rows, columns) / gland_outline(np.arctan2(rows, columns), shape)
        lumen_fraction = rng.uniform(0.40, 0.52)
        epithelium = soft_step((1 - relative_radius) * gland_radius, 1.0)
        lumen = soft_step((lumen_fraction - relative_radius) * gland_radius, 1.2)
        secretion = rng.uniform(0.02, 0.18)
        for density, cytoplasm, mucin in ((eosin, 0.50, secretion), (haematoxylin, 0.24, 0.02)):
            density[window] += epithelium * (cytoplasm - density[window])
            density[window] += lumen * (mucin - density[window])
        outside_glands[window] &= relative_radius > 1.12

        # Stratified: a full basal row of nuclei, and a sparser row nearer the lumen.
        for depth, spacing in ((0.84, 1.75), (0.64, 2.3)):
            on_ring = int(2 * np.pi * depth * gland_radius / (spacing * mean_radius))
            angle = np.arange(on_ring) * 2 * np.pi / on_ring + rng.normal(0, 0.06, on_ring)
            radius = gland_outline(angle, shape) * (depth + rng.normal(0, 0.035, on_ring))
            nucleus_rows.append(centre_row + radius * np.sin(angle))
            nucleus_columns.append(centre_column + radius * np.cos(angle))
            nucleus_angles.append(angle)

    count = sum(map(len, nucleus_rows))
    stamp_nuclei(
        haematoxylin,
        rng,
        np.concatenate(nucleus_rows) * scale,
        np.concatenate(nucleus_columns) * scale,
        radius=mean_radius * scale * rng.lognormal(0, 0.13, count),
        elongation=rng.uniform(1.05, 1.35, count),
        angle=np.concatenate(nucleus_angles) + rng.normal(0, 0.25, count),
        irregularity=0.18,
        darkness=rng.uniform(0.75, 1.15, count),
        nucleolus=0.5,
    )
    scatter_stromal_nuclei(haematoxylin, rng, outside_glands, fibre_angle, 50, scale)
    content = {
        "nuclei": count,
        "glands": [
            {"centre": fraction(column, row), "radius": round(radius / 224, 3)} for row, column, radius in glands
        ],
    }
    return haematoxylin, eosin, content


def draw_solid_sheet(rng, size):
    """Solid sheet of large pleomorphic hyperchromatic nuclei with mitoses and no glands."""
    scale = size / 224
    spacing = rng.uniform(15.5, 18.5)
    rows, columns = jittered_grid(rng, spacing, jitter=0.34)

    # Thin bands of stroma split the sheet into nests, as in most solid carcinomas.
    fibre_angle = rng.uniform(0, np.pi)
    band_width = rng.uniform(-0.05, 0.12)  # Below zero: a sheet without bands.
    bands = soft_step(band_width - np.abs(smooth_noise(rng, size, 4)), 0.05)
    cytoplasm = 0.47 + 0.10 * smooth_noise(rng, size, 28)
    eosin = cytoplasm + bands * (fibrous_stroma(rng, size, fibre_angle) - cytoplasm)
    haematoxylin = 0.21 - 0.14 * bands

    index = [to_index(position * scale, size) for position in (rows, columns)]
    in_nest = bands[tuple(index)] < 0.4
    rows, columns = rows[in_nest], columns[in_nest]
    count = len(rows)

    # A few cells divide: their chromatin is a dark plate, or two, in a cleared cytoplasm.
    inside = (np.minimum(rows, columns) > 12) & (np.maximum(rows, columns) < 212)
    mitoses = rng.choice(np.flatnonzero(inside), int(rng.integers(3, 8)), replace=False)
    resting = np.setdiff1d(np.arange(count), mitoses)
    cleared = np.zeros_like(eosin)
    at = (rows[mitoses] * scale, columns[mitoses] * scale)
    stamp_nuclei(cleared, rng, *at, radius=8.5 * scale, darkness=1.0)
    eosin *= 1 - 0.6 * cleared
    haematoxylin *= 1 - 0.7 * cleared

    stamp_nuclei(
        haematoxylin,
        rng,
        rows[resting] * scale,
        columns[resting] * scale,
        radius=np.clip(0.40 * spacing * rng.lognormal(0, 0.27, len(resting)), 3.8, 10.5) * scale,
        elongation=rng.uniform(1.0, 1.35, len(resting)),
        irregularity=rng.uniform(0.03, 0.24, len(resting)),
        darkness=rng.uniform(0.75, 1.5, len(resting)),
        nucleolus=0.7,
    )
    plate_angle = rng.uniform(0, np.pi, len(mitoses))
    separation = np.where(rng.random(len(mitoses)) < 0.4, 3.5, 0.0) * scale
    for sign in (-1, 1):
        stamp_nuclei(
            haematoxylin,
            rng,
            at[0] + sign * separation * np.cos(plate_angle),
            at[1] - sign * separation * np.sin(plate_angle),
            radius=3.4 * scale,
            elongation=1.6,
            angle=plate_angle,
            irregularity=0.25,
            darkness=2.0,
        )
    scatter_stromal_nuclei(haematoxylin, rng, bands > 0.6, fibre_angle, 25, scale)
    content = {
        "nuclei": count,
        "glands": [],
        "mitoses": [
            {"centre": fraction(column, row)} for row, column in zip(rows[mitoses], columns[mitoses], strict=True)
        ],
    }
    return haematoxylin, eosin, content


# ----------------------------------------------------------------------------------- shared parts


def stamp_nuclei(
    density, rng, rows, columns, *, radius, darkness, elongation=1.0, angle=None,
    irregularity=0.0, nucleolus=0.0,
):  # fmt: skip
    """Stamp many nuclei into a density map at once, in place; the darker density wins.

    All values are in pixels or relative to the nuclear radius, each a scalar or of shape (n,).
    """
    count = len(rows)
    if count == 0:
        return
    radius, darkness, elongation, irregularity = (
        np.broadcast_to(value, count).astype(np.float32)[:, None, None]
        for value in (radius, darkness, elongation, irregularity)
    )
    angle = rng.uniform(0, np.pi, count) if angle is None else np.asarray(angle)
    angle, phase = (value.astype(np.float32)[:, None, None] for value in (angle, rng.uniform(0, 2 * np.pi, count)))
    nucleolus_place = rng.uniform(-0.35, 0.35, (2, count, 1, 1)).astype(np.float32)

    # One small square of pixels per nucleus, in coordinates of its own axes and radius.
    half = int(np.ceil(np.max(radius * np.sqrt(elongation) * (1 + 1.3 * irregularity)) + 1))
    offset = np.arange(-half, half + 1)
    row_index = np.rint(rows).astype(int)[:, None, None] + offset[None, :, None]
    column_index = np.rint(columns).astype(int)[:, None, None] + offset[None, None, :]
    down = (row_index - np.asarray(rows)[:, None, None]).astype(np.float32)
    right = (column_index - np.asarray(columns)[:, None, None]).astype(np.float32)
    cosine, sine = np.cos(angle), np.sin(angle)
    along = (right * cosine + down * sine) / (radius * np.sqrt(elongation))
    across = (down * cosine - right * sine) / (radius / np.sqrt(elongation))

    # A lopsided third-order term dents the outline, each nucleus at another place.
    squared = along**2 + across**2
    bent = along * np.cos(phase) + across * np.sin(phase)
    dents = bent * (along**2 - 3 * across**2) + 0.6 * bent * along
    distance = np.sqrt(squared) + irregularity * dents / (1 + squared)
    mask = np.clip((1 - distance) * radius + 0.5, 0, 1)
    # Chromatin gathers under the membrane, so touching nuclei keep a visible border.
    chromatin = darkness * (0.72 + 0.28 * np.minimum(squared, 1))
    if nucleolus:
        spot = (along - nucleolus_place[0]) ** 2 + (across - nucleolus_place[1]) ** 2
        chromatin += nucleolus * np.clip(1.2 - spot / 0.06, 0, 1)

    size = len(density)
    visible = (mask > 0) & (row_index >= 0) & (row_index < size)
    visible &= (column_index >= 0) & (column_index < size)
    flat_index = (row_index * size + column_index)[visible]
    np.maximum.at(density.reshape(-1), flat_index, (mask * chromatin)[visible])


def stain(haematoxylin, eosin, rng):
    """Turn stain densities into colours, with the variation of stain, lamp, focus and camera."""
    # Nuclei push the cytoplasm aside, so they take up little eosin.
    eosin = eosin * (1 - 0.35 * np.clip(haematoxylin, 0, 1))
    strength = rng.uniform(0.82, 1.2, 2) * np.array([1.15, 0.85])
    vectors = STAIN_VECTORS * (1 + rng.normal(0, 0.03, (2, 3))).astype(np.float32)
    texture = 1 + 0.10 * smooth_noise(rng, len(eosin), len(eosin) // 2)
    densities = np.stack([haematoxylin * texture * strength[0], eosin * strength[1]], axis=-1)
    focus = rng.uniform(0.3, 0.7) * len(eosin) / 224
    densities = ndimage.gaussian_filter(
        np.maximum(densities, 0).astype(np.float32), focus, axes=(0, 1), truncate=3
    )
    lamp = np.float32(rng.uniform(0.91, 0.98)) * (1 - rng.uniform(0, 0.012, 3)).astype(np.float32)
    image = lamp * np.exp(-densities @ vectors)
    grain = rng.standard_normal((*eosin.shape, 1), dtype=np.float32) * rng.uniform(0.004, 0.016)
    return (255 * np.clip(image + grain, 0, 1)).astype(np.uint8)


def fibrous_stroma(rng, size, fibre_angle):
    """Eosin density of wavy collagen bundles running along `fibre_angle` (desmoplasia)."""
    rows, columns = np.mgrid[:size, :size].astype(np.float32) / size
    across = columns * np.sin(fibre_angle) - rows * np.cos(fibre_angle)
    waves = 14 * across + 1.1 * smooth_noise(rng, size, 6) + 0.2 * smooth_noise(rng, size, 24)
    fibres = np.sin(2 * np.pi * waves).astype(np.float32)
    return 0.52 + 0.10 * fibres + 0.07 * smooth_noise(rng, size, 40)


def scatter_stromal_nuclei(haematoxylin, rng, where, fibre_angle, count, scale):
    """Spindle nuclei of fibroblasts along the fibres, and a few round lymphocytes."""
    rows, columns = random_positions(rng, where, count)
    lymphocyte = rng.random(len(rows)) < 0.3
    stamp_nuclei(
        haematoxylin,
        rng,
        rows,
        columns,
        radius=np.where(lymphocyte, 2.6, 2.2) * scale,
        elongation=np.where(lymphocyte, 1.0, 4.0),
        angle=fibre_angle + rng.normal(0, 0.25, len(rows)),
        darkness=np.where(lymphocyte, 1.2, 0.8),
    )


def wall_distance(rng, size, spacing):
    """Distance to the nearest wall between airspaces, in px of a 224 px field, (size, size)."""
    rows, columns = jittered_grid(rng, spacing, jitter=0.32)
    # No wall stands between neighbours that open into the same alveolar duct.
    duct = rng.integers(0, 14, len(rows))
    # Half resolution is enough for walls this smooth; the shared warp bends them.
    coarse = 112
    grid = np.mgrid[:coarse, :coarse].astype(np.float32) * (224 / coarse)
    warp = [3.5 * smooth_noise(rng, coarse, 8) for _ in range(2)]
    down = (grid[0] + warp[0]) - rows.astype(np.float32)[:, None, None]
    right = (grid[1] + warp[1]) - columns.astype(np.float32)[:, None, None]
    squared = down**2 + right**2
    own_duct = duct[np.argmin(squared, axis=0)]
    to_other = np.where(duct[:, None, None] == own_duct, np.inf, squared).min(axis=0)
    return zoom((np.sqrt(to_other) - np.sqrt(squared.min(axis=0))) / 2, size)


def place_glands(rng, wanted):
    """Throw circles (row, column, radius) at a 224 px field and keep those that do not overlap."""
    glands = [(*rng.uniform(60, 164, 2).tolist(), rng.uniform(34, 46))]
    candidates = rng.uniform([0, 0, 26], [224, 224, 46], (250, 3)).tolist()
    # Large first: the small ones still find room between them.
    for row, column, radius in sorted(candidates, key=lambda gland: -gland[2]):
        gaps = (math.hypot(row - r, column - c) - radius - other for r, c, other in glands)
        if len(glands) < wanted and all(gap > -2 for gap in gaps):
            glands.append((row, column, radius))
    return glands


def gland_outline(angle, shape):
    """Radius of the basement membrane in each direction: an ellipse with a wavy edge."""
    wavy = 1.0
    for order, (wave, phase) in enumerate(zip(shape["waves"], shape["phases"], strict=True), 2):
        wavy = wavy + wave * np.cos(order * angle + phase)
    across, along = np.cos(angle - shape["tilt"]) * shape["squeeze"], np.sin(angle - shape["tilt"])
    return shape["radius"] * wavy / np.hypot(across, along)


def jittered_grid(rng, spacing, jitter):
    """Rows and columns of points about `spacing` apart that cover a 224 px field and its rim."""
    line = np.arange(-spacing, 224 + 2 * spacing, spacing)
    rows, columns = np.meshgrid(line, line, indexing="ij")
    columns = columns + (np.arange(len(line)) % 2)[:, None] * spacing / 2
    points = np.stack([rows.ravel(), columns.ravel()]) - rng.uniform(0, spacing, (2, 1))
    return points + rng.normal(0, jitter * spacing / 1.5, points.shape)


def random_positions(rng, where, count):
    """Rows and columns of `count` random pixels of a mask; none if the mask is empty."""
    candidates = np.flatnonzero(where)
    chosen = rng.choice(candidates, count if len(candidates) else 0)
    return np.unravel_index(chosen, where.shape)


def window_around(centre_row, centre_column, reach, size):
    """Slices and pixel coordinates of the square around a point, clipped to the image."""
    scale = size / 224
    row, column = (
        slice(max(0, int((centre - reach) * scale)), max(0, int((centre + reach) * scale)))
        for centre in (centre_row, centre_column)
    )
    row, column = slice(row.start, min(row.stop, size)), slice(column.start, min(column.stop, size))
    return (row, column), *np.ogrid[row, column]


def fraction(x, y):
    """Position in a 224 px field as fractions of its width."""
    return [round(float(x) / 224, 3), round(float(y) / 224, 3)]


def to_index(position, size):
    """Nearest pixel index inside the image."""
    return np.clip(np.rint(position), 0, size - 1).astype(int)
