"""The cases to ask about: one from options and DICOM, or rows of a table."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from medlib.config import DataError
from medlib.config.paths import expanded
from medlib.data import own, tables, values
from medlib.data.cases import UNSPECIFIED, Case
from medlib.data.images import is_dicom

#: DICOM attribute that states a field.
DICOM = {"age": "PatientAge", "sex": "PatientSex", "modality": "Modality"}
#: What reads a field as people and files write it.
READERS: dict[str, Callable[[str], Any]] = {
    "age": values.age,
    "sex": values.sex,
    "modality": values.modality,
    "complaint": str,
}


def one(image: str | Path, finding: str, treatment: str, **stated: str | None) -> tuple[Case, Path]:
    """A case and the folder of its image.

    Parameters
    ----------
    image : file of an image; a DICOM supplies age, sex and modality where they are not given
    stated : ``modality``, ``age``, ``sex`` and ``complaint`` as people write them, see `medlib.data.values`

    Raises
    ------
    DataError
        Naming the field that cannot be read.
    """
    file = expanded(image)
    if not os.path.isfile(file):  # False for what no path can be, such as too long a name
        raise DataError(f"image: {str(image)[:300]}: no such file")
    read = {}
    for name, text in stated.items():
        try:
            read[name] = READERS[name](text.strip()) if text else None
        except ValueError as error:
            raise DataError(f"{name}: {error}") from None
    patient = {name: read.get(name) for name in ("age", "sex", "complaint")}
    words = {"finding": finding.strip().rstrip("."), "treatment": treatment.strip().rstrip(".")}
    modality = read.get("modality") or UNSPECIFIED
    try:
        case = Case(id=file.stem, image=file.name, modality=modality, patient=patient, **words)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        raise DataError("; ".join(lines)) from None
    return completed(case, file), file.parent


def completed(case: Case, file: Path) -> Case:
    """The case with age, sex and modality of its image where it states none and the image is a DICOM."""
    facts = dicom_facts(file)
    modality = facts.pop("modality", UNSPECIFIED) if case.modality == UNSPECIFIED else case.modality
    stated = {name: fact for name, fact in facts.items() if name in ("age", "sex")}
    unset = {name: fact for name, fact in stated.items() if getattr(case.patient, name) is None}
    return case.model_copy(update={"modality": modality, "patient": case.patient.model_copy(update=unset)})


def dicom_facts(file: Path) -> dict[str, Any]:
    """Age, sex and modality that a DICOM states; empty for any other file. No other tag is read.

    A value that is none, such as an age ``ADULT``, counts as not stated.
    """
    try:
        with file.open("rb") as content:
            if not is_dicom(file, content.read(132)):
                return {}
        import pydicom

        dataset = pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=[*DICOM.values()])
        written = {name: str(dataset.get(tag) or "").strip() for name, tag in DICOM.items()}
    except Exception:  # pydicom raises many types; whoever loads the image names the file as broken
        return {}
    facts = {}
    for name, text in written.items():
        with suppress(ValueError):
            facts[name] = None if values.is_missing(text) else READERS[name](text)
    return {name: fact for name, fact in facts.items() if fact is not None}


# --- rows -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A row of a worklist: its case, or why it cannot be read."""

    place: str  # file and row
    case: Case | None
    problem: str = ""


def rows(
    table: str | Path, images_dir: str | Path | None = None, extract_to: Path | None = None
) -> tuple[list[Row], Path, list[str]]:
    """Every row of a table in its order, the folder of the images, and notes on what was guessed.

    Parameters
    ----------
    table : a table or folder that `medlib.data.own` reads; the verdict is optional
    images_dir : folder of the images; by default that of the table
    extract_to : images that lie inside the table are written to a folder of this one; by default `own.EXTRACTED`

    Raises
    ------
    DataError
        If there is no such table, or none of its rows can be read.
    """
    file, images = expanded(table), None if images_dir is None else expanded(images_dir)
    if not os.path.exists(file):
        known = ", ".join(tables.SUFFIXES)
        raise DataError(f"cases: {str(table)[:300]}: no such file or folder; a table is one of {known}")
    if images is not None and not os.path.isdir(images):
        raise DataError(f"images: {str(images_dir)[:300]}: no such folder")
    extract_to = extract_to or own.EXTRACTED
    data = own.read(file, strict=False, extract_to=extract_to, images=images, unlabelled=True)
    problems: dict[str, list[str]] = {}
    for text in data.problems:
        place, problem = _place(text)
        problems.setdefault(place, []).append(problem)
    cases = [completed(case, data.images_dir / case.image) for case in data.cases]
    read = [Row(place, case) for place, case in zip(data.places, cases)]
    unread = [Row(place, None, "; ".join(texts)) for place, texts in problems.items()]
    return sorted(read + unread, key=lambda row: _order(row.place)), data.images_dir, data.notes


def _place(problem: str) -> tuple[str, str]:
    """File and row of a problem of `medlib.data.own`, and the rest of it."""
    match = re.match(r"(.*?, row \d+)(?: and all below)?(?:, |: )(.*)", problem, re.DOTALL)
    return (match[1], match[2]) if match else (problem, problem)


def _order(place: str) -> tuple[str, int]:
    name, _, row = place.rpartition(", row ")
    return name, int(row) if row.isdecimal() else 0
