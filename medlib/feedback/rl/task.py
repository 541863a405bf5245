"""What every method is given, and the order in which it sees the cases."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from peft import PeftModel

from medlib.config import RunConfig
from medlib.data.suite import Suite
from medlib.feedback.rl.monitor import Monitor


@dataclass(frozen=True)
class Task:
    """Model, training cases and rewards of one run.

    Attributes
    ----------
    model : PeftModel; its adapter "default" is trainable and starts as the supervised one. A method that
        adds a reference copy under another name removes it again.
    suite : Suite of the training cases, rated and rehearsed
    preferences : DataFrame, one row per case of the suite: ``chosen`` and ``rejected`` verdict, ``severity``
    rewards : float array (cases, 2), of the verdicts CORRECT and ERROR
    weights : float array (cases,), by severity
    folder : for checkpoints
    monitor : call it with (update, training figures by name) after every update; true means stop
    """

    config: RunConfig
    seed: int
    model: PeftModel
    processor: object
    suite: Suite
    preferences: pd.DataFrame
    rewards: np.ndarray
    weights: np.ndarray
    folder: Path
    monitor: Monitor

    def minibatches(self) -> list[np.ndarray]:
        """Row numbers of the cases of each update, the same for every method with the same seed."""
        return minibatches(len(self.suite), self.config.rl_epochs, self.config.rl_batch, self.seed)


def minibatches(cases: int, epochs: float, batch: int, seed: int) -> list[np.ndarray]:
    """Minibatches of row numbers; every case once per epoch, none twice in an update.

    >>> [len(b) for b in minibatches(10, 1.5, 4, seed=0)]
    [4, 4, 4, 4]
    """
    rng = np.random.default_rng([seed, cases])
    batch = min(batch, cases)
    batches = []
    while len(batches) < round(epochs * cases / batch):
        order = rng.permutation(cases)
        batches += [order[start : start + batch] for start in range(0, cases - batch + 1, batch)]
    return batches[: round(epochs * cases / batch)]
