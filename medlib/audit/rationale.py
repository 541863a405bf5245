"""What a verdict rests on, measured by asking again without parts of the case.

The model gives a verdict and no reasons; any that it wrote need not be the real ones. This measures its
behaviour instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from medlib.config import VERDICTS
from medlib.data.cases import WITHHELD
from medlib.data.suite import Suite
from medlib.models import occlusion, scoring
from medlib.models.verdict_model import VerdictModel

PARTS = ("image", "finding", "treatment")
GRID = 8


def rationale(model: VerdictModel, suite: Suite, row: int, batch_size: int = 32, grid: int = GRID) -> dict:
    """Occlusion map and withheld parts of one case, by ``grid ** 2 + 4`` questions.

    Returns
    -------
    dict
        ``drop``: float array (grid, grid) of `occlusion.occlusion_map`, and ``without``: probability of CORRECT
        without the "image", the "finding" and the "treatment", by name of the withheld part.
    """
    scenario, one = suite.scenarios[row], suite.rows([row])
    drop, _ = occlusion.occlusion_map(model, scenario, suite.image(scenario), grid, batch_size)
    without = without_parts(lambda part: scoring.p_correct(model, part, batch_size), one)
    return {"drop": drop, "without": {name: float(p[0]) for name, p in without.items()}}


def without_parts(ask: Callable[[Suite], np.ndarray], suite: Suite) -> dict[str, np.ndarray]:
    """Probability of CORRECT of every case without each of `PARTS`, float array (n,) by the part's name.

    ``ask`` gives the probabilities of a suite. The image is withheld by a plain grey one.
    """
    return {
        "image": ask(replace(suite, view="grey")),
        **{name: ask(replace(suite, scenarios=_withheld(suite, name))) for name in PARTS[1:]},
    }


def _withheld(suite: Suite, name: str) -> list:
    return [scenario.model_copy(update={name: WITHHELD}) for scenario in suite.scenarios]


def certainty(shown: str, p_correct: float) -> str:
    """The model's probability of its own verdict, never rounded to certainty.

    >>> certainty("ERROR", 0.0001)
    'more than 99%'
    """
    p = p_correct if shown == "CORRECT" else 1 - p_correct
    return "more than 99%" if p > 0.99 else f"{100 * p:.0f}%"


def sentences(shown: str, without: dict[str, float]) -> list[str]:
    """A sentence for each withheld part: does the verdict ``shown`` change without it?"""
    lines = []
    for part, p_correct in without.items():
        turns = VERDICTS[0 if p_correct >= 0.5 else 1] != shown
        says = "changes" if turns else f"stays, at {certainty(shown, p_correct)}"
        lines.append(f"Without the {part} the verdict {says}.")
    return lines
