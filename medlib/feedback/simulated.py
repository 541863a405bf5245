"""Simulated raters, who stand in for clinicians in tests and in runs without human ratings.

A simulated rater knows the gold verdict and gets it wrong at a stated rate. So agreement between two of them
shows only how the noise was set, not how clinicians would agree.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medlib.config import SEVERITIES
from medlib.data.cases import LabelledCase

#: Pseudonyms of simulated raters, and only theirs, begin with this.
PREFIX = "simulated-"
NAMES = tuple(f"{PREFIX}{number}" for number in (1, 2))


def simulate(
    scenarios: Sequence[LabelledCase], shown: Sequence[str], name: str, noise: float, seed: int = 0
) -> list[dict]:
    """Ratings by one simulated rater.

    Parameters
    ----------
    scenarios : sequence of LabelledCase
        With their gold verdict and severity, which a human rater never sees.
    shown : sequence of str
        The model's verdict on each scenario.
    name : str
        Pseudonym; together with ``seed`` it determines the mistakes.
    noise : float
        Probability that ``agree`` is flipped, and that a severity is one step off.

    Returns
    -------
    list of dict, one per scenario: ``rater``, ``agree``, ``severity``, ``simulated`` and ``noise``.
    """
    if not name.startswith(PREFIX):
        raise ValueError(f"{name!r}: the name of a simulated rater begins with {PREFIX!r}")
    rng = np.random.default_rng([seed, *name.encode()])
    wrong, off = rng.random((2, len(scenarios))) < noise
    drawn, up = rng.integers(len(SEVERITIES), size=len(scenarios)), rng.random(len(scenarios)) < 0.5
    ratings = []
    for i, (scenario, verdict) in enumerate(zip(scenarios, shown, strict=True)):
        says_error = (scenario.verdict == "ERROR") != wrong[i]
        # without an error, or where none is stated, there is no true severity: any level is drawn
        level = SEVERITIES.index(scenario.severity) if scenario.severity in SEVERITIES else int(drawn[i])
        severity = SEVERITIES[_step(level, up[i]) if off[i] else level] if says_error else "none"
        ratings.append(
            {
                "rater": name,
                "agree": bool(says_error == (verdict == "ERROR")),
                "severity": severity,
                "simulated": True,
                "noise": noise,
            }
        )
    return ratings


def _step(level: int, up: bool) -> int:
    """One step along the scale; at either end there is only one direction."""
    if level == 0 or (up and level < len(SEVERITIES) - 1):
        return level + 1
    return level - 1
