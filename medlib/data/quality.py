"""Look for the ways in which a data set can be passed without reading the images.

`audit` runs every check below on scenarios and their images and returns a list of `Issue`;
`audit_table` shows it as a table. Nothing here knows a file name: each check works on pixels,
on words, or on labels, so it serves any data set in the format of `medlib.data.cases`.
"""

from __future__ import annotations

import itertools
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from skimage.feature import SIFT, match_descriptors
from skimage.measure import ransac
from skimage.transform import SimilarityTransform
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.tree import DecisionTreeClassifier

from medlib.config import DataError
from medlib.data import marks
from medlib.data.cases import LabelledCase
from medlib.data.images import load_image, pixel_hash, scan_problem

MATCH_SIZE = 384  # pixels on the longer side, for keypoints
MIN_MATCHES = 12
# Strength of an overlap: keypoints that agree on one shift, turn and scale, times their share of
# the keypoints in the common area. One field seen twice gives 40 and more (the published pair of
# histology crops: 47). Two patients in one pose give less than 2, and synthetic images, which
# share a skeleton, up to 13: many of their keypoints agree, but most do not.
MIN_STRENGTH = 20.0
MAX_TEXT_FOLDS = 32
SHORTCUT_ACCURACY = 0.9


@dataclass(frozen=True)
class Issue:
    """One thing to know about the data.

    ``severity`` is "error" (a score on this data says little), "warning" (look at it) or "info".
    """

    check: str
    severity: str
    message: str
    ids: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    evidence: dict = field(default_factory=dict)


@dataclass(frozen=True)
class ImageFacts:
    """What the checks keep of one image file."""

    modality: str
    grey: np.ndarray  # uint8, (height, width), longer side at most MATCH_SIZE
    content_hash: str
    problem: str | None
    bright_share: float  # share of pixels above half range
    strokes: int  # of a letter's size, see `medlib.data.marks`


def audit(
    scenarios: list[LabelledCase],
    images_dir: str | Path,
    splits: dict[str, str] | None = None,
    max_images: int = 24,
    drawn: bool = True,
) -> list[Issue]:
    """Run every check.

    Parameters
    ----------
    scenarios : list of LabelledCase
        All splits together.
    images_dir : str or Path
        Folder of the images that ``LabelledCase.image`` names.
    splits : dict, optional
        LabelledCase id -> "train" or "val". ``factors["published_split"]``, where given, is looked
        at as a second split.
    max_images : int
        Keypoints are matched between at most this many images per modality (time grows with
        its square); a seeded sample is drawn from more.
    drawn : bool
        Whether the images may be this project's own; these have no letters or calipers to look for.

    Returns
    -------
    list of Issue
        Errors first.
    """
    images, issues = load_images(scenarios, images_dir)
    all_splits = {"split": splits} if splits else {}
    published = {s.id: str(s.factors["published_split"]) for s in scenarios if _published(s)}
    if published:
        all_splits["published_split"] = published
    issues += check_ids(scenarios)
    issues += check_masks(scenarios, images)
    issues += check_exact_duplicates(scenarios, images, all_splits)
    issues += check_overlaps(scenarios, images, all_splits, max_images)
    issues += [] if drawn else check_marks(scenarios, images)
    issues += check_contradictions(scenarios)
    issues += check_word_shortcuts(scenarios)
    issues += check_balance(scenarios, all_splits)
    return sorted(issues, key=lambda issue: ("error", "warning", "info").index(issue.severity))


def audit_table(issues: list[Issue]) -> pd.DataFrame:
    """Issues as a table, one row each: check, severity, message, files, ids, evidence."""
    rows = [
        {
            "check": issue.check,
            "severity": issue.severity,
            "message": issue.message,
            "files": ", ".join(issue.files),
            "ids": ", ".join(issue.ids),
            "evidence": issue.evidence,
        }
        for issue in issues
    ]
    return pd.DataFrame(rows, columns=["check", "severity", "message", "files", "ids", "evidence"])


def _published(scenario: LabelledCase) -> bool:
    return "published_split" in scenario.factors


def _users(scenarios: list[LabelledCase], *files: str) -> tuple[str, ...]:
    return tuple(s.id for s in scenarios if s.image in files)


# ---------------------------------------------------------------------------- images


def load_images(
    scenarios: list[LabelledCase], images_dir: str | Path
) -> tuple[dict[str, ImageFacts], list[Issue]]:
    """Load each image file once; a file that is missing, broken or of one colour is an issue."""
    images, issues, seen = {}, [], set()
    for scenario in scenarios:
        if scenario.image in seen:
            continue
        seen.add(scenario.image)
        users = _users(scenarios, scenario.image)
        try:
            image = load_image(Path(images_dir) / scenario.image)
        except DataError as error:
            issues.append(Issue("broken image", "error", str(error), users, (scenario.image,)))
            continue
        image = _image(scenario.modality, image)
        images[scenario.image] = image
        if image.problem and "mask" not in image.problem:
            message = f"{scenario.image}: {image.problem}"
            issues.append(Issue("broken image", "error", message, users, (scenario.image,)))
    return images, issues


def _image(modality: str, image: Image.Image) -> ImageFacts:
    grey = np.asarray(image.convert("L"))
    small = image.convert("L")
    small.thumbnail((MATCH_SIZE, MATCH_SIZE))
    return ImageFacts(
        modality=modality,
        grey=np.asarray(small),
        content_hash=pixel_hash(image),
        problem=scan_problem(image),
        bright_share=float((grey > (int(grey.min()) + int(grey.max())) / 2).mean()),
        strokes=marks.stroke_count(image),
    )


def check_masks(scenarios: list[LabelledCase], images: dict[str, ImageFacts]) -> list[Issue]:
    """Find segmentation masks, and say how well the size of their blob alone gives the verdict."""
    issues = []
    for modality in sorted({p.modality for p in images.values()}):
        masks = [
            s
            for s in scenarios
            if s.image in images and s.modality == modality and "mask" in (images[s.image].problem or "")
        ]
        if not masks:
            continue
        share = np.array([images[s.image].bright_share for s in masks])
        wrong = np.array([s.verdict == "ERROR" for s in masks])
        right, threshold = _best_threshold(share, wrong)
        message = (
            f"{len(masks)} {modality} images are segmentation masks, not scans; one threshold on "
            f"the white area ({threshold:.1%} of the image) gives the verdict of {right} of "
            f"{len(masks)}: a model scores without seeing any {modality}"
        )
        evidence = {
            "white_share_ERROR": [round(float(x), 4) for x in np.sort(share[wrong])],
            "white_share_CORRECT": [round(float(x), 4) for x in np.sort(share[~wrong])],
            "threshold": round(float(threshold), 4),
            "right": right,
            "of": len(masks),
        }
        ids = tuple(s.id for s in masks)
        files = tuple(sorted({s.image for s in masks}))
        issues.append(Issue("mask", "error", message, ids, files, evidence))
    return issues


def check_marks(scenarios: list[LabelledCase], images: dict[str, ImageFacts]) -> list[Issue]:
    """Letters and calipers suspected, and in which share of each finding (or verdict, if none is known)."""
    cases = {s.image: s for s in scenarios if s.image in images}
    rows = [
        (file, images[file].modality, images[file].strokes, case.factors.get("image_finding", case.verdict))
        for file, case in cases.items()
    ]
    found = marks.suspicions(pd.DataFrame(rows, columns=["file", "modality", "strokes", "label"]))
    return [
        Issue("letters or calipers", "info", f"{text}; look at some", files=tuple(files[:3]))
        for text, files in found
    ]


def _best_threshold(values: np.ndarray, labels: np.ndarray) -> tuple[int, float]:
    """Most labels that one threshold gets right (either direction), and that threshold."""
    edges = np.unique(values)
    thresholds = np.append((edges[1:] + edges[:-1]) / 2, edges[-1])
    below = values[None, :] <= thresholds[:, None]
    right = (below == labels).sum(axis=1)
    right = np.maximum(right, len(values) - right)
    return int(right.max()), float(thresholds[right.argmax()])


def check_exact_duplicates(
    scenarios: list[LabelledCase], images: dict[str, ImageFacts], splits: dict[str, dict[str, str]]
) -> list[Issue]:
    """Find files with the same pixels, and files used on two sides of a split."""
    by_content: dict[str, list[str]] = {}
    for scenario in scenarios:
        if scenario.image in images:
            content = images[scenario.image].content_hash
            by_content.setdefault(content, []).append(scenario.image)
    issues = []
    for users in by_content.values():
        files = tuple(sorted(set(users)))
        what = f"{len(users)} scenarios have the same pixels"
        issue = _pair_issue("exact duplicate", what, files, {}, scenarios, splits)
        # one file in several scenarios of one side is how twins are made, not a mistake
        if len(users) > 1 and (len(files) > 1 or issue.evidence["across"]):
            issues.append(issue)
    return issues


def check_overlaps(
    scenarios: list[LabelledCase],
    images: dict[str, ImageFacts],
    splits: dict[str, dict[str, str]],
    max_images: int = 24,
) -> list[Issue]:
    """Find images that show the same field: crops, turns, mirror images, other encodings.

    A hash of the whole image misses two crops that share half a field. Here SIFT keypoints
    (Lowe 2004, doi:10.1023/B:VISI.0000029664.99615.94) of each pair within a modality are matched
    and RANSAC finds the shift, turn and scale on which most of them agree.
    """
    issues = []
    for modality in sorted({p.modality for p in images.values()}):
        names = [n for n, p in images.items() if p.modality == modality and p.problem is None]
        if len(names) > max_images:
            rng = np.random.default_rng(0)
            kept = sorted(rng.choice(len(names), size=max_images, replace=False))
            message = f"{modality}: overlaps were looked for in a sample of {max_images} of {len(names)} images"
            issues.append(Issue("overlap", "info", message))
            names = [names[i] for i in kept]
        keypoints = {name: _keypoints(images[name].grey) for name in names}
        # SIFT tells a mirror image from its original, so the mirrored image is matched too.
        mirrored = {name: _keypoints(images[name].grey[:, ::-1]) for name in names}
        for one, two in itertools.combinations(names, 2):
            if images[one].content_hash == images[two].content_hash:
                continue
            straight = _overlap(keypoints[one], keypoints[two], images[one], images[two])
            mirror = _overlap(keypoints[one], mirrored[two], images[one], images[two])
            best = max(straight, mirror, key=lambda match: match["strength"])
            if best["strength"] >= MIN_STRENGTH:
                what = (
                    f"{best['shared']:.0%} of the first image is in the second "
                    f"{'as a mirror image ' if best is mirror else ''}({best['inliers']} "
                    f"of {best['matches']} matched keypoints agree)"
                )
                evidence = best | {"mirrored": best is mirror}
                issues.append(_pair_issue("overlap", what, (one, two), evidence, scenarios, splits))
    return issues


def _keypoints(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """SIFT positions (n, 2) in (row, column) and descriptors (n, 128); n = 0 for a flat image."""
    sift = SIFT(upsampling=1, c_dog=0.005)  # a third of the usual contrast, for chest films
    try:
        sift.detect_and_extract(np.ascontiguousarray(grey) / 255.0)
    except RuntimeError:  # no keypoint found
        return np.zeros((0, 2)), np.zeros((0, 128))
    return sift.keypoints, sift.descriptors


def _overlap(one, two, first: ImageFacts, second: ImageFacts) -> dict:
    """Fit one similarity transform to the keypoint matches and say how strong the overlap is."""
    none = {"strength": 0.0, "inliers": 0, "matches": 0, "shared": 0.0, "scale": 1.0}
    if min(len(one[0]), len(two[0])) < MIN_MATCHES:
        return none
    matches = match_descriptors(one[1], two[1], max_ratio=0.8, cross_check=True)
    if len(matches) < MIN_MATCHES:
        return none
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No inliers found")
        transform, inliers = ransac(
            (one[0][matches[:, 0]], two[0][matches[:, 1]]),
            SimilarityTransform,
            min_samples=3,
            residual_threshold=3,  # pixels
            max_trials=300,
            rng=np.random.default_rng(0),
        )
    if not transform or inliers is None or not 1 / 4 < transform.scale < 4:
        return none
    common = min(_inside(transform(one[0]), second).sum(), _inside(transform.inverse(two[0]), first).sum())
    grid = np.indices(first.grey.shape).reshape(2, -1).T[::97]  # every 97th pixel is enough
    return {
        "strength": round(float(inliers.sum() ** 2 / max(common, inliers.sum(), 1)), 1),
        "inliers": int(inliers.sum()),
        "matches": len(matches),
        "shared": round(float(_inside(transform(grid), second).mean()), 3),
        "scale": round(float(transform.scale), 3),
    }


def _inside(positions: np.ndarray, image: ImageFacts) -> np.ndarray:
    return ((positions >= 0) & (positions < image.grey.shape)).all(axis=1)


def _pair_issue(check, what, files, evidence, scenarios, splits) -> Issue:
    """Say on which sides of each split scenarios with one image stand."""
    ids = _users(scenarios, *files)
    sides = {name: {i: split[i] for i in ids if i in split} for name, split in splits.items()}
    across = [name for name, side in sides.items() if len(set(side.values())) > 1]
    message = f"{', '.join(files)}: {what}"
    for name in sides:
        message += f"; on {'two sides' if name in across else 'one side'} of {name}"
    severity = "error" if "split" in across else "warning"
    evidence = evidence | {"sides": sides, "across": across}
    return Issue(check, severity, message, ids, files, evidence)


# ------------------------------------------------------------------------------- words

# Diagnoses that exclude each other, per modality, and the words that name them. Texts are in lower
# case, with blanks for all but letters and digits: "BI-RADS 4C" is "bi rads 4c".
DIAGNOSES = {
    "xray": {"bacterial pneumonia": r"\bbacterial\b", "viral pneumonia": r"\bviral\b|\bcovid\b"},
    "histopathology": {
        "adenocarcinoma": r"adenocarcinoma|\baca\b",
        "squamous cell carcinoma": r"squamous|\bscc\b",
        "small cell carcinoma": r"\bsmall cell\b",
    },
    "mri": {
        "glioma": r"gliom|glioblastoma|astrocytoma",
        "meningioma": r"meningioma|dural tail",
        "pituitary tumour": r"pituitary (tumou?r|adenoma)|^pituitary$",
        "metastasis": r"metasta",
    },
    "ultrasound": {
        "benign lesion": r"\bbenign\b|\bcyst|fibroadenoma|bi rads [23]",
        "malignant": r"malignan|cancer|carcinoma|spicul|bi rads [456]",
    },
}
NORMAL = r"\bnormal|unremarkable|no ?tumou?r|\bn$|\bclear\b|\bbi rads 1\b|\bno (\w+ )?mass"
BENIGN = r"\bbenign\b|\bbi rads [12]\b"
ABNORMAL = (
    r"\bmass|lesion|opacit|consolidation|infiltrat|carcinoma|gliom|glioblastoma|tumou?r|atypi"
    r"|malignan|cancer|enhanc|\bcyst|pneumonia|covid|bi rads [456]"
)
NEGATED = r"\b(no|not|without|nothing|negative for|free of)\b[^,;.()]*"


def _words(text: str) -> str:
    return " ".join(re.sub(r"[^a-z0-9]+", " ", text.lower()).split())


def _affirmed(text: str) -> str:
    """The words of a text less what is denied: "normal tissue, no mass" -> "normal tissue"."""
    return _words(re.sub(NEGATED, " ", text.lower().replace("_", " ")))


def is_normal_or_benign(finding: str) -> bool:
    """Whether a finding says normal or benign and affirms no disease (a simple cyst is benign)."""
    affirmed = _affirmed(finding)
    if re.search(BENIGN, affirmed):
        return not re.search(r"malignan|carcinoma|bi rads [3456]", affirmed)
    return bool(re.search(NORMAL, _words(finding))) and not re.search(ABNORMAL, affirmed)


def diagnoses(modality: str, text: str) -> set[str]:
    """Name the mutually exclusive diagnoses that a text affirms; "normal" only if none.

    Of a modality that `DIAGNOSES` lacks, only "normal" is known.
    """
    affirmed = _affirmed(text)
    found = {name for name, words in DIAGNOSES.get(modality, {}).items() if re.search(words, affirmed)}
    if not found and re.search(NORMAL, _words(text)) and not re.search(ABNORMAL, affirmed):
        found = {"normal"}
    return found


def check_contradictions(scenarios: list[LabelledCase]) -> list[Issue]:
    """Find scenarios whose id, file name, source class and finding name different diagnoses."""
    issues = []
    for scenario in scenarios:
        texts = {
            "finding": scenario.finding,
            "id": scenario.id,
            "image": Path(scenario.image).stem,
            "source_class": str(scenario.factors.get("source_class", "")),
            # the folder names of a source often hold another class ("COVID-19 .../Normal/...")
            "source_file": Path(str(scenario.factors.get("source_file", ""))).stem,
        }
        named = {name: diagnoses(scenario.modality, text) for name, text in texts.items()}
        clashes = [
            (one, two)
            for one, two in itertools.combinations(texts, 2)
            if named[one] and named[two] and not named[one] & named[two]
        ]
        if not clashes:
            continue
        parts = {name for clash in clashes for name in clash}
        said = [f"{name} says {' / '.join(sorted(named[name]))}" for name in texts if name in parts]
        evidence = {
            "clashes": [list(clash) for clash in clashes],
            "texts": {name: texts[name] for name in texts if name in parts},
        }
        message = f"{scenario.id}: {', '.join(said)}"
        ids, files = (scenario.id,), (scenario.image,)
        issues.append(Issue("contradiction", "warning", message, ids, files, evidence))
    return issues


def check_word_shortcuts(scenarios: list[LabelledCase]) -> list[Issue]:
    """Measure how far the words of the finding alone give the verdict, without any image."""
    verdicts = np.array([s.verdict for s in scenarios])
    normal = np.array([is_normal_or_benign(s.finding) for s in scenarios])
    if len(set(verdicts)) < 2:
        return []
    table = pd.crosstab(
        pd.Series(np.where(normal, "normal or benign", "abnormal"), name="finding"),
        pd.Series(verdicts, name="verdict"),
    )
    agree = float((normal == (verdicts == "ERROR")).mean())
    rule = max(agree, 1 - agree)
    evidence = {"normal_finding_rule": round(rule, 4), "table": table.to_dict(orient="index")}
    findings = np.array([s.finding for s in scenarios])
    evidence |= _text_accuracies(findings, verdicts)
    shortcut = max(rule, evidence.get("one_word_rule", 0), evidence.get("tfidf_logistic", 0))
    message = (
        f"normal or benign wording of the finding gives the verdict of {rule:.0%} of "
        f"{len(scenarios)} scenarios (normal and ERROR, or the reverse)"
    )
    if "one_word_rule" in evidence:
        message += (
            f"; on held-out findings, one word gives {evidence['one_word_rule']:.0%} and "
            f"TF-IDF with logistic regression {evidence['tfidf_logistic']:.0%}; the commoner "
            f"verdict alone is {evidence['commoner_verdict']:.0%}"
        )
    severity = "warning" if shortcut >= SHORTCUT_ACCURACY else "info"
    return [Issue("word shortcut", severity, message, evidence=evidence)]


def _text_accuracies(texts: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Cross-validated accuracy of two text-only models; leave-one-out for a small set.

    Equal texts stay in one fold, so a model cannot remember a sentence.
    """
    distinct = np.unique(texts)
    if min(len(set(texts[labels == label])) for label in set(labels)) < 4:
        return {}
    folds = GroupKFold(n_splits=min(len(distinct), MAX_TEXT_FOLDS))
    models = {
        # a tree of depth 1 on word presence is the best one-word rule
        "one_word_rule": make_pipeline(
            CountVectorizer(binary=True),
            DecisionTreeClassifier(max_depth=1, class_weight="balanced", random_state=0),
        ),
        "tfidf_logistic": make_pipeline(
            TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression(class_weight="balanced")
        ),
    }
    scores = {"commoner_verdict": np.unique(labels, return_counts=True)[1].max() / len(labels)}
    for name, model in models.items():
        predicted = cross_val_predict(model, texts, labels, groups=texts, cv=folds)
        scores[name] = (predicted == labels).mean()
    return {name: round(float(score), 4) for name, score in scores.items()}


# ------------------------------------------------------------------------------ labels


def check_ids(scenarios: list[LabelledCase]) -> list[Issue]:
    """Find ids used more than once."""
    ids = pd.Series([s.id for s in scenarios])
    return [
        Issue("id", "error", f"{name}: id used {count} times", (name,))
        for name, count in ids.value_counts().items()
        if count > 1
    ]


def check_balance(scenarios: list[LabelledCase], splits: dict[str, dict[str, str]]) -> list[Issue]:
    """Count verdicts, error types and severities; find a side of a split that lacks a verdict."""
    frame = pd.DataFrame(
        [(s.id, s.modality, s.verdict, s.error_type, s.severity) for s in scenarios],
        columns=["id", "modality", "verdict", "error_type", "severity"],
    )
    counts = {
        name: pd.crosstab(frame["modality"], frame[name]).to_dict(orient="index")
        for name in ("verdict", "error_type", "severity")
    }
    share = float((frame["verdict"] == "ERROR").mean()) if len(frame) else 0.0
    issues = [
        Issue(
            "balance",
            "info" if 0.4 <= share <= 0.6 else "warning",
            f"{share:.0%} of {len(frame)} scenarios are ERROR",
            evidence=counts,
        )
    ]
    for name, split in splits.items():
        sides = frame.assign(side=frame["id"].map(split)).dropna(subset="side")
        table = sides.groupby(["side", "modality", "verdict"]).size().unstack(fill_value=0)
        for (side, modality), row in table.iterrows():
            if len(row) < 2 or row.min() == 0:
                only = row.idxmax()
                here = sides[(sides["side"] == side) & (sides["modality"] == modality)]
                message = f"{name}: the {len(here)} {modality} cases of {side} are all {only}"
                issues.append(Issue("balance", "warning", message, tuple(here["id"]), (), {"split": name}))
    return issues
