"""The reward of a verdict: the reward model's opinion, weighted by severity."""

from __future__ import annotations

import numpy as np
import pandas as pd

from medlib.config import VERDICTS

#: What a wrong verdict costs and a right one earns, by the raters' severity.
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
    """Weight of each case, float array (n,); 1 where no severity is stated (None or nan)."""
    return np.array([1.0 if pd.isna(severity) else SEVERITY_WEIGHT[severity] for severity in severities])


def explain(preferred: float, severity: str) -> pd.DataFrame:
    """The reward of one case, one row per verdict.

    Parameters
    ----------
    preferred : probability that CORRECT is the better verdict, by the reward model
    severity : by the raters

    Returns
    -------
    DataFrame
        ``verdict``, ``preferred`` (the reward model's probability of it), ``weight`` (by severity) and
        ``reward``, which is ``weight * (2 * preferred - 1)``.

    Examples
    --------
    >>> explain(0.25, "critical")["reward"].tolist()
    [-2.0, 2.0]
    """
    weights = severity_weights([severity])
    return pd.DataFrame(
        {
            "verdict": VERDICTS,
            "preferred": [preferred, 1 - preferred],
            "weight": weights[0],
            "reward": verdict_rewards(np.array([preferred]), weights)[0],
        }
    )
