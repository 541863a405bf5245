"""The command line: its flags, its one-line errors, its dry run."""

import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from medlib.cli import main as cli
from medlib.cli import options
from medlib.config import ROOT, ConfigError

COMMANDS = ("data", "standin", "train", "evaluate", "benchmark", "report")


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command in this process; returns exit status (a text is the error line) and output."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["medlib", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, capsys.readouterr().out

    return run


def test_help_lists_the_commands():
    text = CliRunner().invoke(cli.app, ["--help"], env={"COLUMNS": "200"}).output
    assert all(command in text for command in COMMANDS)


def test_help_of_train_lists_the_flags():
    text = CliRunner().invoke(cli.app, ["train", "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"}).output
    for flag in (
        "--model",
        "--images",
        "--epochs",
        "--batch-size",
        "--lr",
        "--lora-rank",
        "--lora-alpha",
        "--lora-dropout",
        "--weight-decay",
        "--use-8bit",
        "--seed",
        "--allow-masks",
        "--dry-run",
        "--profile",
        "--set",
        "--run-dir",
    ):
        assert flag in text, flag


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["train", "--profile", "nope"], "profile 'nope' not found"),
        (["train", "--lr", "-1"], "lr"),
        (["train", "--set", "lora_targets=everything"], "lora_targets"),
        (["train", "--set", "no_such_name=1"], "no_such_name"),
        (["train", "--set", "epochs"], "expected name=value"),
        (["train", "--set", "epochs=["], "epochs=["),
        (["train", "--set", "profile=tiny"], "profile"),
        (["evaluate", "--adapter", "/no/such/adapter"], "adapter_model.safetensors is missing"),
        (["train", "--profile", "tiny", "--model", "models/no-such-model"], "models/no-such-model"),
    ],
)
def test_a_problem_is_one_clear_line(run, small_config, arguments, said):
    status, _ = run(*arguments)
    assert isinstance(status, str)  # Python prints it and exits with 1
    assert status.startswith("error: ") and said in status and "\n" not in status


def test_a_real_process_exits_with_1_and_without_a_traceback():
    done = subprocess.run(
        [sys.executable, "-m", "medlib", "train", "--profile", "nope"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and not done.stdout
    # the last line: an optional package may have said something of its own before
    assert done.stderr.strip().splitlines()[-1].startswith("error: profile 'nope' not found")
    assert "Traceback" not in done.stderr


def test_a_bad_value_is_a_usage_error():
    result = CliRunner().invoke(cli.app, ["train", "--epochs", "many"], env={"COLUMNS": "200"})
    assert result.exit_code == 2 and "--epochs" in result.output and "Traceback" not in result.output


def test_dry_run_prints_the_trainable_share(run, small_config):
    status, output = run(
        "train",
        "--dry-run",
        "--model",
        small_config.model,
        "--run-dir",
        small_config.run_dir,
        "--lora-rank",
        "8",
        "--set",
        "train_pairs=12",
        "--set",
        "val_pairs=12",
        "--set",
        "test_pairs=12",
    )
    assert status == 0
    counts = json.loads(output)
    assert 0 < counts["trainable_percent"] < 3
    assert counts["trainable_parameters"] < counts["total_parameters"]


def test_model_names_rows_of_the_benchmark_or_the_base_model():
    assert options.rows_and_base(None) == (None, None)
    assert options.rows_and_base(["google/medgemma-4b-it"]) == (None, "google/medgemma-4b-it")
    named = ["constant", "openai:gpt-4o", "models/medgemma-nano", "medgemma-lora"]
    assert options.rows_and_base(named) == (("constant", "openai:gpt-4o", "medgemma-lora"), "models/medgemma-nano")
    with pytest.raises(ConfigError, match="two base models: a/b, c/d"):
        options.rows_and_base(["a/b", "c/d"])


def test_benchmark_of_named_rows_prints_their_table(run, small_config):
    status, output = run(
        "benchmark",
        "--profile",
        "tiny",
        "--model",
        "constant",
        "--model",
        "heuristics",
        "--run-dir",
        small_config.run_dir,
        "--set",
        "train_pairs=12",
        "--set",
        "val_pairs=12",
        "--set",
        "test_pairs=12",
        "--set",
        "contradiction_pairs=4",
    )
    assert status == 0
    assert "| constant | 24 | 50.0%" in output and "| heuristics |" in output
    assert "medgemma" not in output


def test_any_setting_can_be_set(monkeypatch):
    config = options.configuration("tiny", ["images_dir=somewhere", "core_folds=true", "lr=2e-3"])
    assert (config.images_dir, config.core_folds, config.lr) == ("somewhere", True, 2e-3)
