"""A data set that the project did not make: a folder, a table in it, and optionally ``dataset.yaml``.

Two kinds are read through one door: cases (finding, treatment and verdict of each image) and labelled images
(a finding for each image). What ``dataset.yaml`` does not state is guessed from names; every guess is a note.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import yaml
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from medlib.config import DataError, files
from medlib.config.paths import expanded, generated
from medlib.data import rendered, tables, values
from medlib.data.cases import UNSPECIFIED, Case, LabelledCase, Patient, scenario_hash
from medlib.data.images import FORMATS
from medlib.data.split import SIDES
from medlib.data.tables import Table

CARD = "dataset.yaml"
#: Where images that lie inside a table (Parquet, a data set of the hub) are written.
EXTRACTED = generated("own")
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".dcm", ".dicom"}
Kind = Literal["cases", "images"]

#: Names of columns, best first, that are taken for a field; compared in lower case, with "_" for all but letters
#: and digits.
COLUMN_NAMES = {
    "image": "image image_path image_file file file_name filename file_path filepath path img img_path image_name "
    "picture image_id scan dicom",
    "id": "id case_id scenario_id case case_no case_number uid sample_id record_id",
    "finding": "finding findings clinical_finding clinical_findings image_finding impression diagnosis class "
    "label labels category",
    "treatment": "treatment prescribed_treatment treatment_plan therapy plan management care prescription "
    "recommendation",
    "verdict": "verdict output decision appropriate is_appropriate treatment_appropriate correct is_correct "
    "assessment judgement judgment gold answer label target error is_error has_error inappropriate "
    "is_inappropriate wrong",
    "modality": "modality image_modality imaging_modality imaging exam exam_type scan_type",
    "age": "age patient_age patientage age_years age_in_years",
    "sex": "sex gender patient_sex patientsex patient_gender",
    "complaint": "complaint chief_complaint presenting_complaint symptoms symptom indication history "
    "clinical_history reason",
    "error_type": "error_type type_of_error error_category error_kind",
    "severity": "severity error_severity seriousness",
    "cost_impact": "cost_impact cost cost_usd cost_impact_usd usd",
    "group": "group group_id patient_id patientid patient subject_id subject pid image_group",
    "split": "split subset partition set",
    "source": "source dataset data_source source_dataset hospital institution site centre center source_repo",
    "population": "population cohort age_group",
}
#: Columns in which "yes" means that there is an error.
ASKS_FOR_ERROR = {"error", "is_error", "has_error", "inappropriate", "is_inappropriate", "wrong"}
NEEDED: dict[str, tuple[str, ...]] = {
    "cases": ("image", "finding", "treatment", "verdict"),
    "images": ("image", "finding"),
}
OF_CASES = ("treatment", "verdict", "error_type", "severity", "cost_impact")
IDENTIFYING = re.compile(
    r"(^|_)(patients?_?name|(patients?_?)?(first_?name|last_?name|surname|birth_?date|date_of_birth|dob|ssn|phone|e?mail"
    r"|address|mrn|medical_record_number|accession(_?number)?))(_|$)"
)
#: Columns of groups whose values are replaced by numbers.
PATIENTS = re.compile(r"patient|subject|^pid$|mrn|record")
#: What the columns of labelled images and the factors of cases are called. The factor ``source`` is how a verdict
#: was made, so where a case comes from has another name there.
COLUMNS = ("file", "modality", "finding", "group", "split", "source", "population")
FACTORS = {"group": "group", "split": "split", "source": "dataset", "population": "population"}


class Card(BaseModel):
    """What ``dataset.yaml`` says; every key is optional."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str | None = Field(None, description="also names folders, so no path")
    kind: Kind | None = Field(None, description="cases, or images with findings; None: by the columns")
    table: str | None = Field(None, description="file with the rows; None: by its name")
    images: str | None = Field(None, description="folder of the images, inside the data set")
    columns: dict[str, str] = Field({}, description="our field: column of the table")
    values: dict[str, dict[str, str]] = Field({}, description="our field: written value: its meaning")
    splits: dict[str, str | list[str]] = Field({}, description="train, val or test: file or files of it")
    modality: str | None = Field(None, description="of rows that state none")
    licence: str | None = None
    source: str | None = None
    real_images: bool | None = Field(None, description="whether the images are of patients; None: not stated")
    frame: int | None = Field(None, ge=0, description="page or frame that is shown; None: the middle of a cine")
    thumbnail: int | None = Field(None, ge=56, description="longest side in pixels of a smaller copy, for slides")
    pad: bool = Field(True, description="pad to a square; false: fill it, whatever the proportions")

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"\w([\w .-]{0,98}\w)?", name):
            raise ValueError(
                "1 to 100 letters, digits, spaces and . _ -, beginning and ending with a letter or digit"
            )
        return name


@dataclass(frozen=True)
class OwnData:
    """A data set as it was read.

    Parameters
    ----------
    name : str
    kind : {"cases", "images"}
    cases : list of LabelledCase
        Empty for labelled images. ``factors`` holds group, split, dataset, population and all further columns.
    table : DataFrame
        Labelled images, empty for cases: file, modality, finding, group, split, source, population and all further
        columns; text, "" where not stated.
    images_dir : Path
        What ``LabelledCase.image`` and ``file`` are relative to.
    card : Card
    notes : list of str
        What was guessed, and what is not stated.
    problems : list of str
        Rows that could not be read, by file, row and field; they are in neither ``cases`` nor ``table``.
    unread : int
        How many rows those are.
    places : list of str
        File and row of each case, or of each row of ``table``.
    sha256 : str
        Over the rows that were read and the bytes of their images.
    """

    name: str
    kind: Kind
    cases: list[LabelledCase]
    table: pd.DataFrame
    images_dir: Path
    card: Card
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    unread: int = 0
    places: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.cases) if self.kind == "cases" else len(self.table)

    @property
    def rows(self) -> pd.DataFrame:
        """id, file, modality, label (verdict or finding), group and split ("" where not stated) of every row."""
        if self.kind == "images":
            frame = self.table[["file", "modality", "finding", "group", "split"]].rename(
                columns={"finding": "label"}
            )
            return frame.assign(id=frame["file"])[["id", "file", "modality", "label", "group", "split"]]
        factors = [(s.factors.get("group", ""), s.factors.get("split", "")) for s in self.cases]
        return pd.DataFrame(
            [(s.id, s.image, s.modality, s.verdict, *f) for s, f in zip(self.cases, factors)],
            columns=["id", "file", "modality", "label", "group", "split"],
        ).astype(str)

    def without(self, broken: Mapping[str, str]) -> OwnData:
        """The rest, without the rows whose image cannot be read; given as file: reason."""
        if not broken:
            return self
        files = list(self.rows["file"])
        keep = [row for row, file in enumerate(files) if file not in broken]
        problems = [
            f"{place}, field 'image': {file}: {broken[file]}"
            for place, file in zip(self.places, files)
            if file in broken
        ]
        return replace(
            self,
            cases=[self.cases[row] for row in keep] if self.kind == "cases" else [],
            table=self.table.iloc[keep].reset_index(drop=True) if self.kind == "images" else self.table,
            problems=[*self.problems, *problems],
            unread=self.unread + len(problems),
            places=[self.places[row] for row in keep],
        )

    @cached_property
    def sha256(self) -> str:
        digest = hashlib.sha256()
        text = scenario_hash(self.cases) if self.kind == "cases" else self.table.to_csv(index=False)
        digest.update(text.encode())
        for file in dict.fromkeys(self.rows["file"]):
            digest.update(hashlib.sha256((self.images_dir / file).read_bytes()).digest())
        return digest.hexdigest()


def listing(lines: list[str], limit: int = 20) -> str:
    """The first lines, and how many more there are."""
    more = [f"… and {len(lines) - limit:,} more"] if len(lines) > limit else []
    return "\n".join(lines[:limit] + more)


def read(
    where: str | Path,
    name: str | None = None,
    strict: bool = True,
    extract_to: str | Path = EXTRACTED,
    images: str | Path | None = None,
    unlabelled: bool = False,
) -> OwnData:
    """Read a data set.

    Parameters
    ----------
    where : str or Path
        A folder, a single table, or the name of a data set of the hub (only if there is no such folder or file).
    name : str, optional
        By default that of the card, else of the folder.
    strict : bool
        Refuse a data set with a row that cannot be read; False leaves such rows out and lists them.
    extract_to : str or Path
        Images that lie inside a table are written to a folder of this one.
    images : str or Path, optional
        Folder of the images, where it is not that of the data set; names that lead out of it are refused.
    unlabelled : bool
        Cases to be asked about: the verdict is optional, and what cannot be read as one is not stated.
        ``cases`` then holds `Case`, and `LabelledCase` for the rows with a verdict.

    Returns
    -------
    OwnData
        A folder holds ``cases`` or ``metadata`` with one of the endings ``.jsonl``, ``.csv``, ``.tsv`` and
        ``.parquet``; or ``train``, ``val`` and ``test`` with such an ending, or folders of these names with a
        ``metadata`` file each (the image folders of the package datasets); or no table and
        ``[split/][modality/]finding/[group/]`` folders.

    Raises
    ------
    DataError
        Naming file, row and field of each problem, or the key of a bad ``dataset.yaml``.
    """
    folder = expanded(where)
    if os.path.exists(folder):  # False for what no path can be, such as too long a name
        root = folder if folder.is_dir() else folder.parent
        card = read_card(root / CARD)
        name = name or card.name or (folder.resolve().name if folder.is_dir() else folder.stem)
        sources, notes = _local_sources(folder, root, card)
    else:
        card = Card(name=name)
        name = name or str(where).replace("/", "-")
        root = folder
        sources, notes = _hub_sources(str(where))
    if images is not None:
        root, card = Path(images), card.model_copy(update={"images": None})
        sources = [replace(source, base=root) for source in sources]
    if any(_holds_images(source.table.frame) for source in sources):
        # the package datasets names files of its own cache; a table names files of its folder only
        inside = _ImageFinder(root.resolve(), card.images) if os.path.exists(folder) else None
        root = Path(extract_to) / name
        notes.append(f"images inside the table were written to {root.name}/")
        sources = [_extracted(source, root, inside) for source in sources]
        notes += inside.notes() if inside else []
    own = _Reader(name, root.resolve(), card, sources, notes, unlabelled).read()
    own = rendered.data(own, Path(extract_to) / name / "shown")
    if strict and own.problems:
        raise DataError(f"{len(own.problems)} problems in {name}:\n{listing(own.problems)}")
    if not len(own):
        raise DataError(f"{name}: no row can be read\n{listing(own.problems)}")
    return own


# ---- the card --------------------------------------------------------------------------------------


def read_card(path: Path) -> Card:
    """What ``dataset.yaml`` says; an empty card if there is none. DataError names file and key."""
    if not path.is_file():
        return Card()
    try:
        # every scalar as text: YAML would turn a written yes or 1 into something else
        content = yaml.load(tables.decode(path.read_bytes())[0], Loader=yaml.BaseLoader) or {}
        card = Card.model_validate(content)
    except (yaml.YAMLError, RecursionError) as error:
        raise DataError(f"{path.name}: not valid YAML ({' '.join(str(error).split())})") from None
    except ValidationError as error:
        known = ", ".join(Card.model_fields)
        lines = [f"{path.name}, key '{'.'.join(map(str, e['loc']))}': {_reason(e)}" for e in error.errors()]
        raise DataError("\n".join([*lines, f"(keys: {known})"])) from None
    known_in = {"columns": tuple(COLUMN_NAMES), "values": tuple(COLUMN_NAMES), "splits": SIDES}
    for key, names in known_in.items():
        if unknown := [name for name in getattr(card, key) if name not in names]:
            raise DataError(f"{path.name}, key '{key}.{unknown[0]}': not one of {', '.join(names)}")
    return card


def _reason(error) -> str:
    """What pydantic says is wrong."""
    return error["msg"].removeprefix("Value error, ")


# ---- where the rows are ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    table: Table
    base: Path  # what image names are relative to
    split: str = ""


def _local_sources(where: Path, root: Path, card: Card) -> tuple[list[_Source], list[str]]:
    """The tables of a folder with their splits, and notes; without a table, one made of the folders' names."""
    if where.is_file():
        if where.suffix.lower() not in tables.SUFFIXES:
            raise DataError(f"{where.name}: none of {', '.join(tables.SUFFIXES)}")
        return [_read_source(where, root)], []
    if card.splits:
        of = {side: [files] if isinstance(files, str) else files for side, files in card.splits.items()}
        return [_read_source(root / f, root, side, f"splits.{side}") for side in of for f in of[side]], []
    if card.table:
        return [_read_source(root / card.table, root, "", "table")], []
    folders = [root, root / "data"] + sorted(path for path in root.iterdir() if path.is_dir() and _side(path.name))
    found = [file for folder in folders if folder.is_dir() for file in _tables_in(folder)]
    split = {file: _side(file.stem) or (_side(file.parent.name) if file.parent != root else "") for file in found}
    named = {stem: [file for file in found if file.stem.lower() == stem][:1] for stem in ("cases", "metadata")}
    chosen = named["cases"] or [file for file in found if split[file]] or named["metadata"] or found
    if len(chosen) > 1 and not split[chosen[0]]:
        listed = ", ".join(sorted(file.relative_to(root).as_posix() for file in found))
        raise DataError(f"{root.name}: which table is it? Name it under 'table:' in {CARD} ({listed})")
    if not chosen:
        return _folder_source(root)
    ignored = [file.relative_to(root).as_posix() for file in found if file not in chosen]
    notes = [f"not read: {', '.join(ignored)}"] if ignored else []
    return [_read_source(file, root, split[file]) for file in chosen], notes


def _tables_in(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in tables.SUFFIXES and not path.name.startswith(".")
    )


def _side(name: str) -> str:
    """The side that a file or folder is named after, "" if none."""
    try:
        return values.split(re.sub(r"[-_]\d+[-_]of[-_]\d+$", "", name))
    except ValueError:
        return ""


def _read_source(file: Path, root: Path, split: str = "", key: str = "") -> _Source:
    if not file.is_file() or not file.resolve().is_relative_to(root.resolve()):
        raise DataError(f"{CARD}, key '{key}': no file {file.name} inside the folder")
    shown = Path(os.path.relpath(file, root)).as_posix()
    return _Source(tables.read(file, shown), file.parent, split)


def _folder_source(root: Path) -> tuple[list[_Source], list[str]]:
    """Rows of ``[split/][modality/]finding/[group/]image``."""
    rows, other, loose = [], Counter(), []
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root)
        if not path.is_file() or path.name == CARD or any(part.startswith(".") for part in relative.parts):
            continue
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            other[path.suffix.lower() or "no ending"] += 1
            continue
        parts = list(relative.parent.parts)
        row = {"file": relative.as_posix(), "split": _side(parts[0]) if parts else ""}
        parts = parts[1:] if row["split"] else parts
        if not parts:
            loose.append(f"{row['file']}: no folder names its finding")
            continue
        names = ["finding"] if len(parts) == 1 else ["modality", "finding"]
        rows.append(row | dict(zip(names, parts)) | {"group": "/".join(parts[2:])})
    if not rows:
        raise DataError("\n".join([f"{root.name}: neither a table nor folders of images", *loose[:20]]))
    frame = pd.DataFrame(rows, dtype=object).fillna("")
    depth = "modality and finding" if "modality" in frame else "finding"
    notes = [f"no table: folders give {depth}" + (", and group below" if frame["group"].any() else "")]
    if other:
        notes.append(f"no images by their ending: {sum(other.values())} files ({', '.join(sorted(other))})")
    table = Table(f"{root.name}/", frame, list(range(1, len(frame) + 1)), problems=loose)
    return [_Source(table, root)], notes


def _hub_sources(name: str) -> tuple[list[_Source], list[str]]:
    """The splits of a data set of the hub, images still as they were stored."""
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise DataError(f"{name}: no such folder or file")
    import datasets

    try:
        loaded = datasets.load_dataset(name)
    except Exception as error:  # the package raises many types: no such set, no network, a bad file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{name}: neither a folder nor a data set of the hub that loads ({reason})") from None
    sources = []
    for split, part in loaded.items():
        for column, kind in part.features.items():
            if isinstance(kind, datasets.Image):
                part = part.cast_column(column, datasets.Image(decode=False))
        frame = part.to_pandas()
        for column, kind in part.features.items():
            if isinstance(kind, datasets.ClassLabel):
                frame[column] = [kind.int2str(int(v)) if pd.notna(v) and v >= 0 else "" for v in frame[column]]
        table = tables.from_frame(frame, f"{name}, split {split}")
        sources.append(_Source(table, Path(name), _side(str(split)) if len(loaded) > 1 else ""))
    return sources, [f"{name} was loaded by the package datasets"]


def _holds_images(frame: pd.DataFrame) -> bool:
    return any(isinstance(value, dict) for column in frame for value in frame[column].head(50))


def _extracted(source: _Source, folder: Path, inside: _ImageFinder | None) -> _Source:
    """Images inside a table as files named by their content; ``inside`` finds one that only names a file."""
    folder.mkdir(parents=True, exist_ok=True)

    def written(value):
        if not isinstance(value, dict):
            return value
        content, path = value.get("bytes"), value.get("path")
        if not content and path:  # an image folder keeps the place only
            try:
                content = (
                    inside.root / inside.find(str(path), source.base) if inside else Path(path)
                ).read_bytes()
            except (OSError, ValueError):
                return str(path)  # is named with its row where rows are read
        if not content:
            return ""
        suffix = Path(path or "").suffix.lower()
        file = folder / (hashlib.sha256(content).hexdigest()[:32] + (suffix or _suffix(content)))
        if not (file.is_file() and file.stat().st_size == len(content)):
            files.write_bytes(file, content)
        return file.name

    frame = source.table.frame.map(written)
    return replace(source, table=replace(source.table, frame=frame), base=folder)


def _suffix(content: bytes) -> str:
    try:
        with Image.open(BytesIO(content), formats=FORMATS) as image:
            return f".{(image.format or 'png').lower()}"
    except Exception:  # named as a broken image by whoever loads it
        return ".png"


# ---- rows ----------------------------------------------------------------------------------------------


class _Reader:
    """Reads the rows of one data set; collects notes and problems."""

    def __init__(
        self, name: str, root: Path, card: Card, sources: list[_Source], notes: list[str], unlabelled: bool = False
    ):
        self.name, self.root, self.card, self.sources = name, root, card, sources
        self.unlabelled = unlabelled
        self.notes = notes + [note for source in sources for note in source.table.notes]
        self.problems = [problem for source in sources for problem in source.table.problems]
        self.unread = len(self.problems)
        names = dict.fromkeys(column for source in sources for column in source.table.frame)
        self.columns = self._columns([str(column) for column in names if str(column).strip()])
        self.kind: Kind = self._kind()
        self.guessed: dict[str, Counter] = {}
        self.seen: dict[tuple[str, str], str] = {}  # (split, id or file): file and row
        self.patients: dict[str, str] = {}  # what is written in a column of patients: pseudonym
        self.images = _ImageFinder(root, card.images, self._written_images())
        self.places: list[str] = []

    def read(self) -> OwnData:
        rows = [row for source in self.sources for row in self._rows(source)]
        if self.kind == "images":
            columns = [*COLUMNS, *map(self._further_name, self.further)]
            table = pd.DataFrame(rows, columns=columns, dtype=str).fillna("")
        else:
            table = pd.DataFrame()
        for name, counts in self.guessed.items():
            listed = ", ".join(f"{what} ({n}×)" for what, n in counts.most_common(8))
            self.notes.append(f"{name}: {listed}" + (f" and {len(counts) - 8} more" if len(counts) > 8 else ""))
        self.notes += self.images.notes()
        self._note_what_is_not_stated()
        cases = rows if self.kind == "cases" else []
        read = self.notes, self.problems, self.unread, self.places
        return OwnData(self.name, self.kind, cases, table, self.root, self.card, *read)

    # ---- columns

    def _columns(self, names: list[str]) -> dict[str, str]:
        """Column of each field, from the card or by its name."""
        for key, column in self.card.columns.items():
            if column not in names:
                raise DataError(f"{CARD}, key 'columns.{key}': no column {column!r}; there are {', '.join(names)}")
        chosen = dict(self.card.columns)
        simple = {_simple(name): name for name in reversed(names)}
        for key, known in COLUMN_NAMES.items():
            free = [simple[k] for k in known.split() if k in simple and simple[k] not in chosen.values()]
            if key not in chosen and free:
                chosen[key] = free[0]
                if free[0] != key:
                    self.notes.append(f"{key} is read from column {free[0]!r}")
        for key in NEEDED["cases"]:
            ends = [n for k, n in simple.items() if k.split("_")[-1] == key and n not in chosen.values()]
            if key not in chosen and len(ends) == 1:  # such as "Radiological finding"
                chosen[key] = ends[0]
                self.notes.append(f"{key} is read from column {ends[0]!r}, by its last word")
        if "split" in chosen and "split" not in self.card.columns and not self._splits_in(chosen["split"]):
            self.notes.append(f"column {chosen['split']!r} does not name train, val and test: kept as it is")
            del chosen["split"]
        left_out = [
            name for key, name in simple.items() if IDENTIFYING.search(key) and name not in chosen.values()
        ]
        if left_out:
            self.notes.append(f"left out, since they may identify a patient: {', '.join(map(repr, left_out))}")
        self.further = [name for name in names if name not in chosen.values() and name not in left_out]
        return chosen

    def _splits_in(self, column: str) -> bool:
        written = {value for source in self.sources for value in source.table.frame.get(column, ())}
        return any(_side(self._mapped("split", str(value))) for value in written)

    def _kind(self) -> Kind:
        present = set(self.columns)
        kind: Kind = "cases" if {"treatment", "verdict"} <= present else "images"
        if self.unlabelled:
            kind = "cases"
        elif self.card.kind:
            kind = self.card.kind
        elif kind == "images" and "treatment" in present:
            raise DataError(
                f"{self.name}: column {self.columns['treatment']!r} is a treatment, but there is no verdict; name "
                f"its column in {CARD} (columns: {{verdict: …}}), or say kind: images"
            )
        optional = {"verdict"} if self.unlabelled else set()
        if absent := [key for key in NEEDED[kind] if key not in present | optional]:
            there = ", ".join(str(c) for c in dict.fromkeys(c for s in self.sources for c in s.table.frame))
            missing = ", ".join(absent)
            raise DataError(
                f"{self.name}: no column for {missing}; name it under 'columns:' in {CARD} (there are: {there})"
            )
        if self.unlabelled:
            self.notes.insert(0, f"cases {'with' if 'verdict' in present else 'without'} a column of verdicts")
            return kind
        what, none = ("cases", "") if kind == "cases" else ("labelled images", "no ")
        why = f"{CARD} says so" if self.card.kind else f"there are {none}treatments and verdicts"
        self.notes.insert(0, f"recognised as {what}: {why}")
        if kind == "images":  # what makes a case is a further column here
            for key in (*OF_CASES, "id", "age", "sex", "complaint"):
                if key in self.columns:
                    self.further.append(self.columns.pop(key))
        return kind

    # ---- rows

    def _written_images(self) -> set[tuple[Path, str]]:
        """The image name of every row, and the folder that it is relative to."""
        return {
            (source.base, self._mapped("image", str(name).strip()))
            for source in self.sources
            for name in source.table.frame.get(self.columns["image"], ())
        }

    def _rows(self, source: _Source) -> list:
        made: list[Any] = []
        key, label = ("id", "id") if self.kind == "cases" else ("file", "image")
        for row, cells in zip(source.table.rows, source.table.frame.to_dict("records")):
            where, problems = f"{source.table.file}, row {row}", []
            record = self._record(cells, source, problems)
            if self.kind == "cases" and not record.get("id"):
                record["id"] = self._made_id(source, row)
            used = record["split"], record[key]  # one on two sides is for the check of the split to refuse
            if not problems and used in self.seen:
                problems.append((label, f"{values.shorten(record[key], 80)} was used in {self.seen[used]}"))
            if not problems and self.kind == "cases":
                try:
                    made.append(self._case(record, cells))
                except ValidationError as error:
                    for item in error.errors():
                        problems.append((".".join(map(str, item["loc"])) or "verdict", _reason(item)))
            elif not problems:
                made.append(self._further(cells) | record)
            if problems:
                self.unread += 1
                self.problems += [
                    f"{where}, field '{self.columns.get(name, name)}': {message}" for name, message in problems
                ]
            else:
                self.seen[used] = where
                self.places.append(where)
        return made

    def _made_id(self, source: _Source, row: int) -> str:
        if "id" not in self.columns:
            self._guess("id", "made of file and row")
        return (
            f"{re.sub(r'[^A-Za-z0-9]+', '-', Path(source.table.file).with_suffix('').as_posix()).strip('-')}-{row}"
        )

    def _record(self, cells: dict, source: _Source, problems: list[tuple[str, str]]) -> dict[str, Any]:
        """What one row says of each field; adds (field, what is wrong) to the problems."""
        record: dict[str, Any] = {}

        def parse(key: str, reader: Callable[[str], Any], default: Any = None) -> None:
            column = self.columns.get(key)
            text = self._mapped(key, str(cells.get(column, "")).strip()) if column else ""
            try:
                record[key] = reader(text) if column else default
            except ValueError as error:
                problems.append((key, str(error)))
                record[key] = default

        parse("image", lambda text: self.images.find(_needed(text), source.base))
        parse("finding", lambda text: _needed(text, values.MISSING))
        parse("modality", self._modality, self.card.modality or UNSPECIFIED)
        parse("group", self._group, "")
        parse("source", str, "")
        parse("population", str, "")
        if source.split:
            record["split"] = source.split
        else:
            parse("split", lambda text: values.split(text) if text else "", "")
        if self.kind == "images":
            record["file"] = record.pop("image")
            return record
        parse("id", lambda text: text if text else _needed(""), "")
        parse("treatment", lambda text: _needed(text, values.NO_ANSWER))
        if self.unlabelled:
            parse("verdict", lambda text: self._or_further("verdict", text, self._verdict))
        else:
            parse("verdict", self._verdict)
        parse("age", self._age)
        parse("sex", lambda text: self._noted("sex", text, values.sex(text)))
        parse("complaint", lambda text: None if values.is_missing(text) else text.rstrip("."))
        parse("error_type", lambda text: self._or_further("error_type", text, values.error_type))
        parse("severity", lambda text: self._or_further("severity", text, values.severity))
        parse("cost_impact", values.dollars)
        return record

    def _case(self, record: dict, cells: dict) -> Case:
        factors = {name: record[key] for key, name in FACTORS.items() if record[key]}
        factors |= {name: text for name, text in self._further(cells).items() if text}
        # a word for an error type or a severity that the project does not have is kept as it was written
        unknown = [
            key
            for key in ("error_type", "severity")
            if key in self.columns
            and record[key] is None
            and not values.is_missing(str(cells.get(self.columns[key], "")))
        ]
        factors |= {f"stated_{key}": str(cells[self.columns[key]]).strip() for key in unknown}
        shown = {
            "id": record["id"],
            "modality": record["modality"],
            "image": record["image"],
            "patient": Patient(age=record["age"], sex=record["sex"], complaint=record["complaint"]),
            "finding": record["finding"].rstrip("."),
            "treatment": record["treatment"].rstrip("."),
        }
        if record["verdict"] is None:
            return Case(**shown)
        return LabelledCase(
            **shown,
            verdict=record["verdict"],
            error_type=record["error_type"],
            severity=record["severity"],
            cost_impact=record["cost_impact"],
            factors=factors,
        )

    def _further(self, cells: dict) -> dict[str, str]:
        return {self._further_name(column): str(cells.get(column, "")).strip() for column in self.further}

    def _further_name(self, column: str) -> str:
        """A further column keeps its name unless that means something else here."""
        taken = COLUMNS if self.kind == "images" else {*FACTORS, *FACTORS.values()}
        return f"stated_{column}" if column in taken else column

    # ---- values

    def _mapped(self, key: str, text: str) -> str:
        """The meaning of a value by the card, else the value."""
        meanings = {values.plain(written): meaning for written, meaning in self.card.values.get(key, {}).items()}
        return meanings.get(values.plain(text), text)

    def _guess(self, key: str, what: str) -> None:
        self.guessed.setdefault(key, Counter())[what] += 1

    def _noted(self, key: str, text: str, meaning):
        """The meaning; noted unless it is the text itself."""
        if text and not (meaning and values.plain(text).startswith(str(meaning).casefold())):
            self._guess(key, f"{values.shorten(text)} is read as {'not stated' if meaning is None else meaning}")
        return meaning

    def _modality(self, text: str) -> str:
        if values.is_missing(text):
            return self.card.modality or UNSPECIFIED
        return self._noted("modality", text, values.modality(text))

    def _group(self, text: str) -> str:
        """The group; patients get numbers, so that no record number goes into a result."""
        if values.is_missing(text):
            return ""
        if not PATIENTS.search(_simple(self.columns["group"])):
            return text
        return self.patients.setdefault(text, f"patient-{len(self.patients) + 1}")

    def _verdict(self, text: str) -> str:
        yes_is_correct = _simple(self.columns["verdict"]) not in ASKS_FOR_ERROR
        return self._noted("verdict", text, values.verdict(_needed(text), yes_is_correct))

    def _age(self, text: str) -> int | None:
        years = values.age(text)
        return years if text.isdecimal() else self._noted("age", text, years)

    def _or_further(self, key: str, text: str, reader: Callable[[str], Any]) -> Any:
        """The value, or None with a note for one that the project has no name for."""
        try:
            return self._noted(key, text, reader(text)) if text else None
        except ValueError:
            self._guess(key, f"{values.shorten(text)} is read as not stated, and kept as a further column")
            return None

    def _note_what_is_not_stated(self) -> None:
        optional = ["modality", "group", "split"]
        if self.kind == "cases":
            optional += ["age", "sex", "complaint", "error_type", "severity", "cost_impact"]
        absent = [key for key in optional if key not in self.columns]
        if any(source.split for source in self.sources):
            absent = [key for key in absent if key != "split"]
        if self.card.modality:
            absent = [key for key in absent if key != "modality"]
        if absent:
            self.notes.append(f"not stated: {', '.join(absent)}")
        facts = {"licence": self.card.licence, "source": self.card.source, "real_images": self.card.real_images}
        if unsaid := [key for key, value in facts.items() if value is None]:
            self.notes.append(f"{CARD} does not say: {', '.join(unsaid)}")


def _simple(column: str) -> str:
    """A column's name in lower case, with "_" for all but letters and digits."""
    return re.sub(r"[^a-z0-9]+", "_", column.casefold()).strip("_")


def _needed(text: str, missing: Collection[str] = ("",)) -> str:
    if values.plain(text) in missing:
        raise ValueError("missing" if not text else f"{values.shorten(text)} says nothing")
    return text


class _ImageFinder:
    """Finds the file of an image name, inside the folder of the data set only.

    ``written`` holds every name of the data set, with the folder that it is relative to: a name that two rows
    mean differently is not guessed.
    """

    def __init__(self, root: Path, images: str | None, written: Collection[tuple[Path, str]] = ()):
        self.root, self.guessed = root, {}
        self.folders = [root / images] if images else [root, root / "images"]
        distinct = {(base, _image_path(name.casefold())) for base, name in written}
        self.written = Counter(key for _, path in distinct for key in _keys(path))

    def find(self, name: str, base: Path) -> str:
        """Path of the image relative to the root; ValueError if there is none inside."""
        if "://" in name:
            raise ValueError(f"{values.shorten(name)} is a web address, not a file of the folder")
        relative = _image_path(name)
        absolute = relative.is_absolute() or re.match(r"[A-Za-z]:", name)
        outside = False
        try:
            for folder in (base, base / "images", *self.folders):
                file = (folder / relative).resolve()
                if (folder / relative).is_file():
                    if file.is_relative_to(self.root):
                        return file.relative_to(self.root).as_posix()
                    outside = True
        except (
            OSError,
            ValueError,
            RuntimeError,
        ):  # too long a name, a byte that no name can have, a loop of links
            raise ValueError(f"{values.shorten(name)} is no file name") from None
        if outside or ".." in relative.parts or absolute:
            raise ValueError(f"{values.shorten(name, 80)} leads outside the folder")
        if found := self._guess(relative):
            self.guessed[name] = found
            return found
        raise ValueError(f"image {values.shorten(name, 80)} not found")

    def notes(self) -> list[str]:
        """Every guess, in one note."""
        pairs = [f"{values.shorten(name, 80)}: {found}" for name, found in self.guessed.items()]
        if not pairs:
            return []
        listed = listing(pairs, 10).replace("\n", "; ")
        return [
            f"{len(pairs)} images were found elsewhere in the folder, or with another case or ending: {listed}"
        ]

    def _guess(self, relative: Path) -> str | None:
        """The only image of that name, never one of another folder that the data set has."""
        stated = _folded(relative.parent)
        for key in _keys(relative)[: 1 if stated else 2]:  # without the ending only where no folder is stated
            found = [place for place in self._index.get(key, ()) if not stated or self._may_be(place, key, stated)]
            if len(found) == 1 and self.written[key] <= 1:
                return found[0]
        return None

    def _may_be(self, place: str, name: str, stated: tuple[str, ...]) -> bool:
        """Whether a name with a folder may mean this image: the folder moved as a whole, or exists nowhere."""
        known = [(part,) in self._folders for part in stated]
        named = set(self._folders.get(stated, ()))
        for start in range(1, len(stated)):  # a path that begins further up
            if stated[start:] in self._folders.get(stated[start:], ()) and not any(known[:start]):
                named.add(stated[start:])
        there = named == {_folded(Path(place).parent)} if named else not any(known)
        return there and Path(place).name.casefold() == name

    @cached_property
    def _folders(self) -> dict[tuple[str, ...], set[tuple[str, ...]]]:
        """Folders below the root by every end of their paths, in lower case."""
        ends: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
        for place, _, _ in _walk(self.root):
            folder = _folded(Path(place).relative_to(self.root))
            for start in range(len(folder)):
                ends.setdefault(folder[start:], set()).add(folder)
        return ends

    @cached_property
    def _index(self) -> dict[str, set[str]]:
        """Paths of the images by name and by name without ending, in lower case."""
        found: dict[str, set[str]] = {}
        for folder, _, names in _walk(self.root):
            for name in names:
                path = Path(folder, name)
                if path.suffix.lower() in IMAGE_SUFFIXES and path.resolve().is_relative_to(self.root):
                    for key in _keys(path):
                        found.setdefault(key, set()).add(path.resolve().relative_to(self.root).as_posix())
        return found


def _walk(root: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """`os.walk` without hidden folders."""
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield folder, folders, names


def _image_path(name: str) -> Path:
    return Path(name.strip().replace("\\", "/"))


def _keys(path: Path) -> list[str]:
    """Name and, without the ending of an image, its stem, in lower case."""
    stem = path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name
    return list(dict.fromkeys([path.name.casefold(), stem.casefold()]))


def _folded(folder: Path) -> tuple[str, ...]:
    return tuple(part.casefold() for part in folder.parts)
