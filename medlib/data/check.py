"""Everything to know about a data set before it is used, in one report; nothing in it stops the check."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from medlib.config import DataError
from medlib.data import blind, leakage, marks, own, quality, split
from medlib.data.blind import BlindScore
from medlib.data.cases import LabelledCase
from medlib.data.images import load_image, pixel_hash, scan_problem
from medlib.data.own import OwnData, listing
from medlib.data.split import Assignment

ONE_COLOUR = "one-colour image"
OVERLAP_IMAGES = 12  # of a modality; the time grows with the square


@dataclass(frozen=True)
class Report:
    """What `check` found.

    Parameters
    ----------
    data : OwnData
    images : DataFrame
        One row per file: file, modality, problem ("" if none), sha256, bits, strokes and `blind.STATISTICS`; an
        image that cannot be read has its problem only.
    scores : list of BlindScore
    assignment : Assignment or None
        The stated split, or the proposed one; None if the data are too few.
    refused : str
        Why the stated split cannot be used, or why none can be proposed.
    overlaps : list of str
        Images that show parts of one field; looked for in modalities of few images.
    """

    data: OwnData
    images: pd.DataFrame
    scores: list[BlindScore] = field(default_factory=list)
    assignment: Assignment | None = None
    refused: str = ""
    overlaps: list[str] = field(default_factory=list)

    def text(self) -> str:
        """The report for a terminal."""
        sections = {
            "Recognised": self.data.notes,
            "Rows": self._rows(),
            "Problems": self._problems(),
            "Images": self._images(),
            "Near-duplicates": self._duplicates(),
            "Crops of one field": self.overlaps or ["none"],
            "Without reading the image": self._blind(),
            "Split": self._split(),
        }
        return "\n\n".join(
            "\n".join([title, *(f"  {_indented(line)}" for line in lines)]) for title, lines in sections.items()
        )

    def balance(self) -> pd.DataFrame:
        """Rows by modality and label, with totals."""
        rows = self.data.rows
        return pd.crosstab(rows["modality"], rows["label"], margins=True, margins_name="all")

    def _rows(self) -> list[str]:
        unread = f", {self.data.unread:,} cannot be read and are left out" if self.data.unread else ""
        what = "cases" if self.data.kind == "cases" else "labelled images"
        table = self.balance()
        table = table if len(table.columns) <= 8 else table.T  # findings: one a line
        return [f"{len(self.data):,} {what}{unread}, sha256 {self.data.sha256[:16]}", table.to_string()]

    def _problems(self) -> list[str]:
        return [listing(self.data.problems)] if self.data.problems else ["none: every row was read"]

    def _images(self) -> list[str]:
        faulty = self.images[self.images["problem"] != ""]
        lines = [f"{len(self.images):,} files, {len(faulty):,} broken, blank or masks"]
        lines += [listing([f"{row.file}: {row.problem}" for row in faulty.itertuples()])] if len(faulty) else []
        read = self.images[self.images["sha256"] != ""]
        if repeated := int(read["sha256"].duplicated().sum()):
            lines.append(f"{repeated:,} files repeat the pixels of another")
        label = self.data.rows.drop_duplicates("file").set_index("file")["label"]
        for text, suspects in marks.suspicions(read.assign(label=read["file"].map(label))):
            lines.append(f"{text}; look at some, such as\n{listing(suspects[:3])}")
        return lines

    def _duplicates(self) -> list[str]:
        pairs = self.assignment.duplicates if self.assignment else pd.DataFrame()
        if not len(pairs):
            return ["none"]
        label = self.data.rows.drop_duplicates("file").set_index("file")["label"]
        lines = [f"{len(pairs):,} pair{'s' if len(pairs) > 1 else ''}"]
        other = int((pairs["image_one"].map(label) != pairs["image_two"].map(label)).sum())
        if other and self.data.kind == "images":  # one image under two verdicts is how cases are made
            lines[0] += f", {other:,} of them with different findings"
        shown = [f"{p.image_one} and {p.image_two} ({p.turn}, {p.distance} bits)" for p in pairs.itertuples()]
        return [*lines, listing(shown, 10)]

    def _blind(self) -> list[str]:
        lines = [blind.sentence(self.scores)]
        lines += [f"{score.auditor}: {score.note}" for score in self.scores if score.note]
        lines += telling_words(self.data.cases)
        if self.data.kind == "images":
            lines.append("words: there are none yet, the notes are written around the findings")
        return lines

    def _split(self) -> list[str]:
        lines = [self.refused] if self.refused else []
        if self.assignment:
            counts = self.assignment.table.groupby("split")["group"].agg(["size", "nunique"])
            sizes = [
                f"{side} {counts.loc[side, 'size']:,} rows in {counts.loc[side, 'nunique']:,} groups"
                for side in counts.index
            ]
            lines.append(f"{'stated' if self.assignment.given else 'proposed'}: {', '.join(sizes)}")
            lines += self.assignment.notes
        return lines


def check(where: str | Path, seed: int = 0, progress: bool = False) -> Report:
    """Read a data set and look for what could mislead whoever trains on it.

    Parameters
    ----------
    where : str or Path
        What `medlib.data.own.read` takes.
    seed : int
        Of the proposed split and of the cross-validation.
    progress : bool
        Show a bar while images are read.

    Raises
    ------
    DataError
        If nothing at all can be read; single bad rows and broken images are part of the report.
    """
    data = own.read(where, strict=False)
    images = inspect(dict(zip(data.rows["file"], data.rows["modality"])), data.images_dir, progress)
    prints = images.loc[(images["sha256"] != "") & (images["problem"] != ONE_COLOUR), leakage.PRINT_COLUMNS]
    refused, assignment = "", None
    for rows in (data.rows, data.rows.assign(split="")):
        try:
            assignment = split.assign(rows, data.images_dir, seed, prints=prints)
            break
        except DataError as error:
            refused = refused or str(error)
    groups = assignment.table["group"] if assignment else data.rows["file"]
    scores = blind_scores(data, images, groups, seed)
    return Report(data, images, scores, assignment, refused, overlaps(data, images))


def inspect(modalities: dict[str, str], images_dir: Path, progress: bool = False) -> pd.DataFrame:
    """``Report.images`` of files given as file: modality; each is loaded once."""
    rows = []
    for file, modality in tqdm(modalities.items(), desc="images", disable=not progress):
        row = {"file": file, "image": file, "modality": modality, "sha256": "", "strokes": 0}
        try:
            image = load_image(images_dir / file)
        except DataError as error:
            rows.append(row | {"problem": str(error).removeprefix(f"{images_dir / file}: ")})
            continue
        rows.append(
            row
            | {"problem": scan_problem(image) or "", "sha256": pixel_hash(image), "bits": leakage.hash_bits(image)}
            | {"strokes": marks.stroke_count(image)}
            | blind.image_statistics(image, blind.file_size(images_dir / file))
        )
    return pd.DataFrame(rows, columns=["file", "problem", "strokes", *leakage.PRINT_COLUMNS, *blind.STATISTICS])


def blind_scores(data: OwnData, images: pd.DataFrame, groups, seed: int = 0) -> list[BlindScore]:
    """Both blind auditors on cases; image statistics only where there are no words."""
    rows = data.rows.assign(group=np.asarray(groups))
    read = rows.merge(images.dropna(subset=["mean"])[["file", *blind.STATISTICS]], on="file")
    within = read["modality"] if data.kind == "images" else None
    scores = [blind.blind_image_accuracy(read["label"], read, read["group"], within, seed)]
    if data.kind == "cases":
        scores.insert(0, blind.blind_words_accuracy(data.cases, rows["label"], rows["group"], seed))
    return scores


def telling_words(cases: list[LabelledCase], most: int = 5) -> list[str]:
    """A line of the words that go with one verdict more often than by chance, strongest first; none if none do."""
    words = leakage.word_shortcuts(cases)
    found = words[words["p_holm"] < 0.05]
    named = [f"{w.word!r} ({w.text}, {w.correct:,} of {w.n:,} CORRECT)" for w in found.head(most).itertuples()]
    more = f" and {len(found) - most:,} more" if len(found) > most else ""
    return [f"words that give the verdict away: {', '.join(named)}{more}"] if named else []


def overlaps(data: OwnData, images: pd.DataFrame, most: int = OVERLAP_IMAGES) -> list[str]:
    """Images that show parts of one field, such as two crops, which no hash of the whole image finds."""
    sound = set(images.loc[images["problem"] == "", "file"])
    rows = data.rows[data.rows["file"].isin(sound)]
    counts = rows.groupby("modality", sort=False)["file"].nunique()
    few = rows[rows["modality"].isin(counts[counts <= most].index)]
    cases = [
        LabelledCase(id=r.id, image=r.file, modality=r.modality, finding="-", treatment="-", verdict="ERROR")
        for r in few.itertuples()
    ]
    splits = {"split": dict(zip(few["id"], few["split"]))} if few["split"].ne("").all() else {}
    found = quality.check_overlaps(cases, quality.load_images(cases, data.images_dir)[0], splits, most)
    skipped = [f"not looked for in {n:,} {name} images" for name, n in counts.items() if n > most]
    return [issue.message for issue in found] + skipped


def _indented(text: str) -> str:
    return text.replace("\n", "\n  ")
