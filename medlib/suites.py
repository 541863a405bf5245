"""Suites made from suites: what an auditor's verdict survives, and where it should give none.

Each function takes or names a suite and returns a `medlib.data.Suite`. Where the scenarios are those
of the suite that was given, so are their ids, and answers can be compared row by row.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from medlib import audit, corruptions, data, grammar, prompts
from medlib.data import Suite
from medlib.lexicon import DEGREES, TREATMENTS, findings_of
from medlib.schema import MODALITIES, DataError, Scenario, load_image

ABLATIONS = ("text_only", "image_only", "swapped", "masked_words")

#: The right answer to every scenario of `out_of_distribution`; its ``verdict`` is a placeholder.
EXPECTED = "abstain"

MASK = "___"


# --------------------------------------------------------------------------- parts of the input withheld


def ablate(suite: Suite, name: str, seed: int = 0) -> Suite:
    """The suite with a part of every scenario withheld; ids and verdicts stay.

    Parameters
    ----------
    name : {"text_only", "image_only", "swapped", "masked_words"}
        ``text_only`` shows a plain grey picture; ``image_only`` withholds finding, treatment and
        complaint; ``swapped`` shows the picture of another scenario of the same modality;
        ``masked_words`` blanks the words that label a finding (see `mask_words`).
    seed : int
        Chooses the swapped pictures.

    Raises
    ------
    ValueError
        If the name is unknown.
    DataError
        If a modality has one picture only, and so none to swap it for.
    """
    if name not in ABLATIONS:
        raise ValueError(f"ablation {name!r} is not one of {', '.join(ABLATIONS)}")
    suite = replace(suite, name=f"{suite.name}-{name}")
    if name == "text_only":
        return replace(suite, view="grey")
    if name == "swapped":
        return replace(suite, scenarios=_swap_images(suite.scenarios, seed))
    change = prompts.withhold_text if name == "image_only" else mask_words
    return replace(suite, scenarios=[change(s) for s in suite.scenarios])


def _swap_images(scenarios: list[Scenario], seed: int) -> list[Scenario]:
    """Another scenario's picture of the same modality, never one's own."""
    rng, swapped = np.random.default_rng(seed), []
    pools = {m: sorted({s.image for s in scenarios if s.modality == m}) for m in MODALITIES}
    for scenario in scenarios:
        others = [image for image in pools[scenario.modality] if image != scenario.image]
        if not others:
            raise DataError(f"{scenario.id}, field 'image': the suite has no other {scenario.modality} "
                            "picture to swap it for; use a larger suite")
        swapped.append(scenario.model_copy(update={"image": str(rng.choice(others))}))
    return swapped


# The audit's patterns are for texts without punctuation ("bi rads 5"); here a hyphen may stand there.
_LABELS = [
    pattern.replace("bi rads", "bi[ -]rads")
    for group in audit.DIAGNOSES.values()
    for pattern in (*group.values(), audit.NORMAL, audit.BENIGN, audit.ABNORMAL)
]
_LABEL = re.compile(rf"[\w-]*(?:{'|'.join(_LABELS)}|\b(?:{'|'.join(DEGREES)})\b)[\w-]*", re.IGNORECASE)
_NEGATED = re.compile(audit.NEGATED, re.IGNORECASE)


def mask_words(scenario: Scenario) -> Scenario:
    """Blank the words that name normal, benign, malignant, a diagnosis or a degree.

    The words are those by which `medlib.audit` looks for shortcuts. In the finding a denial ("no
    mass") goes as a whole; in the treatment "no" and "without" stay, for they say what is done. What
    stays still describes ("posterior shadowing"), so this shows how much hangs on the label words,
    not what an auditor without words can do: that is ``image_only``.
    """
    finding = _LABEL.sub(MASK, _NEGATED.sub(MASK, scenario.finding))
    return scenario.model_copy(update={
        "finding": _one_mask(finding), "treatment": _one_mask(_LABEL.sub(MASK, scenario.treatment)),
    })


def _one_mask(text: str) -> str:
    # one mask for a run of masked words: their number would tell them apart
    return re.sub(rf"{MASK}(?:[\s,-]*{MASK})+", MASK, text)


# ------------------------------------------------------------------------------------ other words


def paraphrase(suite: Suite, seed: int = 0) -> Suite:
    """The suite in other words: pictures, facts, verdicts and ids stay.

    Each finding and treatment takes another phrase of its split for the same finding or care. What
    the two members of a pair share they share afterwards, so a pair still differs in one factor.
    A stated degree is kept or left out, never made up. Complaints stay: the lexicon knows no two for
    the same thing. Where a split has no other phrase the old one stays; see `changed_share`.

    Raises
    ------
    DataError
        If a scenario is not from `medlib.grammar`, whose ``factors`` tell what its words mean.
    """
    scenarios = []
    for scenario in suite.scenarios:
        care = scenario.modality, str(scenario.factors.get("care"))
        treatments = next((p for p in TREATMENTS.get(care, {}).values() if scenario.treatment in p), ())
        scenarios.append(scenario.model_copy(update={
            "finding": _other_phrase(scenario, scenario.finding, _finding_phrases(scenario), seed),
            "treatment": _other_phrase(scenario, scenario.treatment, treatments, seed),
        }))
    return replace(suite, name=f"{suite.name}-paraphrase", scenarios=scenarios)


def _finding_phrases(scenario: Scenario) -> list[str]:
    """The sentences of one split that say what the note says; a note without a degree gets none."""
    for finding in findings_of(scenario.modality):
        if finding.name != scenario.factors.get("note_finding"):
            continue
        for templates, degree in itertools.product(finding.phrases.values(), DEGREES):
            template_of = {grammar.fill(template, degree): template for template in templates}
            if scenario.finding in template_of:
                graded = "{degree}" in template_of[scenario.finding]
                return [text for text, t in template_of.items() if graded or "{degree}" not in t]
    return []


def _other_phrase(scenario: Scenario, text: str, phrases: Sequence[str], seed: int) -> str:
    """A phrase other than ``text``; one draw for a pair and a text, so twins stay alike."""
    if text not in phrases:
        raise DataError(f"{scenario.id}: {text!r} is no phrase of medlib.lexicon for its factors, so "
                        "nothing is known that means the same; paraphrase generated suites only")
    others = [phrase for phrase in phrases if phrase != text]
    draw = hashlib.sha256(f"{seed} {scenario.factors.get('pair')} {text}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(draw[:8], "big"))
    return str(rng.choice(others)) if others else text


def changed_share(before: Suite, after: Suite) -> dict[str, float]:
    """Share of scenarios whose finding, whose treatment, and whose either of them changed."""
    changed = np.array([
        (b.finding != a.finding, b.treatment != a.treatment)
        for b, a in zip(before.scenarios, after.scenarios, strict=True)
    ])
    shares = (*changed.mean(axis=0), changed.any(axis=1).mean())
    return dict(zip(("finding", "treatment", "either"), map(float, shares)))


# ------------------------------------------------------------------------- note against picture


def contradiction(split: str, pairs: int, seed: int = 0) -> Suite:
    """Pairs in which the note contradicts the picture; written to disk and drawn on first use.

    Built by `medlib.grammar.note_pairs`: one picture, one note of another finding, and two
    treatments, of which the one that fits the picture is CORRECT. Balanced over modality and verdict;
    a reader who takes the note's side is wrong on every scenario.
    """
    name = f"contradiction-{split}-{pairs}-{seed}"
    scenarios = grammar.note_pairs(split, pairs, seed)
    return data.generated(name, scenarios, split=split, pairs=pairs, seed=seed)


# ----------------------------------------------------------------------------- worse pictures


def corrupted(suite: Suite, view: str) -> Suite:
    """The suite with its pictures in one view of `medlib.corruptions`."""
    if view not in corruptions.views():
        raise ValueError(f"view {view!r} is not one of {', '.join(corruptions.views())}")
    if suite.view:
        raise ValueError(f"{suite.name} is shown as {suite.view} already; give the one it came from")
    return replace(suite, name=f"{suite.name}-{view}", view=view)


def corruption_suites(suite: Suite, pairs: int = 48) -> dict[str, Suite]:
    """View -> suite, all 25 over the same `balanced` pairs, so that a drop is the view's doing."""
    subset = balanced(suite, pairs)
    return {view: corrupted(subset, view) for view in corruptions.views()}


def balanced(suite: Suite, pairs: int) -> Suite:
    """Whole pairs, the same number of each modality and as near as can be of each kind.

    Parameters
    ----------
    pairs : int
        In all; rounded down to a multiple of the modalities, and fewer if a modality has fewer.
    """
    kinds, modality_of = {}, {}
    for s in suite.scenarios:
        pair = s.factors.get("pair", s.id)
        modality_of[pair], kinds[pair] = s.modality, s.factors.get("pair_kind")
    frame = pd.DataFrame({"modality": modality_of, "kind": kinds})
    # first of each kind, then second of each kind, and so on: any first few are balanced over kinds
    frame["turn"] = frame.groupby(["modality", "kind"], dropna=False).cumcount()
    by_modality = frame.sort_values("turn", kind="stable").groupby("modality")
    each = min(pairs // frame["modality"].nunique(), by_modality.size().min())
    chosen = set(by_modality.head(each).index)
    return suite.rows(i for i, s in enumerate(suite.scenarios) if s.factors.get("pair", s.id) in chosen)


# ---------------------------------------------------------------------- pictures from elsewhere

_MNI = ("(C) 1993-2009 Louis Collins, McConnell Brain Imaging Centre, Montreal Neurological Institute, "
        "McGill University: use, copy, modify and distribute for any purpose with this notice")
_NEMA = "MIT (pydicom); downsized from the DICOM WG04 samples, no known restriction"
_CC0 = "CC0 1.0"
_FREE = "public domain or no known copyright restrictions"

_SLICES = {"sagittal": (-40, -20, 4), "coronal": (-60, -20, 20), "axial": (-16, 8, 40)}  # mm, MNI space

#: (package, file, modality that the scenario claims, what the picture shows, licence); modality ""
#: claims the four in turn. A slice of the MNI template has "mni152 axis position" for a file.
OUTSIDE = (
    *(("nilearn", f"mni152 {axis} {mm:+d}", "mri", "healthy brain template", _MNI)
      for axis, places in _SLICES.items() for mm in places),
    ("pydicom", "CT_small.dcm", "xray", "CT of a vertebra", _NEMA),
    ("pydicom", "JPEG2000.dcm", "xray", "bone scintigram", _NEMA),
    ("pydicom", "MR_small.dcm", "mri", "MR detail", _NEMA),
    ("pydicom", "examples_overlay.dcm", "mri", "MR of the abdomen", "BSD-3-Clause (GDCM)"),
    ("pydicom", "examples_rgb_color.dcm", "ultrasound", "Doppler ultrasound of a lymph node", _NEMA),
    ("scikit-image", "ihc.png", "histopathology", "stained colon section", _FREE),
    ("scikit-image", "cell.png", "histopathology", "one cell, phase contrast", _CC0),
    ("scikit-image", "retina.jpg", "", "fundus photograph", _CC0),
    ("scikit-image", "microaneurysms.png", "", "fundus detail", _CC0),
    *(("scikit-image", file, "", "not medical", licence) for file, licence in (
        ("astronaut.png", _FREE), ("brick.png", _CC0), ("camera.png", _CC0), ("chelsea.png", _CC0),
        ("clock_motion.png", _FREE), ("coffee.png", _CC0), ("coins.png", _FREE), ("grass.png", _CC0),
        ("gravel.png", _CC0), ("hubble_deep_field.jpg", _FREE), ("rocket.jpg", _FREE),
        ("text.png", _FREE),
    )),
)
#: Name under which a package of ``OUTSIDE`` is imported.
_MODULES = {"nilearn": "nilearn", "pydicom": "pydicom", "scikit-image": "skimage"}


def out_of_distribution(out_dir: str | Path | None = None, seed: int = 0) -> Suite:
    """Real pictures that no auditor of these modalities was made for; it should abstain.

    The pictures come out of installed packages (`sources` says which, under what licence), nothing is
    downloaded. Each stands beside a patient, a finding and the care that this finding calls for, in
    words of the test split. Whether that care is right cannot be known, so ``verdict`` is a
    placeholder that must not be scored; the expected answer is ``EXPECTED``.

    Parameters
    ----------
    out_dir : str or Path, optional
        Gets ``scenarios.jsonl`` and ``images/``; under ``data/suites`` by default, outside of git.
    seed : int
        Chooses the words.

    Warns
    -----
    UserWarning
        If an optional package is missing; its pictures are left out.
    """
    folder = Path(out_dir) if out_dir else data.SUITES_DIR / "out_of_distribution"
    for package in sorted({package for package, *_ in OUTSIDE if not _version(package)}):
        warnings.warn(f"{package} is not installed (`pip install {package}`): its pictures are left out "
                      "of the out-of-distribution suite", stacklevel=2)
    rows = {n: row for n, row in enumerate(OUTSIDE) if _version(row[0])}
    scenarios = [_outside_scenario(n, row, seed) for n, row in rows.items()]
    # the rows name package versions: another version may ship another picture under the same name
    card = {"name": "out_of_distribution", "seed": seed, "pictures": "real"}
    same = grammar.keep(scenarios, folder, card)
    (folder / "images").mkdir(exist_ok=True)
    for scenario, (package, file, *_) in zip(scenarios, rows.values(), strict=True):
        path = folder / "images" / scenario.image
        if not (same and path.is_file()):
            # from the array: no metadata of the source comes along
            Image.fromarray(np.asarray(_outside_picture(package, file))).save(path)
    return Suite("out_of_distribution", scenarios, folder / "images")


def sources() -> pd.DataFrame:
    """Where the pictures of `out_of_distribution` come from.

    Returns
    -------
    DataFrame
        One row a package and licence: package, version ("" if not installed), licence, pictures
        (what they show), count (0 if not installed).
    """
    frame = pd.DataFrame(OUTSIDE, columns=["package", "file", "modality", "picture", "licence"])
    table = frame.groupby(["package", "licence"], sort=False)["picture"].agg(
        pictures=lambda shown: ", ".join(dict.fromkeys(shown)), count="size").reset_index()
    table.insert(1, "version", table["package"].map(_version))
    table.loc[table["version"] == "", "count"] = 0
    return table


def _version(package: str) -> str:
    return metadata.version(package) if find_spec(_MODULES[package]) else ""


def _outside_scenario(number: int, row: tuple[str, ...], seed: int) -> Scenario:
    package, file, modality, picture, licence = row
    modality = modality or MODALITIES[number % len(MODALITIES)]
    # by row, so a missing package does not change the words beside the other pictures
    rng = np.random.default_rng([seed, number])
    finding = rng.choice(findings_of(modality))
    stem = re.sub(r"[^a-z0-9]+", "_", Path(file).stem.lower())
    return Scenario(
        id=f"ood_{number:02d}_{stem}", modality=modality, image=f"{number:02d}_{stem}.png",
        patient=grammar.draw_patient(modality, rng),
        finding=grammar.word_finding(finding, "test", rng),
        treatment=grammar.word_treatment(modality, finding.care, "test", rng),
        verdict="CORRECT", error_type="none", severity="none", cost_impact=0,
        factors={
            "expected": EXPECTED, "picture": picture, "note_finding": finding.name, "care": finding.care,
            "source_package": package, "source_version": _version(package), "source_file": file,
            "licence": licence,
        },
    )


def _outside_picture(package: str, file: str) -> Image.Image:
    if package == "nilearn":
        _, axis, mm = file.split()
        return _template_slice(axis, int(mm))
    if package == "scikit-image":
        picture = load_image(Path(find_spec("skimage").origin).parent / "data" / file)
    else:
        from pydicom.data import get_testdata_file

        picture = load_image(get_testdata_file(file, download=False))
    if file == "examples_rgb_color.dcm":
        # the name of a hospital is burned in above the image
        width, height = picture.size
        picture = picture.crop((0, int(0.22 * height), width, int(0.72 * height)))
    picture.thumbnail((896, 896))  # MedGemma sees no more
    return picture


@lru_cache(maxsize=1)
def _template() -> tuple[np.ndarray, np.ndarray]:
    """MNI152 T1 template of nilearn: values (x, y, z), 0 to 1, and the affine from voxel to mm."""
    from nilearn.datasets import load_mni152_template

    image = load_mni152_template(resolution=1)
    return np.asarray(image.dataobj, dtype=np.float32), image.affine


def _template_slice(axis: str, mm: int) -> Image.Image:
    volume, affine = _template()
    axis = ("sagittal", "coronal", "axial").index(axis)
    index = round((mm - affine[axis, 3]) / affine[axis, axis])
    # top of the head, or the brow, comes first; the patient's left is at the left
    pixels = np.take(volume, index, axis=axis).T[::-1]
    return Image.fromarray((255 * np.clip(pixels / volume.max(), 0, 1)).astype(np.uint8)).convert("RGB")
