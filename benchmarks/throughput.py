"""Samples per second in training and evaluation, with and without what saves work."""

from __future__ import annotations

import argparse
import json
import tempfile
import time

import torch

from medlib import data, evaluation, training, workflow
from medlib.config import resolve
from medlib.schema import ANSWERS, load_image


def training_throughput(config, cached: bool) -> float:
    """Training scenarios per second over one epoch, encoding not counted, features counted."""
    processor, base = workflow.load_model(config)
    suite = data.suite(config, "train")
    rows = training.encode(processor, suite.scenarios, [suite.images_dir] * len(suite.scenarios))
    started = time.perf_counter()
    if cached:
        training.cache_image_features(base, rows)
    with tempfile.TemporaryDirectory() as folder:
        training.train_adapter(base, processor, rows, [], config, folder, resume=False, quiet=True)
    return len(rows) * config.epochs / (time.perf_counter() - started)


@torch.no_grad()
def score_plainly(model, processor, batch) -> torch.Tensor:
    """Both answers behind the whole prompt each time: the reference for prefix sharing."""
    scores = []
    for answer in ANSWERS.values():
        ids = processor.tokenizer(f"{answer}<end_of_turn>", add_special_tokens=False).input_ids
        ids = torch.tensor(ids, device=model.device).expand(len(batch["input_ids"]), -1)
        full = dict(batch)
        full["input_ids"] = torch.cat([batch["input_ids"], ids], 1)
        full["attention_mask"] = torch.cat([batch["attention_mask"], torch.ones_like(ids)], 1)
        full["token_type_ids"] = torch.cat([batch["token_type_ids"], torch.zeros_like(ids)], 1)
        logp = model(**full).logits[:, -ids.shape[1] - 1 : -1].float().log_softmax(-1)
        scores.append(logp.gather(-1, ids[..., None]).sum((1, 2)))
    return torch.stack(scores, 1)


def scoring_throughput(config, shared: bool) -> float:
    """Scored scenarios per second, pictures and tokens prepared beforehand."""
    processor, base = workflow.load_model(config)
    suite = data.suite(config, "test")
    pictures = [load_image(suite.images_dir / s.image) for s in suite.scenarios]
    batch = evaluation._prompt_batch(processor, suite.scenarios, pictures, base.device)
    score = evaluation.score_answers if shared else score_plainly
    score(base, processor, batch)
    started = time.perf_counter()
    score(base, processor, batch)
    return len(pictures) / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="standin")
    parser.add_argument("--pairs", type=int, default=24)
    arguments = parser.parse_args()
    config = resolve(arguments.profile, train_pairs=arguments.pairs, test_pairs=arguments.pairs, epochs=3)
    print(json.dumps({
        "threads": torch.get_num_threads(), "device": str(workflow.models.pick_device()),
        "training, pixels at every step": round(training_throughput(config, cached=False), 1),
        "training, features once a picture": round(training_throughput(config, cached=True), 1),
        "scoring, prompt read twice": round(scoring_throughput(config, shared=False), 1),
        "scoring, prompt shared": round(scoring_throughput(config, shared=True), 1),
    }, indent=2))


if __name__ == "__main__":
    main()
