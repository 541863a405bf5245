"""What 8 and 4 bits of base weights cost: verdicts of one adapter over each, on the held-out suite.

python benchmarks/quantization.py --profile standin --adapter runs/dev/adapter --scenarios 200
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import pandas as pd

from medlib import stats
from medlib.config import path, resolve
from medlib.data import sources
from medlib.models import loading, scoring

FORMATS = [
    ("float32", None),
    ("float16", None),
    ("bfloat16", None),
    ("float32", "8bit"),
    ("float32", "4bit"),
    ("float16", "4bit"),
    ("float32", "int8"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="standin")
    parser.add_argument("--adapter", default="runs/latest/adapter")
    parser.add_argument("--scenarios", type=int, default=200)
    arguments = parser.parse_args()
    config = resolve(arguments.profile, test_pairs=-(-arguments.scenarios // 2))
    suite = sources.suite(config, "test")
    reference = None
    print(f"{len(suite)} scenarios, {loading.pick_device()}; the first row is the reference\n")
    print(
        "| Format | Quantization | Weights (MB) | Accuracy (95% interval) | Max. difference in p | "
        "Verdicts changed | Seconds |\n|---|---|---|---|---|---|---|",
        flush=True,
    )
    for dtype, quantization in FORMATS:
        chosen = config.model_copy(update={"dtype": dtype, "quantization": quantization})
        base = loading.load_for(chosen)
        # torchao hides its bytes behind the old dtype
        size = sum(getattr(p.data, "qdata", p.data).nbytes for p in base.network.parameters()) / 1e6
        model = base.with_adapter(path(arguments.adapter))
        started = time.perf_counter()
        p = scoring.p_correct(model, suite, config.eval_batch_size)
        seconds = time.perf_counter() - started
        reference = p if reference is None else reference
        answered = pd.DataFrame({"p_correct": p})
        accuracy = stats.score(stats.predictions_table(suite.scenarios, answered))["accuracy"]
        changed = int(((p >= 0.5) != (reference >= 0.5)).sum())
        interval = "{value:.1%} ({low:.1%} to {high:.1%})".format(**accuracy)
        print(
            f"| {dtype} | {quantization or 'none'} | {size:.1f} | {interval} | "
            f"{np.abs(p - reference).max():.4f} | {changed} | {seconds:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
