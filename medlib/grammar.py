"""A scenario grammar: suites of any size whose verdict needs both the picture and the words.

Scenarios come in counterfactual pairs. The two members differ in exactly one factor and that factor
flips the verdict:

- ``treatment``: same picture and note, the treatment changes (over- or undertreatment);
- ``finding``: same treatment, the finding changes (watchful waiting is right for a cyst and wrong
  for a spiculated mass), picture and note together;
- ``image``: same words, the picture changes and contradicts the note.

The text of an ``image`` pair is the same on both sides, so whoever reads only the words scores
exactly 50 % there. Each split has its own finding phrases, treatment phrases and picture seeds.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from medlib.lexicon import (
    CARE_ORDER, COMPLAINTS, DEGREES, FINDINGS, OVERTREATMENT, SPLITS, TREATMENTS, UNDERTREATMENT,
    Finding, findings_of,
)
from medlib.schema import MODALITIES, Patient, Scenario, read_scenarios, scenario_hash, write_scenarios

PAIR_KINDS = ("treatment", "finding", "image")

#: First picture seed of each use; a million apart, so no picture is drawn twice.
SEED_BASE = {
    "pretrain": 0, "pretrain_held_out": 900_000, "train": 1_000_000, "val": 2_000_000,
    "test": 3_000_000, "core24": 9_000_000,
}


def generate(split: str, pairs: int, seed: int = 0) -> list[Scenario]:
    """Generate ``2 * pairs`` scenarios, balanced over modality, pair kind and verdict.

    Parameters
    ----------
    split : {"train", "val", "test"}
        Chooses the phrases and the picture seeds; two splits share none of either.
    pairs : int
        Number of counterfactual pairs; 12 pairs cover every modality with every pair kind once.
    seed : int
        Same split, pairs and seed give the same scenarios.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is not one of {SPLITS}")
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    image_seeds = iter(SEED_BASE[split] + rng.permutation(900_000)[: 2 * pairs])
    scenarios = []
    for index in range(pairs):
        modality = MODALITIES[index % len(MODALITIES)]
        kind = PAIR_KINDS[index // len(MODALITIES) % len(PAIR_KINDS)]
        scenarios += _pair(f"{split}_{index:05d}", modality, kind, split, image_seeds, rng)
    return scenarios


def _pair(pair_id, modality, kind, split, image_seeds, rng) -> list[Scenario]:
    """The right member first, then its twin with one factor changed."""
    finding, other = _two_findings(modality, rng)
    patient = Patient(
        age=int(rng.integers(25, 86)),
        sex="female" if modality == "ultrasound" else str(rng.choice(["female", "male"])),
        complaint=str(rng.choice(COMPLAINTS[modality])),
    )
    shared = {"modality": modality, "patient": patient}
    right = {
        "shown": finding, "noted": finding, "care": finding.care, "image_seed": int(next(image_seeds)),
        "finding": _word_finding(finding, split, rng), "treatment": _word_treatment(modality, finding.care, split, rng),
    }
    twin = dict(right)
    if kind == "treatment":
        twin |= {"care": other.care, "treatment": _word_treatment(modality, other.care, split, rng)}
    else:
        twin |= {"shown": other, "image_seed": int(next(image_seeds))}
        if kind == "finding":
            twin |= {"noted": other, "finding": _word_finding(other, split, rng)}
    return [
        _scenario(f"{pair_id}_{letter}", kind, pair_id, shared, member)
        for letter, member in (("a", right), ("b", twin))
    ]


def _two_findings(modality: str, rng: np.random.Generator) -> tuple[Finding, Finding]:
    """Two findings that call for different care, each care equally likely to be the first."""
    care, other_care = rng.permutation(CARE_ORDER[modality])[:2]
    return tuple(
        rng.choice([f for f in findings_of(modality) if f.care == c]) for c in (care, other_care)
    )


def _word_finding(finding: Finding, split: str, rng: np.random.Generator) -> str:
    template = str(rng.choice(finding.phrases[split]))
    return _capitalised(template.replace("{degree}", str(rng.choice(DEGREES)).lower()))


def _word_treatment(modality: str, care: str, split: str, rng: np.random.Generator) -> str:
    return str(rng.choice(TREATMENTS[modality, care][split]))


def _capitalised(text: str) -> str:
    return text[0].upper() + text[1:]


def _scenario(scenario_id: str, kind: str, pair_id: str, shared: dict, member: dict) -> Scenario:
    modality, shown, noted, care = shared["modality"], member["shown"], member["noted"], member["care"]
    error_type, severity, cost = _error(modality, shown, noted, care)
    source = {
        "none": "watchful_waiting" if care == "observation" else "right_treatment",
    }.get(error_type, error_type)
    return Scenario(
        id=scenario_id,
        image=f"{modality}_{member['image_seed']:07d}.png",
        finding=member["finding"],
        treatment=member["treatment"],
        verdict="CORRECT" if error_type == "none" else "ERROR",
        error_type=error_type,
        severity=severity,
        cost_impact=cost,
        factors={
            "pair": pair_id, "pair_kind": kind, "source": source, "image_finding": shown.name,
            "note_finding": noted.name, "care": care, "image_seed": member["image_seed"],
        },
        **shared,
    )


def _error(modality: str, shown: Finding, noted: Finding, care: str) -> tuple[str, str, int]:
    """(error type, severity, cost): the treatment is judged against what the picture shows."""
    if care == shown.care:
        return "none", "none", 0
    rank = CARE_ORDER[modality].index
    if rank(care) > rank(shown.care):
        error_type, (severity, cost) = "overtreatment", OVERTREATMENT[modality, care]
    else:
        error_type, (severity, cost) = "undertreatment", UNDERTREATMENT[modality, shown.care]
    return ("contradiction" if shown.name != noted.name else error_type), severity, cost


def draw_images(scenarios: list[Scenario], images_dir: str | Path, size: int = 224) -> int:
    """Draw the pictures of generated scenarios that are not on disk yet; returns how many."""
    from medlib.draw import draw, save

    images_dir = Path(images_dir)
    images_dir.mkdir(parents=True, exist_ok=True)
    missing = {s.image: s for s in scenarios if not (images_dir / s.image).is_file()}
    for scenario in missing.values():
        factors = scenario.factors
        picture = draw(scenario.modality, factors["image_finding"], factors["image_seed"], size)
        save(picture, images_dir / scenario.image)
    return len(missing)


def build_suite(name: str, split: str, pairs: int, seed: int, out_dir: str | Path) -> list[Scenario]:
    """Write ``out_dir/name/scenarios.jsonl`` and draw its pictures beside it; cheap to call again."""
    folder = Path(out_dir) / name
    scenarios = generate(split, pairs, seed)
    path = folder / "scenarios.jsonl"
    if not path.is_file() or scenario_hash(read_scenarios(path)) != scenario_hash(scenarios):
        write_scenarios(path, scenarios)
    draw_images(scenarios, folder / "images")
    card = {"name": name, "split": split, "pairs": pairs, "seed": seed, "pictures": "synthetic",
            "sha256": scenario_hash(scenarios)}
    (folder / "suite.json").write_text(json.dumps(card, indent=2) + "\n")
    return scenarios


def phrases(split: str | None = None) -> list[str]:
    """Every finding and treatment phrase of a split (all splits by default), slots filled."""
    splits = SPLITS if split is None else (split,)
    found = [
        _capitalised(template.replace("{degree}", degree.lower()))
        for finding in FINDINGS for name in splits for template in finding.phrases[name]
        for degree in (DEGREES if "{degree}" in template else DEGREES[:1])
    ]
    return found + [p for table in TREATMENTS.values() for name in splits for p in table[name]]
