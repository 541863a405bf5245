"""What every generator draws with: noise fields and soft edges."""

from __future__ import annotations

import numpy as np
from PIL import Image


def zoom(field, size):
    """Zoom a float32 field to (size, size); draw low frequencies small, zooming is cheap."""
    return np.asarray(Image.fromarray(field).resize((size, size), Image.Resampling.BICUBIC))


def smooth_noise(rng, size, cells):
    """Gaussian noise of about unit variance with `cells` independent values across the image."""
    return zoom(rng.standard_normal((cells, cells), dtype=np.float32), size)


def bumps(rng, size, columns, rows=None):
    """Stronger noise with so many bumps across (and down): zooming takes 1.4 off, this adds it."""
    return zoom(1.4 * rng.standard_normal((rows or columns, columns), dtype=np.float32), size)


def step(signed_distance, width):
    """Smooth step from 0 to 1 as the signed distance rises from -width/2 to width/2."""
    t = np.clip(signed_distance / width + 0.5, 0, 1)
    return t * t * (3 - 2 * t)


def soft_step(distance, softness):
    """0 far outside, 1 far inside, with a linear edge of the given half width."""
    return np.clip(0.5 + 0.5 * distance / softness, 0, 1).astype(np.float32)
