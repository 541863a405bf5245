"""Scenarios as tensors: tokenised once, image features computed once, batches padded."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from PIL import Image
from tqdm.auto import tqdm
from transformers.modeling_outputs import BaseModelOutputWithPooling

from medlib.config import ANSWERS, RunConfig
from medlib.data.cases import LabelledCase
from medlib.data.suite import Suite, shown
from medlib.models import features, prompts
from medlib.models.verdict_model import VerdictModel
from medlib.training import lora, memory, processes

# --- data -----------------------------------------------------------------------------------------


def encode(processor, scenarios: list[LabelledCase], images_dirs: list[Path], batch_size: int = 32) -> list[dict]:
    """Tokenise every scenario once, with labels on the answer's tokens only.

    Returns
    -------
    list of dict with ``input_ids``, ``token_type_ids``, ``labels`` (1-D int64 tensors of equal length)
    ``file`` of the image and ``pixels``, a function that loads it (float tensor, crops x 3 x height x width)
    """
    rows = []
    one_batch = len(scenarios) <= batch_size
    for start in tqdm(range(0, len(scenarios), batch_size), desc="encoding", leave=False, disable=one_batch):
        part = slice(start, start + batch_size)
        places = [(folder, s.image) for s, folder in zip(scenarios[part], images_dirs[part])]
        encoded = _encode(processor, scenarios[part], [shown(*place) for place in places])
        for row, (folder, name) in zip(encoded, places):
            rows.append(
                row | {"file": folder / name, "pixels": functools.partial(_pixels, processor, folder, name)}
            )
    return rows


def _pixels(processor, images_dir: Path, name: str) -> torch.Tensor:
    return features.pixels_of(processor, shown(images_dir, name))


def _encode(processor, scenarios: list[LabelledCase], images: list[Image.Image]) -> list[dict]:
    def tokens(turns, **options):
        return processor.apply_chat_template(
            turns,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "right"},
            **options,
        )

    full = tokens([prompts.messages(s, p, ANSWERS[s.verdict]) for s, p in zip(scenarios, images)])
    questions = tokens([prompts.messages(s, p) for s, p in zip(scenarios, images)], add_generation_prompt=True)
    rows = []
    for index, scenario in enumerate(scenarios):
        length, start = int(full["attention_mask"][index].sum()), int(questions["attention_mask"][index].sum())
        ids = full["input_ids"][index, :length]
        if not torch.equal(ids[:start], questions["input_ids"][index, :start]):
            raise ValueError(f"{scenario.id}: the chat template does not put the answer after the prompt")
        labels = ids.clone()
        labels[:start] = -100
        end = start + int((ids[start:] == _end_of_turn(processor)).nonzero()[0]) + 1
        labels[end:] = -100  # the newline after the turn is not part of the answer
        rows.append(
            {
                "input_ids": ids.clone(),
                "labels": labels,
                "token_type_ids": full["token_type_ids"][index, :length].clone(),
            }
        )
    return rows


def _end_of_turn(processor) -> int:
    return processor.tokenizer.convert_tokens_to_ids(prompts.END_OF_TURN)


@torch.no_grad()
def cache_image_features(network, rows: list[dict], batch_size: int = 64) -> list[dict]:
    """Put beside each row what the frozen tower and projector make of its image.

    Equal results, less work: every image goes through the tower once, not once an epoch and row.
    Images are loaded batch by batch; a batch that does not fit into memory is halved.
    """
    waiting = list({row["file"]: row["pixels"] for row in rows if "image_features" not in row}.items())
    known = {}
    bar = tqdm(total=len(waiting), desc="image features", leave=False)

    def run(size: int) -> None:
        while part := waiting[:size]:
            files, loads = zip(*part)
            known.update(zip(files, features.of_images(network, list(map(features.View, files)), loads)))
            del waiting[:size]
            bar.update(len(part))

    memory.until_it_fits(run, min(batch_size, max(1, len(waiting))), lambda size: size // 2)
    for row in rows:
        row.setdefault("image_features", known.get(row["file"]))
    return rows


def collator(pad_token_id: int):
    """Batch encoded rows, padded at the right end; loads the images of rows without features."""

    def collate(rows: list[dict]) -> dict:
        def pad(name, value):
            return torch.nn.utils.rnn.pad_sequence([r[name] for r in rows], batch_first=True, padding_value=value)

        lengths = torch.tensor([len(r["input_ids"]) for r in rows])
        batch = {
            "input_ids": pad("input_ids", pad_token_id),
            "labels": pad("labels", -100),
            "token_type_ids": pad("token_type_ids", 0),
        }
        batch["attention_mask"] = (torch.arange(batch["input_ids"].shape[1])[None] < lengths[:, None]).long()
        if "image_features" in rows[0]:
            images = torch.cat([r["image_features"] for r in rows])
            batch["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=images)}
        else:
            batch["pixel_values"] = torch.cat([r["pixels"]() for r in rows])
        return batch

    return collate


def epoch_order(lengths: list[int], batch_size: int, seed: int, epoch: int) -> list[int]:
    """Order of rows in one epoch: the trainer's own, but the rows of a batch longest first.

    A batch is what one optimizer step sees, over all accumulation steps and processes. Its micro-batches
    then hold rows of about one length, and what is learned stays the same up to rounding. Grouping over
    more than a batch, as transformers' sampler does, makes batches of like texts: on the stand-in that
    cost more accuracy (99.3% to 98.0%, n=2,000, one run each) than it saved padding.
    """
    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(seed + epoch)).tolist()
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    return [row for batch in batches for row in sorted(batch, key=lambda i: -lengths[i])]


def encode_suites(config: RunConfig, model: VerdictModel, suites: list[Suite]) -> list[dict]:
    """Encoded scenarios, with features of their images where these stay the same while training."""
    scenarios = [s for suite in suites for s in suite.scenarios]
    folders = [suite.images_dir for suite in suites for _ in suite.scenarios]
    rows = encode(model.processor, scenarios, folders)
    if not config.cache_image_features or not rows:
        return rows
    if reason := lora.why_no_features(config):
        processes.say(f"image features are not kept: {reason}; every step reads its images")
        return rows
    return cache_image_features(model.network, rows, config.eval_batch_size)
