"""Asking a vision-language model for verdicts, by likelihood and by free generation.

The likelihood verdict compares how probable the model finds its two possible answers, which gives a
probability; the generated verdict is what a user would read. Both come from the same prompt.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from tqdm.auto import tqdm

from medlib import prompts
from medlib.schema import ANSWERS, Scenario, load_image

ABLATIONS = ("text_only", "image_only", "swapped")


def predict(
    model, processor, scenarios: list[Scenario], images_dir: str | Path, ablation: str | None = None,
    generate: bool = False, batch_size: int = 32, seed: int = 0, label: str = "scoring",
) -> pd.DataFrame:
    """Verdicts of one model over scenarios.

    Parameters
    ----------
    ablation : {None, "text_only", "image_only", "swapped"}
        ``text_only`` shows a plain grey picture, ``image_only`` withholds finding, treatment and
        complaint, ``swapped`` shows the picture of another scenario of the same modality.
    generate : bool
        Also let the model answer freely (greedy) and parse what it says.

    Returns
    -------
    DataFrame in the order of ``scenarios``: id, modality, verdict, error_type, severity,
    cost_impact, source, pair, pair_kind, p_correct (probability of CORRECT, by likelihood),
    predicted, and with ``generate`` generated, parsed.
    """
    if ablation not in (None, *ABLATIONS):
        raise ValueError(f"ablation {ablation!r} is not one of {ABLATIONS}")
    asked = [prompts.withhold_text(s) for s in scenarios] if ablation == "image_only" else scenarios
    files = _swap_images(scenarios, seed) if ablation == "swapped" else [s.image for s in scenarios]
    order = np.argsort([len(s.finding) + len(s.treatment) for s in asked])  # little padding in a batch
    results: dict[int, dict] = {}
    for start in tqdm(range(0, len(order), batch_size), desc=label, leave=False):
        rows = order[start : start + batch_size]
        pictures = [_picture(Path(images_dir) / files[i], ablation) for i in rows]
        batch = _prompt_batch(processor, [asked[i] for i in rows], pictures, model.device)
        logp, generated = score_answers(model, processor, batch), [None] * len(rows)
        if generate:
            generated = generate_answers(model, processor, batch)
        for i, scores, text in zip(rows, logp, generated):
            results[i] = _row(scenarios[i], scores, text, generate)
    return pd.DataFrame([results[i] for i in range(len(scenarios))])


def _picture(path: Path, ablation: str | None) -> Image.Image:
    picture = load_image(path)
    return Image.new("RGB", picture.size, (127, 127, 127)) if ablation == "text_only" else picture


def _swap_images(scenarios: list[Scenario], seed: int) -> list[str]:
    """Another scenario's picture of the same modality, never one's own."""
    rng, files = np.random.default_rng(seed), []
    for scenario in scenarios:
        others = sorted({s.image for s in scenarios if s.modality == scenario.modality} - {scenario.image})
        files.append(str(rng.choice(others)) if others else scenario.image)
    return files


def _prompt_batch(processor, scenarios, pictures, device) -> dict[str, torch.Tensor]:
    turns = [prompts.messages(s, p) for s, p in zip(scenarios, pictures)]
    batch = processor.apply_chat_template(
        turns, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
        processor_kwargs={"padding": True, "padding_side": "left"},
    )
    return {name: tensor.to(device) for name, tensor in batch.items() if name != "num_crops"}


@torch.no_grad()
def score_answers(model, processor, batch: dict[str, torch.Tensor]) -> np.ndarray:
    """Log-likelihood of the two answers, float array (n, 2) in the order of ``ANSWERS``.

    The prompt is read once; both answers continue from its key-value cache.
    """
    prompt = model(**batch, use_cache=True, logits_to_keep=1)
    first = prompt.logits[:, -1].float().log_softmax(-1)
    scores = []
    for answer in ANSWERS.values():
        ids = torch.tensor(processor.tokenizer(f"{answer}<end_of_turn>", add_special_tokens=False).input_ids)
        ids = ids.to(first.device).expand(len(first), -1)
        mask = torch.cat([batch["attention_mask"], torch.ones_like(ids[:, :-1])], dim=1)
        rest = model(input_ids=ids[:, :-1], attention_mask=mask, cache=copy.deepcopy(prompt.cache), use_cache=True)
        logp = torch.cat([first[:, None], rest.logits.float().log_softmax(-1)], dim=1)
        scores.append(logp.gather(-1, ids[..., None]).squeeze(-1).sum(-1))
    return torch.stack(scores, dim=1).cpu().numpy()


@torch.no_grad()
def generate_answers(model, processor, batch: dict[str, torch.Tensor], max_new_tokens: int = 24) -> list[str]:
    """Greedy answers as text."""
    output = model.generate(**batch, max_new_tokens=max_new_tokens, do_sample=False)
    new = output[:, batch["input_ids"].shape[1] :]
    return processor.tokenizer.batch_decode(new, skip_special_tokens=True)


def prediction(scenario: Scenario, p_correct: float) -> dict:
    """One row of a predictions table, whichever system gave the probability of CORRECT."""
    return {
        "id": scenario.id, "modality": scenario.modality, "verdict": scenario.verdict,
        "error_type": scenario.error_type, "severity": scenario.severity, "cost_impact": scenario.cost_impact,
        "source": scenario.factors.get("source"), "pair": scenario.factors.get("pair"),
        "pair_kind": scenario.factors.get("pair_kind"), "p_correct": p_correct,
        "predicted": "CORRECT" if p_correct >= 0.5 else "ERROR",
    }


def _row(scenario: Scenario, logp: np.ndarray, text: str | None, generate: bool) -> dict:
    p_correct = float(1 / (1 + np.exp(np.clip(logp[1] - logp[0], -500, 500))))
    row = prediction(scenario, p_correct)
    if generate:
        row |= {"generated": text, "parsed": prompts.parse_verdict(text)}
    return row


def pair_accuracy(predictions: pd.DataFrame) -> tuple[int, int]:
    """(pairs with both members right, pairs): a counterfactual pair counts only as a whole."""
    right = (predictions.verdict == predictions.predicted).groupby(predictions.pair).all()
    return int(right.sum()), len(right)


def write_predictions(path: str | Path, frames: dict[str, pd.DataFrame]) -> Path:
    """All systems and suites in one JSONL file; keys of ``frames`` are ``system/suite``."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tagged = [frame.assign(system=key.split("/")[0], suite=key.split("/")[1]) for key, frame in frames.items()]
    records = pd.concat(tagged, ignore_index=True).to_dict(orient="records")
    lines = [json.dumps({k: v for k, v in r.items() if not _missing(v)}) + "\n" for r in records]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def _missing(value) -> bool:
    return value is None or (isinstance(value, float) and np.isnan(value))


def read_predictions(path: str | Path) -> dict[str, pd.DataFrame]:
    """The inverse of :func:`write_predictions`."""
    # not pd.read_json: it rounds floats and turns the text "12" into a number
    frame = pd.DataFrame([json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()])
    return {f"{system}/{suite}": part.reset_index(drop=True)
            for (system, suite), part in frame.groupby(["system", "suite"], sort=False)}
