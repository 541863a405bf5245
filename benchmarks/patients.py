"""Can an adapter learn that the patient decides? Training with more and more patient pairs.

A patient pair shares image, note and treatment; age, sex or history flips the verdict. Phrases and images of the
test suite are in no training. What is finished stays in the folder, so the same command resumes.

    python benchmarks/patients.py
    python benchmarks/patients.py --profile tiny --pairs 0 8 --test-pairs 12 --out /tmp/patients.md  # a try
"""

from __future__ import annotations

import pandas as pd
from noise import options, scores, write

from medlib.config import ADAPTER, jobs, path, resolve
from medlib.data import sources
from medlib.stats.text import cells_text, rate_text, to_markdown

MARKS = "<!-- patients: written by benchmarks/patients.py -->", "<!-- end of patients -->"


def one(profile: str, pairs: int, test_pairs: int, folder: str) -> dict:
    """Scores by suite of an adapter that was trained on this many patient pairs beside the training suite."""
    run_dir = path(folder) / str(pairs)
    config = resolve(profile, patient_pairs=pairs, test_pairs=test_pairs, run_dir=str(run_dir), processes=1)
    suites = {
        "patients": sources.patient_pairs(config, "test", test_pairs),
        "heldout": sources.suite(config, "test"),
    }
    return {"pairs": pairs} | scores(config, suites, run_dir / f"result-{test_pairs}.json")[ADAPTER]


def table(results: list[dict]) -> pd.DataFrame:
    """One row per number of patient pairs in training."""
    return pd.DataFrame(
        {
            "Patient pairs in training": f"{result['pairs']:,}",
            "The patient decides": rate_text(result["patients"]["accuracy"]),
            "95% CI by cell": cells_text(result["patients"]["accuracy_by_cell"]),
            "Whole patient pairs": rate_text(result["patients"]["whole_pairs"]),
            "Held out": rate_text(result["heldout"]["accuracy"]),
        }
        for result in results
    )


def main() -> None:
    parser = options(__doc__, folder="runs/patients")
    parser.add_argument("--pairs", type=int, nargs="+", default=[0, 400, 1200, 3600], help="patient pairs")
    given = parser.parse_args()
    tasks = [(given.profile, pairs, given.test_pairs, given.folder) for pairs in given.pairs]
    text = to_markdown(table(jobs.run(one, tasks, given.processes, "trainings")))
    print(text)
    write(
        f"{text}\nProfile `{given.profile}`, {2 * given.test_pairs:,} cases of each suite, seed 0.\n",
        given.out,
        MARKS,
    )


if __name__ == "__main__":
    main()
