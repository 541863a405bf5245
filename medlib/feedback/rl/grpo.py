"""GRPO by TRL: the model writes several answers to a case and learns from those above their mean.

More exactly Dr. GRPO: an advantage is the reward minus the group's mean, and is not divided by the group's
standard deviation, which would make a critical case weigh as little as any other.

References
----------
GRPO: Shao et al. 2024, arXiv:2402.03300. Dr. GRPO: Liu et al. 2025, arXiv:2503.20783. DAPO, for groups
of equal rewards: Yu et al. 2025, arXiv:2503.14476.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from medlib.config import ANSWERS
from medlib.feedback.rl import packing, trl_hooks
from medlib.feedback.rl.trl_hooks import MonitorCallback
from medlib.models.prompts import parse_verdict
from medlib.training import finite
from medlib.training.finite import FiniteSteps

#: Longest answer in tokens; a verdict has about nine, and an answer that is cut off is rarely one.
MAX_TOKENS = 16
#: Answers are sampled as they are likely; PPO needs a higher temperature, because its two answers are given.
TEMPERATURE = 1.0
#: TRL's figures and their names in the history.
FIGURES = {
    "reward": "reward",
    "answer_kl": "kl",
    "entropy": "entropy",
    "completions/mean_length": "length",
    "parsed": "parsed",
    "informative": "informative",
    "loss": "loss",
}


def improve(task) -> None:
    """Improve the adapter "default" of ``task.model`` in place.

    Parameters
    ----------
    task : medlib.feedback.rl.task.Task
    """
    folder = trl_hooks.checkpoints(task, "grpo")
    rows = packing.prompts(task)
    with trl_hooks.restored(task.model):
        trl_hooks.run(task, _trainer(task, rows, folder))


def _trainer(task, rows: list[dict], folder) -> _Trainer:
    config, batch = task.config, len(task.minibatches()[0])
    cases, passes = trl_hooks.micro_batch(config, batch)
    settings = GRPOConfig(
        **trl_hooks.arguments(task, config.grpo_lr, folder),
        beta=config.rl_beta,
        num_generations=config.rl_samples,
        temperature=TEMPERATURE,
        max_completion_length=MAX_TOKENS,
        shuffle_dataset=False,
        per_device_train_batch_size=cases * config.rl_samples,
        gradient_accumulation_steps=passes,
        steps_per_generation=passes,
        scale_rewards="none",
        loss_type="dapo",
    )
    order = np.concatenate(task.minibatches()).tolist()
    with warnings.catch_warnings():  # rollout_func may still change, so TRL is pinned to a minor version
        warnings.filterwarnings("ignore", message="You are using 'rollout_func'")
        return _Trainer(
            rows,
            model=task.model,
            args=settings,
            processing_class=task.processor,
            reward_funcs=lambda **batch: judge(task, **batch),
            rollout_func=_rollout,
            train_dataset=Dataset.from_dict({"prompt": list(map(str, order)), "case": order}),
            callbacks=[MonitorCallback(task, FIGURES)],
        )


def judge(task, completions: list[str], case: list[int], log_metric=None, **_) -> list[float]:
    """Reward of every answer: that of its verdict, if the wording is exactly the required one.

    An answer without a verdict earns as little as the worst wrong one. So does a verdict in other words, else
    the policy would be free to write "CORRECT - Treatment does not match imaging".
    """
    column = {ANSWERS["CORRECT"]: 0, ANSWERS["ERROR"]: 1}
    if log_metric:
        log_metric("parsed", float(np.mean([parse_verdict(text) is not None for text in completions])))
    worst = -float(task.weights.max())
    return [
        float(task.rewards[row, column[text.strip()]]) if text.strip() in column else worst
        for text, row in zip(completions, case)
    ]


def _rollout(prompts: list[str], trainer: _Trainer) -> dict[str, list]:
    """Sampled answers; each case comes ``num_generations`` times in a row."""
    samples = trainer.num_generations
    cases = list(map(int, prompts))
    batch = packing.prompt_batch([trainer.rows[case] for case in cases[::samples]], trainer.accelerator.device)
    model = trainer.accelerator.unwrap_model(trainer.model)
    model.eval()  # gradient checkpointing, where it is on, would forbid the key-value cache
    limit, ends = trainer.max_completion_length, trainer.eos_token_ids
    answers, logp = sample(model, batch, samples, limit, ends, trainer.recipe())
    model.train()
    return {"prompt_ids": [[case] for case in cases], "completion_ids": answers, "logprobs": logp}


@torch.no_grad()
def sample(
    model, batch: dict, samples: int, limit: int, ends: list[int], recipe: str = "this adapter"
) -> tuple[list, list]:
    """Sampled answers to a batch of left-padded prompts; each prompt is read once for all its answers.

    ``recipe`` is what a ModelError names if the model's likelihoods are not numbers.

    Returns
    -------
    (token ids, their log-probabilities) : one list per answer, the ``samples`` answers of a prompt side by side
    """
    first = model(**batch, use_cache=True, logits_to_keep=1)
    cache, mask, logits = first.cache, batch["attention_mask"], first.logits
    finite.check("likelihood of an answer", logits.float().sum(), "sampling", recipe)
    row_of = torch.arange(len(mask), device=mask.device).repeat_interleave(samples)  # of each answer, in the batch
    finished, ends = torch.zeros_like(row_of, dtype=torch.bool), torch.tensor(ends, device=mask.device)
    tokens, scores = [], []
    while True:
        logits[..., model.config.image_token_id] = -torch.inf  # an image token needs an image
        logp = logits[:, -1].float().log_softmax(-1)[row_of]
        token = torch.multinomial(logp.exp(), 1).masked_fill(finished[:, None], ends[0])
        tokens.append(token.masked_fill(finished[:, None], -1))
        scores.append(logp.gather(-1, token))
        finished |= torch.isin(token[:, 0], ends)
        if finished.all() or len(tokens) == limit:
            break
        # answers with the same tokens so far share one row
        rows, row_of = torch.unique(torch.stack([row_of, token[:, 0]], 1), dim=0, return_inverse=True)
        cache.batch_select_indices(rows[:, 0])
        mask = torch.cat([mask[rows[:, 0]], torch.ones_like(rows[:, :1])], dim=1)
        logits = model(input_ids=rows[:, 1:], attention_mask=mask, cache=cache, use_cache=True).logits
    tokens, scores = torch.cat(tokens, 1).cpu(), torch.cat(scores, 1).cpu()
    return ([t[t >= 0].tolist() for t in tokens], [s[t >= 0].tolist() for t, s in zip(tokens, scores)])


class _Trainer(FiniteSteps, GRPOTrainer):
    """TRL's trainer for prompts that are numbers, see `trl_hooks`."""

    rate = "grpo_lr"

    def __init__(self, rows: list[dict], **options) -> None:
        self.rows, self.reference_logps = rows, {}
        super().__init__(**options)

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, *_, **__):
        """(log-probabilities, entropies, None), float tensors (n, logits_to_keep)."""
        cases, answers = input_ids[:, 0].tolist(), input_ids[:, 1:]
        if "ref" in self.accelerator.unwrap_model(model).active_adapters:
            return self._reference_logps(model, cases, answers, attention_mask[:, 1:]), None, None
        logits = packing.answer_logits(model, self.rows, cases, answers)
        return *packing.log_probabilities(logits, answers), None

    def _reference_logps(self, model, cases, answers, mask) -> torch.Tensor:
        """The same by the supervised adapter; it does not change, so every answer is read once."""
        keys = [(case, tuple(a[m.bool()].tolist())) for case, a, m in zip(cases, answers, mask)]
        new = list({key: row for row, key in enumerate(keys) if key not in self.reference_logps}.values())
        if new:
            logits = packing.answer_logits(model, self.rows, [cases[row] for row in new], answers[new])
            logps = packing.log_probabilities(logits, answers[new])[0]
            self.reference_logps |= {keys[row]: logp[mask[row].bool()] for row, logp in zip(new, logps)}
        return torch.nn.utils.rnn.pad_sequence([self.reference_logps[key] for key in keys], batch_first=True)

    def _generate_and_score_completions(self, inputs):
        batch = super()._generate_and_score_completions(inputs)
        if self.beta:  # estimated from all answers, including those that `_compute_loss` skips
            ratio = batch["ref_per_token_logps"] - batch["sampling_per_token_logps"]
            ratio = (ratio * batch["completion_mask"]).sum(1)
            self._metrics["train"]["answer_kl"].append(float((ratio.exp() - ratio - 1).mean()))
        self._metrics["train"]["informative"].append(float((batch["advantages"] != 0).float().mean()))
        return batch

    def _compute_loss(self, model, inputs):
        """TRL's loss without groups of equal rewards, which would contribute nothing but the KL term."""
        informative = inputs["advantages"] != 0
        informative[0] |= not informative.any()
        n = len(informative)
        inputs = {
            name: value[informative] if torch.is_tensor(value) and value.ndim and len(value) == n else value
            for name, value in inputs.items()
        }
        return super()._compute_loss(model, inputs)
