"""Who is trained on and who is tested: the assignment of rows to train, val and test by group.

A group is what must not be divided: a patient, or images that are nearly the same.
"""

from __future__ import annotations

import hashlib
import itertools
import secrets
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold

from medlib.config import DataError, files
from medlib.data import leakage

SIDES = ("train", "val", "test")
SHARES: Mapping[str, float] = {"train": 0.70, "val": 0.15, "test": 0.15}
FLAG = "--allow-shared-groups"


@dataclass(frozen=True)
class Assignment:
    """Which side each row is on, and how that came about.

    Parameters
    ----------
    table : DataFrame
        id, file, group (a number, from 0) and split ("train", "val" or "test"), in the order of the data.
    grouped_by : str
        "column", "DICOM patient" or "near-duplicate images".
    given : bool
        The data set names train and test itself.
    seed : int
        Of what was drawn.
    notes : list of str
    stamp : str
        "" or a sentence that belongs beside every figure: the sides of the split share something.
    duplicates : DataFrame
        Near-duplicate pairs, as `medlib.data.leakage.near_duplicates` gives them.
    """

    table: pd.DataFrame
    grouped_by: str
    given: bool
    seed: int
    notes: list[str] = field(default_factory=list)
    stamp: str = ""
    duplicates: pd.DataFrame = field(default_factory=pd.DataFrame)

    def rows(self, side: str) -> np.ndarray:
        """Row numbers of a side, int array."""
        return np.flatnonzero(self.table["split"] == side)

    def write(self, folder: str | Path) -> Path:
        """Write ``split.csv`` (the table) and ``split.json`` (how it was made); the folder is made if missing."""
        folder = Path(folder)
        with files.replacement(folder / "split.csv") as temporary:
            self.table.to_csv(temporary, index=False)
        facts = {k: v for k, v in asdict(self).items() if k not in ("table", "duplicates")}
        counts = self.table.groupby("split").agg(rows=("id", "size"), groups=("group", "nunique"))
        files.write_json(folder / "split.json", facts | {"counts": counts.to_dict("index")})
        return folder / "split.csv"


def assign(
    rows: pd.DataFrame,
    images_dir: str | Path,
    seed: int = 0,
    shares: Mapping[str, float] = SHARES,
    allow_shared: bool = False,
    prints: pd.DataFrame | None = None,
    folder: str | Path | None = None,
) -> Assignment:
    """Assign every row to train, val or test.

    A split that the data set states is kept if it divides no group. Otherwise whole groups are drawn, stratified
    by modality and label. Groups are those of the column, else DICOM patients, else images that are nearly the
    same; groups with near-duplicate images are joined, and rows of one image are always in one group.

    Parameters
    ----------
    rows : DataFrame
        id, file, modality, label, group and split; "" where a group or split is not stated. See `OwnData.rows`.
    images_dir : str or Path
    seed : int
    shares : mapping of str to float
        Of train, val and test among the rows; met as nearly as the groups allow.
    allow_shared : bool
        Keep a stated split that divides a group; the result then has a stamp.
    prints : DataFrame, optional
        `medlib.data.leakage.image_prints` of the images, if they are known already.
    folder : str or Path, optional
        Gets ``split.csv`` and ``split.json``.

    Raises
    ------
    DataError
        If the stated split shares an id, a group, an image or a near-duplicate between its sides (naming the
        pairs), does not name every row, or has no training rows; or if there are too few groups to divide.
    """
    rows, images_dir = rows.reset_index(drop=True), Path(images_dir)
    if prints is None:
        prints = leakage.image_prints(dict(zip(rows["file"], rows["modality"])), images_dir)
    duplicates = leakage.near_duplicates(prints)
    own, grouped_by = _own_groups(rows, images_dir)
    groups = _joined(rows["file"], own, duplicates)
    notes = _about_groups(own, grouped_by, groups, rows["file"], duplicates)
    split, given, stamp = rows["split"], rows["split"].ne("").any(), ""
    if given and split.eq("").any():
        missing = listing(list(rows.loc[split.eq(""), "id"]))
        raise DataError(f"field 'split': stated by some rows only; not by {missing}")
    if given and split.nunique() == 1:
        notes.append(f"all rows are {split.iloc[0]}: read as no split at all")
        given = False
    if given:
        if not split.eq("train").any():
            raise DataError(f"field 'split': no training rows, only {', '.join(sorted(set(split)))}")
        stamp = _check(rows, own, duplicates, prints, allow_shared)
    split = _complete(rows, groups, split if given else None, dict(shares), seed, notes)
    notes += _lacking(rows, split)
    table = pd.DataFrame({"id": rows["id"], "file": rows["file"], "group": groups, "split": split})
    assignment = Assignment(table, grouped_by, bool(given), seed, notes, stamp, duplicates)
    if folder is not None:
        assignment.write(folder)
    return assignment


def read(folder: str | Path) -> Assignment | None:
    """What `Assignment.write` wrote; None if it is not there."""
    table, facts = Path(folder) / "split.csv", Path(folder) / "split.json"
    if not (table.is_file() and facts.is_file()):
        return None
    known = files.read_json(facts)
    known.pop("counts")
    return Assignment(pd.read_csv(table, dtype={"id": str, "file": str}), **known)


def listing(names: list[str], limit: int = 5) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(map(str, names[:limit])) + more


# ---- groups ------------------------------------------------------------------------------------------


def _own_groups(rows: pd.DataFrame, images_dir: Path) -> tuple[pd.Series, str]:
    """Group of each row by the column or by DICOM, "" where none is known, and which of the two."""
    if rows["group"].ne("").any():
        return rows["group"], "column"
    patients = dicom_patients(rows["file"].drop_duplicates(), images_dir)
    if patients:
        return rows["file"].map(patients).fillna(""), "DICOM patient"
    return pd.Series("", index=rows.index), "near-duplicate images"


def dicom_patients(files, images_dir: Path) -> dict[str, str]:
    """A pseudonym of the patient of each DICOM file that names one; hashed with a salt that is kept nowhere."""
    salt, patients = secrets.token_bytes(16), {}
    for file in files:
        if Path(file).suffix.lower() not in {".dcm", ".dicom"}:
            continue
        import pydicom

        try:
            header = pydicom.dcmread(images_dir / file, stop_before_pixels=True, specific_tags=["PatientID"])
        except Exception:  # a broken file is named where images are loaded
            continue
        if patient := str(header.get("PatientID") or "").strip():
            patients[file] = hashlib.blake2b(patient.encode(), key=salt, digest_size=16).hexdigest()
    return patients


def _joined(files: pd.Series, own: pd.Series, duplicates: pd.DataFrame) -> np.ndarray:
    """Number of the group of each row: rows joined by an image, a near-duplicate or a group of their own."""
    codes, names = pd.factorize(files)
    number = {name: code for code, name in enumerate(names)}
    known = own.ne("").to_numpy()
    first = pd.Series(codes[known]).groupby(own[known].to_numpy()).transform("first").to_numpy(dtype=int)
    one = np.concatenate([codes[known], duplicates["image_one"].map(number).to_numpy(dtype=int)])
    two = np.concatenate([first, duplicates["image_two"].map(number).to_numpy(dtype=int)])
    links = coo_matrix((np.ones(len(one)), (one, two)), shape=(len(names), len(names)))
    component = connected_components(links, directed=False)[1]
    return pd.factorize(component[codes])[0]


def _about_groups(
    own, grouped_by: str, groups: np.ndarray, files: pd.Series, duplicates: pd.DataFrame
) -> list[str]:
    sizes = np.bincount(groups)
    notes = [
        f"grouped by {grouped_by}: {len(sizes):,} groups of {len(groups):,} rows, the largest has {sizes.max():,}"
    ]
    if grouped_by != "near-duplicate images":
        group = dict(zip(files, own))
        one, two = duplicates["image_one"].map(group), duplicates["image_two"].map(group)
        if crossing := int((one != two).sum()):
            notes.append(f"{crossing} near-duplicate pairs crossed groups, which were joined")
        if unknown := int(own.eq("").sum()):
            notes.append(f"{unknown} rows state no group: each image is one of its own")
    else:
        notes.append("patients are not known: images of one patient may be on two sides")
    return notes


# ---- a stated split -------------------------------------------------------------------------------------


def _check(rows, own, duplicates, prints, allow_shared: bool) -> str:
    """Refuse what two sides share; the stamp where that is allowed."""
    found = list(_shared(rows, own, duplicates, prints))
    if not found:
        return ""
    counts = Counter(kind for kind, _ in found)
    counted = ", ".join(f"{n} {kind}{'s' if n > 1 else ''}" for kind, n in counts.items())
    if allow_shared:
        return f"The sides of the split share {counted} ({FLAG}): every figure of this run may be too high."
    lines = [line for _, line in found[:20]] + ([f"… and {len(found) - 20:,} more"] if len(found) > 20 else [])
    raise DataError("\n".join([f"the sides of the split share {counted} ({FLAG} uses it all the same):", *lines]))


def _shared(rows: pd.DataFrame, own: pd.Series, duplicates: pd.DataFrame, prints: pd.DataFrame):
    """(kind, sentence) of each id, group, image and near-duplicate on two sides; no group is named."""
    content = rows["file"].map(dict(zip(prints["image"], prints["sha256"])))
    for kind, values, column in (("id", rows["id"], "id"), ("group", own, "id"), ("image", content, "file")):
        known = values.notna() & values.ne("")
        for _, part in rows[known].groupby(values[known], sort=False):
            for one, two in itertools.combinations(part.drop_duplicates("split").itertuples(), 2):
                a, b = (f"{getattr(row, column)} ({row.split})" for row in (one, two))
                what = {"id": "one id", "group": "one group", "image": "the same pixels"}[kind]
                yield kind, f"{a} and {b}: {what}"
    sides = rows.groupby("file")["split"].agg(set)
    for pair in duplicates[duplicates["kind"] == "perceptual"].itertuples():
        if len(sides[pair.image_one] | sides[pair.image_two]) > 1:
            a, b = (f"{name} ({'/'.join(sorted(sides[name]))})" for name in (pair.image_one, pair.image_two))
            yield "near-duplicate", f"{a} and {b}: near-duplicates, {pair.distance} of 256 bits apart"


# ---- what is drawn ----------------------------------------------------------------------------------------


def _complete(rows, groups: np.ndarray, given: pd.Series | None, shares: dict, seed: int, notes: list[str]):
    """The side of every row; what the data set leaves open is drawn by group."""
    rest = shares["train"] + shares["val"]
    if given is None:
        split = pd.Series("train", index=rows.index)
        split[_drawn(rows, groups, np.full(len(rows), True), shares["test"], seed)] = "test"
        notes.append(f"drawn by group with seed {seed}, stratified by modality and label")
    else:
        split = given.copy()
        if not split.eq("test").any():
            split[split.eq("val")] = "test"
            notes.append("no test side is stated: the stated validation side is the held-out test")
    if not split.eq("val").any():
        split[_drawn(rows, groups, split.eq("train").to_numpy(), shares["val"] / rest, seed)] = "val"
        if given is not None:
            notes.append(f"validation rows are drawn from the training side by group, with seed {seed}")
    return split


def _drawn(rows: pd.DataFrame, groups: np.ndarray, among: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Row numbers of whole groups: the fold nearest to its share of every modality and label."""
    part, group = rows[among], groups[among]
    strata, names = pd.factorize(part["modality"] + "\n" + part["label"])
    counts = np.bincount(strata)
    folds = min(round(1 / share), len(np.unique(group)), len(part))
    if folds < 2:
        raise DataError(
            f"{len(part)} rows in {len(np.unique(group))} group(s) cannot be divided: collect more groups"
        )
    # one stratum must have a row for each fold: of few rows only the labels are kept in proportion, or nothing
    levels = (strata, pd.factorize(part["label"])[0], np.zeros(len(part), int))
    stratum = next(level for level in levels if np.bincount(level).max() >= folds)
    folding = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")
        candidates = [fold for _, fold in folding.split(part, stratum, group) if len(fold)]

    def distance(fold) -> float:
        return np.abs(np.bincount(strata[fold], minlength=len(names)) - share * counts).sum()

    chosen = min((fold for fold in candidates if len(fold) < len(part)), key=distance)
    return np.flatnonzero(among)[chosen]


def _lacking(rows: pd.DataFrame, split: pd.Series) -> list[str]:
    """Modalities and labels that a side does not have."""
    strata = rows["modality"] + " " + rows["label"]
    notes = []
    for side in SIDES:
        if lacking := sorted(set(strata) - set(strata[split.eq(side)])):
            notes.append(f"{side} has no {listing(lacking)}")
    return notes
