"""The cloud tasks: SkyPilot's own parser where it is installed, and what they run is ours."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys

import pytest
import typer
import yaml

from medlib.cli import main as cli
from medlib.config import ROOT, RunConfig, resolve

TASKS = sorted((ROOT / "cloud").glob("*.yaml"))
#: Fields of SkyPilot 0.14; `test_skypilot_reads_it` asks SkyPilot itself.
FIELDS = {"name", "workdir", "num_nodes", "resources", "envs", "secrets", "file_mounts", "setup", "run"}
RESOURCES = {"any_of", "infra", "accelerators", "cpus", "memory", "disk_size", "autostop"}

every_task = pytest.mark.parametrize("file", TASKS, ids=lambda file: file.stem)


def read(file):
    return yaml.safe_load(file.read_text())


def test_the_clouds_of_the_seed_are_there():
    assert {"a100", "h100", "lambda", "runpod", "vllm-serve", "worklist"} <= {file.stem for file in TASKS}
    infra = {file.stem: read(file)["resources"].get("infra") for file in TASKS}
    assert infra["lambda"] == "lambda" and infra["runpod"] == "runpod" and infra["a100"] is None


@every_task
def test_fields_are_known_and_hold_no_secret(file):
    task = read(file)
    assert set(task) <= FIELDS and set(task["resources"]) <= RESOURCES
    assert task["secrets"] == {"HF_TOKEN": None}
    assert not re.search(r"hf_\w{8}|sk-\w{8}|/home/|/root/", file.read_text())
    assert task["resources"]["autostop"]["idle_minutes"] <= 60  # nothing runs on unwatched


@every_task
def test_scripts_are_valid_shell(file):
    for script in (read(file)["setup"], read(file)["run"]):
        done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr


@every_task
def test_commands_and_flags_are_those_of_the_command_line(file):
    task = read(file)
    commands = typer.main.get_command(cli.app).commands
    lines = task["run"].replace("\\\n", " ").splitlines()
    for words in (shlex.split(line) for line in lines if "-m medlib" in line):
        words = words[words.index("medlib") + 1 :]
        known = {flag for option in commands[words[0]].params for flag in option.opts}
        assert {word for word in words if word.startswith("--")} <= known
        settings = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
        assert {session.partition("=")[0] for session in settings} <= set(RunConfig.model_fields)
    if profile := task["envs"].get("PROFILE"):
        assert resolve(profile).model == "google/medgemma-4b-it"


@every_task
def test_skypilot_reads_it(file, tmp_path):
    """In a process of its own: SkyPilot changes the logging of the one that imports it."""
    python = os.environ.get("SKYPILOT_PYTHON")
    if not python:
        if importlib.util.find_spec("sky") is None:
            pytest.skip(
                "SkyPilot is not installed: pip install 'skypilot>=0.14,<0.15', or name a "
                "Python that has it in SKYPILOT_PYTHON"
            )
        python = sys.executable
    code = (
        "import sys, sky; task = sky.Task.from_yaml(sys.argv[1]); "
        "print(task.name, sum(sum((r.accelerators or {}).values()) for r in task.resources))"
    )
    done = subprocess.run(
        [python, "-c", code, str(file)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    name, cards = done.stdout.split()[-2:]
    assert name == read(file)["name"] and int(cards) >= 1


def test_skypilot_sends_nothing_that_git_ignores():
    git, sky = ((ROOT / name).read_text().splitlines() for name in (".gitignore", ".skyignore"))
    assert set(git) <= set(sky)


def test_no_container_is_built_of_patient_data():
    """A name without a slash means any folder in .gitignore, the first one only in .dockerignore."""
    git, docker = ((ROOT / name).read_text() for name in (".gitignore", ".dockerignore"))
    patients = git[git.index("# ratings") :].splitlines()[1:]
    assert {f"**/{pattern.rstrip('/')}" for pattern in patients} | {"data/own"} <= set(docker.splitlines())
    assert len(patients) > 5 and "!" not in docker


@pytest.mark.parametrize(
    "name",
    [
        "ratings.sqlite",
        "ratings.sqlite-journal",
        "data/store.db",
        "preferences.jsonl",
        "audited/worklist.csv",
        "runs/mine/report/index.html",
    ],
)
def test_git_ignores_ratings_and_what_is_made_of_them(name):
    assert subprocess.run(["git", "-C", str(ROOT), "check-ignore", "-q", name]).returncode == 0
