"""Letters and calipers burned into an image, suspected by their strokes."""

from __future__ import annotations

import numpy as np
import pandas as pd
from PIL import Image
from scipy import ndimage

SIDE = 512  # pixels of the longer side, at most
STROKE = 7  # pixels; anything bright and narrower is a stroke
CONTRAST = 60  # grey levels above what is left and right of it
HEIGHT = (5, 24)  # pixels of a letter or a caliper's cross
BORDER = 6  # pixels; the edge of a scan is a stroke too
#: Strokes from which on an image is suspected; chosen on breast ultrasound, where lines run across. In MRI and
#: histology sharp edges look the same.
SUSPECTED = 3


def stroke_count(image: Image.Image) -> int:
    """Number of bright upright strokes of a letter's size."""
    small = image.convert("L")
    small.thumbnail((SIDE, SIDE))
    grey = np.asarray(small, dtype=np.int16)
    if min(grey.shape) <= 2 * BORDER:
        return 0
    raised = (grey - ndimage.grey_opening(grey, size=(1, STROKE)))[BORDER:-BORDER, BORDER:-BORDER]
    labels, _ = ndimage.label(raised > CONTRAST, structure=np.ones((3, 3)))
    boxes = ndimage.find_objects(labels)
    sizes = [(rows.stop - rows.start, columns.stop - columns.start) for rows, columns in boxes]
    return sum(HEIGHT[0] <= height <= HEIGHT[1] and width <= HEIGHT[1] for height, width in sizes)


def suspicions(images: pd.DataFrame) -> list[tuple[str, list[str]]]:
    """A sentence for each modality with suspected images, and these images' files.

    Parameters
    ----------
    images : DataFrame
        One row an image: ``file``, ``modality``, ``strokes`` (of `stroke_count`), and ``label`` to tell shares by.
    """
    found = []
    for modality, part in images.groupby("modality", sort=False):
        here = part["strokes"] >= SUSPECTED
        if not here.any():
            continue
        shares = here.groupby(part["label"]).mean()
        by_label = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
        most = ": so many that it may be anatomy" if here.mean() > 0.5 else ""
        count = f"{here.sum():,} of {len(part):,} {modality} images ({by_label})"
        found.append((f"letters or calipers suspected in {count}{most}", list(part.loc[here, "file"])))
    return found
