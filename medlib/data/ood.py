"""Real images of other things, on which an auditor should abstain."""

from __future__ import annotations

import re
import warnings
from functools import lru_cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from medlib.config import MODALITIES, files
from medlib.data import sources
from medlib.data.cases import LabelledCase
from medlib.data.images import is_whole, load_image
from medlib.data.suite import Suite
from medlib.data.synthetic import grammar
from medlib.data.synthetic.lexicon import findings_of

#: The right answer to every scenario of `out_of_distribution`; its ``verdict`` is a placeholder.
EXPECTED = "abstain"


# ---------------------------------------------------------------------- images from elsewhere

_MNI = (
    "(C) 1993-2009 Louis Collins, McConnell Brain Imaging Centre, Montreal Neurological Institute, "
    "McGill University: use, copy, modify and distribute for any purpose with this notice"
)
_NEMA = "MIT (pydicom); downsized from the DICOM WG04 samples, no known restriction"
_CC0 = "CC0 1.0"
_FREE = "public domain or no known copyright restrictions"

_SLICES = {"sagittal": (-40, -20, 4), "coronal": (-60, -20, 20), "axial": (-16, 8, 40)}  # mm, MNI space

#: (package, file, modality that the scenario claims, what the image shows, licence); modality ""
#: claims the four in turn. A slice of the MNI template has "mni152 axis position" for a file.
OUTSIDE = (
    *(
        ("nilearn", f"mni152 {axis} {mm:+d}", "mri", "healthy brain template", _MNI)
        for axis, places in _SLICES.items()
        for mm in places
    ),
    ("pydicom", "CT_small.dcm", "xray", "CT of a vertebra", _NEMA),
    ("pydicom", "JPEG2000.dcm", "xray", "bone scintigram", _NEMA),
    ("pydicom", "MR_small.dcm", "mri", "MR detail", _NEMA),
    ("pydicom", "examples_overlay.dcm", "mri", "MR of the abdomen", "BSD-3-Clause (GDCM)"),
    ("pydicom", "examples_rgb_color.dcm", "ultrasound", "Doppler ultrasound of a lymph node", _NEMA),
    ("scikit-image", "ihc.png", "histopathology", "stained colon section", _FREE),
    ("scikit-image", "cell.png", "histopathology", "one cell, phase contrast", _CC0),
    ("scikit-image", "retina.jpg", "", "fundus photograph", _CC0),
    ("scikit-image", "microaneurysms.png", "", "fundus detail", _CC0),
    *(
        ("scikit-image", file, "", "not medical", licence)
        for file, licence in (
            ("astronaut.png", _FREE),
            ("brick.png", _CC0),
            ("camera.png", _CC0),
            ("chelsea.png", _CC0),
            ("clock_motion.png", _FREE),
            ("coffee.png", _CC0),
            ("coins.png", _FREE),
            ("grass.png", _CC0),
            ("gravel.png", _CC0),
            ("hubble_deep_field.jpg", _FREE),
            ("rocket.jpg", _FREE),
            ("text.png", _FREE),
        )
    ),
)
#: Name under which a package of ``OUTSIDE`` is imported.
_MODULES = {"nilearn": "nilearn", "pydicom": "pydicom", "scikit-image": "skimage"}


def out_of_distribution(out_dir: str | Path | None = None, seed: int = 0) -> Suite:
    """Real images that no auditor of these modalities was made for; it should abstain.

    The images come out of installed packages (`sources` says which, under what licence), nothing is
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
        If an optional package is missing; its images are left out.
    """
    folder = Path(out_dir) if out_dir else sources.SUITES_DIR / "out_of_distribution"
    for package in sorted({package for package, *_ in OUTSIDE if not _version(package)}):
        warnings.warn(
            f"{package} is not installed (`pip install {package}`): its images are left out "
            "of the out-of-distribution suite",
            stacklevel=2,
        )
    rows = {n: row for n, row in enumerate(OUTSIDE) if _version(row[0])}
    scenarios = [_outside_scenario(n, row, seed) for n, row in rows.items()]
    # the rows name package versions: another version may ship another image under the same name
    card = {"name": "out_of_distribution", "seed": seed, "pictures": "real"}
    same = grammar.keep(scenarios, folder, card)
    (folder / "images").mkdir(exist_ok=True)
    for scenario, (package, file, *_) in zip(scenarios, rows.values(), strict=True):
        path = folder / "images" / scenario.image
        if not (same and is_whole(path)):
            # from the array: no metadata of the source comes along
            with files.replacement(path, sync=False) as unfinished:
                Image.fromarray(np.asarray(_outside_image(package, file))).save(unfinished, "PNG")
    return Suite("out_of_distribution", scenarios, folder / "images")


def _version(package: str) -> str:
    return metadata.version(package) if find_spec(_MODULES[package]) else ""


def _outside_scenario(number: int, row: tuple[str, ...], seed: int) -> LabelledCase:
    package, file, modality, image, licence = row
    modality = modality or MODALITIES[number % len(MODALITIES)]
    # by row, so a missing package does not change the words beside the other images
    rng = np.random.default_rng([seed, number])
    finding, wording = rng.choice(findings_of(modality)), grammar.Wording("test")
    stem = re.sub(r"[^a-z0-9]+", "_", Path(file).stem.lower())
    return LabelledCase(
        id=f"ood_{number:02d}_{stem}",
        modality=modality,
        image=f"{number:02d}_{stem}.png",
        patient=wording.patient(modality, rng),
        finding=wording.finding(finding, rng),
        treatment=wording.treatment(finding, rng),
        verdict="CORRECT",
        error_type="none",
        severity="none",
        cost_impact=0,
        factors={
            "expected": EXPECTED,
            "picture": image,
            "note_finding": finding.name,
            "care": finding.care,
            "source_package": package,
            "source_version": _version(package),
            "source_file": file,
            "licence": licence,
        },
    )


def _outside_image(package: str, file: str) -> Image.Image:
    if package == "nilearn":
        _, axis, mm = file.split()
        return _template_slice(axis, int(mm))
    if package == "scikit-image":
        import skimage

        image = load_image(Path(skimage.__file__).parent / "data" / file)
    else:
        from pydicom.data import get_testdata_file

        image = load_image(get_testdata_file(file, download=False), looked_at=True)
    if file == "examples_rgb_color.dcm":
        # the name of a hospital is burned in above the image
        width, height = image.size
        image = image.crop((0, int(0.22 * height), width, int(0.72 * height)))
    image.thumbnail((896, 896))  # MedGemma sees no more
    return image


@lru_cache(maxsize=1)
def _template() -> tuple[np.ndarray, np.ndarray]:
    """MNI152 T1 template of nilearn: values (x, y, z), 0 to 1, and the affine from voxel to mm."""
    from nilearn.datasets import load_mni152_template

    image = load_mni152_template(resolution=1)
    return np.asarray(image.dataobj, dtype=np.float32), image.affine


def _template_slice(axis: str, mm: int) -> Image.Image:
    volume, affine = _template()
    number = ("sagittal", "coronal", "axial").index(axis)
    index = round((mm - affine[number, 3]) / affine[number, number])
    # top of the head, or the brow, comes first; the patient's left is at the left
    pixels = np.take(volume, index, axis=number).T[::-1]
    return Image.fromarray((255 * np.clip(pixels / volume.max(), 0, 1)).astype(np.uint8)).convert("RGB")
