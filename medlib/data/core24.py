"""The 24 published scenarios: their facts, our split, and a synthetic stand-in for each image.

``data/core24/facts.jsonl`` holds one case a line, in our own wording. The real images are not
redistributed; ``data/core24/SOURCES.md`` says where to get them. The file names are the published
ones, so a folder of real images can take the place of the drawn ones.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import Counter
from pathlib import Path

from PIL import Image

from medlib.config import ROOT, DataError, files, jsonl
from medlib.data.cases import LabelledCase, Patient, write_scenarios
from medlib.data.images import load_image

FACTS = ROOT / "data" / "core24" / "facts.jsonl"
#: How many there are.
CASES = 24

# One CORRECT and one ERROR case per modality. The published split has two CORRECT cases as its MRI
# validation set, and puts two crops of one histology field on its two sides (histopath_001 and
# _002, one `image_group` in the facts); apart from mri_001 and histopath_003 these are its ids.
VAL_IDS = (
    "xray_001_normal_lung_unnecessary_treatment",
    "xray_006_viral_pneumonia_appropriate_care",
    "histopath_003_benign_inflammation_unnecessary_resection",
    "histopath_006_invasive_carcinoma_appropriate_chemo",
    "mri_001_no_tumor_unnecessary_surgery",
    "mri_006_high_grade_glioma_appropriate_treatment",
    "ultrasound_001_normal_breast_unnecessary_biopsy",
    "ultrasound_006_confirmed_cancer_appropriate_surgery",
)

EXPECTED_SHA256 = {
    "train.jsonl": "a6f963f109e1eae838f5171412c2a84425c6d56737e9b20ae712f55892942993",
    "val.jsonl": "578023f0eb53c80126af6e8be07c45c01cdbd6a055ada5f3c5cb3016e29866d7",
    "dataset_stats.json": "d393a7880e35cf7cc04ab4205ecb8b8a520e198c29aef41087545ac0487a6463",
}

JPEG_QUALITY = 95


def load_facts(path: str | Path = FACTS) -> list[LabelledCase]:
    """Read the facts as scenarios, in the order of the file.

    Returns
    -------
    list of LabelledCase
        ``factors`` holds ``image_finding`` (what the synthetic image shows), ``image_group``
        (cases whose real images come from one field share it), ``published_split``, and
        ``source_dataset``, ``source_class`` and ``source_file`` of the real image.

    Raises
    ------
    DataError
        Naming file, row and field of a fact that is missing or bad.
    """
    scenarios = []
    for row, fact in jsonl.read(path):
        try:
            scenarios.append(_scenario(fact))
        except KeyError as error:
            raise DataError(f"{path}, row {row}, field {error}: missing") from None
        except ValueError as error:
            raise DataError(f"{path}, row {row}: {error}") from None
    return scenarios


def _scenario(fact: dict) -> LabelledCase:
    factors = ("image_group", "published_split", "source_dataset", "source_class", "source_file")
    return LabelledCase(
        id=fact["id"],
        modality=fact["modality"],
        image=fact["image"],
        patient=Patient(age=fact["age"], sex=fact["sex"], complaint=fact["complaint"]),
        finding=fact["finding"],
        treatment=fact["treatment"],
        verdict=fact["verdict"],
        error_type=fact["error_type"],
        severity=fact["severity"],
        cost_impact=fact["cost_impact"],
        factors={"image_finding": fact["content"]} | {name: fact[name] for name in factors},
    )


def split(scenarios: list[LabelledCase]) -> tuple[list[LabelledCase], list[LabelledCase]]:
    """Divide into 16 train and 8 validation cases, stratified by modality and verdict.

    Raises
    ------
    DataError
        If a modality lacks one CORRECT and one ERROR case in the validation set, or if two cases
        whose images share a field stand on two sides.
    """
    train = [s for s in scenarios if s.id not in VAL_IDS]
    val = [s for s in scenarios if s.id in VAL_IDS]
    strata = Counter((s.modality, s.verdict) for s in val)
    if sorted(strata) != sorted({(s.modality, s.verdict) for s in scenarios}) or set(strata.values()) != {1}:
        raise DataError(f"val: one case per modality and verdict is needed, not {dict(strata)}")
    shared = {s.factors["image_group"] for s in train} & {s.factors["image_group"] for s in val}
    if shared:
        raise DataError(f"field 'image_group': {sorted(shared)} in both train and val")
    return train, val


def stats(train: list[LabelledCase], val: list[LabelledCase]) -> dict:
    """Count verdicts, error types and severities, over all cases and per split and modality."""
    everything = train + val
    return {
        "scenarios": {"total": len(everything), "train": len(train), "val": len(val)},
        "verdict": _counts(s.verdict for s in everything),
        "error_type": _counts(s.error_type for s in everything),
        "severity": _counts(s.severity for s in everything),
        "verdict_by_split_and_modality": {
            side: {
                modality: _counts(s.verdict for s in part if s.modality == modality)
                for modality in sorted({s.modality for s in part})
            }
            for side, part in (("train", train), ("val", val))
        },
        "cost_impact_usd": sum(s.cost_impact for s in everything),
        "image_groups": len({s.factors["image_group"] for s in everything}),
    }


def _counts(values) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def build(out_dir: str | Path = "data/core24", draw_images: bool = True) -> dict:
    """Write ``train.jsonl``, ``val.jsonl``, ``dataset_stats.json`` and synthetic images.

    Parameters
    ----------
    out_dir : str or Path
        Made if missing; the images go to ``out_dir/images``.
    draw_images : bool
        False leaves the images out, for use with a folder of the real ones.

    Returns
    -------
    dict
        What `stats` counts, as written to ``dataset_stats.json``.
    """
    out_dir = Path(out_dir)
    scenarios = load_facts()
    train, val = split(scenarios)
    counts = stats(train, val)
    write_scenarios(out_dir / "train.jsonl", train)
    write_scenarios(out_dir / "val.jsonl", val)
    text = json.dumps(counts, indent=2) + "\n"
    files.write_text(out_dir / "dataset_stats.json", text)
    if draw_images:
        _draw_images(scenarios, out_dir / "images")
    return counts


def _draw_images(scenarios: list[LabelledCase], images_dir: Path) -> None:
    images_dir.mkdir(parents=True, exist_ok=True)
    for number, scenario in enumerate(scenarios):
        _draw_image(scenario, number, images_dir / scenario.image)


def _draw_image(scenario: LabelledCase, number: int, file: Path) -> None:
    from medlib.data.synthetic import draw  # imported here, so that reading the facts needs no drawing
    from medlib.data.synthetic.grammar import SEED_BASE

    finding, seed = str(scenario.factors["image_finding"]), SEED_BASE["core24"] + number
    image = draw.draw(scenario.modality, finding, seed, size=224)
    if file.suffix == ".png":
        draw.save(image, file)
    else:
        note = f"synthetic {scenario.modality}, {finding}, seed {seed}"
        with files.replacement(file, sync=False) as unfinished:
            image.save(unfinished, "JPEG", quality=JPEG_QUALITY, comment=note)


def redrawn(scenario: LabelledCase) -> Image.Image | None:
    """The drawn image of a core case, drawn again; None for any other case."""
    facts = {fact.id: (number, fact) for number, fact in enumerate(load_facts())}
    if scenario.id not in facts:
        return None
    number, fact = facts[scenario.id]
    with tempfile.TemporaryDirectory() as folder:
        _draw_image(fact, number, file := Path(folder) / fact.image)
        return load_image(file)


def verify(out_dir: str | Path = "data/core24") -> None:
    """Check that the written text files are the expected ones, byte by byte.

    Raises
    ------
    DataError
        Naming every file that is missing or has another SHA-256 than ``EXPECTED_SHA256``.
    """
    problems = []
    for name, expected in EXPECTED_SHA256.items():
        path = Path(out_dir) / name
        if not path.is_file():
            problems.append(f"{path}: no such file; `medlib.data.core24.build` writes it")
        elif (found := hashlib.sha256(path.read_bytes()).hexdigest()) != expected:
            problems.append(f"{path}: SHA-256 is {found}, expected {expected}")
    if problems:
        raise DataError("\n".join(problems))
