"""PPO by TorchRL: verdicts are sampled, and those that earn more than expected become more likely.

An episode has one step, a verdict on a case, so the advantage is the reward minus the value. It is not
normalised, which would make a critical case weigh as little as any other.

The policy chooses between the two whole answers by their likelihoods, as `scoring.p_correct` does. So its
entropy and its KL divergence from the supervised adapter are exact and need no samples.

References
----------
Schulman et al. 2017, arXiv:1707.06347.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tensordict import TensorDict
from tensordict.nn import InteractionType, TensorDictModule
from torch.distributions import Categorical, kl_divergence
from tqdm.auto import tqdm
from transformers import get_linear_schedule_with_warmup

from medlib.config import files
from medlib.feedback.rl import packing, trl_hooks
from medlib.models.prompts import answer_tokens
from medlib.training import finite, hooks, memory

# importing TorchRL makes "spawn" the start method of every later process, so it is set back afterwards
_start_method = torch.multiprocessing.get_start_method()
from torchrl.modules import ProbabilisticActor, ValueOperator  # noqa: E402
from torchrl.objectives import ClipPPOLoss  # noqa: E402

torch.multiprocessing.set_start_method(_start_method, force=True)

#: Epochs over the verdicts of one update, and the clip range epsilon of their probability ratios.
EPOCHS_PER_UPDATE, CLIP_EPSILON = 2, 0.2
#: Coefficient of the entropy bonus, and of the log-likelihood of giving any verdict, which no reward covers.
ENTROPY_COEFFICIENT, VERDICT_COEFFICIENT = 0.01, 0.5
#: Temperature at which verdicts are sampled and their likelihoods compared: where the supervised adapter is
#: sure and wrong, the other verdict would otherwise never be tried. The more likely verdict stays the same.
TEMPERATURE = 4.0
#: Share of a minibatch's gradient to leave out: that of the many cases whose verdict no longer changes.
SKIPPED_GRADIENT = 0.1
#: Learning rate of the value, a linear function of the supervised adapter's hidden state.
VALUE_LR = 3e-2
#: Norm to which the gradient of the adapter is clipped.
MAX_GRADIENT_NORM = 1.0


def improve(task) -> None:
    """Improve the adapter "default" of ``task.model`` in place.

    Parameters
    ----------
    task : medlib.feedback.rl.task.Task
    """
    folder = trl_hooks.checkpoints(task, "ppo")
    rows = packing.prompts(task)
    with trl_hooks.restored(task.model):
        _prepare(task.model, task.config)
        _train(task, _learner(task, rows), folder / "state.safetensors")
    shutil.rmtree(folder, ignore_errors=True)


def _prepare(model, config) -> None:
    """No dropout: a verdict's likelihood must not change between sampling and learning."""
    hooks.float_adapter(model)
    device = next(model.parameters()).device.type
    model.eval()
    if memory.recomputes(config, device):  # transformers does so in training mode only
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
        model.train()


# --- policy and value -------------------------------------------------------------------------------


def verdict_scores(task, rows: list[dict], cases: torch.Tensor) -> torch.Tensor:
    """Log-likelihood of the answers CORRECT and ERROR, as by `scoring.score_answers`, with gradient.

    Parameters
    ----------
    rows : from `packing.prompts`
    cases : int64 tensor (n,), row numbers, which may repeat; a case is read once

    Returns
    -------
    float tensor (n, 2)
    """
    tokens = list(map(torch.tensor, answer_tokens(task.processor)))
    answers = packing.pad_sequence(tokens, batch_first=True).to(cases.device)
    real = torch.arange(answers.shape[1])[None] < torch.tensor([len(t) for t in tokens])[:, None]
    unique, index = cases.unique(return_inverse=True)
    answers = answers.repeat(len(unique), 1)
    logits = packing.answer_logits(task.model, rows, unique.repeat_interleave(2).tolist(), answers)
    logp = packing.log_probabilities(logits, answers)[0].view(len(unique), 2, -1)
    return (logp * real.to(logp.device)).sum(-1)[index]


@torch.no_grad()
def supervised(task, rows: list[dict]) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and features of every case by the supervised adapter, before anything is learnt.

    Returns
    -------
    (scores, features) : float tensors (cases, 2), of `verdict_scores`, and (cases, hidden size), the prompt's
        last hidden state scaled to mean 0 and a length of about 1
    """
    states = []
    head = task.model.get_output_embeddings()
    # the first position of the head's input is the prompt's end
    hook = head.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0][:, 0].float()))
    try:
        size, device = task.config.eval_batch_size, task.model.device
        parts = torch.arange(len(rows), device=device).split(size)
        scores = torch.cat([verdict_scores(task, rows, part) for part in parts])
    finally:
        hook.remove()
    states = torch.cat(states)
    return scores, (states - states.mean(0)) / (states.std(0, correction=0) + 1e-6) / states.shape[1] ** 0.5


@dataclass(frozen=True)
class _Learner:
    """Policy and value while they learn: prompts, `supervised`, TorchRL's loss, optimizer and schedule."""

    rows: list[dict]
    scores: torch.Tensor
    features: torch.Tensor
    loss: ClipPPOLoss
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler


def _learner(task, rows: list[dict]) -> _Learner:
    scores, features = supervised(task, rows)
    # the actor starts from the scores, which one forward pass per step gives for loss and divergence alike
    logits = TensorDictModule(lambda scores: scores / TEMPERATURE, in_keys=["scores"], out_keys=["logits"])
    actor = ProbabilisticActor(
        logits,
        in_keys=["logits"],
        distribution_class=Categorical,
        return_log_prob=True,
        default_interaction_type=InteractionType.RANDOM,
    )
    value = torch.nn.Linear(features.shape[1], 1, device=features.device)
    torch.nn.init.zeros_(value.weight)
    torch.nn.init.zeros_(value.bias)
    loss = ClipPPOLoss(
        actor,
        ValueOperator(value, in_keys=["features"]),
        clip_epsilon=CLIP_EPSILON,
        entropy_coeff=ENTROPY_COEFFICIENT,
        critic_coeff=1.0,
        loss_critic_type="l2",
        functional=False,
    )
    updates = len(task.minibatches())
    optimizer = torch.optim.AdamW(
        [
            {"params": _adapter(task.model).values(), "lr": task.config.ppo_lr},
            {"params": value.parameters(), "lr": VALUE_LR},
        ],
        weight_decay=0,
    )
    schedule = get_linear_schedule_with_warmup(optimizer, max(1, updates // 20), updates)
    return _Learner(rows, scores, features, loss, optimizer, schedule)


def _adapter(model) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


# --- learning ---------------------------------------------------------------------------------------


def _train(task, learner: _Learner, file: Path) -> None:
    """All remaining updates, each on newly sampled verdicts."""
    minibatches = task.minibatches()
    done = _restore(task, learner, file) if file.is_file() else 0
    every = max(1, len(minibatches) // 4)
    for update, minibatch in enumerate(tqdm(minibatches, desc="PPO", leave=False), start=1):
        if update <= done:
            continue
        torch.manual_seed(np.random.default_rng([task.seed, update]).integers(2**31))
        samples = sample(task, learner, minibatch)
        figures = [learn(task, learner, samples) for _ in range(EPOCHS_PER_UPDATE)]
        learner.schedule.step()
        if task.monitor(update, reward=samples["value_target"].mean(), **figures[-1]):
            break
        if update % every == 0:
            _checkpoint(task, learner, file, update)


@torch.no_grad()
def sample(task, learner: _Learner, minibatch: np.ndarray) -> TensorDict:
    """``rl_samples`` verdicts for every case of a minibatch, those of a case side by side."""
    device = learner.scores.device
    cases = torch.as_tensor(minibatch, device=device)
    size = trl_hooks.micro_batch(task.config, len(minibatch))[0]
    scores = torch.cat([verdict_scores(task, learner.rows, part) for part in cases.split(size)])
    finite.check("likelihood of an answer", scores.sum(), "an update of PPO", _recipe(task))
    samples = TensorDict({"case": cases, "scores": scores, "features": learner.features[cases]}, [len(cases)])
    samples = samples.repeat_interleave(task.config.rl_samples, dim=0)
    samples = learner.loss.critic_network(learner.loss.actor_network(samples))
    rewards = torch.as_tensor(task.rewards, dtype=torch.float32, device=device)
    samples["value_target"] = rewards[samples["case"], samples["action"]][:, None]
    samples["advantage"] = samples["value_target"] - samples["state_value"]
    samples["informative"] = _informative(samples, task.config.rl_samples)
    return samples


def _informative(samples: TensorDict, per_case: int) -> torch.Tensor:
    """Verdicts of the fewest cases that make up all but `SKIPPED_GRADIENT` of the gradient, bool (n,)."""
    gradient = samples["advantage"][:, 0].abs() * (1 - samples["action_log_prob"].exp())
    by_case = gradient.view(-1, per_case).sum(1)
    order = by_case.argsort(descending=True)
    preceding = by_case[order].cumsum(0) - by_case[order]
    informative = torch.empty_like(by_case, dtype=torch.bool)
    informative[order] = preceding <= (1 - SKIPPED_GRADIENT) * by_case.sum()
    return informative.repeat_interleave(per_case)


def verdict_likelihood(scores: torch.Tensor) -> torch.Tensor:
    """Mean log-likelihood of giving any verdict, with a gradient that favours neither of the two.

    The gradient of log(P(CORRECT) + P(ERROR)) would make the likelier verdict likelier still. This one raises
    the logits of both by the same amount, as long as answers that are no verdict have any probability.

    Parameters
    ----------
    scores : float tensor (n, 2), from `verdict_scores`
    """
    p = scores.detach().exp()
    # d log P(a) / d logit(b) is (a == b) - P(b), so these weights leave (1 - P(CORRECT) - P(ERROR)) / 2 for both
    neutral = (((1 + p - p.flip(-1)) / 2) * scores).sum(-1)
    return (scores.detach().logsumexp(-1) + neutral - neutral.detach()).mean()


def learn(task, learner: _Learner, samples: TensorDict) -> dict[str, float]:
    """One gradient step on verdicts from `sample`; returns the figures for the monitor."""
    per_case, total = task.config.rl_samples, {}
    size = trl_hooks.micro_batch(task.config, len(samples) // per_case)[0] * per_case
    learner.optimizer.zero_grad()
    for part in samples.split(size):
        scores, informative = part["scores"].clone(), part["informative"]
        if informative.any():
            scores[informative] = verdict_scores(task, learner.rows, part["case"][informative])
            finite.check("likelihood of an answer", scores.detach().sum(), "an update of PPO", _recipe(task))
        losses = learner.loss(part.copy().set("scores", scores))
        now, start = (Categorical(logits=s) for s in (scores, learner.scores[part["case"]]))
        kl, likelihood = kl_divergence(now, start).mean(), verdict_likelihood(scores)
        loss = losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]
        loss = loss + task.config.rl_beta * kl - VERDICT_COEFFICIENT * likelihood
        share = len(part) / len(samples)
        finite.check("loss", loss.detach(), "an update of PPO", _recipe(task))
        (share * loss).backward()
        figures = {
            "kl": kl,
            "entropy": losses["entropy"],
            "loss": loss,
            "value_loss": losses["loss_critic"],
            "clipped": losses["clip_fraction"],
            "verdict_likelihood": likelihood.exp(),
            "informative": informative.float().mean(),
        }
        total = {name: total.get(name, 0) + share * float(value.detach()) for name, value in figures.items()}
    gradient = torch.nn.utils.clip_grad_norm_(_adapter(task.model).values(), MAX_GRADIENT_NORM)
    finite.check("gradient", gradient, "an update of PPO", _recipe(task))
    try:
        learner.optimizer.step()
    except RuntimeError:  # a step too large for the weights' format
        finite.check("step", math.inf, "an update of PPO", _recipe(task))
        raise
    return total


def _recipe(task) -> str:
    return finite.recipe("ppo_lr", task.config.ppo_lr, next(task.model.parameters()).dtype)


# --- interruptions ----------------------------------------------------------------------------------


def _weights(task, learner: _Learner) -> dict[str, torch.Tensor]:
    value = {f"value.{name}": weight for name, weight in learner.loss.critic_network.named_parameters()}
    return _adapter(task.model) | value


def _checkpoint(task, learner: _Learner, file: Path, update: int) -> None:
    """Write all that a run needs to resume after ``update``."""
    optimizer = learner.optimizer.state_dict()
    moments = {
        f"{number}.{name}": value for number, state in optimizer["state"].items() for name, value in state.items()
    }
    state = {
        "update": update,
        "history": task.monitor.history,
        "groups": optimizer["param_groups"],
        "schedule": learner.schedule.state_dict(),
    }
    tensors = {name: value.detach().contiguous() for name, value in (_weights(task, learner) | moments).items()}
    with files.replacement(file) as unfinished:
        save_file(tensors, unfinished, {"state": json.dumps(state)})


def _restore(task, learner: _Learner, file: Path) -> int:
    """Load what `_checkpoint` wrote; returns its update."""
    with safe_open(file, framework="pt") as tensors:
        state = json.loads(tensors.metadata()["state"])
        weights = _weights(task, learner)
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(tensors.get_tensor(name))
        moments: dict[int, dict] = {}
        for key in set(tensors.keys()) - set(weights):
            number, name = key.split(".")
            moments.setdefault(int(number), {})[name] = tensors.get_tensor(key)
    learner.optimizer.load_state_dict({"state": moments, "param_groups": state["groups"]})
    learner.schedule.load_state_dict(state["schedule"])
    task.monitor.resumed(state["history"])
    return state["update"]
