"""What one scenario is, and how a bad row is refused.

A scenario is one line of a JSONL file: a picture, a patient, a clinical finding, a prescribed
treatment and the verdict that an auditor should give. Every error names file, row and field.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Iterable, Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

MODALITIES = ("xray", "histopathology", "mri", "ultrasound")
VERDICTS = ("CORRECT", "ERROR")
ANSWERS = {
    "CORRECT": "CORRECT - Treatment matches imaging findings",
    "ERROR": "ERROR - Treatment does not match imaging",
}


class DataError(ValueError):
    """A data problem that names file, row and field."""


class Patient(BaseModel):
    """The patient facts shown to the auditor; no name, no date, no identifier."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    age: int = Field(ge=0, le=120, description="years")
    sex: Literal["female", "male"]
    complaint: str = Field(min_length=1)


class Scenario(BaseModel):
    """One clinical decision to audit.

    ``factors`` says how a generated scenario was made (verdict source, phrase templates, twin);
    it is for analysis only and never shown to a model.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(min_length=1)
    modality: Literal["xray", "histopathology", "mri", "ultrasound"]
    image: str = Field(min_length=1, description="file name inside the images folder")
    patient: Patient
    finding: str = Field(min_length=1)
    treatment: str = Field(min_length=1)
    verdict: Literal["CORRECT", "ERROR"]
    error_type: Literal[
        "none", "overtreatment", "unnecessary_procedure", "undertreatment", "contradiction"
    ]
    severity: Literal["none", "moderate", "high", "critical"]
    cost_impact: int = Field(ge=0, description="US dollars lost if the error goes through")
    factors: dict[str, str | int] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _verdict_agrees_with_error(self) -> Scenario:
        if (self.verdict == "CORRECT") != (self.error_type == "none"):
            raise ValueError(f"error_type: {self.error_type!r} contradicts verdict {self.verdict}")
        if (self.error_type == "none") != (self.severity == "none"):
            raise ValueError(
                f"severity: {self.severity!r} contradicts error_type {self.error_type!r}"
            )
        return self


def read_scenarios(path: str | Path) -> list[Scenario]:
    """Read a JSONL file of scenarios.

    Raises
    ------
    DataError
        For a missing file, a line that is not JSON, a missing or unknown field, a bad value, or
        an id used twice; the message names file, row (1-based) and field, and lists every bad row.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file; `python -m medlib data` builds the data sets")
    scenarios, problems, first_row = [], [], {}
    # split on "\n" only: str.splitlines would also cut at U+2028 and U+0085 inside a string
    for row, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            content = json.loads(line.decode("utf-8-sig"))
            if not isinstance(content, dict):
                problems.append(f"{path}, row {row}: a JSON object is needed, not {line[:40]!r}")
                continue
            scenario = Scenario.model_validate(content)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            problems.append(f"{path}, row {row}: not valid JSON ({error})")
        except ValidationError as error:
            for item in error.errors():
                field = ".".join(map(str, item["loc"])) or "verdict/error_type/severity"
                problems.append(f"{path}, row {row}, field '{field}': {item['msg']}")
        else:
            if scenario.id in first_row:
                problems.append(
                    f"{path}, row {row}, field 'id': {scenario.id!r} was used in row "
                    f"{first_row[scenario.id]}"
                )
            first_row.setdefault(scenario.id, row)
            scenarios.append(scenario)
    if problems:
        raise DataError("\n".join(problems))
    return scenarios


def write_scenarios(path: str | Path, scenarios: Iterable[Scenario]) -> Path:
    """Write scenarios as JSONL, one line each, keys in schema order (so the bytes are stable)."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(s.model_dump(), ensure_ascii=False) + "\n" for s in scenarios]
    path.write_bytes("".join(lines).encode("utf-8"))  # bytes: no platform line endings
    return path


def load_image(path: str | Path) -> Image.Image:
    """Load a picture as RGB; DICOM is reduced to its pixels, so no patient data comes along.

    Raises
    ------
    DataError
        If the file is missing, truncated or not a picture.
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
                return _grey_picture(np.asarray(image))
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
        raise DataError(
            f"{path}, field 'BurnedInAnnotation': patient data is burned into the pixels"
        )
    pixels, samples = dataset.pixel_array, int(dataset.get("SamplesPerPixel", 1))
    if pixels.ndim == (3 if samples == 1 else 4):
        pixels = pixels[len(pixels) // 2]  # the middle frame stands for a stack
    if dataset.get("PhotometricInterpretation") == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dataset)  # the numbers are places in a table of colours
    if pixels.ndim == 2:
        pixels = apply_voi_lut(apply_modality_lut(pixels, dataset), dataset).astype(float)
        if dataset.get("PhotometricInterpretation") == "MONOCHROME1":
            pixels = -pixels
    return _grey_picture(pixels)


def _grey_picture(pixels: np.ndarray) -> Image.Image:
    """Stretch any range of values to 0..255."""
    pixels = pixels.astype(float) - pixels.min()
    return Image.fromarray((255 * pixels / max(pixels.max(), 1e-9)).astype(np.uint8)).convert("RGB")


def scan_problem(image: Image.Image) -> str | None:
    """Say why a picture cannot be a scan, or None if it can.

    A photograph of tissue or an echo has hundreds of grey levels. A picture whose pixels are
    (nearly) all of one or two levels is a blank page or a segmentation mask.
    """
    grey = np.asarray(image.convert("L"))
    share = np.bincount(grey.ravel(), minlength=256) / grey.size
    top = np.sort(share)[::-1]
    if top[0] > 0.999:
        return "one-colour picture"
    dark, bright = share[:16].sum(), share[240:].sum()
    # the second test finds masks whose two levels a JPEG or a resize has blurred
    if top[:2].sum() > 0.99 or (dark + bright > 0.97 and min(dark, bright) > 0.001):
        return "two-valued segmentation mask, not a scan"
    return None


def check_images(
    scenarios: Iterable[Scenario], images_dir: str | Path, allow_masks: bool = False, name: str = ""
) -> None:
    """Refuse scenarios whose pictures are missing, broken, blank or masks.

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


def check_split(train: Iterable[Scenario], val: Iterable[Scenario], images_dir: str | Path) -> None:
    """Refuse a split in which an id or a picture (by content) stands on both sides."""
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
                f"val, row {row} ({scenario.id}), field 'image': {scenario.image} is the picture "
                f"of {twin.id} in train ({twin.image})"
            )
    if problems:
        raise DataError("\n".join(problems))


def pixel_hash(image: Image.Image) -> str:
    """SHA-256 over size and pixels: the same picture in another file format has the same one."""
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()


def scenario_hash(scenarios: Iterable[Scenario]) -> str:
    """SHA-256 over the rows as written, so equal data gives an equal name anywhere."""
    digest = hashlib.sha256()
    for scenario in scenarios:
        digest.update(json.dumps(scenario.model_dump(), ensure_ascii=False).encode())
    return digest.hexdigest()
