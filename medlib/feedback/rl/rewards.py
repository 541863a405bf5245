"""The reward of a verdict: the reward model's opinion, weighted by severity."""

from __future__ import annotations

import numpy as np

#: What a wrong verdict costs and a right one earns, by the severity that the raters saw.
SEVERITY_WEIGHT = {"none": 1.0, "moderate": 1.0, "high": 2.0, "critical": 4.0}


def verdict_rewards(preferred: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Reward of the verdicts CORRECT and ERROR, float array (n, 2), in [-weight, weight].

    Parameters
    ----------
    preferred : probability that CORRECT is the better verdict, by the reward model
    weights : by severity
    """
    signed = weights * (2 * preferred - 1)
    return np.stack([signed, -signed], axis=1)


def severity_weights(severities) -> np.ndarray:
    """Weight of each case, float array (n,)."""
    return np.array([SEVERITY_WEIGHT[severity] for severity in severities])
