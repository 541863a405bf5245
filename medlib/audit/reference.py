"""What a run's answers are held against: its decision threshold, and the images that it was trained on.

Made once for each adapter from the run's own suites and kept in ``run_dir/audit``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from medlib.audit.agreement import Agreement
from medlib.config import RunConfig, files, path, provenance
from medlib.config.settings import Data, Threshold
from medlib.data.cases import UNSPECIFIED
from medlib.models.verdict_model import VerdictModel
from medlib.systems import Session
from medlib.systems.registry import System

#: Raise it whenever a reference of the same run would be another.
VERSION = 2
NEAREST = 3


@dataclass(frozen=True)
class Decision:
    """From which probability on a treatment passes, and what that rests on.

    Attributes
    ----------
    threshold : float
        A case passes where its probability of CORRECT (not calibrated) is at least this.
    guarantee : str
        What holds for it and under which assumption, in a sentence.
    temperature : float
        Divides the log-odds, see `stats.apply_temperature`; 1 where nothing could be fitted.
    """

    threshold: float = 0.5
    guarantee: str = "This threshold comes without a guarantee."
    temperature: float = 1.0


@dataclass(frozen=True)
class Gallery:
    """The training images as the vision tower sees them.

    Attributes
    ----------
    features : float32 array (images, width), see `novelty.image_features`
    cases : one training case for each image: id, modality, image, finding, treatment, verdict
    means, precisions : float arrays (modalities, width) and (modalities, width, width)
    limits : float array (modalities,), the distance above which an image is unlike the training images
    modalities : names, in the order of these arrays
    """

    features: np.ndarray
    cases: list[dict]
    means: np.ndarray
    precisions: np.ndarray
    limits: np.ndarray
    modalities: list[str]

    def distances(self, features: np.ndarray) -> np.ndarray:
        """Distance of each image from the training images of each modality, in units of its limit.

        Float array (n, modalities); above 1 an image is unlike them.
        """
        away = [features.astype(np.float64) - mean for mean in self.means]
        squared = [np.einsum("ij,jk,ik->i", a, p, a, optimize=True) for a, p in zip(away, self.precisions)]
        return np.stack(squared, axis=1) / self.limits

    def nearest(self, features: np.ndarray, count: int = NEAREST) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the training images most like each image, and their cosine similarities, both (n, count)."""
        centre = self.features.mean(axis=0)
        known, new = _unit(self.features - centre), _unit(features - centre)
        similarity = new @ known.T
        order = np.argsort(-similarity, axis=1, kind="stable")[:, :count]
        return order, np.take_along_axis(similarity, order, axis=1)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


# --- on disk --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reference:
    """`Decision` of a system, and the `Gallery` of a local model's tower; a hosted model has none.

    ``agreement`` says when note and image disagree, None where that cannot be told. ``data`` is the SHA-256 of the
    cases that the run trains on, "" for a hosted model.
    """

    decision: Decision
    gallery: Gallery | None
    data: str = ""
    agreement: Agreement | None = None


def of_run(session: Session, name: str, model: VerdictModel | None) -> Reference:
    """The reference of a run and a system, from disk where it is known.

    Parameters
    ----------
    model : VerdictModel, optional
        Whose tower looks at the training images; None for a system without one.
    """
    file = place(session.config, session.system(name))
    if model is not None and file.is_file():
        return _read(file)
    from medlib.audit import preparation  # with what it takes to choose a threshold

    made = preparation.make(session, name, model)
    if model is not None:
        _write(file, made)
    return made


def place(config: RunConfig, system: System) -> Path:
    """File of a reference; its name changes with adapter, data and threshold."""
    hashes = files.read_json(path(config.run_dir) / "run.json").get("data_hashes", {})
    settings = config.of("seed", Data, "calibration_pairs", "contradiction_pairs", Threshold)
    digest = provenance.digest([VERSION, system.revision, settings, hashes])
    return path(config.run_dir) / "audit" / f"reference-{digest[:16]}.npz"


def _write(file: Path, made: Reference) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    known = asdict(made)
    words = {name: known[name] for name in ("decision", "data", "agreement")}
    arrays = {}
    for name, value in (known["gallery"] or {}).items():
        (arrays if isinstance(value, np.ndarray) else words)[name] = value
    with files.replacement(file) as unfinished, unfinished.open("wb") as out:
        np.savez(out, words=np.array(json.dumps(words)), **arrays)


def _read(file: Path) -> Reference:
    with np.load(file) as held:
        words = json.loads(str(held["words"]))
        arrays = {name: held[name] for name in held.files if name != "words"}
    made, data, agreement = Decision(**words.pop("decision")), words.pop("data"), words.pop("agreement")
    gallery = Gallery(**words, **arrays) if arrays else None
    return Reference(made, gallery, data, Agreement(**agreement) if agreement else None)


# --- reasons --------------------------------------------------------------------------------------


def unlike(gallery: Gallery, modality: str, distances: Sequence[float]) -> str | None:
    """Why an image is not of the kind that the model was trained on; None if it is.

    Parameters
    ----------
    modality : the case's own word; any modality will do if it states none, or if the training cases stated none
    distances : of `Gallery.distances`, one for each modality
    """
    best = gallery.modalities[int(np.argmin(distances))]
    if modality == UNSPECIFIED or gallery.modalities == [UNSPECIFIED]:
        alike = min(distances) <= 1
    elif modality not in gallery.modalities:
        return f"the model was trained on no image of the modality {modality}"
    else:
        alike = distances[gallery.modalities.index(modality)] <= 1
    if alike:
        return None
    if min(distances) <= 1:
        return f"the image looks like {best}, not like {modality}"
    return "the image is unlike the images that the model was trained on"
