"""Asking a vision-language model for verdicts, by likelihood and by free generation.

The likelihood verdict compares how probable the model finds its two possible answers, which gives a
probability; the generated verdict is what a user would read. Both come from the same prompt, and mostly
from one reading: an answer whose every token is the most likely one is what greedy decoding would write.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from medlib.data.cases import Case
from medlib.data.suite import Suite
from medlib.models import features, packing, prompts
from medlib.models.last_layer import can_trim, read_at_the_end
from medlib.models.verdict_model import VerdictModel

pad_sequence = torch.nn.utils.rnn.pad_sequence

#: Part of what systems know their answers by: raise it whenever a probability may change, however little.
VERSION = 2
#: Scenarios a reading on a CPU, where more no longer fit into its caches.
CPU_BATCH = 16
MAX_NEW_TOKENS = 24
#: Settings of generation under which greedy decoding is more than the most likely token.
STEERING = {
    "num_beams": (1,),
    "repetition_penalty": (1.0,),
    "encoder_repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "guidance_scale": (1.0,),
    "bad_words_ids": (),
    "sequence_bias": (),
    "suppress_tokens": (),
    "begin_suppress_tokens": (),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (),
    "watermarking_config": (),
    "stop_strings": (),
}


# --- a suite --------------------------------------------------------------------------------------


def p_correct(model: VerdictModel, suite: Suite, batch_size: int = 32) -> np.ndarray:
    """Probability of CORRECT by likelihood, float array (n,), in the suite's order."""
    return read(model, suite, batch_size)["p_correct"].to_numpy()


def free_answers(model: VerdictModel, suite: Suite, batch_size: int = 32) -> pd.DataFrame:
    """What the model writes (greedy) and the verdict in it: columns ``generated`` and ``parsed``."""
    return ask(model, suite, batch_size)[["generated", "parsed"]]


def ask(model: VerdictModel, suite: Suite, batch_size: int = 32) -> pd.DataFrame:
    """`p_correct` and `free_answers` from one reading; only other words are decoded token by token."""
    table = read(model, suite, batch_size)
    rest = table.index[table["generated"].isna()]
    table.loc[rest, "generated"] = decode(model, suite.rows(rest), batch_size)["generated"].to_numpy()
    return table.assign(parsed=[prompts.parse_verdict(text) for text in table["generated"]])


def read(model: VerdictModel, suite: Suite, batch_size: int = 32) -> pd.DataFrame:
    """`p_correct`, and ``generated`` where one of the two answers is what greedy decoding writes, else None."""
    scores, texts = np.empty((len(suite), 2)), np.full(len(suite), None, dtype=object)
    if model.device.type == "cpu":
        batch_size = min(batch_size, CPU_BATCH)
    tokens = prompts.answer_tokens(model.processor)
    known = model.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    certain = _is_plain_greedy(model, tokens)
    order = by_length(suite)
    if len({s.image for s in suite.scenarios}) < len(suite):  # cases of one image stand side by side
        first: dict[str, int] = {}
        for row in order:
            first.setdefault(suite.scenarios[row].image, len(first))
        order.sort(key=lambda row: first[suite.scenarios[row].image])
    for start in range(0, len(suite), batch_size):
        rows = order[start : start + batch_size]
        logits = _logits_once(model, suite.rows(rows))
        if logits is None:
            scores[rows] = score_answers(model, batch(model, suite, rows))
            continue
        logp, greedy = _judge(logits, tokens)
        scores[rows] = logp
        for row, written in zip(rows, greedy if certain else ()):
            texts[row] = next((text for text, is_it in zip(known, written) if is_it), None)
    p = 1 / (1 + np.exp(np.clip(scores @ [-1, 1], -500, 500)))
    return pd.DataFrame({"p_correct": p, "generated": texts})


def decode(model: VerdictModel, suite: Suite, batch_size: int = 32) -> pd.DataFrame:
    """`free_answers`, all of them decoded token by token."""
    texts, order = [""] * len(suite), by_length(suite)
    for start in range(0, len(suite), batch_size):
        rows = order[start : start + batch_size]
        for row, text in zip(rows, generate_answers(model, batch(model, suite, rows))):
            texts[row] = text
    return pd.DataFrame({"generated": texts, "parsed": [prompts.parse_verdict(text) for text in texts]})


def by_length(suite: Suite) -> list[int]:
    """Row numbers, so that scenarios of one length stand together and there is little padding."""
    lengths = [len(prompts.clinical_text(s)) for s in suite.scenarios]
    return sorted(range(len(suite)), key=lengths.__getitem__)


def _is_plain_greedy(model: VerdictModel, tokens: list[list[int]]) -> bool:
    """Whether generation takes the most likely token and nothing else, and ends where our answers end."""
    settings = model.network.generation_config
    ends = np.atleast_1d(settings.eos_token_id).tolist()
    plain = all(getattr(settings, name, None) in (None, *values) for name, values in STEERING.items())
    return plain and all(
        t[-1] in ends and not set(t[:-1]) & set(ends) and len(t) <= MAX_NEW_TOKENS for t in tokens
    )


def _judge(logits: torch.Tensor, tokens: list[list[int]]) -> tuple[np.ndarray, list[list[bool]]]:
    """(log-likelihoods, which of the answers is the greedy one), (n, answers) each."""
    ids = pad_sequence(list(map(torch.tensor, tokens)), batch_first=True, padding_value=-1).to(logits.device)
    padding, ids = ids < 0, ids.clamp(min=0)
    logp = logits.float().log_softmax(-1).gather(-1, ids.expand(len(logits), -1, -1)[..., None]).squeeze(-1)
    greedy = ((logits.argmax(-1) == ids) | padding).all(-1)
    return logp.masked_fill(padding, 0).sum(-1).double().cpu().numpy(), greedy.tolist()


# --- one reading ----------------------------------------------------------------------------------


@torch.no_grad()
def _logits_once(model: VerdictModel, suite: Suite) -> torch.Tensor | None:
    """What the model expects at every token of both answers, float tensor (n, answers, length, vocabulary).

    What all prompts begin with, image and instruction, is read once for each image; both answers stand
    behind the case, and neither sees the other. None where that is not possible: the caller then reads
    every prompt whole.
    """
    network, processor, config = model.network, model.processor, model.network.config
    if not (_knows_prompts(processor) and can_trim(network)):
        return None
    one = {s.image: s for s in suite.scenarios}
    images = image_features(model, suite, list(one.values()))
    if images is None or any(len(feature) > 1 for feature in images):
        return None
    ids = prompt_tokens(processor, suite.scenarios)
    start = _common_prefix(ids)
    image_tokens = int((ids[0] == config.image_token_id).sum())
    answers = pad_sequence(list(map(torch.tensor, prompts.answer_tokens(processor))), batch_first=True)
    longest = max(map(len, ids)) + answers.shape[1]
    whole_image = image_tokens == len(images[0][0]) == int((ids[0][:start] == config.image_token_id).sum())
    if not whole_image or longest > config.get_text_config().sliding_window:
        return None
    row_of = {name: row for row, name in enumerate(one)}
    image = [row_of[s.image] for s in suite.scenarios]
    return _read_behind(network, ids, start, torch.cat(images).to(model.device), image, answers)


def _knows_prompts(processor) -> bool:
    """Whether `prompt_tokens` writes what the processor would: one image a prompt, in one piece."""
    pieces = getattr(processor.image_processor, "do_pan_and_scan", None)
    return not pieces and hasattr(processor, "boi_token") and hasattr(processor, "full_image_sequence")


def prompt_tokens(processor, scenarios: Sequence[Case], turns: Callable = prompts.messages) -> list[torch.Tensor]:
    """Token ids of every question (the audit's by default), as `prompt_batch` has them; no image is loaded."""
    messages = [turns(s, "later") for s in scenarios]
    texts = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    texts = [text.replace(processor.boi_token, processor.full_image_sequence) for text in texts]
    # a template that writes <bos> itself: the tokenizer must not write it again
    begun = texts[0].startswith(processor.tokenizer.bos_token)
    return [torch.tensor(ids) for ids in processor.tokenizer(texts, add_special_tokens=not begun).input_ids]


def _common_prefix(ids: list[torch.Tensor]) -> int:
    """How many tokens at the start all prompts share; at least one is left over in each."""
    first = torch.stack([i[: min(map(len, ids)) - 1] for i in ids])
    return int((first == first[0]).all(0).long().cumprod(0).sum())


def _read_behind(network, ids, start: int, images: torch.Tensor, image: list[int], answers: torch.Tensor):
    """Logits of the answers behind every prompt.

    Parameters
    ----------
    ids : prompts, n int64 tensors
    start : tokens at the start that all share
    images : float tensor (images, tokens, hidden size)
    image : n row numbers of ``images``
    answers : int64 tensor (answers, length), padded at the right with anything
    """
    device, (kinds, length) = images.device, answers.shape
    answers = answers.to(device)
    begin = ids[0][:start].expand(len(images), -1).to(device)
    types = (begin == network.config.image_token_id).long()
    with read_at_the_end(network, 1):
        cache = network(
            input_ids=begin,
            token_type_ids=types,
            attention_mask=torch.ones_like(begin),
            mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=images)},
            use_cache=True,
            logits_to_keep=1,
        ).cache
    cache.batch_select_indices(torch.tensor(image, device=device))
    # behind it: padding, the case, then the answers
    lengths = torch.tensor([len(i) - start for i in ids], device=device)
    case = pad_sequence([i[start:] for i in ids], batch_first=True, padding_side="left").to(device)
    n, width = case.shape
    real = torch.arange(width, device=device) >= width - lengths[:, None]
    part = torch.arange(1, kinds + 1, device=device).repeat_interleave(length).expand(n, -1)
    part = torch.cat([torch.zeros(n, start, dtype=torch.long, device=device), real.long() - 1, part], dim=1)
    after = torch.arange(length, device=device).repeat(kinds)
    position = torch.cat([(real.cumsum(1) - 1).clamp(min=0), lengths[:, None] + after], dim=1) + start
    everywhere = torch.cat([torch.arange(start, device=device).expand(n, -1), position], dim=1)
    masks = packing.masks(network, part, everywhere, torch.full_like(part, -1))
    keep = kinds * length + 1
    with read_at_the_end(network, keep):
        logits = network(
            input_ids=torch.cat([case, answers.flatten().expand(n, -1)], dim=1),
            position_ids=position,
            attention_mask={kind: mask[..., start:, :] for kind, mask in masks.items()},
            cache=cache,
            use_cache=True,
            logits_to_keep=keep,
        ).logits
    # token 0 of every answer is expected at the prompt's end, token i at token i - 1
    index = torch.arange(kinds * length, device=device).view(kinds, length).clone()
    index[:, 0] = 0
    return logits[:, index]


def image_features(model: VerdictModel, suite: Suite, scenarios: Sequence[Case]) -> list[torch.Tensor] | None:
    """`features.of_images` for the images of some scenarios of a suite."""

    def load(scenario: Case) -> torch.Tensor:
        return features.pixels_of(model.processor, suite.image(scenario))

    views = [features.View(suite.images_dir / s.image, suite.view) for s in scenarios]
    return features.of_images(model.network, views, [functools.partial(load, s) for s in scenarios])


# --- prompts read whole ---------------------------------------------------------------------------


def batch(model: VerdictModel, suite: Suite, rows: list[int], turns: Callable = prompts.messages) -> dict:
    """Tensors of some rows; the tower's features in place of pixels, where an image has one that is fixed.

    ``turns`` makes chat messages of a case and its image. An image whose features are known is not loaded.
    """
    scenarios = [suite.scenarios[row] for row in rows]
    images = image_features(model, suite, scenarios) if _knows_prompts(model.processor) else None
    if images is None or any(len(feature) > 1 for feature in images):
        return prompt_batch(model, scenarios, [suite.image(s) for s in scenarios], turns)
    ids = prompt_tokens(model.processor, scenarios, turns)
    pad = model.processor.tokenizer.pad_token_id
    tokens = pad_sequence(ids, batch_first=True, padding_value=pad, padding_side="left").to(model.device)
    lengths = torch.tensor(list(map(len, ids)), device=model.device)
    places = torch.arange(tokens.shape[1], device=model.device)
    return {
        "input_ids": tokens,
        "attention_mask": (places >= tokens.shape[1] - lengths[:, None]).long(),
        "token_type_ids": (tokens == model.network.config.image_token_id).long(),
        "mm_encoder_outputs": {
            "image": BaseModelOutputWithPooling(pooler_output=torch.cat(images).to(model.device))
        },
    }


def prompt_batch(
    model: VerdictModel, scenarios, images, turns: Callable = prompts.messages
) -> dict[str, torch.Tensor]:
    """Tensors of a question (the audit's by default) about scenarios and their images, padded at the left."""
    batch = model.processor.apply_chat_template(
        [turns(s, image) for s, image in zip(scenarios, images)],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True, "padding_side": "left"},
    )
    return {name: tensor.to(model.device) for name, tensor in batch.items() if name != "num_crops"}


def score_answers(model: VerdictModel, batch: dict[str, torch.Tensor]) -> np.ndarray:
    """Log-likelihood of the two answers, float array (n, 2) in the order of ``ANSWERS``."""
    return token_scores(model, batch).sum(-1).cpu().numpy()


@torch.no_grad()
def token_scores(model: VerdictModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Log-likelihood of every token of the two answers, float tensor (n, 2, tokens), 0 after a shorter answer.

    The tokens are those of `prompts.answer_tokens`. The prompt is read once; both answers continue from its
    key-value cache, in one forward pass.
    """
    prompt = model.network(**batch, use_cache=True, logits_to_keep=1)
    first = prompt.logits[:, -1].float().log_softmax(-1)
    tokens = list(map(torch.tensor, prompts.answer_tokens(model.processor)))
    ids = pad_sequence(tokens, batch_first=True, padding_value=-1).to(first.device)
    ids = ids.repeat(len(first), 1)  # answers of the first scenario, answers of the second, ...
    cache = prompt.cache
    cache.batch_repeat_interleave(len(tokens))
    mask = batch["attention_mask"].repeat_interleave(len(tokens), dim=0)
    mask = torch.cat([mask, torch.ones_like(ids[:, :-1])], dim=1)
    # padding stands behind the shorter answer, where no scored token sees it
    rest = model.network(input_ids=ids[:, :-1].clamp(min=0), attention_mask=mask, cache=cache, use_cache=True)
    first = first.repeat_interleave(len(tokens), dim=0)
    logp = torch.cat([first[:, None], rest.logits.float().log_softmax(-1)], dim=1)
    scores = logp.gather(-1, ids.clamp(min=0)[..., None]).squeeze(-1).masked_fill(ids < 0, 0)
    return scores.view(-1, len(tokens), scores.shape[-1])


@torch.no_grad()
def generate_answers(
    model: VerdictModel, batch: dict[str, torch.Tensor], max_new_tokens: int = MAX_NEW_TOKENS
) -> list[str]:
    """Greedy answers as text."""
    output = model.network.generate(**batch, max_new_tokens=max_new_tokens, do_sample=False)
    new = output[:, batch["input_ids"].shape[1] :]
    return model.processor.tokenizer.batch_decode(new, skip_special_tokens=True)
