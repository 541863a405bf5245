"""The fair comparator of learning from feedback: supervised training on the same cases, labels and visits.

The raters' verdict is made more likely by its own log-likelihood, weighted by severity, over the same minibatches
as every other method: DPO without its preference term. What a method adds over this it does not owe to the labels.
"""

from __future__ import annotations

from medlib.feedback.rl import dpo


def improve(task) -> None:
    """Improve the adapter "default" of ``task.model`` in place.

    Parameters
    ----------
    task : medlib.feedback.rl.task.Task
    """
    dpo.learn(task, "sft", task.config.sft_lr, {"sft": 1.0})
