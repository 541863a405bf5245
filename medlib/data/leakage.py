"""What a test shares with its training data, and which factors and words give verdicts away.

`medlib.data.quality` looks for faults inside one small set. The checks here compare suites of thousands of
scenarios: images by hash, phrases by their words, labels by the factors that made the scenarios.
Every function takes suites by name or a list of scenarios, and returns a table.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import imagehash
import numpy as np
import pandas as pd
from PIL import Image
from scipy.stats import binomtest, fisher_exact
from sklearn.feature_extraction.text import CountVectorizer

from medlib import stats
from medlib.config import DataError
from medlib.data import quality
from medlib.data.cases import LabelledCase
from medlib.data.images import load_image, pixel_hash
from medlib.data.suite import Suite

HASH_SIDE = 16  # a hash of 16 x 16 = 256 bits; with the usual 64, unrelated drawn brains coincide
# Most bits in which two images may differ and still be called one: between the copies (at most 18,
# of 256) and the closest of 2,000 unrelated drawn images (20); published scans are 94 and more
# apart. `hash_distances` measures this again on any suite.
MAX_DISTANCE = 18
PRINT_COLUMNS = ["image", "modality", "sha256", "bits"]
#: The eight ways to lay a square on itself, the first as it is.
TURNS = {"as it is": None} | {t.name.lower().replace("_", " "): t for t in Image.Transpose}


# ---- images ------------------------------------------------------------------------------------


def image_leaks(suites: Mapping[str, Suite], max_distance: int = MAX_DISTANCE) -> pd.DataFrame:
    """Images that stand in two suites, whatever their file names.

    A pair is ``exact`` if the decoded pixels have one SHA-256, and ``perceptual`` if the hashes of
    one image and of the other in any of its eight turns and mirror images differ in few bits.

    Parameters
    ----------
    suites : mapping of str to Suite
        By the name that the table shows; every two of them are compared.
    max_distance : int
        Hamming distance, of 256 bits.

    Returns
    -------
    DataFrame
        One row a pair of images: one, two (names of suites), image_one, image_two (files),
        kind, turn (how the second lies on the first), distance (bits). Empty if nothing leaks.

    Notes
    -----
    Hash: C. Zauner (2010), "Implementation and benchmarking of perceptual image hash functions",
    the DCT hash, by the package imagehash. A crop or a turn by a few degrees escapes it;
    `medlib.data.quality.check_overlaps` finds those, at a price that allows few images.
    """
    prints = {name: fingerprints(suite) for name, suite in suites.items()}
    rows = []
    for one, two in itertools.combinations(suites, 2):
        distances, turns = _distances(prints[one], prints[two])
        for i, j in np.argwhere(distances <= max_distance):
            first, second = prints[one].iloc[i], prints[two].iloc[j]
            exact = first["sha256"] == second["sha256"]
            rows.append(
                (
                    one,
                    two,
                    first["image"],
                    second["image"],
                    "exact" if exact else "perceptual",
                    list(TURNS)[turns[i, j]],
                    int(distances[i, j]),
                )
            )
    columns = ["one", "two", "image_one", "image_two", "kind", "turn", "distance"]
    return pd.DataFrame(rows, columns=columns)


def fingerprints(suite: Suite) -> pd.DataFrame:
    """Hashes of every image of a suite: image (file), modality, sha256, bits (8 turns, 256)."""
    return image_prints({s.image: s.modality for s in suite.scenarios}, suite.images_dir)


def image_prints(
    modalities: Mapping[str, str], images_dir: Path, broken: dict[str, str] | None = None
) -> pd.DataFrame:
    """`fingerprints` of files, given as file: modality.

    A file that cannot be read raises a DataError, or is left out and goes into ``broken`` with the reason.
    """
    rows = []
    for image, kind in modalities.items():
        path = images_dir / image
        # load_image names a file that is missing; the time of change keeps a stale hash from use
        changed = path.stat().st_mtime_ns if path.is_file() else 0
        try:
            rows.append((image, kind, *_fingerprint(path, changed)))
        except DataError as error:
            if broken is None:
                raise
            broken[image] = str(error).removeprefix(f"{path}: ")
    return pd.DataFrame(rows, columns=PRINT_COLUMNS)


@lru_cache(maxsize=50_000)  # images; 2 KiB each
def _fingerprint(path: Path, changed: int) -> tuple[str, np.ndarray]:
    image = load_image(path)
    return pixel_hash(image), hash_bits(image)


def hash_bits(image: Image.Image) -> np.ndarray:
    """Perceptual hash of the image in each of its turns, bool array (8, 256)."""
    # shrunk once to what phash shrinks to anyway, so that eight turns cost little
    small = image.convert("L").resize((4 * HASH_SIDE, 4 * HASH_SIDE), Image.Resampling.LANCZOS)
    turned = [small if turn is None else small.transpose(turn) for turn in TURNS.values()]
    return np.array([np.ravel(imagehash.phash(image, HASH_SIDE).hash) for image in turned])


def _distances(one: pd.DataFrame, two: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Hamming distance (n, m) of each image of ``one`` to each of ``two`` in its best turn (n, m)."""
    shape = len(one), len(two)
    best, turns = np.full(shape, HASH_SIDE**2 + 1, np.float32), np.zeros(shape, np.int8)
    if 0 in shape:
        return best, turns
    first = 2 * np.stack(one["bits"])[:, 0].astype(np.float32) - 1
    second = 2 * np.stack(two["bits"]).astype(np.float32) - 1
    for turn in range(len(TURNS)):
        # with bits as -1 and +1, the scalar product is bits less twice the distance
        distance = (HASH_SIDE**2 - first @ second[:, turn].T) / 2
        turns[distance < best] = turn
        np.minimum(best, distance, out=best)
    return best, turns


def near_duplicates(prints: pd.DataFrame, max_distance: int = MAX_DISTANCE, block: int = 512) -> pd.DataFrame:
    """Pairs of images of one set that are equal or nearly so, whatever their file names.

    Parameters
    ----------
    prints : DataFrame
        As `image_prints` gives it.
    max_distance : int
        Hamming distance, of 256 bits.
    block : int
        Images compared with all others at a time: memory grows with it, not with the square of all.

    Returns
    -------
    DataFrame
        image_one, image_two, kind ("exact" or "perceptual"), turn, distance (bits); each pair once.
    """
    rows = []
    for start in range(0, len(prints), block):
        part, rest = prints.iloc[start : start + block], prints.iloc[start:]
        distances, turns = _distances(part, rest)
        for i, j in np.argwhere(distances <= max_distance):
            if i < j:
                one, two = part.iloc[i], rest.iloc[j]
                kind = "exact" if one["sha256"] == two["sha256"] else "perceptual"
                turn = list(TURNS)[turns[i, j]]
                rows.append((one["image"], two["image"], kind, turn, int(distances[i, j])))
    return pd.DataFrame(rows, columns=["image_one", "image_two", "kind", "turn", "distance"])


def _recompressed(image: Image.Image) -> Image.Image:
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=50)
    return Image.open(buffer, formats=["JPEG"]).convert("RGB")


def _cropped(image: Image.Image) -> Image.Image:
    width, height = image.size
    return image.crop((width // 40, height // 40, width - width // 40, height - height // 40))


#: Copies that somebody could make of an image.
COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG, quality 50": _recompressed,
    "half the size": lambda p: p.resize((p.width // 2, p.height // 2)),
    "mirrored, then JPEG": lambda p: _recompressed(p.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
    "turned by 90°, then JPEG": lambda p: _recompressed(p.transpose(Image.Transpose.ROTATE_90)),
    "a fifth brighter": lambda p: p.point(lambda value: min(255, round(1.2 * value))),
    "cropped to 95%": _cropped,
}
STRANGERS = "nearest other image"


def hash_distances(suite: Suite, sample: int = 100, seed: int = 0) -> pd.DataFrame:
    """How far apart the hashes of copies are, and those of images that have nothing in common.

    Parameters
    ----------
    suite : Suite
        Its images are taken to be of different patients; equal pixels are left out.
    sample : int
        Images drawn by ``seed`` to make `COPIES` of.

    Returns
    -------
    DataFrame
        modality, kind (a name of `COPIES`, or "nearest other image" of the suite, for all of its
        images), distance (bits of 256, the least over turns and mirror images).
    """
    prints = fingerprints(suite)
    distances, _ = _distances(prints, prints)
    hashes = prints["sha256"].to_numpy()
    distances[hashes[:, None] == hashes[None, :]] = np.inf
    rows = [
        (prints["modality"].iloc[i], STRANGERS, nearest)
        for i, nearest in enumerate(distances.min(axis=1, initial=np.inf))
        if np.isfinite(nearest)
    ]
    chosen = np.random.default_rng(seed).permutation(len(prints))[:sample]
    for _, original in prints.iloc[np.sort(chosen)].iterrows():
        image = load_image(suite.images_dir / original["image"])
        for kind, copy in COPIES.items():
            apart = (hash_bits(copy(image)) != original["bits"][0]).sum(axis=1).min()
            rows.append((original["modality"], kind, int(apart)))
    return pd.DataFrame(rows, columns=["modality", "kind", "distance"])


def detection(distances: pd.DataFrame, max_distance: int = MAX_DISTANCE) -> pd.DataFrame:
    """Share of each kind of `hash_distances` within the threshold, with its Wilson interval.

    For copies that is the share found, for the nearest other image the false-alarm rate.
    """
    rows = []
    for kind, part in distances.groupby("kind", sort=False)["distance"]:
        rate = stats.proportion(int((part <= max_distance).sum()), len(part))
        spread = {"least": part.min(), "median": part.median(), "most": part.max()}
        rows.append({"kind": kind, **spread, **rate})
    return pd.DataFrame(rows)


# ---- phrases and findings ------------------------------------------------------------------------

TEXTS: dict[str, Callable[[LabelledCase], str]] = {
    "finding": lambda s: s.finding,
    "treatment": lambda s: s.treatment,
    "complaint": lambda s: s.patient.complaint or "",
}


def phrase_leaks(suites: Mapping[str, Suite]) -> pd.DataFrame:
    """Phrases that stand in two suites; case and punctuation do not tell phrases apart.

    Returns
    -------
    DataFrame
        One row for every two suites and each of finding, treatment and complaint: one, two, text,
        distinct_one, distinct_two, shared (phrases), examples (the first three shared), overlap
        (share of words that the two most similar unequal phrases have in common, the Jaccard
        index) and closest (those two).
    """
    rows = []
    for (one, first), (two, second) in itertools.combinations(suites.items(), 2):
        for text, read in TEXTS.items():
            a, b = ({_plain(text) for text in map(read, suite.scenarios) if text} for suite in (first, second))
            overlap, closest = _closest(sorted(a - b), sorted(b - a))
            rows.append(
                {
                    "one": one,
                    "two": two,
                    "text": text,
                    "distinct_one": len(a),
                    "distinct_two": len(b),
                    "shared": len(a & b),
                    "examples": "; ".join(sorted(a & b)[:3]),
                    "overlap": overlap,
                    "closest": closest,
                }
            )
    return pd.DataFrame(rows)


def _plain(text: str) -> str:
    return " ".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


def _closest(one: list[str], two: list[str]) -> tuple[float, str]:
    if not one or not two:
        return float("nan"), ""
    vectorizer = CountVectorizer(binary=True, token_pattern=r"\S+").fit(one + two)
    a, b = (vectorizer.transform(texts).astype(int) for texts in (one, two))
    common = (a @ b.T).toarray()
    union = a.sum(axis=1).reshape(-1, 1) + b.sum(axis=1).reshape(1, -1) - common
    jaccard = common / np.asarray(union)
    i, j = np.unravel_index(jaccard.argmax(), jaccard.shape)
    return float(jaccard[i, j]), f"{one[i]} | {two[j]}"


def finding_balance(suites: Mapping[str, Suite]) -> pd.DataFrame:
    """How often each finding is shown by an image of each suite, and with which verdict.

    Returns
    -------
    DataFrame
        modality, finding (``factors["image_finding"]``; "unknown" where that is not given), and
        for each suite ``<name>`` (scenarios) and ``<name> CORRECT`` (of them).
    """
    frame = pd.DataFrame(
        [
            (s.modality, s.factors.get("image_finding", "unknown"), name, s.verdict == "CORRECT")
            for name, suite in suites.items()
            for s in suite.scenarios
        ],
        columns=["modality", "finding", "suite", "correct"],
    )
    counted = frame.groupby(["modality", "finding", "suite"])["correct"].agg(["size", "sum"])
    wide = counted.unstack("suite", fill_value=0)
    columns = {
        name + ending: wide[what, name]
        for name in suites
        if name in set(frame["suite"])
        for ending, what in (("", "size"), (" CORRECT", "sum"))
    }
    return pd.DataFrame(columns).reset_index()


# ---- labels --------------------------------------------------------------------------------------

AGE_BANDS = (0, 40, 60, 75, 121)  # years


def _age_band(age: int | None) -> str | None:
    if age is None:
        return None
    low = max(edge for edge in AGE_BANDS if edge <= age)
    high = min(edge for edge in AGE_BANDS if edge > age)
    return f"{low} to {high - 1}"


#: What a scenario may be grouped by. "verdict source" is how its verdict was made, so it gives the
#: verdict by construction: a check of the check.
FACTORS: dict[str, Callable[[LabelledCase], str | int | None]] = {
    "modality": lambda s: s.modality,
    "sex": lambda s: s.patient.sex,
    "age": lambda s: _age_band(s.patient.age),
    "complaint": lambda s: s.patient.complaint,
    "wording": lambda s: "normal or benign" if quality.is_normal_or_benign(s.finding) else "abnormal",
    "note says": lambda s: _of_modality(s, "note_finding"),
    "image shows": lambda s: _of_modality(s, "image_finding"),
    "treatment": lambda s: _of_modality(s, "care"),
    "kind of pair": lambda s: s.factors.get("pair_kind"),
    "verdict source": lambda s: s.factors.get("source"),
}
NOT_SHOWN = ("kind of pair", "verdict source")  # to any auditor


def _of_modality(scenario: LabelledCase, factor: str) -> str | None:
    value = scenario.factors.get(factor)
    return value if value is None else f"{scenario.modality}: {value}".replace("_", " ")


def label_balance(scenarios: Sequence[LabelledCase], factors: Sequence[str] = tuple(FACTORS)) -> pd.DataFrame:
    """Share of CORRECT at each level of each factor, tested against one half.

    Parameters
    ----------
    scenarios : sequence of LabelledCase
    factors : sequence of str
        Names of `FACTORS`; one that the scenarios do not have is left out.

    Returns
    -------
    DataFrame
        factor, level, n, correct, share, low, high (Wilson, 95%), p (two-sided exact binomial test
        of one half), p_holm (Holm, over all rows). Twins with the same level have opposite verdicts,
        so the test is on the safe side: a small p is to be believed.

    Raises
    ------
    ValueError
        If a factor is unknown; lists the known ones.
    """
    if unknown := set(factors) - set(FACTORS):
        raise ValueError(f"factors {sorted(unknown)} are none of {', '.join(FACTORS)}")
    rows = []
    for factor in factors:
        levels = pd.Series([FACTORS[factor](s) for s in scenarios], dtype=object)
        correct = pd.Series([s.verdict == "CORRECT" for s in scenarios], dtype=bool)
        for level, right in correct.groupby(levels):  # groupby leaves out what is None
            rate = stats.proportion(int(right.sum()), len(right))
            rows.append(
                {
                    "factor": factor,
                    "level": str(level).replace("_", " "),
                    "n": len(right),
                    "correct": int(right.sum()),
                    "share": rate["value"],
                    "low": rate["low"],
                    "high": rate["high"],
                    "p": binomtest(int(right.sum()), len(right)).pvalue,
                }
            )
    columns = ["factor", "level", "n", "correct", "share", "low", "high", "p"]
    return _with_holm(pd.DataFrame(rows, columns=columns))


def word_shortcuts(scenarios: Sequence[LabelledCase]) -> pd.DataFrame:
    """Single words of finding and treatment that predict the verdict.

    Returns
    -------
    DataFrame
        Most telling first: text ("finding" or "treatment"), word, n (scenarios with it), correct,
        share (of CORRECT among them), p (Fisher's exact test of word against verdict, two-sided),
        p_holm (Holm, over all words of both texts).
    """
    correct = np.array([s.verdict == "CORRECT" for s in scenarios], dtype=bool)
    rows = []
    for text in ("finding", "treatment"):
        vectorizer = CountVectorizer(binary=True)
        try:
            present = vectorizer.fit_transform([TEXTS[text](s) for s in scenarios]).tocsc()
        except ValueError:  # no scenario, or none with a word
            continue
        n = np.asarray(present.sum(axis=0)).ravel()
        right = np.asarray(present[correct].sum(axis=0)).ravel()
        for word, k, r in zip(vectorizer.get_feature_names_out(), n, right):
            table = [[r, k - r], [correct.sum() - r, (~correct).sum() - (k - r)]]
            rows.append((text, word, int(k), int(r), r / k, fisher_exact(table).pvalue))
    found = _with_holm(pd.DataFrame(rows, columns=["text", "word", "n", "correct", "share", "p"]))
    order = found.assign(rare=-found["n"]).sort_values(["p", "rare", "word"], kind="stable").index
    return found.loc[order].reset_index(drop=True)


def _with_holm(found: pd.DataFrame) -> pd.DataFrame:
    adjusted = stats.holm(dict(found["p"])) if len(found) else {}
    return found.assign(p_holm=[adjusted[row] for row in found.index])


def normal_rule(scenarios: Sequence[LabelledCase]) -> dict:
    """How far one rule gets: a finding that sounds normal or benign means ERROR, any other CORRECT.

    Returns
    -------
    dict
        n, normal, normal_error (of the normal ones, ERROR), abnormal, abnormal_correct, right
        (verdicts that the rule gets, or its opposite if that gets more).
    """
    normal = np.array([quality.is_normal_or_benign(s.finding) for s in scenarios], dtype=bool)
    error = np.array([s.verdict == "ERROR" for s in scenarios], dtype=bool)
    agree = int((normal == error).sum())
    return {
        "n": len(error),
        "normal": int(normal.sum()),
        "normal_error": int((normal & error).sum()),
        "abnormal": int((~normal).sum()),
        "abnormal_correct": int((~normal & ~error).sum()),
        "right": max(agree, len(error) - agree),
    }
