"""SIGKILL at random moments of every command; a rerun must end as a run that nobody disturbed.

Works in a fresh clone of the committed state on the profile tiny, and writes what it found to benchmarks/kills.md.
Every command is a copy of one process that has imported all packages, so that kills hit work and not imports.

    python benchmarks/kills.py --kills 200
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import json
import multiprocessing
import os
import pkgutil
import queue
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import nbformat
import pandas as pd
import yaml

from medlib.config import ROOT, files
from medlib.stats.text import to_markdown

RUN, SUITE, LABELLED = "runs/killed", "data/suites/test-24-0", "runs/labelled"
#: Each starts from what those before it left.
COMMANDS = {
    "data": ["data", "--profile", "tiny"],
    "sweep": ["sweep", "--trials", "2", "--profile", "tiny", "--run-dir", "runs/sweep"],
    "standin": [
        *("standin", "--data", LABELLED, "--out", "runs/standins"),
        *("--set", "epochs=4", "--set", "encoder_epochs=4", "--set", "decoder_steps=60", "--set", "size=56"),
    ],
    "train": ["train", "--profile", "tiny", "--run-dir", RUN],
    "evaluate": ["evaluate", "--run-dir", RUN],
    "preferences": ["preferences", f"{RUN}/exported-preferences.jsonl", "--run-dir", RUN],
    "rl": ["rl", "--run-dir", RUN],
    "benchmark": ["benchmark", "--run-dir", RUN],
    "audit": [
        "audit",
        "--cases",
        f"{SUITE}/scenarios.jsonl",
        "--images",
        f"{SUITE}/images",
        "--out",
        f"{RUN}/audited",
        "--run-dir",
        RUN,
    ],
    "publish": ["publish", "owner/name", "--run-dir", RUN],
    "report": ["report", "--profile", "tiny", "--run-dir", "runs/report"],
}
#: Of a row or a record: what no two runs share.
VOLATILE = re.compile(r"second|minute|hour|time|memory|per_second|resumed|date|dirty|usd", re.IGNORECASE)

HEAD = """# Kills

`python benchmarks/kills.py --kills {kills} --seed {seed}`: SIGKILL at a random moment of a command on the profile
tiny, then the same command again. Compared are images, suites, weights, answers, predictions, scores, ratings and
reports with those of an undisturbed run; times are not.

"""


# --- what a command leaves ----------------------------------------------------------------------------


def state(folder: Path) -> dict[str, object]:
    """Results in a folder by file, without what no two runs share: times, and files of unfinished work."""
    return {
        file.relative_to(folder).as_posix(): content
        for file in sorted(folder.rglob("*"))
        if file.is_file() and (content := _content(file)) is not None
    }


def _content(file: Path) -> object:
    if file.suffix in (".tmp", ".lock") or {"checkpoints", "progress", "__pycache__", ".image_features"} & set(
        file.parts
    ):
        return None
    if file.suffix == ".csv":
        return _lasting(pd.read_csv(file, dtype=str).fillna("").to_dict("records"))
    if file.suffix in (".png", ".jpg", ".safetensors"):
        return hashlib.sha256(file.read_bytes()).hexdigest()
    if file.suffix == ".jsonl":
        rows = [json.dumps(_lasting(json.loads(line))) for line in file.read_text("utf-8").splitlines()]
        return sorted(set(rows)) if file.parent.name == "answers" else rows
    if file.name in ("metrics.json", "suite.json", "split.json"):
        return _lasting(json.loads(file.read_text("utf-8")))
    if file.suffix == ".json":
        return bool(json.loads(file.read_text("utf-8")))  # whole; most of it is about this run
    if file.suffix == ".yaml":
        return yaml.safe_load(file.read_text("utf-8"))
    if file.suffix == ".ipynb":
        return nbformat.read(file, 4).metadata.get("papermill", {}).get("exception")
    if file.suffix == ".sqlite":
        with contextlib.closing(sqlite3.connect(file)) as store:
            return store.execute("SELECT rater, key, agree, severity FROM ratings ORDER BY id").fetchall()
    if file.suffix == ".html":
        return file.read_text("utf-8").rstrip().endswith("</html>")
    return True


def _lasting(value):
    if isinstance(value, dict):
        return {name: _lasting(item) for name, item in value.items() if not VOLATILE.search(name)}
    return [_lasting(item) for item in value] if isinstance(value, list) else value


def differences(expected: dict[str, object], found: dict[str, object]) -> list[str]:
    """Files that are missing, too many or of another content."""
    return sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))


# --- commands -----------------------------------------------------------------------------------------


def serve() -> None:
    """Run a command for every line of the input: its arguments as JSON; prints process group and exit status."""
    import medlib

    heavy = ("optuna", "papermill", "peft", "seaborn", "sklearn.ensemble", "sklearn.linear_model", "trl")
    names = [module.name for module in pkgutil.walk_packages(medlib.__path__, "medlib.")]
    for name in (*names, *heavy):
        if not name.endswith("__main__"):
            importlib.import_module(name)
    for line in sys.stdin:
        process = multiprocessing.get_context("fork").Process(target=_command, args=(json.loads(line),))
        process.start()
        os.setpgid(process.pid, process.pid)
        print(process.pid, flush=True)
        process.join()
        print(process.exitcode, flush=True)


def _command(arguments: list[str]) -> None:
    from medlib.cli.main import main

    log = os.open("killed.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    sys.argv = ["medlib", *arguments]
    main()


def draw_labelled(folder: Path) -> None:
    """Labelled images, as folders of modality, finding and group, for the command `standin`."""
    from medlib.data.synthetic import lexicon
    from medlib.data.synthetic.draw import draw

    for number, finding in enumerate(lexicon.FINDINGS):
        for image in range(12):
            file = folder / finding.modality / finding.name / f"{number}-{image // 2}" / f"{number}-{image}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            draw(finding.modality, finding.name, 1000 * number + image, 112).save(file)


class Server:
    """A process that `serve` runs in, in a clone; one command at a time."""

    def __init__(self, folder: Path) -> None:
        environment = {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "MEDLIB_PROCESSES": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(Path("benchmarks", "kills.py")), "--serve"],
            cwd=folder, env=os.environ | environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put("no more: the process has ended")

    def start(self, arguments: list[str]) -> int:
        """Process group of a command that has begun."""
        print(json.dumps(arguments), file=self.process.stdin, flush=True)
        return int(self.lines.get())

    def wait(self, timeout: float | None = None) -> int:
        """Exit status of the command, negative if it was killed; queue.Empty if it takes longer."""
        return int(self.lines.get(timeout=timeout))


# --- kills --------------------------------------------------------------------------------------------


class Project:
    """A clone of the repository in which commands run; ``keep`` and ``restore`` go back before one of them."""

    RESULTS = ("runs", "data/suites", "data/core24/images")

    def __init__(self, folder: Path) -> None:
        self.folder, self.kept = folder / "project", folder / "kept"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(self.folder)], check=True)
        self.server = Server(self.folder)

    def keep(self, name: str) -> None:
        for part in self.RESULTS:
            if (self.folder / part).is_dir():
                shutil.copytree(self.folder / part, self.kept / name / part)

    def restore(self, name: str) -> None:
        for part in self.RESULTS:
            shutil.rmtree(self.folder / part, ignore_errors=True)
            if (self.kept / name / part).is_dir():
                shutil.copytree(self.kept / name / part, self.folder / part)

    def finish(self, name: str) -> float:
        """Seconds of the whole command; RuntimeError with its last words if it fails."""
        started = time.monotonic()
        self.server.start(COMMANDS[name])
        if self.server.wait():
            log = (self.folder / "killed.log").read_text("utf-8", "replace").strip()
            raise RuntimeError(log.splitlines()[-1])
        return time.monotonic() - started

    def state(self) -> dict[str, object]:
        return {
            f"{part}/{name}": content
            for part in self.RESULTS
            for name, content in state(self.folder / part).items()
        }


def kill(project: Project, name: str, after: float) -> bool:
    """Start a command and kill it and its process group; False if it was over by then."""
    group = project.server.start(COMMANDS[name])
    with contextlib.suppress(queue.Empty):
        project.server.wait(after)
        return False
    os.killpg(group, signal.SIGKILL)
    project.server.wait()
    time.sleep(2)  # kernels see within a second that their parent is gone
    return True


def trial(project: Project, name: str, after: float, expected: dict[str, object]) -> dict:
    """One kill and one rerun."""
    project.restore(name)
    killed = kill(project, name, after)
    try:
        project.finish(name)
        changed = differences(expected, project.state())
    except (RuntimeError, ValueError, OSError) as error:
        changed = [f"{type(error).__name__}: {error}"]
    return {"command": name, "after": round(after, 2), "killed": killed, "differs": "; ".join(changed[:5])}


def summary(trials: pd.DataFrame, seconds: dict[str, float]) -> pd.DataFrame:
    """One row per command: kills, and after how many a rerun ended as an undisturbed run."""
    groups = trials.groupby("command", sort=False)
    table = pd.DataFrame(
        {
            "Seconds undisturbed": pd.Series(seconds).round(1),
            "Kills": groups["killed"].sum(),
            "Ended as undisturbed": groups["differs"].agg(lambda d: (d == "").sum()),
            "Trials": groups.size(),
        }
    )
    return table.loc[list(seconds)].rename_axis("Command").reset_index()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--commands", default=",".join(COMMANDS), help="of these only; earlier ones still run once"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve()
        return
    chosen, rng = arguments.commands.split(","), random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        project, seconds, expected = Project(Path(folder)), {}, {}
        draw_labelled(project.folder / LABELLED)
        for name in list(COMMANDS)[: max(map(list(COMMANDS).index, chosen)) + 1]:
            project.keep(name)
            seconds[name] = project.finish(name)
            expected[name] = project.state()
            print(f"{name}: {seconds[name]:.1f} s undisturbed", flush=True)
        trials: list[dict] = []
        names = plan({name: seconds[name] for name in COMMANDS if name in chosen}, arguments.kills, rng)
        for name in names:
            trials.append(trial(project, name, rng.uniform(0, seconds[name]), expected[name]))
            if not trials[-1]["killed"]:  # it was over by then
                names.append(name)
            print(f"{len(trials)} of {len(names)}: {json.dumps(trials[-1])}", flush=True)
            write(pd.DataFrame(trials), seconds, arguments.seed, arguments.out)


def plan(seconds: dict[str, float], kills: int, rng: random.Random) -> list[str]:
    """Commands in random order; every command gets three kills, the rest go to each for an equal time."""
    share = {name: 1 / s for name, s in seconds.items()}
    more = rng.choices(list(share), list(share.values()), k=max(0, kills - 3 * len(share)))
    named = [*share] * 3 + more
    rng.shuffle(named)
    return named[:kills]


def write(trials: pd.DataFrame, seconds: dict[str, float], seed: int, out: Path) -> None:
    """The table of what was tried so far; an interruption leaves it."""
    text = HEAD.format(kills=trials["killed"].sum(), seed=seed)
    text += to_markdown(summary(trials, {n: s for n, s in seconds.items() if n in set(trials["command"])}))
    for row in trials[trials["differs"] != ""].itertuples():
        text += f"\n- {row.command}, killed after {row.after} s: {row.differs}"
    files.write_text(out, text.rstrip() + "\n")


if __name__ == "__main__":
    main()
