"""Asking about a case and about worklists: seconds of a first and of later answers, throughput and memory.

    python benchmarks/audit.py --run-dir runs/RUN --worklists 1000 10000

The run needs a trained adapter. Its reference (`medlib.audit.reference`) is made beforehand and not timed. Every
figure comes from a process of its own; memory is the most that it held.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from medlib.config import RunConfig, resolve, runs

IMPORTS = (
    "import medlib.cli.audit, medlib.cli.options, medlib.audit.auditor, medlib.audit.cases, medlib.models.loading"
)
BARS = {"first": 12.0, "next": 0.3, "map": 2.0}


def timed(*command: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def one_case(run_dir: str, repeats: int = 3) -> dict[str, float]:
    """Median seconds of a whole process that answers one case, and of its imports alone."""
    suite = held_out(run_dir, 2)
    case = suite.scenarios[0]
    question = ["--image", str(suite.images_dir / case.image), "--finding", case.finding]
    question += ["--treatment", case.treatment, "--modality", case.modality, "--run-dir", run_dir]
    first = [timed("-m", "medlib", "audit", *question) for _ in range(repeats)]
    imports = [timed("-c", f"{IMPORTS}; import medlib.systems.medgemma") for _ in range(repeats)]
    return {"first": statistics.median(first), "imports": statistics.median(imports)}


def later_cases(run_dir: str, count: int = 20) -> dict[str, float]:
    """Median seconds of an answer once another was given, and of an answer's map."""
    from medlib.audit.auditor import Auditor

    suite = held_out(run_dir, count + 2)
    auditor = Auditor(settings(run_dir))
    auditor.case(suite.scenarios[0], suite.images_dir, with_map=True)
    answers, maps = [], []
    for row in range(1, count + 1):
        answers.append(auditor.case(suite.scenarios[row], suite.images_dir).seconds)
    for row in range(1, 6):
        started = time.perf_counter()
        auditor.map(suite.rows([row]))
        maps.append(time.perf_counter() - started)
    return {"next": statistics.median(answers), "map": statistics.median(maps)}


def worklist(run_dir: str, cases: int) -> dict[str, float]:
    """Cases a second of a worklist and of the benchmark's scoring of the same cases, and peak memory in MiB."""
    from medlib.audit import cases as reading
    from medlib.audit import worklist as lists
    from medlib.audit.auditor import Auditor

    suite = held_out(run_dir, cases)
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "list.csv"
        with table.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "image", "modality", "age", "sex", "complaint", "finding", "treatment"])
            for s in suite.scenarios[:cases]:
                patient = s.patient
                words = [patient.age, patient.sex, patient.complaint, s.finding, s.treatment]
                writer.writerow([s.id, s.image, s.modality, *words])
        rows, images_dir, _ = reading.rows(table, suite.images_dir)
        auditor = Auditor(settings(run_dir))
        _ = auditor.reference
        before = peak()
        done = lists.run(auditor, rows, images_dir, Path(folder) / "out")
    return {
        "cases": done.asked,
        "seconds": done.seconds,
        "per_second": done.asked / done.seconds,
        "peak_before_mib": before,
        "peak_mib": peak(),
    }


def evaluation(run_dir: str, cases: int) -> dict[str, float]:
    """Cases a second of the benchmark's scoring, no image known."""
    from medlib.audit.auditor import Auditor
    from medlib.models import features, scoring

    suite, auditor = held_out(run_dir, cases), Auditor(settings(run_dir))
    assert auditor.model is not None
    started = time.perf_counter()
    with features.forgotten(auditor.model.network):
        scoring.p_correct(auditor.model, suite, auditor.config.eval_batch_size)
    return {"cases": len(suite), "per_second": len(suite) / (time.perf_counter() - started)}


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def settings(run_dir: str) -> RunConfig:
    return runs.recorded(run_dir) or resolve("standin", run_dir=run_dir)


def held_out(run_dir: str, cases: int):
    """As many held-out cases, made if they are not there yet."""
    from medlib.data import sources

    config = settings(run_dir)
    return sources.suite(config.model_copy(update={"test_pairs": max(12, (cases + 1) // 2)}), "test")


PARTS = {"one_case": one_case, "later_cases": later_cases, "worklist": worklist, "evaluation": evaluation}


def alone(part: str, *arguments) -> dict:
    """A part in a process of its own."""
    command = [sys.executable, __file__, "--part", part, "--arguments", *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run-dir", default="runs/latest")
    parser.add_argument("--worklists", type=int, nargs="*", default=[1000, 10000], help="cases of each worklist")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--arguments", nargs="*", default=[], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        run_dir, *numbers = given.arguments
        print(json.dumps(PARTS[given.part](run_dir, *map(int, numbers))))
        return
    from medlib.audit.auditor import Auditor

    _ = Auditor(settings(given.run_dir)).reference
    measured = alone("one_case", given.run_dir) | alone("later_cases", given.run_dir)
    for name, bar in BARS.items():
        print(f"| {name} | {measured[name]:.2f} s | at most {bar:g} s |", flush=True)
    print(f"| of the first: imports | {measured['imports']:.2f} s | |", flush=True)
    lists = []
    for cases in given.worklists:
        held_out(given.run_dir, cases)
        scored, listed = alone("evaluation", given.run_dir, cases), alone("worklist", given.run_dir, cases)
        lists.append(listed | {"evaluation_per_second": scored["per_second"]})
        print(
            f"| {listed['cases']:,} | {listed['per_second']:.1f} cases/s | evaluation {scored['per_second']:.1f} "
            f"cases/s | {listed['peak_mib']:.0f} MiB |",
            flush=True,
        )
    print(json.dumps(measured | {"worklists": lists}))


if __name__ == "__main__":
    main()
