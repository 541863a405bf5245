"""The command line: its flags, its one-line errors, its dry run."""

import json
import os
import subprocess
import sys

import nbformat
import pytest
from typer.testing import CliRunner

from medlib.cli import main as cli
from medlib.cli import options
from medlib.config import ROOT, ConfigError, path, resolve, runs
from medlib.models import loading
from medlib.reporting import execute, pages
from medlib.training import encoding, lora, supervised, trainer

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
        (["train", "--set", "lr=null"], "lr=null"),
        (["train", "--set", "reward_epochs=2"], "reward_epochs: would not take effect"),
        (["data", "--set", "lora_rank=4"], "lora_rank: would not take effect"),
        (["evaluate", "--set", "corruption_pairs=8"], "corruption_pairs: would not take effect"),
        (["preferences", "out.jsonl", "--set", "ppo_lr=1"], "ppo_lr: would not take effect"),
        (["audit", "--cases", "x.csv", "--set", "rl_seeds=1"], "rl_seeds: would not take effect"),
        (["audit", "--image", "x.png", "--finding", "a mass"], "--treatment missing"),
        (["audit", "--cases", "x.csv", "--image", "x.png"], "--image: of one case"),
        (["audit", "--cases", "x.csv"], "x.csv: no such file"),
        (["sweep", "--set", "test_pairs=8", "--set", "systems=[constant]"], "systems: would not take effect"),
        (
            ["evaluate", "--profile", "tiny", "--adapter", "/no/such/adapter"],
            "adapter_model.safetensors is missing",
        ),
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


@pytest.mark.parametrize("command", ["evaluate", "benchmark", "rl", "report", "publish a/b"])
def test_a_finished_run_of_another_model_is_refused(run, tmp_path, command):
    runs.record(resolve("tiny", run_dir=str(tmp_path)))
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_model.safetensors").touch()
    status, _ = run(*command.split(), "--model", "someone/another", "--run-dir", str(tmp_path))
    assert "model='someone/another' would not take effect" in status and "models/medgemma-nano" in status


def cells_of(notebook, **parameters):
    """Run a notebook's cell of parameters and the one that reads them, with these given; its names."""
    names, cells = {}, [c for c in nbformat.read(notebook, 4).cells if c.cell_type == "code"]
    first = next(i for i, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", []))
    exec(cells[first].source, names)
    names.update(parameters)
    exec(cells[first + 1].source.replace("%matplotlib inline", ""), names)
    return names


@pytest.mark.parametrize("notebook", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda file: file.stem)
def test_every_notebook_takes_all_settings_from_run_json(notebook, tmp_path):
    config = resolve("tiny", run_dir=str(tmp_path), lora_rank=4, note_pairs=8, risk_level=0.3, api_retries=1)
    runs.record(config)
    assert cells_of(notebook, run_dir=str(tmp_path), profile=None)["config"] == config


def test_report_trains_with_every_setting_that_is_given(run, small_config, monkeypatch):
    trained = []

    def train_adapter(base, rows, val_rows, config, out, extra):
        trained.append((rows, config))

    def notebooks(run_dir, parameters, **_):
        names = cells_of(ROOT / "notebooks" / "03_train_lora.ipynb", run_dir=run_dir, **parameters)
        supervised.train(names["config"])
        later = cells_of(ROOT / "notebooks" / "04_evaluate.ipynb", run_dir=run_dir)
        assert later["config"] == names["config"]

    def scenarios(config, model, suites):
        return [s for suite in suites for s in suite.scenarios]

    monkeypatch.setattr(trainer, "train_adapter", train_adapter)
    monkeypatch.setattr(loading, "load_for", lambda config: (None, None))
    monkeypatch.setattr(
        encoding, "encode_suites", lambda *given: [s for suite in given[2] for s in suite.scenarios]
    )
    monkeypatch.setattr(execute, "run_notebooks", notebooks)
    monkeypatch.setattr(pages, "render", lambda run_dir: "page")
    given = ["quantization=4bit", "use_rslora=true", "note_pairs=4", "train_pairs=12"]
    sets = [word for setting in given for word in ("--set", setting)]
    where = ("--model", small_config.model, "--run-dir", small_config.run_dir)
    status, _ = run("report", "--profile", "tiny", *where, *sets)
    assert status == 0
    ((rows, config),) = trained
    assert (config.quantization, config.use_rslora, config.note_pairs) == ("4bit", True, 4)
    assert lora.lora_config(config).use_rslora and len(rows) == 16 + 2 * 12 + 2 * 4
    record = json.loads((path(small_config.run_dir) / "run.json").read_text())["parameters"]
    assert (record["quantization"], record["use_rslora"], record["note_pairs"]) == ("4bit", True, 4)
    # called again without them, the run keeps them
    assert runs.recorded(small_config.run_dir) == config
    run("report", "--run-dir", small_config.run_dir)
    assert trained[-1][1] == config


def test_any_setting_can_be_set(monkeypatch):
    config = options.configuration("report", "tiny", ["images_dir=somewhere", "core_folds=true", "lr=2e-3"])
    assert (config.images_dir, config.core_folds, config.lr) == ("somewhere", True, 2e-3)


def test_data_check_reports_and_exits_by_whether_every_row_was_read(run, tmp_path):
    from PIL import Image

    for i in range(6):
        Image.effect_noise((64, 64), 40 + i).save(tmp_path / f"{i}.png")
    rows = [f"{i},{i}.png,lesion {i},biopsy,{('yes', 'no')[i % 2]}" for i in range(6)]
    (tmp_path / "cases.csv").write_text("\n".join(["id,image,finding,treatment,verdict", *rows]))
    status, out = run("data", "--check", str(tmp_path))
    assert status in (0, None) and "6 cases" in out and "none: every row was read" in out
    (tmp_path / "cases.csv").write_text(
        "\n".join(["id,image,finding,treatment,verdict", *rows, "7,7.png,a,b,maybe"])
    )
    status, out = run("data", "--check", str(tmp_path))
    assert status == 1 and "cases.csv, row 8, field 'verdict'" in out
    status, out = run("data", "--check", str(tmp_path / "nowhere"))
    assert status.startswith("error: ") and "no such folder or file" in status


@pytest.mark.parametrize("value", ["9" * 5_000, "[" * 5_000])
def test_a_setting_that_yaml_cannot_hold_is_named(value):
    with pytest.raises(ConfigError, match="the value is not valid YAML") as error:
        options.configuration("train", None, [f"seed={value}"])
    assert len(str(error.value)) < 21_000


def test_the_folder_of_a_row_is_one_of_the_command_line(tmp_path, monkeypatch):
    (tmp_path / "merged").mkdir()
    monkeypatch.chdir(tmp_path)
    assert options.row("vllm:merged") == f"vllm:{tmp_path / 'merged'}"
    assert options.row("vllm:google/medgemma-4b-it") == "vllm:google/medgemma-4b-it"
    assert options.row("openai:merged") == "openai:merged" and options.row("constant") == "constant"


def test_relative_paths_begin_where_one_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    given = dict(run_dir="runs/x", adapter="a", data_dir="mine", model="models/medgemma-nano")
    config = options.configuration("report", None, ["ratings=r.db"], "images", **given)
    inside = {name: str(tmp_path / name) for name in ("runs/x", "a", "mine", "r.db", "images")}
    found = config.run_dir, config.adapter, config.data_dir, config.ratings, config.images_dir
    assert found == tuple(inside.values()) and config.model == "models/medgemma-nano"
    monkeypatch.chdir(ROOT / "notebooks")
    assert options.place("../runs/x") == options.place(ROOT / "runs" / "x") == "runs/x"


def test_report_and_results_land_in_one_folder_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = ROOT / "runs" / "a-run-of-this-test"
    with pytest.raises(FileNotFoundError):
        pages.render("runs/a-run-of-this-test")
    assert not folder.exists() and not (tmp_path / "runs").exists()
    places = []
    monkeypatch.setattr(execute, "run_notebooks", lambda run_dir, *_, **__: places.append(path(run_dir)))
    monkeypatch.setattr(pages, "render", lambda run_dir: places.append(path(run_dir)))
    monkeypatch.setattr(sys, "argv", ["medlib", "report", "--run-dir", "mine"])
    with pytest.raises(SystemExit):
        cli.main()
    assert places == [tmp_path / "mine"] * 2 and (tmp_path / "mine" / "run.json").is_file()


def test_generated_data_go_where_they_are_told(tmp_path):
    show = "from medlib.data import own, own_suites, sources; print(*sorted({sources.SUITES_DIR.parent, "
    show += "sources.CORE_DIR.parent, own.EXTRACTED.parent, own_suites.ASSIGNMENTS.parent}))"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MEDLIB_HOME": str(tmp_path)}
    said = subprocess.run([sys.executable, "-c", show], env=environment, capture_output=True, text=True)
    assert said.stdout.split() == [str(tmp_path)], said.stderr


def test_the_option_for_generated_data_sets_their_folder(run, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDLIB_HOME", "before")
    code, _ = run("--data-cache", str(tmp_path), "standin", "nothing")
    assert "expected medgemma" in code and os.environ["MEDLIB_HOME"] == str(tmp_path)
