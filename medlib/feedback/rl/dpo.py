"""DPO by TRL: makes the raters' verdict more likely than the other, without sampling.

The loss of a pair is weighted by its severity, so that a critical case moves the model most, over the same
minibatches as every other method. Repeating critical cases instead would leave others out.

References
----------
Rafailov et al. 2023, arXiv:2305.18290.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer
from trl.trainer.utils import FusedCausalLMOutput

from medlib.config import VERDICTS
from medlib.feedback.rl import packing, trl_hooks
from medlib.feedback.rl.trl_hooks import MonitorCallback
from medlib.models import scoring
from medlib.models.prompts import answer_tokens
from medlib.models.verdict_model import VerdictModel
from medlib.training.finite import FiniteSteps

#: The paper's beta: scales the log-ratio to the supervised adapter. Not ``rl_beta``, which weighs a
#: divergence against rewards of 1 to 4; this one sets at which log-odds a pair counts as learnt.
BETA = 0.1
#: Weight of the chosen answer's own negative log-likelihood. DPO alone only widens the margin between the
#: answers, and both may lose to text that is no verdict: 4% of the validation answers no longer parsed.
SFT_WEIGHT = 1.0
#: TRL's figures and their names in the history.
FIGURES = {
    "rewards/margins": "margin",
    "rewards/accuracies": "preferred",
    "logps/chosen": "chosen_logp",
    "logps/rejected": "rejected_logp",
    "entropy": "entropy",
    "loss": "loss",
}


def improve(task) -> None:
    """Improve the adapter "default" of ``task.model`` in place.

    Parameters
    ----------
    task : medlib.feedback.rl.task.Task
    """
    learn(task, "dpo", task.config.dpo_lr, {"sigmoid": 1.0, "sft": float(SFT_WEIGHT)})


def learn(task, method: str, lr: float, losses: dict[str, float]) -> None:
    """Learn from preferences with TRL's losses of these names and weights."""
    folder = trl_hooks.checkpoints(task, method)
    rows = packing.prompts(task)
    with trl_hooks.restored(task.model):
        trainer = _trainer(task, rows, folder, lr, losses)
        trainer.rate = f"{method}_lr"  # for messages: supervised training on the labels learns here, too
        trl_hooks.run(task, trainer)


def _trainer(task, rows: list[dict], folder, lr: float, losses: dict[str, float]) -> _Trainer:
    config, batch = task.config, len(task.minibatches()[0])
    cases, passes = trl_hooks.micro_batch(config, batch)
    settings = DPOConfig(
        **trl_hooks.arguments(task, lr, folder),
        beta=BETA,
        loss_type=list(losses),
        loss_weights=list(losses.values()),
        per_device_train_batch_size=cases,
        gradient_accumulation_steps=passes,
    )
    order = np.concatenate(task.minibatches()).tolist()
    trainer = _Trainer(
        rows,
        task.weights / task.weights.mean(),
        model=task.model,
        args=settings,
        processing_class=task.processor,
        data_collator=collator(task, reference(task, rows)),
        train_dataset=Dataset.from_dict({"case": order}),
        callbacks=[MonitorCallback(task, FIGURES)],
    )
    task.model.delete_adapter("ref")  # TRL's copy of the adapter; its log-likelihoods are computed already
    trainer.precompute_ref_logps = True
    return trainer


@torch.no_grad()
def reference(task, rows: list[dict]) -> torch.Tensor:
    """Log-likelihood of CORRECT and ERROR by the supervised adapter, float tensor (cases, 2)."""
    task.model.eval()
    device, size = next(task.model.parameters()).device, task.config.eval_batch_size
    batches = (packing.prompt_batch(rows[i : i + size], device) for i in range(0, len(rows), size))
    parts = [scoring.score_answers(VerdictModel(task.processor, task.model), batch) for batch in batches]
    task.model.train()
    return torch.tensor(np.concatenate(parts))


def collator(task, scores: torch.Tensor):
    """Batch preference pairs as TRL expects: all chosen answers, then all rejected ones, prompts as numbers."""
    tokens = dict(zip(VERDICTS, answer_tokens(task.processor)))
    columns = list(tokens)

    def collate(items: list[dict]) -> dict:
        cases = [item["case"] for item in items]
        verdicts = {side: task.preferences[side].iloc[cases].tolist() for side in ("chosen", "rejected")}
        answers = [tokens[verdict] for side in verdicts.values() for verdict in side]
        ids = [torch.tensor([case, *answer]) for case, answer in zip(cases * 2, answers)]
        mask = [torch.tensor([0] + [1] * len(answer)) for answer in answers]
        return {
            "input_ids": packing.pad_sequence(ids, batch_first=True),
            "attention_mask": packing.pad_sequence([torch.ones_like(m) for m in mask], batch_first=True),
            "completion_mask": packing.pad_sequence(mask, batch_first=True),
            **{
                f"ref_{side}_logps": scores[cases, [columns.index(v) for v in of_side]]
                for side, of_side in verdicts.items()
            },
        }

    return collate


class _Trainer(FiniteSteps, DPOTrainer):
    """TRL's trainer for prompts that are numbers, see `trl_hooks`, with one weight per pair."""

    def __init__(self, rows: list[dict], weights: np.ndarray, **options) -> None:
        self.rows, self.weights = rows, torch.tensor(weights, dtype=torch.float32)
        super().__init__(**options)

    def _prepare_dataset(self, dataset, *_):
        return dataset

    def _get_train_sampler(self, *_):
        return torch.utils.data.SequentialSampler(self.train_dataset)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return super().compute_loss(functools.partial(self._read, model), inputs, return_outputs)

    def _read(self, model, input_ids, labels, **_) -> FusedCausalLMOutput:
        """What TRL's fused head returns for whole rows, float tensors (n, length - 1)."""
        cases, answers, labelled = input_ids[:, 0].tolist(), input_ids[:, 1:], labels[:, 1:] != -100
        logits = packing.answer_logits(model, self.rows, cases, answers)
        logp, entropy = packing.log_probabilities(logits, answers)
        # TRL averages the losses of pairs: the weight scales a pair's gradient and leaves its figures unchanged
        weight = self.weights[cases].to(logp.device)[:, None]
        logp = weight * logp + (1 - weight) * logp.detach()
        figures = {"log_probs": logp, "entropy": entropy, "mean_logits": logits.detach().mean(-1)}
        return FusedCausalLMOutput(
            **{name: value.masked_fill(~labelled, 0) for name, value in figures.items()},
            is_top1=(logits.argmax(-1) == answers) & labelled,
        )
