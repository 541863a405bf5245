"""A scenario grammar: suites of any size whose verdict needs both the image and the words.

Scenarios come in counterfactual pairs. The two members differ in exactly one factor and that factor
flips the verdict:

- ``treatment``: same image and note, the treatment changes (over- or undertreatment);
- ``finding``: same treatment, the finding changes (watchful waiting is right for a cyst and wrong
  for a spiculated mass), image and note together;
- ``image``: same words, the image changes and contradicts the note.

The text of an ``image`` pair is the same on both sides, so whoever reads only the words scores
exactly 50% there. Each split has its own finding phrases, treatment phrases and image seeds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medlib.config import MODALITIES, DataError, files, jobs
from medlib.data.cases import LabelledCase, Patient, read_scenarios, scenario_hash, write_scenarios
from medlib.data.images import is_whole
from medlib.data.synthetic.lexicon import (
    CARE_ORDER,
    DEGREES,
    FINDINGS,
    LEXICON,
    SPLITS,
    TREATMENTS,
    Finding,
    Lexicon,
    findings_of,
)

PAIR_KINDS = ("treatment", "finding", "image")

#: Ages of patients of whom nothing is known, in years.
ADULTS = (25, 85)

#: Name of an image, and its factors.
Shown = tuple[str, dict[str, str | int]]

#: First image seed of each use; a million apart, so no image is drawn twice. `generate` uses the
#: first 900,000 of a split and `note_pairs` the 100,000 behind them.
SEED_BASE = {
    "pretrain": 0,
    "pretrain_held_out": 900_000,
    "train": 1_000_000,
    "val": 2_000_000,
    "test": 3_000_000,
    "feedback": 4_000_000,
    # the images that settings were tuned on; those of the threshold's guarantee have never been tuned on
    "tuning": 5_000_000,
    "probe": 6_000_000,
    "calibration": 7_000_000,
    "patients": 8_000_000,
    "core24": 9_000_000,
}


def generate(
    split: str, pairs: int, seed: int = 0, use: str | None = None, left_out: frozenset[str] = frozenset()
) -> list[LabelledCase]:
    """Generate ``2 * pairs`` scenarios, balanced over modality, pair kind and verdict.

    Parameters
    ----------
    split : {"train", "val", "test"}
        Chooses the phrases and the image seeds; two splits share none of either.
    pairs : int
        Number of counterfactual pairs; 12 pairs cover every modality with every pair kind once.
    seed : int
        Same split, pairs and seed give the same scenarios.
    use : {"feedback", "tuning", "calibration", "probe"}, optional
        More scenarios in the split's words, with images of their own.
    left_out : names such as ``xray/ground_glass``
        Findings that no image shows and no note names.

    Raises
    ------
    DataError
        If too few findings of a modality are left to make a pair.
    """
    rng = stream(split, seed, use)
    image_seeds = iter(SEED_BASE[use or split] + rng.permutation(900_000)[: 2 * pairs])
    wording, scenarios = Wording(split), []
    for index in range(pairs):
        modality = MODALITIES[index % len(MODALITIES)]
        kind = PAIR_KINDS[index // len(MODALITIES) % len(PAIR_KINDS)]
        findings = _two_findings(modality, rng, left_out)
        scenarios += pair(
            f"{use or split}_{index:05d}", kind, findings, wording, lambda f: drawn(f, next(image_seeds)), rng
        )
    return scenarios


def drawn(finding: Finding, image_seed) -> Shown:
    """Name and factors of the image that this seed draws of a finding."""
    return f"{finding.modality}_{image_seed:07d}.png", {"image_seed": int(image_seed)}


def stream(split: str, seed: int, use: str | None, *further: int) -> np.random.Generator:
    """Random numbers of one use of one split; ``further`` numbers give further streams."""
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is not one of {SPLITS}")
    return np.random.default_rng([seed, SPLITS.index(split), *further, *([SEED_BASE[use]] if use else [])])


@dataclass(frozen=True)
class Wording:
    """The words that scenarios of one split may use.

    ``plain`` takes the phrases for real images; patients under 18 years get nothing that is for adults only.
    """

    split: str
    lexicon: Lexicon = LEXICON
    plain: bool = False
    ages: tuple[int, int] = ADULTS

    def patient(self, modality: str, rng: np.random.Generator) -> Patient:
        """A patient who says nothing of the verdict."""
        youngest, oldest = self.ages
        return Patient(
            age=int(rng.integers(youngest, oldest + 1)),
            sex=self.lexicon.modalities[modality].sex or str(rng.choice(["female", "male"])),
            complaint=str(rng.choice(self.lexicon.complaints(modality, self._child))),
        )

    def finding(self, finding: Finding, rng: np.random.Generator) -> str:
        """One of the phrases for a finding, its degree filled in."""
        phrases = finding.plain_phrases if self.plain and finding.plain_phrases else finding.phrases
        template = str(rng.choice(phrases[self.split]))
        return fill(template, str(rng.choice(DEGREES)))

    def treatment(self, finding: Finding, rng: np.random.Generator) -> str:
        """One of the phrases for the care that a finding calls for."""
        return str(rng.choice(self.lexicon.treatments(finding, self.split, self._child)))

    @property
    def _child(self) -> bool:
        return self.ages[1] < 18


def pair(
    pair_id: str,
    kind: str,
    findings: tuple[Finding, Finding],
    wording: Wording,
    image_of: Callable[[Finding], Shown],
    rng: np.random.Generator,
) -> list[LabelledCase]:
    """The right member first, then its twin with one factor changed.

    Parameters
    ----------
    kind : {"treatment", "finding", "image"}
    findings : two findings of one modality, neither of which accepts the other's care
    image_of : where images come from: a function that is asked once for each image of the pair
    """
    finding, other = findings
    patient = wording.patient(finding.modality, rng)
    right = {
        "shown": finding,
        "noted": finding,
        "care": finding.care,
        "image": image_of(finding),
        "finding": wording.finding(finding, rng),
        "treatment": wording.treatment(finding, rng),
    }
    twin = dict(right)
    if kind == "treatment":
        twin |= {"care": other.care, "treatment": wording.treatment(other, rng)}
    else:
        twin |= {"shown": other, "image": image_of(other)}
        if kind == "finding":
            twin |= {"noted": other, "finding": wording.finding(other, rng)}
    return [_scenario(pair_id, kind, *member, patient, wording.lexicon) for member in (("a", right), ("b", twin))]


def note_pair(
    pair_id: str,
    findings: tuple[Finding, Finding],
    wording: Wording,
    image_of: Callable[[Finding], Shown],
    rng: np.random.Generator,
) -> list[LabelledCase]:
    """One image of the first finding, one note of the second, and the treatment of each; see `note_pairs`."""
    imaged, noted = findings
    patient = wording.patient(imaged.modality, rng)
    shared = {"shown": imaged, "noted": noted, "image": image_of(imaged), "finding": wording.finding(noted, rng)}
    return [
        _scenario(
            pair_id,
            "note",
            letter,
            shared | {"care": finding.care, "treatment": wording.treatment(finding, rng)},
            patient,
            wording.lexicon,
        )
        for letter, finding in (("a", imaged), ("b", noted))
    ]


def _two_findings(modality: str, rng: np.random.Generator, left_out=frozenset()) -> tuple[Finding, Finding]:
    """Two findings that call for different care, each care equally likely to be the first."""
    findings = [f for f in findings_of(modality) if f"{modality}/{f.name}" not in left_out]
    kinds = [care for care in CARE_ORDER[modality] if any(f.care == care for f in findings)]
    if len(kinds) < 2:
        raise DataError(f"held_out_findings: what is left of {modality} calls for one kind of care; no pair of it")
    care, other_care = rng.permutation(kinds)[:2]
    return tuple(rng.choice([f for f in findings if f.care == c]) for c in (care, other_care))


def note_pairs(
    split: str, pairs: int, seed: int = 0, use: str | None = None, left_out: frozenset[str] = frozenset()
) -> list[LabelledCase]:
    """Pairs whose image and note disagree; the twin trusts the note, and that is the error.

    Both members have one image (of finding A) and one note (of finding B). The first member's
    treatment fits the image, the second one's fits the note. The words agree with each other on the
    wrong side, so whoever reads only the words gets every pair wrong, and image alone is not enough
    either: the treatment has to be read.

    Parameters
    ----------
    split, seed, use, left_out
        As for `generate`; the images are others than those of any generated suite of the split.
    pairs : int
        At most 100,000.
    """
    rng = stream(split, seed, use, 1)  # 1: not the stream of `generate`
    image_seeds = iter(SEED_BASE[use or split] + 900_000 + rng.permutation(100_000)[:pairs])
    wording, scenarios = Wording(split), []
    for index in range(pairs):
        findings = _two_findings(MODALITIES[index % len(MODALITIES)], rng, left_out)
        pair_id = f"{use or split}_note_{index:05d}"
        scenarios += note_pair(pair_id, findings, wording, lambda f: drawn(f, next(image_seeds)), rng)
    return scenarios


def fill(template: str, degree: str) -> str:
    """A phrase template as a sentence, with this degree where it has a slot for one."""
    text = template.replace("{degree}", degree.lower())
    return text[0].upper() + text[1:]


def _scenario(
    pair_id: str, kind: str, letter: str, member: dict, patient: Patient, lexicon: Lexicon
) -> LabelledCase:
    shown, noted, care = member["shown"], member["noted"], member["care"]
    image, image_factors = member["image"]
    error_type, severity, cost = _error(shown, noted, care, lexicon)
    source = {"none": "watchful_waiting" if care == "observation" else "right_treatment"}.get(
        error_type, error_type
    )
    return LabelledCase(
        id=f"{pair_id}_{letter}",
        image=image,
        finding=member["finding"],
        treatment=member["treatment"],
        verdict="CORRECT" if error_type == "none" else "ERROR",
        error_type=error_type,
        severity=severity,
        cost_impact=cost,
        factors={
            "pair": pair_id,
            "pair_kind": kind,
            "source": source,
            "image_finding": shown.name,
            "note_finding": noted.name,
            "care": care,
            **image_factors,
        },
        modality=shown.modality,
        patient=patient,
    )


def _error(shown: Finding, noted: Finding, care: str, lexicon: Lexicon) -> tuple[str, str, int]:
    """(error type, severity, cost): the treatment is judged against what the image shows."""
    if shown.fits(care):
        return "none", "none", 0
    error_type, loss = lexicon.loss(care, shown)
    return "contradiction" if shown.name != noted.name else error_type, loss.severity, loss.cost


def draw_images(scenarios: list[LabelledCase], images_dir: str | Path, size: int = 224) -> int:
    """Draw the images of generated scenarios that are not on disk yet, or cut off; returns how many.

    Many are drawn in several processes (`medlib.config.jobs.cores`).
    """
    images_dir = Path(images_dir)
    images_dir.mkdir(parents=True, exist_ok=True)
    missing = list({s.image: s for s in scenarios if not is_whole(images_dir / s.image)}.values())
    parts = [(missing[i : i + 64], images_dir, size) for i in range(0, len(missing), 64)]
    # a few images are drawn sooner than processes start
    jobs.run(_draw, parts, jobs.cores() if len(parts) > 4 else 1, f"drawing images of {images_dir.parent.name}")
    return len(missing)


def _draw(scenarios: list[LabelledCase], images_dir: Path, size: int) -> None:
    from medlib.data.synthetic.draw import draw, save

    for scenario in scenarios:
        save(draw(**_how(scenario), size=size), images_dir / scenario.image)


def _how(scenario: LabelledCase) -> dict[str, Any]:
    """Modality, finding, seed and renderer of the image of a generated scenario."""
    factors = scenario.factors
    return {
        "modality": scenario.modality,
        "finding": str(factors["image_finding"]),
        "seed": int(factors["image_seed"]),
        "renderer": str(factors.get("renderer", "")),
    }


def redrawn(scenario: LabelledCase, size: int = 224) -> Image.Image | None:
    """The image of a generated scenario, drawn again; None if its factors do not say how."""
    from medlib.data.synthetic.draw import draw

    try:
        return draw(**_how(scenario), size=size).convert("RGB")
    except (AttributeError, ValueError, KeyError):  # a case without a verdict has no factors
        return None


def build_suite(
    name: str, split: str, pairs: int, seed: int, out_dir: str | Path, left_out: frozenset[str] = frozenset()
) -> list[LabelledCase]:
    """Write ``out_dir/name/scenarios.jsonl`` and draw its images beside it; existing files are reused."""
    scenarios = generate(split, pairs, seed, left_out=left_out)
    folder = Path(out_dir) / name
    card = {"name": name, "split": split, "pairs": pairs, "seed": seed, "pictures": "synthetic"}
    keep(scenarios, folder, card)
    draw_images(scenarios, folder / "images")
    return scenarios


def keep(scenarios: list[LabelledCase], folder: str | Path, card: dict) -> bool:
    """Write ``scenarios.jsonl`` and ``suite.json``; returns whether the same rows were there already."""
    path, name, same = Path(folder) / "scenarios.jsonl", scenario_hash(scenarios), False
    with contextlib.suppress(OSError, DataError):  # cut off, it is written again
        same = scenario_hash(read_scenarios(path)) == name
    if not same:
        write_scenarios(path, scenarios)
    files.write_json(path.with_name("suite.json"), card | {"sha256": name})
    return same


def phrases(split: str | None = None, lexicon: Lexicon | None = None) -> list[str]:
    """Every finding and treatment phrase of a split (all splits by default), slots filled.

    Those of the generator, or all of a lexicon.
    """
    splits = SPLITS if split is None else (split,)
    findings, treatments = FINDINGS, list(TREATMENTS.values())
    if lexicon:
        findings = tuple(f for modality in lexicon.modalities for f in lexicon.findings_of(modality))
        treatments = [care.treatments for entry in lexicon.modalities.values() for care in entry.care]
    found = [
        fill(template, degree)
        for finding in findings
        for words in (finding.phrases, finding.plain_phrases if lexicon else None)
        for name in splits
        for template in (words or {}).get(name, ())
        for degree in (DEGREES if "{degree}" in template else DEGREES[:1])
    ]
    return found + [p for table in treatments for name in splits for p in table[name]]
