"""Loading images as every model sees them, and checking that an image can be a scan."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Iterable

import numpy as np
from PIL import Image

from medlib.config import DataError
from medlib.data.cases import LabelledCase


def load_image(path: str | Path) -> Image.Image:
    """Load an image as RGB; DICOM is reduced to its pixels, so no patient data comes along.

    Raises
    ------
    DataError
        If the file is missing, truncated or not an image.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: image not found")
    try:
        if path.suffix.lower() in {".dcm", ".dicom"}:
            return _load_dicom(path)
        with Image.open(path) as image:
            image.load()
            if image.mode.startswith(("I", "F")):  # 16-bit and float: PIL would clip at 255
                return _grey_image(np.asarray(image))
            return image.convert("RGB")
    except DataError:
        raise
    except Exception as error:  # PIL and pydicom raise many types for a broken file
        raise DataError(f"{path}: truncated or unreadable image ({error})") from None


def _load_dicom(path: Path) -> Image.Image:
    """Pixels only: every tag (name, birth date, accession number, ...) stays behind."""
    try:
        import pydicom
        from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut
    except ImportError:
        raise DataError(f"{path}: DICOM needs `pip install pydicom`") from None
    dataset = pydicom.dcmread(path)
    if str(dataset.get("BurnedInAnnotation", "NO")).upper() == "YES":
        raise DataError(f"{path}, field 'BurnedInAnnotation': patient data is burned into the pixels")
    pixels, samples = dataset.pixel_array, int(dataset.get("SamplesPerPixel", 1))
    if pixels.ndim == (3 if samples == 1 else 4):
        pixels = pixels[len(pixels) // 2]  # the middle frame stands for a stack
    if dataset.get("PhotometricInterpretation") == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dataset)  # the numbers are places in a table of colours
    if pixels.ndim == 2:
        pixels = apply_voi_lut(apply_modality_lut(pixels, dataset), dataset).astype(float)
        if dataset.get("PhotometricInterpretation") == "MONOCHROME1":
            pixels = -pixels
    return _grey_image(pixels)


def _grey_image(pixels: np.ndarray) -> Image.Image:
    """Stretch any range of values to 0..255."""
    pixels = pixels.astype(float) - pixels.min()
    return Image.fromarray((255 * pixels / max(pixels.max(), 1e-9)).astype(np.uint8)).convert("RGB")


def scan_problem(image: Image.Image) -> str | None:
    """Say why an image cannot be a scan, or None if it can.

    A photograph of tissue or an echo has hundreds of grey levels. An image whose pixels are
    (nearly) all of one or two levels is a blank page or a segmentation mask.
    """
    grey = np.asarray(image.convert("L"))
    share = np.bincount(grey.ravel(), minlength=256) / grey.size
    top = np.sort(share)[::-1]
    if top[0] > 0.999:
        return "one-colour image"
    dark, bright = share[:16].sum(), share[240:].sum()
    # the second test finds masks whose two levels a JPEG or a resize has blurred
    if top[:2].sum() > 0.99 or (dark + bright > 0.97 and min(dark, bright) > 0.001):
        return "two-valued segmentation mask, not a scan"
    return None


def check_images(
    scenarios: Iterable[LabelledCase], images_dir: str | Path, allow_masks: bool = False, name: str = ""
) -> None:
    """Refuse scenarios whose images are missing, broken, blank or masks.

    Raises
    ------
    DataError
        Naming data set, row, field and file of every problem.
    """
    problems, seen = [], {}
    for row, scenario in enumerate(scenarios, start=1):
        path = Path(images_dir) / scenario.image
        if path not in seen:
            seen[path] = _image_problem(path, allow_masks)
        if seen[path]:
            where = f"{name or images_dir}, row {row} ({scenario.id}), field 'image'"
            problems.append(f"{where}: {seen[path]}")
    if problems:
        if any("mask, not a scan" in problem for problem in problems):
            problems.append("(pass --allow-masks to use masks all the same)")
        raise DataError("\n".join(problems))


def _image_problem(path: Path, allow_masks: bool) -> str | None:
    try:
        problem = scan_problem(load_image(path))
    except DataError as error:
        return str(error)
    if problem and not (allow_masks and "mask" in problem):
        return f"{path}: {problem}"
    return None


def check_split(train: Iterable[LabelledCase], val: Iterable[LabelledCase], images_dir: str | Path) -> None:
    """Refuse a split in which an id or an image (by content) stands on both sides."""
    train, val = list(train), list(val)
    train_ids = {s.id for s in train}
    train_images = {pixel_hash(load_image(Path(images_dir) / s.image)): s for s in train}
    problems = []
    for row, scenario in enumerate(val, start=1):
        if scenario.id in train_ids:
            problems.append(f"val, row {row}, field 'id': {scenario.id!r} is in train too")
        twin = train_images.get(pixel_hash(load_image(Path(images_dir) / scenario.image)))
        if twin is not None:
            problems.append(
                f"val, row {row} ({scenario.id}), field 'image': {scenario.image} is the image "
                f"of {twin.id} in train ({twin.image})"
            )
    if problems:
        raise DataError("\n".join(problems))


def pixel_hash(image: Image.Image) -> str:
    """SHA-256 over size and pixels: the same image in another file format has the same one."""
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()
