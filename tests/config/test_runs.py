"""A run knows its settings: what is recorded, what a later step may change, and what is refused."""

import json
import os
import subprocess
import sys

import pytest

from medlib.config import ConfigError, RunConfig, from_notebook, of_run, profiles, resolve, runs, settings
from medlib.config.provenance import digest

ADAPTER, REWARD_MODEL, RL_ADAPTER = (
    f"{folder}/adapter_model.safetensors" for folder in ("adapter", "reward_model", "rl/ppo-0/adapter")
)


@pytest.fixture(autouse=True)
def no_profile_of_the_tests(monkeypatch):
    monkeypatch.delenv("MEDLIB_PROFILE", raising=False)


@pytest.fixture
def run(tmp_path):
    """A recorded run of rank 8."""
    config = resolve("tiny", run_dir=str(tmp_path / "run"), lora_rank=8)
    runs.record(config)
    return config


def finish(run, *files):
    for name in files:
        file = runs.run_dir(run) / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def names(run, **given):
    return {"run_dir": run.run_dir, "settings": None, "adapter": None, **given}


def test_every_setting_is_read_again_as_it_was_recorded(tmp_path):
    given = {"images_dir": str(tmp_path / "scans"), "quantization": "4bit", "systems": ("constant",)}
    config = resolve("tiny", run_dir=str(tmp_path / "run"), gradient_checkpointing=True, **given)
    assert runs.recorded(config.run_dir) is None
    file = runs.record(config, {"train": "ab"}, "stand-in, knows no medicine")
    assert runs.recorded(config.run_dir) == config
    assert str(tmp_path) not in file.read_text()  # run.json is published, and names no folder of a machine
    runs.add(config.run_dir, seconds=1)
    runs.record(config.model_copy(update={"lr": 0.5}))
    record = json.loads(file.read_text())
    assert record["seconds"] == 1 and record["parameters"]["lr"] == 0.5
    assert record["data_hashes"] == {"train": "ab"} and record["parameters"]["model_kind"].startswith("stand-in")
    runs.record(config.model_copy(update={"model": "someone/another"}))
    assert "model_kind" not in json.loads(file.read_text())["parameters"]


def test_a_recorded_run_has_the_fingerprint_of_the_one_that_wrote_it(run):
    assert digest(runs.recorded(run.run_dir).of(*settings.STAGES)) == digest(run.of(*settings.STAGES))


def test_a_run_of_another_version_is_read_and_a_bad_one_is_one_error(run):
    file = runs.run_dir(run) / "run.json"
    record = json.loads(file.read_text())
    record["parameters"] |= {"no_longer_a_setting": 1}
    del record["parameters"]["risk_level"]
    file.write_text(json.dumps(record))
    assert runs.recorded(run.run_dir) == run
    file.write_text(json.dumps({"parameters": {"lr": -1}}))
    with pytest.raises(ConfigError, match="run.json.*lr"):
        runs.recorded(run.run_dir)
    file.write_text("{")
    with pytest.raises(ConfigError, match="not valid JSON"):
        runs.recorded(run.run_dir)


def test_a_notebook_after_training_has_the_settings_of_the_run(run):
    finish(run, ADAPTER)
    assert of_run(names(run), "evaluate") == run
    asked = of_run(names(run, generate=False, lora_rank=8), "evaluate")
    assert asked == run.model_copy(update={"generate": False})
    assert runs.recorded(run.run_dir) == asked  # so that the next notebook has it too
    assert of_run(names(run, adapter="elsewhere"), "evaluate").adapter == "elsewhere"
    assert runs.recorded(run.run_dir) == asked


def test_a_setting_given_after_training_is_an_error_that_names_it_and_both_values(run):
    assert of_run(names(run, lora_rank=4), "evaluate").lora_rank == 4  # nothing is trained yet
    finish(run, ADAPTER)
    for given in ({"lora_rank": 16}, {"settings": {"lora_rank": 16}}):
        with pytest.raises(ConfigError, match="lora_rank=16 would not take effect.*lora_rank=4.*another run_dir"):
            of_run(names(run, **given), "evaluate")
    for other in ({"model": "someone/another"}, {"seed": 3}, {"quantization": "8bit"}, {"note_pairs": 400}):
        with pytest.raises(ConfigError, match=f"{next(iter(other))}=.* would not take effect"):
            runs.settings_for("report", other | {"run_dir": run.run_dir})
    faster = of_run(names(run, settings={"eval_batch_size": 2, "workers": 1}), "evaluate")
    assert (faster.eval_batch_size, faster.workers) == (2, 1)


@pytest.mark.parametrize(
    "file, given, step", [(REWARD_MODEL, {"reward_lr": 0.5}, "reward"), (RL_ADAPTER, {"rl_beta": 0.5}, "rl")]
)
def test_the_step_that_trains_may_change_what_it_trains_and_a_report_may_not(run, file, given, step):
    finish(run, file)
    with pytest.raises(ConfigError, match="would not take effect"):
        runs.settings_for("report", given | {"run_dir": run.run_dir})
    assert of_run(names(run, **given), step) == run.model_copy(update=given)


def test_a_setting_that_a_step_does_not_use_is_an_error_that_names_it(run):
    with pytest.raises(ConfigError, match="corruption_pairs: would not take effect.*'evaluate'"):
        of_run(names(run, settings={"corruption_pairs": 8}), "evaluate")
    with pytest.raises(ConfigError, match="reward_epochs"):
        from_notebook({"profile": "tiny", "reward_epochs": 2}, "train")
    with pytest.raises(ConfigError, match="lora_rnk"):
        from_notebook({"profile": "tiny", "settings": {"lora_rnk": 2}}, "train")


def test_a_notebook_that_trains_starts_from_its_profile_or_from_run_json(run):
    finish(run, ADAPTER)
    given = {"run_dir": run.run_dir, "lr": None}
    assert from_notebook({"profile": "tiny", **given}, "train") == resolve("tiny", run_dir=run.run_dir)
    assert from_notebook({"profile": None, **given}, "train") == run
    assert from_notebook({"profile": None, **given, "lr": 0.5}, "train").lr == 0.5  # trained anew


def test_a_run_without_a_record_has_the_profile_and_its_folder(monkeypatch, tmp_path):
    folder = str(tmp_path / "new")
    assert of_run({"run_dir": folder}, "benchmark") == resolve("standin", run_dir=folder)
    monkeypatch.setenv("MEDLIB_PROFILE", "cpu")
    assert of_run({"run_dir": folder}, "benchmark") == resolve("cpu", run_dir=folder)
    assert of_run({"run_dir": "runs/latest"}, "benchmark").run_dir == "runs/cpu"
    assert from_notebook({"profile": "standin", "run_dir": "runs/latest"}, "train").run_dir == "runs/cpu"


def test_a_hardware_profile_of_another_machine_leaves_the_training_as_it_was(run):
    finish(run, ADAPTER)
    config = runs.settings_for("evaluate", {"run_dir": run.run_dir}, "tiny+t4")
    assert (config.dtype, config.batch_size, config.quantization) == (run.dtype, run.batch_size, None)
    assert (config.workers, config.eval_batch_size, config.lora_rank) == (2, 8, 8)
    with pytest.raises(ConfigError, match="model=.google.medgemma-4b-it. would not take effect"):
        runs.settings_for("evaluate", {"run_dir": run.run_dir}, "medgemma-4b")


def test_an_unknown_key_of_a_profile_names_file_and_key(monkeypatch, tmp_path):
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "mine.yaml").write_text("lr: 0.1\nlearning_rate: 0.1\n")
    (tmp_path / "profiles" / "good.yaml").write_text("lr: 0.1\n")
    monkeypatch.setattr(profiles, "ROOT", tmp_path)
    assert resolve("good").lr == 0.1
    for profile in ("mine", "good+mine"):
        with pytest.raises(ConfigError, match="profiles/mine.yaml: learning_rate"):
            resolve(profile)


def test_every_step_knows_its_settings():
    for parts in (*runs.USES.values(), *runs.RETRAINS.values()):
        assert set(runs.fields(*parts)) <= set(RunConfig.model_fields)
    assert set(runs.RETRAINS) <= set(runs.USES)


# --- one command at a time ------------------------------------------------------------------------------


OTHER = """
import sys
from medlib.config import ConfigError, runs
runs.LOCK_SECONDS = 0
try:
    with runs.alone(sys.argv[1]):
        print("free")
except ConfigError as error:
    print(error)
"""


def other_process(folder, **environment):
    """What another process finds that wants to work in the folder."""
    kept = {name: value for name, value in os.environ.items() if name != runs.HOLDS}
    command = [sys.executable, "-c", OTHER, str(folder)]
    return subprocess.run(command, env=kept | environment, capture_output=True, text=True, check=True).stdout


def test_two_commands_do_not_work_in_one_folder(tmp_path):
    with runs.alone(tmp_path / "run"):
        assert "run: another command is at work" in other_process(tmp_path / "run")
        assert other_process(tmp_path / "second") == "free\n"
        with runs.alone(tmp_path / "run"):  # a step of the same command
            pass
        # a process that this one started, such as a notebook of a report
        assert other_process(tmp_path / "run", **{runs.HOLDS: os.environ[runs.HOLDS]}) == "free\n"
    assert other_process(tmp_path / "run") == "free\n" and runs.HOLDS not in os.environ
