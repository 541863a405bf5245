"""Figures that monitor a run while it learns, on validation cases, apart from its reward."""

from __future__ import annotations

import numpy as np
import torch

from medlib.config import RunConfig, jobs
from medlib.data.suite import Suite
from medlib.models import scoring
from medlib.models.verdict_model import VerdictModel

#: Measurements during a run, besides the one before its first update.
MEASUREMENTS = 5


class Monitor:
    """Measures a run while it learns, on validation cases that no method trains on.

    A policy may earn reward in ways that nobody intended. So beside the reward stand figures that it does not
    depend on: right verdicts, answers that parse, their length, and the share of the more frequent verdict.
    """

    def __init__(
        self, model, processor, cases: Suite, rewards: np.ndarray, config: RunConfig, updates: int
    ) -> None:
        self.model, self.processor, self.cases, self.rewards = model, processor, cases, rewards
        self.limit, self.updates = config.rl_kl_limit, updates
        self.interval = max(1, updates // MEASUREMENTS)
        self.start, self.history, self.inside = None, [], self._weights()
        self.measure(0)

    def __call__(self, update: int, **figures: float) -> bool:
        """Record the figures of an update and measure at intervals; true if the run has gone too far.

        Then the adapter is that of the last measurement within the limit again.
        """
        self.history.append({"update": update, **{name: float(value) for name, value in figures.items()}})
        jobs.progress(f"learning from feedback: update {update} of {self.updates}")
        if update % self.interval == 0 or update == self.updates:
            return self._is_outside(self.measure(update))
        return False

    def resumed(self, history: list[dict]) -> None:
        """Go on with an interrupted run: its history, and its adapter if that is within the limit."""
        self.history[:] = history
        if kl(self._answers()["p_correct"], self.start) <= self.limit:
            self.inside = self._weights()

    def _is_outside(self, distance: float) -> bool:
        if distance <= self.limit:
            self.inside = self._weights()
            return False
        with torch.no_grad():
            for name, weight in self._adapter().items():
                weight.copy_(self.inside[name])
        self.history[-1]["stopped"] = True  # measured, but not what is kept
        return True

    def _adapter(self) -> dict[str, torch.nn.Parameter]:
        return {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}

    def _weights(self) -> dict[str, torch.Tensor]:
        """A copy of the adapter as it is now."""
        return {name: weight.detach().clone() for name, weight in self._adapter().items()}

    def _answers(self) -> dict[str, np.ndarray]:
        """P(CORRECT), float array (n,), and what the model writes, of every case."""
        training_mode = self.model.training
        self.model.eval()
        answers = scoring.ask(VerdictModel(self.processor, self.model), self.cases)
        self.model.train(training_mode)
        return {
            "p_correct": answers["p_correct"].to_numpy().clip(1e-6, 1 - 1e-6),
            "parsed": answers["parsed"].notna().to_numpy(),
            "length": answers["generated"].str.len().to_numpy(),
        }

    def measure(self, update: int) -> float:
        """Add a measurement to the history; returns the KL divergence from the start in nats."""
        answers = self._answers()
        p = answers["p_correct"]
        self.start = p if self.start is None else self.start
        verdicts, gold = p >= 0.5, np.array([s.verdict == "CORRECT" for s in self.cases.scenarios])
        figures = {
            "kl": kl(p, self.start),
            "reward": float((self.rewards * np.stack([p, 1 - p], 1)).sum(1).mean()),
            "accuracy": float((verdicts == gold).mean()),
            "parsed": float(answers["parsed"].mean()),
            "length": float(answers["length"].mean()),
            "same_answer": float(max(verdicts.mean(), 1 - verdicts.mean())),
        }
        self.history.append({"update": update, **{f"probe_{name}": value for name, value in figures.items()}})
        return figures["kl"]


def kl(p: np.ndarray, q: np.ndarray) -> float:
    """Mean KL divergence of verdicts with P(CORRECT) = ``p`` from those with ``q``, in nats.

    >>> kl(np.array([0.5]), np.array([0.5]))
    0.0
    """
    return float((p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean())
