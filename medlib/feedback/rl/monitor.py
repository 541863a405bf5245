"""Figures that a run is monitored by while it learns, and that the reward does not see."""

from __future__ import annotations

import numpy as np

from medlib.config import RunConfig
from medlib.data.suite import Suite
from medlib.models import scoring

#: How often a run is watched while it learns.
MEASUREMENTS = 5


class Monitor:
    """Looks at a run from outside while it learns, on validation cases that no method trains on.

    A reward can be earned in ways that nobody meant. So beside the reward stand figures that it does
    not see: right verdicts, answers that parse, their length, and the share of the more frequent verdict.
    """

    def __init__(
        self, task_model, processor, probe: Suite, rewards: np.ndarray, config: RunConfig, updates: int
    ) -> None:
        self.model, self.processor, self.probe, self.rewards = task_model, processor, probe, rewards
        self.limit, self.updates = config.rl_kl_limit, updates
        self.every = max(1, updates // MEASUREMENTS)
        self.start, self.history = None, []
        self.measure(0)

    def __call__(self, update: int, **figures: float) -> bool:
        """Keep the figures of an update, measure now and then; true if the run has gone too far."""
        self.history.append({"update": update, **{name: float(value) for name, value in figures.items()}})
        if update % self.every == 0 or update == self.updates:
            return self.measure(update) > self.limit
        return False

    def measure(self, update: int) -> float:
        """Add a measurement to the history; returns the KL divergence from the start in nats."""
        training_mode = self.model.training
        self.model.eval()
        p = scoring.p_correct(self.model, self.processor, self.probe).clip(1e-6, 1 - 1e-6)
        spoken = scoring.free_answers(self.model, self.processor, self.probe)
        self.model.train(training_mode)
        self.start = p if self.start is None else self.start
        said, gold = p >= 0.5, np.array([s.verdict == "CORRECT" for s in self.probe.scenarios])
        measured = {
            "kl": kl(p, self.start),
            "reward": float((self.rewards * np.stack([p, 1 - p], 1)).sum(1).mean()),
            "accuracy": float((said == gold).mean()),
            "parsed": float(spoken["parsed"].notna().mean()),
            "length": float(spoken["generated"].str.len().mean()),
            "same_answer": float(max(said.mean(), 1 - said.mean())),
        }
        self.history.append({"update": update, **{f"probe_{name}": value for name, value in measured.items()}})
        return measured["kl"]


def kl(p: np.ndarray, q: np.ndarray) -> float:
    """Mean KL divergence of verdicts with P(CORRECT) = ``p`` from those with ``q``, in nats.

    >>> kl(np.array([0.5]), np.array([0.5]))
    0.0
    """
    return float((p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean())
