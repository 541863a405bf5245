"""What GRPO and DPO share of TRL: cases known by number, settings, checkpoints, a model given back.

To TRL's trainers a prompt is one number, the row of its case. Its words are tokenised once, its image
goes through the frozen tower once, and a step reads it once for all answers to it. TRL's own way with
images would prepare and read all of that anew for every answer of every step.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save
from transformers import PrinterCallback, TrainerCallback
from transformers.modeling_outputs import BaseModelOutputWithPooling

from medlib.config import ANSWERS, provenance
from medlib.models.prompts import END_OF_TURN
from medlib.training import encoding, hooks, lora, memory, processes
from medlib.training.checkpoints import last_whole_checkpoint

pad_sequence = torch.nn.utils.rnn.pad_sequence


# --- prompts and answers ----------------------------------------------------------------------------


def prompts(task) -> list[dict]:
    """The audit question of every case, a row each: `encoding.encode` without the answer's tokens."""
    folders = [task.suite.images_dir] * len(task.suite)
    rows = encoding.encode(task.processor, task.suite.scenarios, folders)
    if task.config.cache_image_features and not lora.why_no_features(task.config):
        encoding.cache_image_features(task.model.get_base_model(), rows, task.config.eval_batch_size)
    for row in rows:
        asked = int((row.pop("labels") != -100).int().argmax())
        row |= {name: row[name][:asked] for name in ("input_ids", "token_type_ids")}
    return rows


def answer_tokens(processor, verdict: str) -> list[int]:
    """A verdict as the model is taught to write it, with the end of its turn."""
    text = f"{ANSWERS[verdict]}{END_OF_TURN}"
    return processor.tokenizer(text, add_special_tokens=False).input_ids


def prompt_batch(rows: list[dict], device) -> dict:
    """Model inputs of some prompts, padded at the left, where answers do not reach."""
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    batch = {
        name: pad_sequence([row[name] for row in rows], batch_first=True, padding_side="left").to(device)
        for name in ("input_ids", "token_type_ids")
    }
    width = batch["input_ids"].shape[1]
    batch["attention_mask"] = (torch.arange(width) >= width - lengths[:, None]).long().to(device)
    if "image_features" not in rows[0]:
        return batch | {"pixel_values": torch.cat([row["pixels"]() for row in rows]).to(device)}
    features = torch.cat([row["image_features"] for row in rows]).to(device)
    return batch | {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=features)}}


def answer_logits(model, rows: list[dict], cases: list[int], answers: torch.Tensor) -> torch.Tensor:
    """What the model expects at every token of some answers, each right after the prompt of its case.

    A prompt is read once: all different answers to it stand behind it in one row, and none sees another.
    So the gradient too flows through the prompt once. Equal to reading every answer by itself.

    Parameters
    ----------
    rows : from `prompts`
    cases : n row numbers, which may repeat
    answers : int64 tensor (n, length), padded at the right with anything

    Returns
    -------
    float tensor (n, length, vocabulary)
    """
    slots: dict[int, dict] = {}  # case -> answer -> its place behind the prompt
    for case, answer in zip(cases, map(tuple, answers.tolist())):
        places = slots.setdefault(case, {})
        places.setdefault(answer, len(places))
    width, length = max(map(len, slots.values())), answers.shape[1]
    behind = torch.zeros(len(slots), width, length, dtype=torch.long)
    for row, places in zip(behind, slots.values()):
        row[: len(places)] = torch.tensor(list(places))
    logits = _packed_logits(model, [rows[case] for case in slots], behind.to(answers.device))
    row_of = {case: row for row, case in enumerate(slots)}
    where = [(row_of[case], slots[case][answer]) for case, answer in zip(cases, map(tuple, answers.tolist()))]
    return logits[tuple(torch.tensor(where).T)]


def _packed_logits(model, rows: list[dict], answers: torch.Tensor) -> torch.Tensor:
    """Logits (rows, answers a row, length, vocabulary) of several answers behind each prompt."""
    batch = prompt_batch(rows, answers.device)
    n, width, length = answers.shape
    real, types = batch.pop("attention_mask").bool(), batch.pop("token_type_ids")
    # padding sees only itself, a prompt itself, an answer the prompt and itself
    part = torch.arange(1, width + 1, device=real.device).repeat_interleave(length)
    part = torch.cat([real.long() - 1, part.expand(n, -1)], dim=1)
    after = torch.arange(length, device=real.device).repeat(width)
    position = torch.cat([(real.cumsum(1) - 1).clamp(min=0), real.sum(1, keepdim=True) + after], dim=1)
    images = torch.nn.functional.pad(_image_of(types), (0, width * length), value=-1)
    output = model(
        input_ids=torch.cat([batch.pop("input_ids"), answers.flatten(1)], dim=1),
        position_ids=position,
        attention_mask=_masks(model, part, position, images),
        use_cache=False,
        logits_to_keep=width * length + 1,
        **batch,
    )
    # token 0 of every answer is expected at the prompt's end, token i at token i - 1
    index = torch.arange(width * length, device=real.device).view(width, length).clone()
    index[:, 0] = 0
    return output.logits[:, index]


def _image_of(types: torch.Tensor) -> torch.Tensor:
    """Number of the image that a token belongs to; -1 for words."""
    image = types == 1
    starts = image & ~torch.nn.functional.pad(image, (1, 0))[:, :-1]
    return torch.where(image, starts.cumsum(1), -1)


def _masks(model, part: torch.Tensor, position: torch.Tensor, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gemma 3's two attention masks: tokens of an image see each other both ways."""
    visible = (part[:, :, None] == part[:, None]) | ((part[:, None] == 0) & (part[:, :, None] > 0))
    distance = position[:, :, None] - position[:, None]
    image = (images[:, :, None] == images[:, None]) & (images[:, None] >= 0)
    near = distance < model.config.get_text_config().sliding_window
    full = visible & ((distance >= 0) | image)
    masks = {"full_attention": full, "sliding_attention": visible & (((distance >= 0) & near) | image)}
    if model.config.get_text_config()._attn_implementation != "eager":
        return {kind: seen[:, None] for kind, seen in masks.items()}
    dtype = model.get_input_embeddings().weight.dtype  # eager attention adds its mask to the scores
    return {
        kind: torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)[:, None]
        for kind, seen in masks.items()
    }


def log_probabilities(logits: torch.Tensor, answers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(log-probability, entropy) of every token of the answers, float tensors (n, length)."""
    logp = logits.float().log_softmax(-1)
    return logp.gather(-1, answers[..., None]).squeeze(-1), -(logp.detach().exp() * logp.detach()).sum(-1)


# --- training ---------------------------------------------------------------------------------------


def arguments(task, lr: float, folder: Path) -> dict:
    """TRL's settings that both methods share: one pass over the cases in the order of ``task.visits()``."""
    config, model = task.config, task.model
    device = next(model.parameters()).device.type
    updates = len(task.visits())
    return dict(
        output_dir=str(folder),
        seed=task.seed,
        data_seed=task.seed,
        num_train_epochs=1,
        max_steps=updates,
        learning_rate=lr,
        lr_scheduler_type="linear",
        warmup_steps=max(1, updates // 20),
        weight_decay=0,
        bf16=next(model.parameters()).dtype == torch.bfloat16,
        use_cpu=device == "cpu",
        disable_dropout=True,
        gradient_checkpointing=memory.recomputes(config, device),
        logging_steps=1,
        report_to="none",
        save_strategy="steps",
        save_steps=max(1, updates // 4),
        save_total_limit=2,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        dataloader_num_workers=0,
        disable_tqdm=not (processes.state().is_main_process and sys.stderr.isatty()),
    )


def micro_batch(config, batch: int) -> tuple[int, int]:
    """(cases a forward pass, passes an update) for an update over ``batch`` cases.

    >>> from medlib.config.settings import RunConfig
    >>> micro_batch(RunConfig(batch_size=4), 6)
    (3, 2)
    """
    cases = next(n for n in range(min(config.batch_size, batch), 0, -1) if batch % n == 0)
    return cases, batch // cases


class Follow(TrainerCallback):
    """Tells ``task.watch`` about every update, stops when it says so, and keeps its history with checkpoints.

    Parameters
    ----------
    figures : which of TRL's figures are told, and under which name
    """

    def __init__(self, task, figures: dict[str, str]) -> None:
        self.task, self.figures = task, figures

    def on_log(self, args, state, control, logs=None, **_) -> None:
        if "loss" not in logs:  # TRL's summary at the end
            return
        told = {name: logs[key] for key, name in self.figures.items() if logs.get(key) is not None}
        if self.task.watch(state.global_step, **told):
            control.should_training_stop = True

    def on_save(self, args, state, control, **_) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        provenance.write_json_atomic(folder / "history.json", self.task.watch.history)


def run(task, trainer) -> None:
    """Train to the end, from the last checkpoint if a run of the same settings was interrupted."""
    hooks.float_adapter(task.model)
    trainer.remove_callback(PrinterCallback)
    folder = Path(trainer.args.output_dir)
    last = last_whole_checkpoint(folder)
    if last:
        task.watch.history[:] = json.loads((Path(last) / "history.json").read_text())
    trainer.train(resume_from_checkpoint=last)
    shutil.rmtree(folder, ignore_errors=True)


def checkpoints(task, method: str) -> Path:
    """Where a run keeps its checkpoints; those of other settings, cases or another adapter are deleted."""
    folder = task.folder / "checkpoints"
    adapter = {name: value.contiguous() for name, value in task.model.named_parameters() if ".default" in name}
    made_of = provenance.digest(
        [
            method,
            task.seed,
            task.config.model_dump(),
            task.suite.sha256,
            task.rewards.tolist(),
            hashlib.sha256(save(adapter)).hexdigest(),
        ]
    )
    started = folder / "fingerprint"
    if not (started.is_file() and started.read_text() == made_of):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        started.write_text(made_of)
    return folder


@contextlib.contextmanager
def given_back(model) -> Iterator[None]:
    """Undo what a trainer does to a model beside training its adapter, after an interruption too."""
    base, mode = model.get_base_model(), model.training
    forwards = [(module, module.__dict__.get("forward")) for module in (model, base)]
    dropouts = [(module, module.p) for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    try:
        yield
    finally:
        for module, forward in forwards:  # TRL and accelerate wrap the instance's forward
            module.__dict__.pop("forward", None)
            if forward is not None:
                module.forward = forward
        for module, p in dropouts:
            module.p = p
        if "ref" in model.peft_config:
            model.delete_adapter("ref")
        model.set_adapter("default")
        if base.is_activation_checkpointing:
            base.gradient_checkpointing_disable()
            base.disable_input_require_grads()
        model.train(mode)
