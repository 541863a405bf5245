"""Prompts as rows, and several answers read behind each prompt in one forward pass.

A prompt is tokenised once, its image goes through the frozen tower once, and a step reads it once for all
answers to it. TRL's own way with images would prepare and read all of that again for every answer of every
step.
"""

from __future__ import annotations

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from medlib.models.last_layer import read_at_the_end
from medlib.models.packing import image_of, masks
from medlib.training import encoding, lora

pad_sequence = torch.nn.utils.rnn.pad_sequence


def prompts(task) -> list[dict]:
    """The audit question of every case, one row each: `encoding.encode` without the answer's tokens."""
    folders = [task.suite.images_dir] * len(task.suite)
    rows = encoding.encode(task.processor, task.suite.scenarios, folders)
    if task.config.cache_image_features and not lora.why_no_features(task.config):
        encoding.cache_image_features(task.model.get_base_model(), rows, task.config.eval_batch_size)
    for row in rows:
        length = int((row.pop("labels") != -100).int().argmax())
        row |= {name: row[name][:length] for name in ("input_ids", "token_type_ids")}
    return rows


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
    """Logits at every token of some answers, each right after the prompt of its case.

    All different answers to a prompt are packed behind it in one row, and none sees another. So prompt and
    gradient pass through the model once. The result is that of reading every answer by itself.

    Parameters
    ----------
    rows : from `prompts`
    cases : n row numbers, which may repeat
    answers : int64 tensor (n, length), padded at the right with anything

    Returns
    -------
    float tensor (n, length, vocabulary)
    """
    slots: dict[int, dict] = {}  # case -> answer -> its slot behind the prompt
    for case, answer in zip(cases, map(tuple, answers.tolist())):
        own = slots.setdefault(case, {})
        own.setdefault(answer, len(own))
    width, length = max(map(len, slots.values())), answers.shape[1]
    packed = torch.zeros(len(slots), width, length, dtype=torch.long)
    for row, own in zip(packed, slots.values()):
        row[: len(own)] = torch.tensor(list(own))
    logits = _packed_logits(model, [rows[case] for case in slots], packed.to(answers.device))
    row_of = {case: row for row, case in enumerate(slots)}
    index = [(row_of[case], slots[case][answer]) for case, answer in zip(cases, map(tuple, answers.tolist()))]
    return logits[tuple(torch.tensor(index).T)]


def _packed_logits(model, rows: list[dict], answers: torch.Tensor) -> torch.Tensor:
    """Logits (rows, answers per row, length, vocabulary) of several answers behind each prompt."""
    batch = prompt_batch(rows, answers.device)
    n, width, length = answers.shape
    real, types = batch.pop("attention_mask").bool(), batch.pop("token_type_ids")
    # padding sees only itself, a prompt only itself, an answer its prompt and itself
    part = torch.arange(1, width + 1, device=real.device).repeat_interleave(length)
    part = torch.cat([real.long() - 1, part.expand(n, -1)], dim=1)
    offset = torch.arange(length, device=real.device).repeat(width)
    position = torch.cat([(real.cumsum(1) - 1).clamp(min=0), real.sum(1, keepdim=True) + offset], dim=1)
    images = torch.nn.functional.pad(image_of(types), (0, width * length), value=-1)
    keep = width * length + 1
    with read_at_the_end(model, keep):
        output = model(
            input_ids=torch.cat([batch.pop("input_ids"), answers.flatten(1)], dim=1),
            position_ids=position,
            attention_mask=masks(model, part, position, images),
            use_cache=False,
            logits_to_keep=keep,
            **batch,
        )
    # token 0 of every answer is predicted at the end of the prompt, token i at token i - 1
    index = torch.arange(width * length, device=real.device).view(width, length).clone()
    index[:, 0] = 0
    return output.logits[:, index]


def log_probabilities(logits: torch.Tensor, answers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(log-probability, entropy) of every token of the answers, float tensors (n, length)."""
    logp = logits.float().log_softmax(-1)
    return logp.gather(-1, answers[..., None]).squeeze(-1), -(logp.detach().exp() * logp.detach()).sum(-1)
