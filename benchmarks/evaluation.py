"""Scoring against plain scripts: the same verdict probabilities, scenarios a second.

A plain script reads image and prompt anew for each of the two answers, one scenario a forward pass;
the batched plain script does the same for many scenarios at a time. Ours keeps what the tower makes of
an image, reads image and instruction once for all cases of a batch that share them, reads both answers
behind the case in one pass, and computes the last layer only where it is read.

    python benchmarks/evaluation.py --pairs 120
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import torch

from medlib.config import ANSWERS, path, resolve
from medlib.data import sources, variants
from medlib.models import loading, scoring
from medlib.models.prompts import answer_tokens, messages
from medlib.models.verdict_model import VerdictModel

BAR = 3.0
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@torch.no_grad()
def plain(model: VerdictModel, suite, batch_size: int) -> np.ndarray:
    """Probability of CORRECT from two whole sequences a scenario, float array (n,)."""
    log_odds = []
    for start in range(0, len(suite), batch_size):
        scenarios = suite.scenarios[start : start + batch_size]
        scores = []
        for answer, tokens in zip(ANSWERS.values(), answer_tokens(model.processor)):
            turns = [messages(s, suite.image(s), answer) for s in scenarios]
            batch = model.processor.apply_chat_template(
                turns,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs={"padding": True, "padding_side": "left"},
            ).to(model.device)
            batch.pop("num_crops", None)
            # the turn ends with a newline that is no part of the answer
            length = len(tokens)
            logp = model.network(**batch).logits[:, -length - 2 : -2].float().log_softmax(-1)
            scores.append(logp.gather(-1, batch["input_ids"][:, -length - 1 : -1, None]).sum((1, 2)))
        log_odds.append(torch.stack(scores, 1).cpu().numpy() @ [-1, 1])
    return 1 / (1 + np.exp(np.concatenate(log_odds)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="standin")
    parser.add_argument("--pairs", type=int, default=120)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: for a machine that others use too")
    parser.add_argument("--adapter", help="folder of an adapter; by default the base is asked")
    arguments = parser.parse_args()
    config, clock = resolve(arguments.profile, test_pairs=arguments.pairs), CLOCKS[arguments.clock]
    suite = sources.suite(config, "test")
    # without features on disk, which an earlier call would have left
    model = loading.load_for(config.model_copy(update={"cache_image_features": False}))
    if arguments.adapter:
        model = model.with_adapter(path(arguments.adapter))
    other_words = variants.paraphrase(suite)
    ways = {
        "plain": ("one scenario a forward pass", lambda: plain(model, suite, 1)),
        "plain, batched": (
            f"{config.eval_batch_size} scenarios a forward pass",
            lambda: plain(model, suite, config.eval_batch_size),
        ),
        "ours": (
            "each image and prompt read once",
            lambda: scoring.p_correct(model, suite, config.eval_batch_size),
        ),
        "ours, images known": (
            "the same images beside other words",
            lambda: scoring.p_correct(model, other_words, config.eval_batch_size),
        ),
        "ours, in words too": (
            "probabilities and greedy answers, images known",
            lambda: scoring.ask(model, suite, config.eval_batch_size)["p_correct"].to_numpy(),
        ),
        "words decoded": (
            "greedy answers alone, token by token, images known",
            lambda: scoring.decode(model, suite, config.eval_batch_size),
        ),
    }
    plain(model, suite.rows(range(4)), 2)  # warm up, without an image of ours kept
    results, answers = [], {}
    for name, (what, ask) in ways.items():
        started = clock()
        answers[name] = ask()
        results.append({"system": name, "scenarios_per_second": len(suite) / (clock() - started), "what": what})
    speed = {r["system"]: r["scenarios_per_second"] for r in results}
    comparison = {
        "scenarios": len(suite),
        "device": str(model.device),
        "threads": torch.get_num_threads(),
        "times_plain": speed["ours"] / speed["plain"],
        "times_plain_batched": speed["ours"] / speed["plain, batched"],
        "bar": BAR,
        "largest_difference_of_probability": float(np.abs(answers["ours"] - answers["plain"]).max()),
        "results": results,
    }
    print(json.dumps(comparison, indent=2))
    print("\n| System | Scenarios/s | What it is |\n|:---|---:|:---|")
    for r in results:
        print(f"| {r['system']} | {r['scenarios_per_second']:.1f} | {r['what']} |")
    print(
        f"\nOurs against plain: {comparison['times_plain']:.2f} times (bar {BAR}: "
        f"{'met' if comparison['times_plain'] >= BAR else 'missed'}); against plain, batched: "
        f"{comparison['times_plain_batched']:.2f} times. Probabilities at most "
        f"{comparison['largest_difference_of_probability']:.1e} apart."
    )


if __name__ == "__main__":
    main()
