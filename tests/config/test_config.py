"""One set of names: profiles, notebooks, command line."""

import ast
from types import SimpleNamespace

import nbformat
import pytest
import typer

from medlib.cli.main import app
from medlib.config import ROOT, ConfigError, ModelError, RunConfig, from_notebook, path, resolve
from medlib.config.settings import STAGES, Data, Model, Run, Training, fields, is_neutral
from medlib.training import supervised

PROFILES = sorted(file.stem for file in (ROOT / "profiles").glob("*.yaml"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_defaults_are_the_recipe_of_the_seed():
    config = RunConfig()
    recipe = (config.epochs, config.batch_size, config.lr, config.lora_rank, config.weight_decay)
    assert recipe == (3, 4, 2e-4, 16, 0.01)
    assert not config.trust_remote_code and not config.allow_masks and not config.use_8bit


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_resolves(name):
    assert isinstance(resolve(name), RunConfig)


def test_overrides_win_over_the_profile_and_the_profile_over_defaults():
    assert resolve(None).train_pairs == RunConfig().train_pairs
    assert resolve("tiny").train_pairs == 24
    assert resolve("tiny", train_pairs=36, epochs=None).train_pairs == 36
    assert resolve("tiny", epochs=None).epochs == 1


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"lr": -1}, "lr"),
        ({"epochs": "many"}, "epochs"),
        ({"no_such_name": 1}, "no_such_name"),
        ({"lora_targets": "everything"}, "lora_targets"),
        ({"batch_size": 0}, "batch_size"),
        ({"lora_dropout": 1.0}, "lora_dropout"),
        ({"test_pairs": 0}, "test_pairs"),
    ],
)
def test_errors_name_the_field_and_the_value(wrong, said):
    with pytest.raises(ConfigError, match=said) as error:
        resolve("standin", **wrong)
    assert repr(next(iter(wrong.values()))) in str(error.value)


def test_an_unknown_profile_lists_the_known_ones():
    with pytest.raises(ConfigError) as error:
        resolve("nope")
    assert "nope" in str(error.value) and all(name in str(error.value) for name in PROFILES)


def test_a_configuration_cannot_be_changed():
    with pytest.raises(ValueError):
        RunConfig().lr = 1


def test_notebook_globals_become_the_configuration():
    names = {"profile": "tiny", "lr": 0.5, "epochs": None, "unrelated": object()}
    config = from_notebook(names)
    assert (config.lr, config.epochs, config.train_pairs) == (0.5, 1, 24)


def test_relative_paths_are_of_the_repository(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert path("runs/x") == ROOT / "runs/x"
    assert path(tmp_path) == tmp_path


#: Of the command line alone: they choose settings or what a command does, and set nothing in a run.
NOT_SETTINGS = {
    "profile",
    "settings",
    "dry_run",
    "audit",
    "update_readme",
    "update_reports",
    "out",
    "which",
    "trials",
    "space",
    "storage",
    "name",
    "repo_id",
    "upload",
    "check",
    "merged",
    "private",
    "terms",
    "endpoint",
    "scenarios",
    "system",
    "shard",
    # one case, or a worklist, and how the answer is given
    *("image", "finding", "treatment", "modality", "age", "sex", "complaint", "frame", "thumbnail"),
    *("cases", "out", "maps", "figure", "as_json", "exit_code"),
}


@pytest.mark.parametrize("name", sorted(typer.main.get_command(app).commands))
def test_flags_use_the_names_of_the_configuration(name):
    for option in typer.main.get_command(app).commands[name].params:
        if option.name in NOT_SETTINGS:
            continue
        field = {"images": "images_dir", "data": "data_dir"}.get(option.name, option.name)
        assert field in RunConfig.model_fields
        assert f"--{field.replace('_', '-')}" in option.opts


@pytest.mark.skipif(not NOTEBOOKS, reason="no notebooks")
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda file: file.stem)
def test_notebooks_declare_names_of_the_configuration_only(notebook):
    cells = [c for c in nbformat.read(notebook, 4).cells if "parameters" in c.metadata.get("tags", [])]
    assert len(cells) == 1
    declared = {
        target.id
        for node in ast.parse(cells[0].source).body
        if isinstance(node, (ast.Assign, ast.AnnAssign))
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
    }
    assert "run_dir" in declared
    assert declared <= set(RunConfig.model_fields) | {"profile", "settings"}


def test_the_recipe_follows_the_model_and_a_profile_can_be_undone():
    real = resolve("standin", model="google/medgemma-27b-it")
    assert real.lr == resolve("medgemma-4b").lr != resolve("standin").lr
    assert real.model == "google/medgemma-27b-it" and real.biomedclip.startswith("microsoft/")
    assert resolve("standin", model="models/medgemma-nano").lr == resolve("standin").lr
    assert resolve("tiny+t4").quantization == "4bit"
    assert resolve("tiny+t4", quantization="none").quantization is None


# --- stages and what is made of them ------------------------------------------------------------------------


def test_every_field_is_in_exactly_one_stage():
    assert sorted(fields(*STAGES)) == sorted(RunConfig.model_fields)
    assert len(set(fields(*STAGES))) == len(fields(*STAGES))


@pytest.mark.parametrize("name", fields(Run, Model, Data, Training))
def test_a_field_that_bears_on_the_adapter_is_in_its_fingerprint_and_a_neutral_one_is_not(name):
    suites = {split: SimpleNamespace(sha256=split, keys=lambda: []) for split in ("train", "val", "core_train")}
    config = RunConfig()
    other = config.model_copy(update={name: "something else"})
    same = supervised._train_fingerprint(other, suites) == supervised._train_fingerprint(config, suites)
    assert same == is_neutral(name)


def test_what_only_says_how_fast_or_where_is_neutral():
    neutral = {name for name in RunConfig.model_fields if is_neutral(name)}
    assert neutral == {
        *("run_dir", "processes", "adapter", "trust_remote_code", "allow_masks", "api_allow_real_images"),
        *("attention", "eval_batch_size", "gradient_checkpointing", "cache_image_features", "workers"),
        *("api_timeout_s", "api_retries", "api_workers"),
        *("core_folds", "ablations", "systems", "rl_methods", "rl_seeds"),  # which parts are run
        *("error_prevalence", "note_prevalence", "miss_weights"),  # how answers are summed up
    }


def test_the_recipe_follows_what_a_model_is_and_not_its_name(tmp_path, capsys):
    (tmp_path / "medgemma-nano").mkdir()
    config = tmp_path / "medgemma-nano" / "config.json"
    config.write_text('{"model_type": "gemma3"}')
    real = resolve("medgemma-4b")
    for name in (str(tmp_path / "medgemma-nano"), "unsloth/medgemma-4b-it", "google/medgemma-4b-it"):
        found = resolve("standin", model=name)
        assert (found.lr, found.batch_size) == (real.lr, real.batch_size) == (2e-4, 4)
        said = f"{name} is no stand-in by its config.json: recipe of the profile medgemma-4b\n"
        assert capsys.readouterr().err == said
    config.write_text('{"standin": true}')
    assert resolve("standin", model=str(tmp_path / "medgemma-nano")).lr == resolve("standin").lr == 3e-3
    assert not capsys.readouterr().err


def test_a_config_that_is_no_json_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="config.json: not valid JSON"):
        resolve("standin", model=str(tmp_path))


@pytest.mark.parametrize("name", ["train_pairs", "val_pairs"])
def test_a_suite_that_nothing_can_be_learned_from_is_refused(name):
    with pytest.raises(ConfigError, match=f"{name}: .*greater than or equal to 4 .got 0."):
        resolve("standin", **{name: 0})
