"""Is this a picture of the kind the auditor was trained on? If not, it should abstain.

A language model stays sure of its verdict when it is shown a cat. The frozen vision tower is not
fooled as easily: the Mahalanobis distance of a picture's features from the training pictures of
the claimed modality tells foreign pictures apart (Lee et al. 2018, arXiv:1807.03888).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from sklearn.covariance import LedoitWolf

from medlib.data.suite import Suite
from medlib.models import loading
from medlib.systems.session import Session


@torch.no_grad()
def picture_features(model, processor, suite: Suite, batch_size: int = 64) -> np.ndarray:
    """What tower and projector make of each scenario's picture, averaged over its image tokens.

    Returns
    -------
    float array (scenarios, width of the decoder)
    """
    device, parts = next(model.parameters()).device, []
    for start in range(0, len(suite), batch_size):
        pictures = [suite.picture(s) for s in suite.scenarios[start : start + batch_size]]
        pixels = processor.image_processor(pictures, return_tensors="pt")["pixel_values"].to(device)
        tokens = model.get_image_features(pixels.to(model.dtype)).pooler_output
        parts.append(tokens.reshape(len(pictures), -1, tokens.shape[-1]).mean(1).float().cpu().numpy())
    return np.concatenate(parts)


def fit(features: np.ndarray, modalities: list[str]) -> dict[str, LedoitWolf]:
    """A Gaussian with shrunk covariance for the training pictures of each modality."""
    modalities = np.asarray(modalities)
    return {name: LedoitWolf().fit(features[modalities == name]) for name in np.unique(modalities)}


def distances(gaussians: Mapping[str, LedoitWolf], features: np.ndarray, modalities: list[str]) -> np.ndarray:
    """Squared Mahalanobis distance of each picture from the training pictures of its claimed modality."""
    return np.array([gaussians[m].mahalanobis(f[None])[0] for f, m in zip(features, modalities)])


def threshold(validation_distances: np.ndarray, coverage: float = 0.95) -> float:
    """Abstain above this distance: validation pictures are answered with this share."""
    return float(np.quantile(validation_distances, coverage))


def ask(setting: Session, suite: Suite) -> np.ndarray:
    """Distance of every picture of a suite from the training pictures; kept on disk as answers are.

    The tower is frozen, so base and adapter share these distances.
    """
    train = setting.suites["train"]

    def question(part: Suite):
        processor, model = setting.base
        if "novelty" not in setting.memo:
            features = picture_features(model, processor, train)
            setting.memo["novelty"] = fit(features, [s.modality for s in train.scenarios])
        features = picture_features(model, processor, part)
        modalities = [s.modality for s in part.scenarios]
        return pd.DataFrame({"novelty": distances(setting.memo["novelty"], features, modalities)})

    made_of = loading.weights_hash(setting.config.model) + train.sha256
    revision = hashlib.sha256(made_of.encode()).hexdigest()
    return setting.kept("novelty", revision, suite, question, chunk=1024)["novelty"].to_numpy()
