"""Training stops at the first loss, gradient or weight that is not a number, and keeps no such adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from transformers import TrainerCallback

from medlib.config import ModelError


def check(what: str, value: torch.Tensor | float, where: str, recipe: str) -> None:
    """ModelError if a number is nan or infinite.

    Parameters
    ----------
    what : such as "loss" or "gradient"
    where : such as "step 3"
    recipe : from `recipe`
    """
    if not torch.isfinite(torch.as_tensor(value)):
        raise ModelError(
            f"training stopped at {where}: the {what} is not a number ({float(value)}) with {recipe}; a smaller "
            "learning rate or dtype=float32 may help. No adapter is kept"
        )


def recipe(setting: str, rate: float, dtype: torch.dtype) -> str:
    """Learning rate and precision as messages name them."""
    return f"{setting}={rate:g} and {str(dtype).removeprefix('torch.')}"


def norm(tensors: Iterable[torch.Tensor | None]) -> torch.Tensor:
    """Norm over all tensors, one number: not finite if one of theirs is not."""
    return torch.nn.utils.get_total_norm([tensor.detach() for tensor in tensors if tensor is not None])


class FiniteSteps:
    """Part of a `transformers.Trainer`: looks at every loss and at the gradient before every optimizer step.

    Attributes
    ----------
    rate : name of the setting that is the learning rate
    """

    rate = "lr"

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.add_callback(_Gradient(self.recipe))  # type: ignore[attr-defined]

    def recipe(self) -> str:
        model, rate = self.model, self.args.learning_rate  # type: ignore[attr-defined]
        return recipe(self.rate, rate, next(model.parameters()).dtype)

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)  # type: ignore[misc]
        check("loss", loss, f"step {self.state.global_step + 1}", self.recipe())  # type: ignore[attr-defined]
        return loss


class _Gradient(TrainerCallback):
    def __init__(self, recipe: Callable[[], str]) -> None:
        self.recipe = recipe

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs) -> None:
        gradient = norm(parameter.grad for parameter in model.parameters())
        check("gradient", gradient, f"step {state.global_step + 1}", self.recipe())

    def on_evaluate(self, args, state, control, metrics=None, **kwargs) -> None:
        if "eval_loss" in (metrics or {}):
            check("validation loss", metrics["eval_loss"], f"step {state.global_step}", self.recipe())
