"""Synthetic medical images with known content.

Real scans cannot be shipped with a repository, so every example here is drawn from a seed. The
images are caricatures for exercising a pipeline: they show one textbook sign each and say
nothing about how a model performs on patients.

Each modality is one module with ``FINDINGS`` and
``draw(finding, rng, size) -> (uint8 array, dict of what was drawn)``. `sketch` draws all of them a second time, by
other means, for a suite that shows how much hangs on the first renderer.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from medlib.config import files
from medlib.data.synthetic.draw import histopathology, mri, sketch, ultrasound, xray

GENERATOR_VERSION = "1"
MODALITIES = {"xray": xray, "ultrasound": ultrasound, "histopathology": histopathology, "mri": mri}
FINDINGS = {name: module.FINDINGS for name, module in MODALITIES.items()}


#: Renderer -> modality -> function that draws; "" is the one that training sees.
RENDERERS = {"": {name: module.draw for name, module in MODALITIES.items()}, "sketch": sketch.DRAW}


def draw(modality: str, finding: str, seed: int, size: int = 224, renderer: str = "") -> Image.Image:
    """Draw one synthetic image.

    Parameters
    ----------
    modality : str
        A key of ``FINDINGS``.
    finding : str
        One of ``FINDINGS[modality]``.
    seed : int
        Non-negative; the same arguments always give the same pixels.
    size : int
        Width and height in pixels.
    renderer : str
        A key of ``RENDERERS``.

    Returns
    -------
    PIL.Image.Image
        Mode RGB, ``(size, size)``. ``image.info`` holds only strings: ``source``, ``modality``,
        ``finding``, ``seed``, ``generator_version`` and ``content`` (JSON of what was drawn;
        positions and lengths are fractions of the image width), and ``renderer`` of any but the first.

    Raises
    ------
    ValueError
        If the modality, the finding or the renderer is unknown.
    """
    if modality not in FINDINGS:
        raise ValueError(f"unknown modality {modality!r}, known: {', '.join(FINDINGS)}")
    if finding not in FINDINGS[modality]:
        known = ", ".join(FINDINGS[modality])
        raise ValueError(f"unknown finding {finding!r} for modality {modality!r}, known: {known}")

    if renderer not in RENDERERS:
        raise ValueError(f"unknown renderer {renderer!r}, known: {', '.join(map(repr, RENDERERS))}")

    # The class is part of the seed: equal seeds give unrelated patients in different classes.
    class_index = [list(FINDINGS).index(modality), FINDINGS[modality].index(finding)]
    further = [list(RENDERERS).index(renderer)] if renderer else []
    rng = np.random.default_rng([seed, *class_index, *further])
    pixels, content = RENDERERS[renderer][modality](finding, rng, size)

    image = Image.fromarray(pixels).convert("RGB")
    image.info = {
        "source": "synthetic",
        "modality": modality,
        "finding": finding,
        "seed": str(seed),
        "generator_version": GENERATOR_VERSION,
        "content": json.dumps(content),
        **({"renderer": renderer} if renderer else {}),  # the files of the first stay as they were, byte by byte
    }
    return image


def save(image: Image.Image, path: str | Path) -> None:
    """Write an image of `draw` as PNG, its ``info`` as tEXt chunks.

    Parameters
    ----------
    image : PIL.Image.Image
    path : str or Path
    """
    chunks = PngInfo()
    for key, value in image.info.items():
        chunks.add_text(key, str(value))
    # Level 1: noise hardly compresses, so higher levels cost time and save nothing.
    with files.replacement(path, sync=False) as unfinished:  # one that a power cut leaves empty is drawn again
        image.save(unfinished, format="PNG", pnginfo=chunks, compress_level=1)
