"""PPO by TorchRL: verdicts are drawn, and those that earn more than expected are made more likely.

An episode has one step, a verdict on a case, so the advantage is the reward less the expected one. It is not
scaled to one spread, which would make a critical case weigh as little as any other.

The policy chooses between the two whole answers by their likelihoods, as `scoring.p_correct` does. So its
entropy and its divergence from the supervised adapter are exact, and need no samples.

References
----------
Schulman et al. 2017, arXiv:1707.06347.
"""

from __future__ import annotations

import json
import os
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

from medlib.config import VERDICTS
from medlib.feedback.rl import trl_hooks
from medlib.training import memory

# importing TorchRL makes "spawn" the way that every later process of this one starts, which is not its to decide
_start_method = torch.multiprocessing.get_start_method()
from torchrl.modules import ProbabilisticActor, ValueOperator  # noqa: E402
from torchrl.objectives import ClipPPOLoss  # noqa: E402

torch.multiprocessing.set_start_method(_start_method, force=True)

#: Gradient steps on the verdicts of one update, and by which share their likelihoods may move in these.
PASSES, CLIP = 2, 0.2
#: Weight of the entropy, and of the likelihood of giving any verdict, which no reward sees.
ENTROPY, SPOKEN = 0.01, 0.5
#: Verdicts are drawn, and their likelihoods compared, at this temperature: where the supervised adapter is
#: sure and wrong, the other verdict would else never be tried. The more likely verdict stays the same.
TEMPERATURE = 4.0
#: Share of a batch's gradient that is left out: that of the many cases whose verdict is settled.
SETTLED = 0.1
#: Learning rate of the expected reward, a linear function of what the supervised adapter knows of a case.
VALUE_LR = 3e-2
#: Norm to which a gradient of the adapter is clipped.
MAX_GRADIENT = 1.0


def improve(task) -> None:
    """Improve the adapter "default" of ``task.model`` in place.

    Parameters
    ----------
    task : medlib.feedback.rl.task.Task
    """
    folder = trl_hooks.checkpoints(task, "ppo")
    rows = trl_hooks.prompts(task)
    with trl_hooks.given_back(task.model):
        _make_ready(task.model, task.config)
        _train(task, _learner(task, rows), folder / "state.safetensors")
    shutil.rmtree(folder, ignore_errors=True)


def _make_ready(model, config) -> None:
    """No dropout: a verdict's likelihood must not change between drawing and learning."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    device = next(model.parameters()).device.type
    model.eval()
    if memory.recomputes(config, device):  # transformers does so in training mode alone
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
        model.train()


# --- policy and value -------------------------------------------------------------------------------


def verdict_scores(task, rows: list[dict], cases: torch.Tensor) -> torch.Tensor:
    """Log-likelihood of the answers CORRECT and ERROR, which `scoring.score_answers` gives without gradient.

    Parameters
    ----------
    rows : from `trl_common.prompts`
    cases : int64 tensor (n,), row numbers, which may repeat; a case is read once

    Returns
    -------
    float tensor (n, 2)
    """
    tokens = [torch.tensor(trl_hooks.answer_tokens(task.processor, verdict)) for verdict in VERDICTS]
    answers = trl_hooks.pad_sequence(tokens, batch_first=True).to(cases.device)
    told = torch.arange(answers.shape[1])[None] < torch.tensor([len(t) for t in tokens])[:, None]
    once, place = cases.unique(return_inverse=True)
    answers = answers.repeat(len(once), 1)
    logits = trl_hooks.answer_logits(task.model, rows, once.repeat_interleave(2).tolist(), answers)
    logp = trl_hooks.log_probabilities(logits, answers)[0].view(len(once), 2, -1)
    return (logp * told.to(logp.device)).sum(-1)[place]


@torch.no_grad()
def supervised(task, rows: list[dict]) -> tuple[torch.Tensor, torch.Tensor]:
    """What the supervised adapter makes of every case, before anything is learnt.

    Returns
    -------
    (scores, features) : float tensors (cases, 2), of `verdict_scores`, and (cases, hidden size), the prompt's
        last hidden state scaled to mean 0 and a length of about 1
    """
    states = []
    head = task.model.get_output_embeddings()
    # of what the head is given, the first position is the prompt's end
    watching = head.register_forward_pre_hook(lambda _, given: states.append(given[0][:, 0].float()))
    try:
        size, device = task.config.eval_batch_size, task.model.device
        parts = torch.arange(len(rows), device=device).split(size)
        scores = torch.cat([verdict_scores(task, rows, part) for part in parts])
    finally:
        watching.remove()
    states = torch.cat(states)
    return scores, (states - states.mean(0)) / (states.std(0, correction=0) + 1e-6) / states.shape[1] ** 0.5


@dataclass(frozen=True)
class _Learner:
    """A policy that learns: rows of the prompts, `supervised`, TorchRL's modules and an optimizer."""

    rows: list[dict]
    scores: torch.Tensor
    features: torch.Tensor
    loss: ClipPPOLoss
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler


def _learner(task, rows: list[dict]) -> _Learner:
    scores, features = supervised(task, rows)
    # the scores are read once a step, for the loss and for the divergence, so the actor starts from them
    logits = TensorDictModule(lambda scores: scores / TEMPERATURE, in_keys=["scores"], out_keys=["logits"])
    actor = ProbabilisticActor(
        logits,
        in_keys=["logits"],
        distribution_class=Categorical,
        return_log_prob=True,
        default_interaction_type=InteractionType.RANDOM,
    )
    expected = torch.nn.Linear(features.shape[1], 1, device=features.device)
    torch.nn.init.zeros_(expected.weight)
    torch.nn.init.zeros_(expected.bias)
    loss = ClipPPOLoss(
        actor,
        ValueOperator(expected, in_keys=["features"]),
        clip_epsilon=CLIP,
        entropy_coeff=ENTROPY,
        critic_coeff=1.0,
        loss_critic_type="l2",
        functional=False,
    )
    updates = len(task.visits())
    optimizer = torch.optim.AdamW(
        [
            {"params": _adapter(task.model).values(), "lr": task.config.ppo_lr},
            {"params": expected.parameters(), "lr": VALUE_LR},
        ],
        weight_decay=0,
    )
    schedule = get_linear_schedule_with_warmup(optimizer, max(1, updates // 20), updates)
    return _Learner(rows, scores, features, loss, optimizer, schedule)


def _adapter(model) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


# --- learning ---------------------------------------------------------------------------------------


def _train(task, learner: _Learner, file: Path) -> None:
    """All updates that are not done yet, each on verdicts drawn anew."""
    batches = task.visits()
    done = _restore(task, learner, file) if file.is_file() else 0
    every = max(1, len(batches) // 4)
    for update, batch in enumerate(tqdm(batches, desc="PPO", leave=False), start=1):
        if update <= done:
            continue
        torch.manual_seed(np.random.default_rng([task.seed, update]).integers(2**31))
        drawn = draw(task, learner, batch)
        figures = [learn(task, learner, drawn) for _ in range(PASSES)]
        learner.schedule.step()
        if task.watch(update, reward=drawn["value_target"].mean(), **figures[-1]):
            break
        if update % every == 0:
            _keep(task, learner, file, update)


@torch.no_grad()
def draw(task, learner: _Learner, batch: np.ndarray) -> TensorDict:
    """Verdicts drawn for every case of a batch, ``rl_samples`` each, those of a case side by side."""
    device = learner.scores.device
    cases = torch.as_tensor(batch, device=device)
    size = trl_hooks.micro_batch(task.config, len(batch))[0]
    scores = torch.cat([verdict_scores(task, learner.rows, part) for part in cases.split(size)])
    drawn = TensorDict({"case": cases, "scores": scores, "features": learner.features[cases]}, [len(batch)])
    drawn = drawn.repeat_interleave(task.config.rl_samples, dim=0)
    drawn = learner.loss.critic_network(learner.loss.actor_network(drawn))
    paid = torch.as_tensor(task.rewards, dtype=torch.float32, device=device)[drawn["case"], drawn["action"]]
    drawn["value_target"] = paid[:, None]
    drawn["advantage"] = drawn["value_target"] - drawn["state_value"]
    drawn["moves"] = _moving(drawn, task.config.rl_samples)
    return drawn


def _moving(drawn: TensorDict, samples: int) -> torch.Tensor:
    """Which verdicts are of the fewest cases that make up all but `SETTLED` of the gradient, bool (n,)."""
    by_case = (drawn["advantage"][:, 0].abs() * (1 - drawn["action_log_prob"].exp())).view(-1, samples).sum(1)
    greatest = by_case.argsort(descending=True)
    before = by_case[greatest].cumsum(0) - by_case[greatest]
    moving = torch.empty_like(by_case, dtype=torch.bool)
    moving[greatest] = before <= (1 - SETTLED) * by_case.sum()
    return moving.repeat_interleave(samples)


def learn(task, learner: _Learner, drawn: TensorDict) -> dict[str, float]:
    """One gradient step on verdicts from `draw`; returns what is told to the watch."""
    samples, total = task.config.rl_samples, {}
    size = trl_hooks.micro_batch(task.config, len(drawn) // samples)[0] * samples
    learner.optimizer.zero_grad()
    for part in drawn.split(size):
        scores, moves = part["scores"].clone(), part["moves"]
        if moves.any():
            scores[moves] = verdict_scores(task, learner.rows, part["case"][moves])
        losses = learner.loss(part.copy().set("scores", scores))
        now, start = (Categorical(logits=s) for s in (scores, learner.scores[part["case"]]))
        kl, spoken = kl_divergence(now, start).mean(), scores.logsumexp(-1).mean()
        loss = losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]
        loss = loss + task.config.rl_beta * kl - SPOKEN * spoken
        share = len(part) / len(drawn)
        (share * loss).backward()
        figures = {
            "kl": kl,
            "entropy": losses["entropy"],
            "loss": loss,
            "value_loss": losses["loss_critic"],
            "clipped": losses["clip_fraction"],
            "spoken": spoken.exp(),
            "informative": moves.float().mean(),
        }
        total = {name: total.get(name, 0) + share * float(value.detach()) for name, value in figures.items()}
    torch.nn.utils.clip_grad_norm_(_adapter(task.model).values(), MAX_GRADIENT)
    learner.optimizer.step()
    return total


# --- interruptions ----------------------------------------------------------------------------------


def _weights(task, learner: _Learner) -> dict[str, torch.Tensor]:
    value = {f"value.{name}": weight for name, weight in learner.loss.critic_network.named_parameters()}
    return _adapter(task.model) | value


def _keep(task, learner: _Learner, file: Path, update: int) -> None:
    """Write all that a run needs to go on after ``update``, whole or not at all."""
    optimizer = learner.optimizer.state_dict()
    moments = {
        f"{number}.{name}": value for number, state in optimizer["state"].items() for name, value in state.items()
    }
    state = {
        "update": update,
        "history": task.watch.history,
        "groups": optimizer["param_groups"],
        "schedule": learner.schedule.state_dict(),
    }
    tensors = {name: value.detach().contiguous() for name, value in (_weights(task, learner) | moments).items()}
    begun = file.with_suffix(".begun")
    save_file(tensors, begun, {"state": json.dumps(state)})
    os.replace(begun, file)


def _restore(task, learner: _Learner, file: Path) -> int:
    """Go back to what `_keep` wrote; returns its update."""
    with safe_open(file, framework="pt") as kept:
        state = json.loads(kept.metadata()["state"])
        weights = _weights(task, learner)
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(kept.get_tensor(name))
        moments: dict[int, dict] = {}
        for key in set(kept.keys()) - set(weights):
            number, name = key.split(".")
            moments.setdefault(int(number), {})[name] = kept.get_tensor(key)
    learner.optimizer.load_state_dict({"state": moments, "param_groups": state["groups"]})
    learner.schedule.load_state_dict(state["schedule"])
    task.watch.history[:] = state["history"]
    return state["update"]
