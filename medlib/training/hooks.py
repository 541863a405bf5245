"""Every private or fragile part of TRL, PEFT, accelerate and transformers that medlib relies on.

`HOOKS` lists them; tests/training/test_hooks.py names the one that an update of a library took away.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
from accelerate.state import AcceleratorState
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from trl import SFTTrainer

from medlib.models.last_layer import read_at_the_end
from medlib.training.finite import FiniteSteps

__all__ = [
    "HOOKS",
    "Hook",
    "SupervisedTrainer",
    "clear_device_cache",
    "float_adapter",
    "forget_processes",
    "one_card",
    "same_forward",
    "should_reduce_batch_size",
]


class Hook(NamedTuple):
    """``name``: dotted; ``parameters``: those that we pass or override; ``why`` we need it."""

    name: str
    parameters: tuple[str, ...]
    why: str


GEMMA = "transformers.models.gemma3.modeling_gemma3"
HOOKS = [
    Hook("trl.SFTTrainer._get_train_sampler", ("train_dataset",), "rows of one length share a micro-batch"),
    Hook(
        "trl.SFTTrainer.compute_loss",
        ("model", "inputs", "return_outputs", "num_items_in_batch"),
        "without a GPU, scores of the answer's positions only",
    ),
    Hook(
        "transformers.Trainer.training_step",
        ("model", "inputs", "num_items_in_batch"),
        "a loss that is not a number ends a training",
    ),
    Hook("trl.RewardTrainer._prepare_dataset", ("dataset",), "rows are encoded already, images and all"),
    Hook("trl.DPOTrainer._prepare_dataset", ("dataset",), "prompts are numbers"),
    Hook("trl.DPOTrainer._get_train_sampler", ("train_dataset",), "every method sees the cases in one order"),
    Hook(
        "trl.DPOTrainer.compute_loss",
        ("model", "inputs", "return_outputs", "num_items_in_batch"),
        "several answers are read behind one prompt",
    ),
    Hook("trl.trainer.utils.FusedCausalLMOutput", (), "what TRL's DPO loss is computed from"),
    Hook(
        "trl.GRPOTrainer._get_per_token_logps_and_entropies",
        ("model", "input_ids", "attention_mask", "logits_to_keep"),
        "several answers are read behind one prompt",
    ),
    Hook("trl.GRPOTrainer._generate_and_score_completions", ("inputs",), "KL divergence over all answers"),
    Hook("trl.GRPOTrainer._compute_loss", ("model", "inputs"), "groups of equal rewards are not read again"),
    Hook("trl.trainer.utils.add_fused_lm_head", (), "TRL replaces the base's forward; we put it back"),
    Hook("trl.trainer.reward_trainer.suppress_seqcls_warning", (), "a new reward head needs no warning"),
    Hook("transformers.TrainingArguments.n_gpu", (), "one process drives one card: no DataParallel"),
    Hook(
        "accelerate.state.AcceleratorState._reset_state",
        ("reset_partial_state",),
        "a forked process must not inherit that its parent is the only one",
    ),
    Hook("accelerate.utils.memory.clear_device_cache", ("garbage_collection",), "a retry after out of memory"),
    Hook("accelerate.utils.memory.should_reduce_batch_size", ("exception",), "tells out of memory from a fault"),
    Hook("accelerate.PartialState.main_process_first", (), "one process draws the data"),
    Hook(
        f"{GEMMA}.Gemma3DecoderLayer.forward",
        ("hidden_states", "position_embeddings", "attention_mask", "cache"),
        "the last layer is computed only where it is read",
    ),
    Hook(
        f"{GEMMA}.Gemma3Attention.forward",
        ("hidden_states", "position_embeddings", "attention_mask", "cache"),
        "its steps are repeated for the last positions",
    ),
    Hook(f"{GEMMA}.apply_rotary_pos_emb", ("q", "k", "cos", "sin"), "positions of the last layer's queries"),
    Hook(f"{GEMMA}.eager_attention_forward", (), "attention of the last layer"),
    Hook("transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS.get_interface", (), "attention of the last layer"),
]


class SupervisedTrainer(FiniteSteps, SFTTrainer):
    """TRL's trainer, with an order of rows and, without a GPU, a loss on the answer's positions only.

    Attributes
    ----------
    order : sampler or None for TRL's own
    """

    order: torch.utils.data.Sampler | None = None

    def _get_train_sampler(self, train_dataset=None):
        return super()._get_train_sampler(train_dataset) if self.order is None else self.order

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if inputs["labels"].device.type == "cuda" or return_outputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        # TRL's fused head scores every position where there is no Triton; the answer is a tenth of them
        labels = inputs["labels"][:, 1:]
        labelled = labels != -100
        first = int(labelled.any(0).nonzero()[0])
        keep = labels.shape[1] + 1 - first
        inputs = {name: value for name, value in inputs.items() if name != "labels"}
        with read_at_the_end(self.accelerator.unwrap_model(model), keep):
            logits = model(**inputs, use_cache=False, logits_to_keep=keep).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), labels[:, first:].flatten(), ignore_index=-100, reduction="sum"
        )
        if num_items_in_batch is None:
            return loss / labelled.sum()
        # all tokens of the step, over accumulation and processes; DDP then averages over processes
        return loss / num_items_in_batch * self.accelerator.num_processes


def one_card(arguments) -> None:
    """One process drives one card; DataParallel would multiply the batch, and TRL refuses it."""
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1


def float_adapter(model) -> None:
    """Trainable weights as float32: TRL makes the adapter of a quantized base bfloat16, which a T4 lacks."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


@contextlib.contextmanager
def same_forward(*modules: torch.nn.Module) -> Iterator[None]:
    """Put back each instance's ``forward``, which TRL and accelerate wrap."""
    forwards = [(module, module.__dict__.get("forward")) for module in modules]
    try:
        yield
    finally:
        for module, forward in forwards:
            module.__dict__.pop("forward", None)
            if forward is not None:
                module.forward = forward


def forget_processes() -> None:
    """Forget that this process is the only one, which a forked one would take over."""
    AcceleratorState._reset_state(reset_partial_state=True)
