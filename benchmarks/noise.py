"""Training noise, and what more training pairs bring: supervised training with several seeds and sizes.

A seed draws training cases, adapter and order anew; every adapter answers one and the same held-out suite. What is
finished stays in the folder, so the same command resumes. It ends by writing its table into benchmarks/README.md.

    python benchmarks/noise.py                                             # 5 seeds, 5 sizes with 3 seeds each
    python benchmarks/noise.py --sizes 12 24 --test-pairs 12 --out /tmp/noise.md  # a try
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd

from medlib import stats
from medlib.config import ADAPTER, RunConfig, files, jobs, path, resolve
from medlib.data import sources
from medlib.data.suite import Suite
from medlib.evaluation import measured, summary
from medlib.stats.text import cells_text, percent, points, to_markdown
from medlib.systems import Session
from medlib.training import supervised

MARKS = "<!-- noise: written by benchmarks/noise.py -->", "<!-- end of noise -->"
README = Path(__file__).parent / "README.md"


def one(profile: str, pairs: int, seed: int, test_pairs: int, folder: str) -> dict:
    """Train on this many pairs with this seed and answer the held-out suite of seed 0; read if it is done.

    Returns
    -------
    dict
        ``pairs``, ``seed``, ``accuracy`` (of `stats.score`), ``by_cell`` and ``contradiction``, the accuracy where
        the note contradicts the image.
    """
    run_dir = path(folder) / f"{pairs}-{seed}"
    # the held-out suite of another seed is not read, so it is as small as it may be
    config = resolve(profile, train_pairs=pairs, seed=seed, run_dir=str(run_dir), test_pairs=12, processes=1)
    shared = resolve(profile, seed=0, test_pairs=test_pairs)
    suites = {"heldout": sources.suite(shared, "test"), "contradiction": sources.contradiction(shared, "test")}
    found = scores(config, suites, run_dir / f"result-{test_pairs}.json")[ADAPTER]
    return {
        "pairs": pairs,
        "seed": seed,
        "accuracy": found["heldout"]["accuracy"],
        "by_cell": found["heldout"]["accuracy_by_cell"],
        "contradiction": found["contradiction"]["accuracy"]["value"],
    }


def scores(config: RunConfig, suites: dict[str, Suite], file: Path, systems: tuple[str, ...] = (ADAPTER,)) -> dict:
    """Train what is missing and ask each system about each suite; read from ``file`` if it is done.

    Returns
    -------
    dict
        ``measured`` (of `measured.facts`), and of each system by suite the `stats.score` and ``whole_pairs``.
    """
    supervised.train(config)
    facts = measured.facts(config, suites)
    if before := kept(file, facts):
        return before
    session, result = Session(config, {"train": sources.suite(config, "train")}), {"measured": facts}
    for name in systems:
        frames = {key: session.ask(name, suite) for key, suite in suites.items()}
        result[name] = {key: stats.score(f) | {"whole_pairs": summary.pairs_right(f)} for key, f in frames.items()}
    files.write_json(file, result)
    return result


def kept(file: Path, facts: dict) -> dict | None:
    """What an earlier call measured, if it was of the same weights, adapter and data."""
    result = json.loads(file.read_text()) if file.is_file() else {}
    return result if result.get("measured") == facts else None


def table(results: list[dict]) -> pd.DataFrame:
    """One row per number of training pairs: accuracy of each seed, mean, deviation, least and greatest."""
    rows = []
    for pairs, part in pd.DataFrame(results).groupby("pairs"):
        values = np.array([rate["value"] for rate in part.sort_values("seed")["accuracy"]])
        first = part.sort_values("seed").iloc[0]
        spread = f"{points(100 * values.std(ddof=1))}" if len(values) > 1 else "n/a"
        rows.append(
            {
                "Training pairs": f"{pairs:,}",
                "Seeds": len(values),
                "Accuracy of each": ", ".join(map(percent, values)),
                "Mean": percent(values.mean()),
                "Standard deviation over seeds (points)": spread,
                "Least to greatest": f"{percent(values.min())} to {percent(values.max())}",
                "First seed, 95% CI by cell": cells_text(first["by_cell"]),
                "Note contradicts image, mean": percent(part["contradiction"].mean()),
            }
        )
    return pd.DataFrame(rows)


def write(text: str, file: Path, marks: tuple[str, str] = MARKS) -> None:
    """Put text between the marks of a file; a new file gets them."""
    before = file.read_text(encoding="utf-8") if file.is_file() else "\n".join(marks) + "\n"
    if not 0 <= before.find(marks[0]) < before.find(marks[1]):
        raise SystemExit(
            f"{file}: the marks {marks[0]!r} and {marks[1]!r} are missing; put them back, or give --out"
        )
    head, tail = before.split(marks[0])[0], before.split(marks[1])[1]
    with files.replacement(file) as unfinished:
        unfinished.write_text(f"{head}{marks[0]}\n\n{text}\n{marks[1]}{tail}", encoding="utf-8")


def options(about: str | None, folder: str, profile: str = "standin+full") -> argparse.ArgumentParser:
    """The options that all benchmarks with trainings of their own have."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default=profile)
    parser.add_argument("--test-pairs", type=int, default=1000, help="held-out pairs, one suite for all")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--folder", default=folder, help="where adapters and answers stay")
    parser.add_argument("--out", type=Path, default=README, help="Markdown file for the table")
    return parser


def main() -> None:
    parser = options(__doc__, folder="runs/noise")
    parser.add_argument("--sizes", type=int, nargs="+", default=[75, 150, 300, 600, 1200], help="training pairs")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each size")
    parser.add_argument("--most-seeds", type=int, default=5, help="seeds of the largest size")
    given = parser.parse_args()
    largest = max(given.sizes)
    tasks = [
        (given.profile, pairs, seed, given.test_pairs, given.folder)
        for pairs in sorted(given.sizes, reverse=True)  # the longest first, so that all end together
        for seed in range(given.most_seeds if pairs == largest else given.seeds)
    ]
    text = to_markdown(table(jobs.run(one, tasks, given.processes, "trainings")))
    print(text)
    write(f"{text}\nProfile `{given.profile}`, {2 * given.test_pairs:,} held-out cases of seed 0.\n", given.out)


if __name__ == "__main__":
    main()
