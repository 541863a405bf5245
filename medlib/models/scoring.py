"""Asking a vision-language model for verdicts, by likelihood and by free generation.

The likelihood verdict compares how probable the model finds its two possible answers, which gives a
probability; the generated verdict is what a user would read. Both come from the same prompt.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from medlib.data.suite import Suite
from medlib.models import prompts


def p_correct(model, processor, suite: Suite, batch_size: int = 32) -> np.ndarray:
    """Probability of CORRECT by likelihood, float array (n,), in the suite's order."""
    logp = np.empty((len(suite), 2))
    for rows, batch in _batches(model, processor, suite, batch_size):
        logp[rows] = score_answers(model, processor, batch)
    return 1 / (1 + np.exp(np.clip(logp @ [-1, 1], -500, 500)))


def free_answers(model, processor, suite: Suite, batch_size: int = 32) -> pd.DataFrame:
    """What the model writes (greedy) and the verdict in it: columns ``generated`` and ``parsed``."""
    texts = [""] * len(suite)
    for rows, batch in _batches(model, processor, suite, batch_size):
        for row, text in zip(rows, generate_answers(model, processor, batch)):
            texts[row] = text
    return pd.DataFrame({"generated": texts, "parsed": [prompts.parse_verdict(text) for text in texts]})


def _batches(model, processor, suite: Suite, batch_size: int) -> Iterator[tuple[list[int], dict]]:
    """(row numbers, tensors) with scenarios of one length together, so that there is little padding."""
    lengths = [len(prompts.clinical_text(s)) for s in suite.scenarios]
    order = sorted(range(len(suite)), key=lengths.__getitem__)
    for start in range(0, len(suite), batch_size):
        rows = order[start : start + batch_size]
        scenarios = [suite.scenarios[row] for row in rows]
        batch = prompt_batch(processor, scenarios, [suite.image(s) for s in scenarios], model.device)
        files = [suite.images_dir / s.image for s in scenarios]
        yield rows, _known_images(model, batch, [(f, f.stat().st_mtime_ns, suite.view) for f in files])


#: What a tower made of images, for as long as the tower lives: words change more often than images.
_FEATURES: weakref.WeakKeyDictionary[torch.nn.Module, dict] = weakref.WeakKeyDictionary()
#: Bytes of main memory after which no further image is kept (MedGemma: 1.3 MB an image in bfloat16).
FEATURE_BYTES = 2 << 30


@torch.no_grad()
def _known_images(model, batch: dict, images: list[tuple]) -> dict:
    """The batch with the tower's features in place of pixels; the tower sees only new images.

    Pixels stay where an adapter changes tower or projector, and where an image has several crops.
    """
    parts = {
        name.rpartition(".")[2]: module
        for name, module in model.named_modules()
        if name.endswith(("vision_tower", "multi_modal_projector"))
    }
    adapted = any("lora_" in name for part in parts.values() for name, _ in part.named_parameters())
    if adapted or len(parts) < 2 or len(batch["pixel_values"]) != len(images):
        return batch
    kept = _FEATURES.setdefault(parts["vision_tower"], {})
    pixels = batch["pixel_values"]
    new = {image: row for row, image in enumerate(images) if image not in kept}
    made = model.get_image_features(pixels[list(new.values())]).pooler_output if new else ()
    features = dict(zip(new, made))
    shown = torch.stack([features.get(p, kept.get(p)).to(pixels.device) for p in images])
    room = FEATURE_BYTES // (shown[0].numel() * shown.element_size()) - len(kept)
    kept.update(list((p, f.cpu()) for p, f in features.items())[: max(0, room)])
    shown = {"image": BaseModelOutputWithPooling(pooler_output=shown)}
    return {n: t for n, t in batch.items() if n != "pixel_values"} | {"mm_encoder_outputs": shown}


def prompt_batch(processor, scenarios, images, device) -> dict[str, torch.Tensor]:
    """Tensors of the audit question for a list of scenarios and their images, padded at the left."""
    turns = [prompts.messages(s, p) for s, p in zip(scenarios, images)]
    batch = processor.apply_chat_template(
        turns,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True, "padding_side": "left"},
    )
    return {name: tensor.to(device) for name, tensor in batch.items() if name != "num_crops"}


def score_answers(model, processor, batch: dict[str, torch.Tensor]) -> np.ndarray:
    """Log-likelihood of the two answers, float array (n, 2) in the order of ``ANSWERS``."""
    return token_scores(model, processor, batch).sum(-1).cpu().numpy()


@torch.no_grad()
def token_scores(model, processor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Log-likelihood of every token of the two answers, float tensor (n, 2, tokens), 0 after a shorter answer.

    The tokens are those of `prompts.answer_tokens`. The prompt is read once; both answers continue from its
    key-value cache, in one forward pass.
    """
    prompt = model(**batch, use_cache=True, logits_to_keep=1)
    first = prompt.logits[:, -1].float().log_softmax(-1)
    tokens = list(map(torch.tensor, prompts.answer_tokens(processor)))
    ids = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True, padding_value=-1).to(first.device)
    ids = ids.repeat(len(first), 1)  # answers of the first scenario, answers of the second, ...
    cache = prompt.cache
    cache.batch_repeat_interleave(len(tokens))
    mask = batch["attention_mask"].repeat_interleave(len(tokens), dim=0)
    mask = torch.cat([mask, torch.ones_like(ids[:, :-1])], dim=1)
    # padding stands behind the shorter answer, where no scored token sees it
    rest = model(input_ids=ids[:, :-1].clamp(min=0), attention_mask=mask, cache=cache, use_cache=True)
    first = first.repeat_interleave(len(tokens), dim=0)
    logp = torch.cat([first[:, None], rest.logits.float().log_softmax(-1)], dim=1)
    scores = logp.gather(-1, ids.clamp(min=0)[..., None]).squeeze(-1).masked_fill(ids < 0, 0)
    return scores.view(-1, len(tokens), scores.shape[-1])


@torch.no_grad()
def generate_answers(model, processor, batch: dict[str, torch.Tensor], max_new_tokens: int = 24) -> list[str]:
    """Greedy answers as text."""
    output = model.generate(**batch, max_new_tokens=max_new_tokens, do_sample=False)
    new = output[:, batch["input_ids"].shape[1] :]
    return processor.tokenizer.batch_decode(new, skip_special_tokens=True)
