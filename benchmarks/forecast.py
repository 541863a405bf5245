"""Forecast memory against what a training takes on this CPU, for two models with and without checkpointing.

Each case trains a few steps in a process of its own; what counts is how far its resident memory grows
from before the model is loaded to the peak of training. Memory is handed back to the system at once
(MALLOC_MMAP_THRESHOLD_), so that the figure shows what is held and not what the allocator hoards.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

#: A random-weight Gemma 3 between the stand-in and the real thing; 234 million parameters.
MIDDLE = dict(
    text_config=dict(
        vocab_size=32768,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=12,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=128,
        query_pre_attn_scalar=128,
        sliding_window=512,
        pad_token_id=0,
        max_position_embeddings=1024,
    ),
    vision_config=dict(
        hidden_size=384,
        intermediate_size=1536,
        num_hidden_layers=6,
        num_attention_heads=6,
        image_size=112,
        patch_size=14,
        vision_use_head=False,
    ),
)


def middle_model(folder: Path) -> str:
    """Write the middle model with the stand-in's processor into a folder."""
    import torch
    from transformers import AutoProcessor, Gemma3Config, Gemma3ForConditionalGeneration

    from medlib.config import STANDIN
    from medlib.models import loading

    standin = json.loads((Path(loading.locate(STANDIN)) / "config.json").read_text())
    tokens = {
        name: standin[name]
        for name in ("boi_token_index", "eoi_token_index", "image_token_index", "mm_tokens_per_image")
    }
    torch.manual_seed(0)
    Gemma3ForConditionalGeneration(Gemma3Config(**MIDDLE, **tokens)).save_pretrained(folder)
    AutoProcessor.from_pretrained(loading.locate(STANDIN)).save_pretrained(folder)
    return str(folder)


class Peak(threading.Thread):
    """Highest resident memory of this process while it runs, in bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes, self.running = 0, True

    def run(self) -> None:
        while self.running:
            self.bytes = max(self.bytes, psutil.Process().memory_info().rss)
            time.sleep(0.002)


def measure(settings: dict) -> dict:
    """Train a few steps; forecast and measured peak growth of resident memory in GiB."""
    from medlib.config import resolve
    from medlib.data import sources
    from medlib.models import loading
    from medlib.training import forecast

    config = resolve(None, **settings)
    suite = sources.suite(config, "train")
    count = 2 * config.batch_size  # two steps: the optimizer has its moments in the second
    train(resolve(None, model="models/medgemma-nano", batch_size=2), suite, 4)  # libraries come in
    before = psutil.Process().memory_info().rss
    peak, rows, seconds = train(config, suite, count)
    tokens = max(len(row["input_ids"]) for row in rows)
    result = forecast.forecast(config, "cpu", tokens=tokens)
    return {
        "forecast": result["memory_gib"]["peak"],
        "measured": (peak - before) / 2**30,
        "tokens": tokens,
        "seconds": seconds,
        "parts": result["memory_gib"],
        "parameters": result["parameters"],
        "models": loading.locate(config.model),
    }


def train(config, suite, count: int) -> tuple[int, list[dict], float]:
    from medlib.models import loading
    from medlib.training import encoding, trainer

    model = loading.load_for(config)
    rows = encoding.encode(model.processor, suite.scenarios[:count], [suite.images_dir] * count)
    rows = encoding.cache_image_features(model.network, rows, batch_size=4)
    started, peak = time.perf_counter(), Peak()
    peak.start()
    with tempfile.TemporaryDirectory() as folder:
        trainer.train_adapter(model, rows, [], config, folder, resume=False, quiet=True)
    peak.running = False
    peak.join()
    return peak.bytes, rows, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", help="settings as JSON; used by the script itself")
    arguments = parser.parse_args()
    if arguments.measure:
        print("RESULT " + json.dumps(measure(json.loads(arguments.measure))))
        return
    print("| Model | Batch | Checkpointing | Forecast (GiB) | Measured (GiB) | Difference |")
    print("|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        cases = [("stand-in", "models/medgemma-nano", 64), ("234 M", middle_model(Path(folder)), 8)]
        for name, model, batch in cases:
            for checkpointing in (False, True):
                settings = {
                    "model": model,
                    "train_pairs": 72,
                    "batch_size": batch,
                    "epochs": 1,
                    "gradient_checkpointing": checkpointing,
                    "dtype": "float32",
                }
                process = subprocess.run(
                    [sys.executable, __file__, "--measure", json.dumps(settings)],
                    capture_output=True,
                    text=True,
                    env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"},
                )
                lines = [line for line in process.stdout.splitlines() if line.startswith("RESULT ")]
                if not lines:
                    sys.exit(process.stderr)
                r = json.loads(lines[0].removeprefix("RESULT "))
                print(
                    f"| {name} | {batch} | {'on' if checkpointing else 'off'} | {r['forecast']:.2f} | "
                    f"{r['measured']:.2f} | {r['forecast'] / r['measured'] - 1:+.0%} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
