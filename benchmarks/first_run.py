"""Minutes of a first `make report`, by notebook: on a quiet machine, and beside a process that never rests.

Each run starts from a fresh clone of the committed state, so that images are drawn and nothing is
known yet; the installation is not measured.

    python benchmarks/first_run.py
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

from medlib.config import ROOT
from medlib.stats.text import to_markdown


def spin() -> None:
    """Keep one core busy until terminated."""
    while True:
        sum(range(1_000_000))


def first_run(profile: str, busy: bool) -> dict:
    """What ``run.json`` says about the time and memory of a first run."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["git", "clone", "--quiet", str(ROOT), folder], check=True)
        other = multiprocessing.get_context("spawn").Process(target=spin, daemon=True)
        if busy:
            other.start()
        try:
            command = [sys.executable, "-m", "medlib", "report", "--profile", profile, "--run-dir", "runs/first"]
            subprocess.run(command, cwd=folder, env=os.environ | {"PYTHONPATH": folder}, check=True)
        finally:
            if busy:
                other.terminate()
        return json.loads(Path(folder, "runs", "first", "run.json").read_text(encoding="utf-8"))["report"]


def table(reports: dict[str, dict]) -> pd.DataFrame:
    """Minutes by notebook; notebooks overlap, so the total is less than their sum."""
    columns = {
        f"{name} (min)": {
            **{notebook: seconds / 60 for notebook, seconds in report["seconds_by_notebook"].items()},
            "total": report["seconds"] / 60,
            "peak memory (GiB)": report["peak_memory_mib"] / 1024,
        }
        for name, report in reports.items()
    }
    return pd.DataFrame(columns).round(1).rename_axis("Notebook").reset_index()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="standin")
    profile = parser.parse_args().profile
    reports = {"quiet": first_run(profile, busy=False), "beside a busy process": first_run(profile, busy=True)}
    print(json.dumps(reports, indent=2))
    print(to_markdown(table(reports)))


if __name__ == "__main__":
    main()
