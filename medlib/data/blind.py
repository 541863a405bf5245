"""How far an auditor gets that does not read the image: by words only, and by image statistics only.

Both are cross-validated by group, so neither can remember a patient.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline

from medlib import stats
from medlib.data.cases import Case
from medlib.data.images import FORMATS, load_image

SIDE = 256  # pixels of the longer side, on which statistics are taken
FOLDS = 5
TREES = 200
RESAMPLES = 2_000
#: What a random forest gets of an image; grey values are 0 to 255, shares 0 to 1.
STATISTICS = tuple(
    "mean spread p5 p25 median p75 p95 gradient gradient_spread border black white width height".split()
)


@dataclass(frozen=True)
class BlindScore:
    """What one blind auditor reaches.

    Parameters
    ----------
    auditor : str
        "words only" or "image statistics only".
    measure : str
        "accuracy", or "balanced accuracy within modality".
    value, low, high : float
        Cross-validated, with a 95% interval: Wilson for an accuracy, a bootstrap over groups for a balanced one;
        nan if it could not be measured.
    chance : float
        The commoner label alone, or one over the number of labels.
    n, groups : int
    note : str
        Why it was not measured, or what was left out.
    """

    auditor: str
    measure: str
    value: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    chance: float = float("nan")
    n: int = 0
    groups: int = 0
    note: str = ""


def image_statistics(image: Image.Image, size: tuple[int, int] | None = None) -> dict[str, float]:
    """`STATISTICS` of an image; ``size`` is (width, height) of its file, if that is another."""
    small = image.convert("L")
    small.thumbnail((SIDE, SIDE))
    grey = np.asarray(small, dtype=float)
    steps = np.abs(np.diff(grey, axis=1)) if grey.shape[1] > 1 else np.zeros(1)
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    width, height = size or image.size
    percentiles = np.percentile(grey, (5, 25, 50, 75, 95))
    values = (
        *(grey.mean(), grey.std(), *percentiles, steps.mean(), steps.std(), border.mean()),
        *((grey < 16).mean(), (grey > 239).mean(), width, height),
    )
    return dict(zip(STATISTICS, map(float, values)))


def statistics_of_file(path: str | Path) -> dict[str, float]:
    """`image_statistics` of a file, with its own width and height; DataError for a broken one."""
    return image_statistics(load_image(path), file_size(path))


def statistics_of_files(folder: Path, names: Iterable[str]) -> pd.DataFrame:
    """`statistics_of_file` of files in a folder, a row each; columns `STATISTICS`."""
    return pd.DataFrame([statistics_of_file(folder / name) for name in names], columns=list(STATISTICS))


def file_size(path: str | Path) -> tuple[int, int] | None:
    """(width, height) as the file states them, before anything is turned or resized; None if it does not say."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return image.size
    except Exception:  # DICOM, or a file that `load_image` refuses
        return None


def blind_image_accuracy(
    labels: Sequence[str],
    statistics: pd.DataFrame,
    groups: Sequence,
    within: Sequence[str] | None = None,
    seed: int = 0,
) -> BlindScore:
    """How well a random forest tells the label by image statistics only.

    Parameters
    ----------
    labels : sequence of str, length n
        Verdicts or findings.
    statistics : DataFrame, n rows
        Columns `STATISTICS`.
    groups : sequence, length n
        Rows of one group are in one fold.
    within : sequence of str, length n, optional
        Modalities: labels are told apart inside each, and the measure is the mean recall over all modalities and
        labels. By default the measure is the accuracy.
    """
    name = "image statistics only"
    features = statistics[list(STATISTICS)].to_numpy(dtype=float)
    forest = RandomForestClassifier(TREES, random_state=seed, class_weight=None if within is None else "balanced")
    if within is None:
        return _accuracy(name, forest, features, labels, groups, seed)
    return _within(name, forest, features, labels, groups, within, seed)


def blind_words_accuracy(
    cases: Sequence[Case], labels: Sequence[str], groups: Sequence, seed: int = 0
) -> BlindScore:
    """How well TF-IDF with logistic regression tells the verdict by the words of the cases only."""
    return _accuracy("words only", words_model(seed), np.array(words(cases)), labels, groups, seed)


def words(cases: Sequence[Case]) -> list[str]:
    """All that a case says, one text each."""
    return [f"{c.modality} {c.finding} {c.treatment} {c.patient.complaint or ''}" for c in cases]


def words_model(seed: int = 0) -> Pipeline:
    """TF-IDF and logistic regression over `words`, not fitted."""
    classifier = LogisticRegression(max_iter=2000, random_state=seed)
    return make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), classifier)


def sentence(scores: Sequence[BlindScore]) -> str:
    """How far the data can be passed without reading the image, by the better of the blind auditors."""
    measured = [score for score in scores if np.isfinite(score.value)]
    if not measured:
        return "How far your data can be passed without reading the image could not be measured: " + "; ".join(
            f"{score.auditor}: {score.note}" for score in scores
        )
    best = max(measured, key=lambda score: score.value)
    others = [f"{s.auditor} {s.value:.0%} [{s.low:.0%}, {s.high:.0%}]" for s in measured if s is not best]
    chance = "the commoner verdict alone" if best.measure == "accuracy" else "chance"
    return (
        f"Your data can be passed to {best.value:.0%} [{best.low:.0%}, {best.high:.0%}] without reading the image "
        f"({best.measure} of {best.auditor}, n={best.n:,}; {'; '.join([*others, f'{chance} {best.chance:.0%}'])})."
    )


# ---- cross-validation ----------------------------------------------------------------------------------


def _accuracy(name: str, model, features, labels, groups, seed: int) -> BlindScore:
    labels, groups = np.asarray(labels, dtype=str), pd.factorize(pd.Series(groups))[0]
    try:
        predicted = _predicted(model, features, labels, groups, seed)
    except ValueError as error:
        return BlindScore(name, "accuracy", n=len(labels), note=f"not measured: {error}")
    right = stats.proportion(int((predicted == labels).sum()), len(labels))
    chance = float(np.unique(labels, return_counts=True)[1].max() / len(labels))
    return BlindScore(
        name, "accuracy", right["value"], right["low"], right["high"], chance, len(labels), len(np.unique(groups))
    )


def _within(name: str, model, features, labels, groups, within, seed: int) -> BlindScore:
    measure = "balanced accuracy within modality"
    labels, within = np.asarray(labels, dtype=str), np.asarray(within, dtype=str)
    groups = pd.factorize(pd.Series(groups))[0]
    used, right, chances, left_out = np.zeros(len(labels), bool), np.zeros(len(labels)), [], []
    for modality in dict.fromkeys(within):
        rows = within == modality
        counts = pd.Series(groups[rows]).groupby(labels[rows]).nunique()
        rare = set(counts[counts < 2].index)
        left_out += [f"{modality} {label}" for label in sorted(rare)]
        rows &= ~np.isin(labels, list(rare))
        try:
            predicted = _predicted(model, features[rows], labels[rows], groups[rows], seed)
        except ValueError:
            left_out += [f"{modality} {label}" for label in sorted(set(labels[rows]))]
            continue
        used |= rows
        right[rows] = predicted == labels[rows]
        found = len(set(labels[rows]))
        chances += [1 / found] * found
    note = f"left out, since they cannot be cross-validated: {', '.join(left_out)}" if left_out else ""
    if not used.any():
        return BlindScore(name, measure, n=len(labels), note=f"not measured: {note or 'no rows'}")
    classes = pd.factorize(pd.Series(within[used]) + "\n" + pd.Series(labels[used]))[0]
    value, low, high = _mean_recall(right[used], classes, pd.factorize(groups[used])[0], seed)
    n_groups = len(np.unique(groups[used]))
    return BlindScore(name, measure, value, low, high, float(np.mean(chances)), int(used.sum()), n_groups, note)


def _predicted(model, features, labels: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
    """Predictions for each row by a model that was fitted without its group; ValueError if that cannot be."""
    in_groups = pd.Series(groups).groupby(labels).nunique()
    if len(in_groups) < 2:
        raise ValueError("there is one label only")
    if in_groups.min() < 2:
        raise ValueError(f"{in_groups.idxmin()} is in one group only")
    folds = StratifiedGroupKFold(min(FOLDS, int(in_groups.min())), shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")
        return cross_val_predict(model, features, labels, groups=groups, cv=folds)


def _mean_recall(right: np.ndarray, classes: np.ndarray, groups: np.ndarray, seed: int):
    """Mean recall over classes, and its 95% percentile interval over resampled groups."""
    shape = groups.max() + 1, classes.max() + 1
    hits, counts = np.zeros(shape), np.zeros(shape)
    np.add.at(hits, (groups, classes), right)
    np.add.at(counts, (groups, classes), 1)
    rng, means = np.random.default_rng(seed), []
    for _ in range(RESAMPLES // 100):  # in parts: one matrix for all would be large
        weights = rng.multinomial(shape[0], np.full(shape[0], 1 / shape[0]), size=100)
        with np.errstate(invalid="ignore"):
            means.append(np.nanmean((weights @ hits) / (weights @ counts), axis=1))
    low, high = np.percentile(np.concatenate(means), (2.5, 97.5))
    value = float((hits.sum(axis=0) / counts.sum(axis=0)).mean())
    return value, min(float(low), value), max(float(high), value)
