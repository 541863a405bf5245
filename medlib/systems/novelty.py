"""Is this an image of the kind the auditor was trained on? If not, it should abstain.

A language model stays sure of its verdict when it is shown a cat. The frozen vision tower is not
fooled as easily: the Mahalanobis distance of an image's features from the training images of
the claimed modality tells foreign images apart (Lee et al. 2018, arXiv:1807.03888).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from medlib.config import provenance
from medlib.data.suite import Suite
from medlib.models import loading, scoring
from medlib.models.verdict_model import VerdictModel
from medlib.systems.session import Session

if TYPE_CHECKING:
    from sklearn.covariance import LedoitWolf


def image_features(model: VerdictModel, suite: Suite, batch_size: int = 64) -> np.ndarray:
    """What tower and projector make of each scenario's image, averaged over its image tokens.

    Returns
    -------
    float array (scenarios, width of the decoder)
    """
    parts = []
    for start in range(0, len(suite), batch_size):
        scenarios = suite.scenarios[start : start + batch_size]
        images = scoring.image_features(model, suite, scenarios)
        if images is None:  # an adapter changes the tower: nothing is kept
            shown = [suite.image(s) for s in scenarios]
            pixels = model.processor.image_processor(images=shown, return_tensors="pt")["pixel_values"]
            pixels = pixels.to(model.device, model.network.dtype)
            with torch.no_grad():
                images = list(model.network.get_image_features(pixels).pooler_output.cpu())
        parts += [tokens.flatten(0, 1).mean(0).float().numpy() for tokens in images]
    return np.stack(parts)


def fit(features: np.ndarray, modalities: Sequence[str]) -> dict[str, LedoitWolf]:
    """A Gaussian with shrunk covariance for the training images of each modality."""
    from sklearn.covariance import LedoitWolf  # not needed by those who only look at images

    modalities = np.asarray(modalities)
    return {name: LedoitWolf().fit(features[modalities == name]) for name in np.unique(modalities)}


def distances(gaussians: Mapping[str, LedoitWolf], features: np.ndarray, modalities: Sequence[str]) -> np.ndarray:
    """Squared Mahalanobis distance of each image from the training images of its claimed modality."""
    return np.array(
        # nothing of this modality in training: as unlike as can be
        [gaussians[m].mahalanobis(f[None])[0] if m in gaussians else np.inf for f, m in zip(features, modalities)]
    )


def threshold(validation_distances: np.ndarray, coverage: float = 0.95) -> float:
    """Abstain above this distance: validation images are answered with this share."""
    return float(np.quantile(validation_distances, coverage))


def ask(session: Session, suite: Suite) -> np.ndarray:
    """Distance of every image of a suite from the training images; kept on disk as answers are.

    The tower is frozen, so base and adapter share these distances.
    """
    train = session.suites["train"]

    def question(part: Suite):
        model = session.base
        if "novelty" not in session.memo:
            features = image_features(model, train)
            session.memo["novelty"] = fit(features, [s.modality for s in train.scenarios])
        features = image_features(model, part)
        modalities = [s.modality for s in part.scenarios]
        return pd.DataFrame({"novelty": distances(session.memo["novelty"], features, modalities)})

    revision = provenance.digest([loading.base_hash(session.config.model), *train.keys()])
    return session.kept("novelty", revision, suite, question, chunk=1024)["novelty"].to_numpy()
