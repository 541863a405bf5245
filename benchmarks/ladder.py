"""Seconds of the whole benchmark: every local row on every suite, first cold and then with kept answers.

The bars: ten minutes cold for 2,000 held-out scenarios on two cores, thirty seconds warm.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time

from medlib.config import path, resolve
from medlib.evaluation import benchmark


def seconds(config) -> float:
    """Wall clock of one benchmark, models loaded anew."""
    started = time.perf_counter()
    benchmark.benchmark(config)
    return round(time.perf_counter() - started, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapter", required=True, help="adapter folder, as of a run")
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--rows-only", action="store_true", help="without ablations and free answers")
    arguments = parser.parse_args()
    less = {"ablations": False, "generate": False} if arguments.rows_only else {}
    with tempfile.TemporaryDirectory() as folder:
        config = resolve(
            "standin",
            run_dir=folder,
            adapter=str(path(arguments.adapter)),
            core_folds=False,
            test_pairs=arguments.pairs,
            **less,
        )
        times = {"cold": seconds(config), "warm": seconds(config)}
    print(json.dumps({"scenarios": 2 * arguments.pairs, **times}))


if __name__ == "__main__":
    main()
