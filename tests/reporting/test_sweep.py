"""Sweeps: what is proposed, what a stopped or killed one does next, and machines that share a study."""

import multiprocessing
import time
from collections import Counter

import pytest
import yaml

from medlib.config import ROOT, ConfigError, RunConfig, resolve
from medlib.reporting import sweep
from medlib.reporting.sweep import TRIES
from medlib.training import adapters

optuna = pytest.importorskip("optuna", reason="optuna is missing: pip install '.[sweep]'")


def bowl(config):
    """A loss that is least at a known recipe."""
    return (config.lora_dropout - 0.2) ** 2 + abs(config.lora_rank - 16) / 100 + config.epochs / 1000


@pytest.fixture
def small(tmp_path):
    return RunConfig(run_dir=str(tmp_path / "run"))


def run(config, trials, **more):
    return sweep.sweep(config, trials, **{"objective": bowl, "heartbeat_s": 1, **more})


def recipes(study):
    return [trial.params for trial in study.trials]


def test_a_stopped_sweep_goes_on_as_if_it_had_not_been_stopped(small, tmp_path):
    whole = run(small, 14)
    other = small.model_copy(update={"run_dir": str(tmp_path / "other")})
    for trials in (1, 12, 14):  # beyond the first ten the sampler learns from the scores
        parts = run(other, trials)
        assert len(parts.trials) == trials
    assert recipes(parts) == recipes(whole)
    assert len({str(recipe) for recipe in recipes(whole)}) == 14
    assert recipes(run(small.model_copy(update={"seed": 1}), 3, name="seed 1")) != recipes(whole)[:3]


def test_proposals_stay_in_the_space(small):
    for recipe in recipes(run(small, 20)):
        assert recipe["lora_rank"] in (4, 8, 16, 32) and 1e-4 <= recipe["lr"] <= 1e-2
        assert recipe["epochs"] in (1, 2, 3, 4) and 0 <= recipe["lora_dropout"] <= 0.3
        RunConfig(**recipe)


def test_table_and_best_profile(small, tmp_path):
    study = run(small, 6)
    table = sweep.table(study)
    columns = ["trial", "epochs", "lora_dropout", "lora_rank", "lr", "validation_loss", "minutes"]
    assert list(table) == [*columns, "state"] and table.validation_loss.is_monotonic_increasing
    file = sweep.write_best(study, tmp_path / "best.yaml")
    best = yaml.safe_load(file.read_text())
    assert bowl(RunConfig(**best)) == pytest.approx(table.validation_loss[0])
    assert best == {name: table[name][0] for name in columns[1:5]}


def test_the_trial_gets_the_recipe_and_a_folder_of_its_own(small):
    seen = []
    run(small, 2, objective=lambda config: seen.append(config) or 1.0)
    assert [c.run_dir for c in seen] == [f"{small.run_dir}/trials/{n}" for n in ("000", "001")]
    assert seen[0].lr != small.lr and seen[0].batch_size == small.batch_size


def test_a_failing_trial_counts_and_the_sweep_goes_on(small):
    def fails(config):
        if config.run_dir.endswith("000"):
            raise RuntimeError("out of memory")
        return bowl(config)

    table = sweep.table(run(small, 3, objective=fails)).set_index("trial")
    assert table.state.to_dict() == {0: "fail", 1: "complete", 2: "complete"}
    assert table.validation_loss.isna().to_dict() == {0: True, 1: False, 2: False}


def test_an_interrupted_trial_is_marked_failed_and_tried_again_in_its_folder(small):
    asked = []

    def interrupted(config):
        asked.append((config.run_dir, config.lr))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return bowl(config)

    with pytest.raises(KeyboardInterrupt):
        run(small, 3, objective=interrupted)
    study = run(small, 3, objective=interrupted)
    assert asked[1] == asked[2]  # same folder and same recipe, so that training resumes
    assert Counter(t.state.name for t in study.trials) == {"COMPLETE": 3, "FAIL": 1}
    assert [folder[-3:] for folder, _ in asked[2:]] == ["001", "002"]
    undisturbed = run(small, 3, name="another")
    assert recipes(undisturbed) == [t.params for t in study.trials if t.state.name == "COMPLETE"]


def worker(config, storage, log, seconds):
    """A process with a sweep of six trials; forked, since importing torch takes longer than the test."""

    def objective(config):
        with open(log, "a") as file:
            file.write(config.run_dir.rsplit("/", 1)[1] + "\n")
        time.sleep(seconds)
        return config.lora_dropout

    def target():
        run(config, 6, storage=storage, objective=objective, heartbeat_s=1)

    process = multiprocessing.get_context("fork").Process(target=target, daemon=True)
    process.start()
    return process


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_a_killed_process_is_noticed_and_two_processes_share_the_rest(small, tmp_path, kind):
    file, log = tmp_path / "shared" / "study", tmp_path / "log"
    storage = f"journal:{file}" if kind == "journal" else f"sqlite:///{file}"
    file.parent.mkdir()
    killed = worker(small, storage, log, 600)
    deadline = time.monotonic() + 60
    while not log.is_file():
        assert killed.is_alive() and time.monotonic() < deadline
        time.sleep(0.05)
    killed.kill()
    killed.join()
    both = [worker(small, storage, log, 0.2) for _ in range(2)]
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    study = run(small, 6, storage=storage, objective=None)  # nothing is left to do
    counted = [t for t in study.trials if not t.user_attrs.get("surplus")]
    assert Counter(t.state.name for t in counted) == {"COMPLETE": 6, "FAIL": 1}
    done = [t for t in counted if t.state.name == "COMPLETE"]
    assert len({str(t.params) for t in done}) == 6  # nobody repeated another's proposal
    folders = Counter(log.read_text().split())
    assert folders.pop("000") == 2 and set(folders.values()) == {1}


def test_a_trial_that_kills_its_process_every_time_is_given_up(small):
    def kills(config):
        raise KeyboardInterrupt

    for _ in range(TRIES):
        with pytest.raises(KeyboardInterrupt):
            run(small, 1, objective=kills)
    study = run(small, 1, objective=kills)
    assert [t.state.name for t in study.trials] == ["FAIL"] * TRIES
    with pytest.raises(ConfigError, match="no trial has finished"):
        sweep.write_best(study, "best.yaml")


def test_a_study_of_other_settings_is_not_continued(small):
    run(small, 1)
    with pytest.raises(ConfigError, match="weight_decay"):
        run(small.model_copy(update={"weight_decay": 0.5}), 2)
    assert len(run(small.model_copy(update={"weight_decay": 0.5}), 1, name="more decay").trials) == 1


@pytest.mark.parametrize(("text", "said"), [
    ("lora_rnk: {choices: [1]}", "lora_rnk"),
    ("lr: [1, 2]", "expected choices"),
    ("lr: {low: 0.1}", "expected choices"),
    ("lora_dropout: {low: 0.0, high: 1.5}", "1.5 is out of range"),
    ("test_pairs: {choices: [100, 200]}", "would not take effect"),
    ("workers: {choices: [0, 2]}", "would not take effect"),
])  # fmt: skip
def test_a_bad_space_is_one_clear_error(tmp_path, text, said):
    file = tmp_path / "space.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match="space.yaml") as error:
        sweep.read_space(file)
    assert said in str(error.value)
    with pytest.raises(ConfigError, match="spaces: lora"):
        sweep.read_space("none")


def test_two_real_trials_of_the_notebook(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("MEDLIB_PROFILE", raising=False)
    space = tmp_path / "space.yaml"
    space.write_text("lora_rank: {choices: [2, 4]}\nlr: {low: 1.0e-3, high: 1.0e-2, log: true}\n")
    config = resolve("tiny", run_dir=str(tmp_path / "run"), train_pairs=8, val_pairs=4)
    study = sweep.sweep(config, 2, space)
    for trial in study.trials:
        folder = tmp_path / "run" / "trials" / f"{trial.number:03d}"
        own = config.model_copy(update={"run_dir": str(folder)})
        metadata = adapters.training_metadata(own)
        assert trial.value == metadata["best_eval_loss"]
        assert (folder / "notebooks" / "03_train_lora.ipynb").is_file()
        assert {n: metadata["config"][n] for n in trial.params} == trial.params


@pytest.mark.parametrize("folder", ["../..", "/etc", "001/../../x", "", "0"])
def test_a_folder_that_somebody_wrote_into_a_shared_study_is_not_used(small_config, folder):
    study = sweep.open_study(small_config, sweep.read_space("lora"), None, "lora", 60)
    study.enqueue_trial({}, user_attrs={"folder": folder})
    seen = []
    sweep.sweep(small_config, 1, "lora", None, "lora", objective=lambda config: seen.append(config.run_dir) or 1.0)
    assert seen == [f"{small_config.run_dir}/trials/000"]
