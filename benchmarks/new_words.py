"""What LoRA adds where the held-out words are new: a stand-in pretrained without the test split's phrases.

The embedded stand-in met the phrases of all splits in pretraining, as MedGemma has met the words of medicine. This
builds another with the same vision tower whose decoder and tokenizer never met those of the test split, trains an
adapter on each, asks both the same held-out cases, and writes the table into benchmarks/README.md. The same
command resumes.

    python benchmarks/new_words.py
    python benchmarks/new_words.py --profile tiny --decoder-steps 20 --per-finding 20 --out /tmp/words.md  # a try
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from noise import options, scores, write

from medlib.config import ADAPTER, jobs, path, resolve
from medlib.data import sources
from medlib.models.standin import medgemma
from medlib.models.standin.words import WITHOUT_TEST
from medlib.stats.text import cells_text, rate_text, to_markdown

MARKS = "<!-- new words: written by benchmarks/new_words.py -->", "<!-- end of new words -->"
SYSTEMS = {"medgemma": "untouched", "two-questions": "untouched, two questions", ADAPTER: "+ LoRA"}


def build(folder: Path, tower: str, per_finding: int, decoder_steps: int) -> str:
    """The stand-in without the test phrases; built unless it is there."""
    if not (folder / "standin.json").is_file():
        medgemma.build(folder, per_finding, decoder_steps=decoder_steps, words=WITHOUT_TEST, tower=tower)
    return str(folder)


def one(profile: str, model: str, test_pairs: int, run_dir: str) -> dict:
    """Train on this stand-in and score every system of it on the held-out suite, by the system's name."""
    config = resolve(profile, model=model, test_pairs=test_pairs, run_dir=run_dir, processes=1)
    suites, file = {"heldout": sources.suite(config, "test")}, path(run_dir) / f"result-{test_pairs}.json"
    found = scores(config, suites, file, tuple(SYSTEMS))
    return {name: found[name]["heldout"] for name in SYSTEMS}


def table(results: dict[str, dict]) -> pd.DataFrame:
    """One row per system, one column per stand-in."""
    return pd.DataFrame(
        {
            "medgemma-nano (stand-in)": text,
            **{
                name: f"{rate_text(result[system]['accuracy'])}; {cells_text(result[system]['accuracy_by_cell'])}"
                for name, result in results.items()
            },
        }
        for system, text in SYSTEMS.items()
    )


def main() -> None:
    parser = options(__doc__, folder="runs/new-words")
    parser.add_argument("--per-finding", type=int, default=1200, help="images of each finding in pretraining")
    parser.add_argument("--decoder-steps", type=int, default=2400)
    given = parser.parse_args()
    folder, known = path(given.folder), resolve(given.profile).model
    new = build(folder / "medgemma-nano", str(path(known)), given.per_finding, given.decoder_steps)
    columns = {"all phrases in pretraining": known, "without the test phrases": new}
    tasks = [
        (given.profile, model, given.test_pairs, str(folder / name.split()[0])) for name, model in columns.items()
    ]
    results = dict(zip(columns, jobs.run(one, tasks, given.processes, "stand-ins")))
    text = to_markdown(table(results))
    print(text)
    write(f"{text}\nProfile `{given.profile}`, {2 * given.test_pairs:,} held-out cases.\n", given.out, MARKS)


if __name__ == "__main__":
    main()
