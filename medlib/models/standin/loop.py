"""The loop that trains parts of the stand-ins: resumes after an interruption, keeps the best weights."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm

from medlib.config import ModelError, files

Parts = Mapping[str, torch.nn.Module]


def schedule(step: int, steps: int, warm_up: int = 100) -> float:
    """Factor of the learning rate: linear warm-up, then a cosine."""
    return min(1.0, (step + 1) / warm_up) * (0.5 + 0.5 * math.cos(math.pi * step / steps)) + 0.01


def half_precision():
    """bfloat16 autocast where the processor has it (twice as fast), else a no-op."""
    supported = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.autocast("cpu", torch.bfloat16, enabled=supported)


def check(kind: str, value: torch.Tensor | float, step: int, rate: float) -> None:
    """ModelError if a loss, a gradient or a score is nan or infinite; no stage that ends so is kept."""
    if not math.isfinite(value):
        raise ModelError(
            f"training the stand-in stopped at step {step + 1}: the {kind} is not a number ({float(value)}) "
            f"with a learning rate of {rate:g}; a smaller one may help. No model is kept"
        )


def descend(losses: Mapping[str, torch.Tensor], parameters: list, optimizer, step: int, rate: float) -> None:
    """One step of the optimizer down the sum of the losses; ModelError, before it, if a number is none."""
    for name, loss in losses.items():
        check(name if name.endswith("loss") else f"loss of {name}", loss.detach(), step, rate)
    optimizer.zero_grad()
    sum(losses.values()).backward()
    check("gradient", torch.nn.utils.clip_grad_norm_(parameters, 1.0), step, rate)
    optimizer.step()


def train(
    parts: Parts,
    losses_at: Callable[[int], dict[str, torch.Tensor]],
    checkpoint: Path,
    steps: int,
    lr: float,
    seed: int = 0,
    every: int = 100,
    score: Callable[[], float] | None = None,
    title: str = "training",
) -> list[dict]:
    """Train in place; resumes from ``checkpoint`` if that file is there.

    Parameters
    ----------
    parts : mapping of str to Module
        What is trained, by a name that the checkpoint has.
    losses_at : function
        Losses of a step by name; their sum is minimised. It draws from generators of the step's number, so a
        resumed training sees what an uninterrupted one would have seen.
    every : int
        Steps between checkpoints.
    score : function, optional
        Asked at every checkpoint; the parts end with the weights for which it was highest.

    Returns
    -------
    list of dict
        ``step``, mean of every loss since the last row, and ``score``.

    Raises
    ------
    ModelError
        At the first loss or gradient that is not a number; the checkpoint stays that of the steps before.
    """
    parameters = [p for part in parts.values() for p in part.parameters()]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.05},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))
    first, history, best = restore(checkpoint, parts, optimizer) if checkpoint.is_file() else (0, [], {})
    recent: list[list[float]] = []
    _set_training(parts, True)
    for step in (bar := tqdm(range(first, steps), desc=title, initial=first, total=steps)):
        torch.manual_seed(seed + step)  # dropout and masks
        losses = losses_at(step)
        for group in optimizer.param_groups:
            group["lr"] = lr * schedule(step, steps)
        descend(losses, parameters, optimizer, step, lr)
        recent.append([loss.item() for loss in losses.values()])
        if step % every == every - 1 or step == steps - 1:
            row = dict(zip(losses, np.mean(recent, axis=0).tolist()))
            recent = []
            if score is not None:
                _set_training(parts, False)
                row["score"] = score()
                _set_training(parts, True)
                if row["score"] >= max((r["score"] for r in history), default=0):  # of equals the later one
                    best = {key: tensor.clone() for key, tensor in _state(parts).items()}
            history.append({"step": step + 1, **row})
            bar.set_postfix({name: f"{value:.3f}" for name, value in row.items()})
            keep(checkpoint, parts, optimizer, step + 1, history, best)
    _set_training(parts, False)
    if best:
        _load(parts, best)
    return history


def _set_training(parts: Parts, training: bool) -> None:
    for part in parts.values():
        part.train(training)


def _state(parts: Parts) -> dict[str, torch.Tensor]:
    return {f"{name}.{key}": tensor for name, part in parts.items() for key, tensor in part.state_dict().items()}


def _load(parts: Parts, state: dict[str, torch.Tensor]) -> None:
    for name, part in parts.items():
        part.load_state_dict({k.removeprefix(f"{name}."): t for k, t in state.items() if k.startswith(f"{name}.")})


def keep(file: Path, parts: Parts, optimizer, step: int, history: list[dict], best: dict) -> None:
    """Write weights, the best weights and the optimizer's state as safetensors, in one move."""
    tensors = {f"now.{name}": tensor for name, tensor in _state(parts).items()}
    tensors |= {f"best.{name}": tensor for name, tensor in best.items()}
    for number, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": tensor for name, tensor in moments.items()}
    with files.replacement(file) as unfinished:
        save_file(tensors, unfinished, metadata={"step": str(step), "history": json.dumps(history)})


def restore(file: Path, parts: Parts, optimizer) -> tuple[int, list[dict], dict[str, torch.Tensor]]:
    """(next step, history, best weights) of an interrupted training; weights and optimizer are set in place."""
    with safe_open(file, "pt") as opened:
        facts = opened.metadata()
    states: dict[str, dict[str, torch.Tensor]] = {"now": {}, "best": {}}
    moments: dict[int, dict] = {}
    for name, tensor in load_file(file).items():
        kind, _, rest = name.partition(".")
        if kind in states:
            states[kind][rest] = tensor
        else:
            number, _, moment = rest.partition(".")
            moments.setdefault(int(number), {})[moment] = tensor
    _load(parts, states["now"])
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
    print(f"resuming at step {facts['step']} of {file.name}")
    return int(facts["step"]), json.loads(facts["history"]), states["best"]
