"""A run knows its settings: what was recorded, what a later step may still change, and its folders."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from filelock import FileLock, Timeout

from medlib.config import files, provenance
from medlib.config.errors import ConfigError
from medlib.config.paths import path
from medlib.config.profiles import load_profile
from medlib.config.settings import (
    RL,
    STAGES,
    Api,
    Benchmark,
    Data,
    Feedback,
    Model,
    Part,
    Reward,
    Run,
    RunConfig,
    Scoring,
    Suites,
    Threshold,
    Training,
    Use,
    fields,
    is_neutral,
    profile_settings,
    resolve,
)
from medlib.config.terms import ADAPTER_WEIGHTS

TRAINED = (Run, Model, Data, Training)
#: Settings that a step (a notebook or a command) uses; any other one that it is given is an error.
USES: dict[str, tuple[Part, ...]] = {
    "data": (Run, Model, Data, "test_pairs"),
    "train": (*TRAINED, "test_pairs"),
    "sweep": (*TRAINED, "test_pairs"),
    "evaluate": (*TRAINED, "test_pairs", Scoring),
    "benchmark": (*TRAINED, Suites, Scoring, Benchmark, Api, Use),
    "preferences": (*TRAINED, "adapter", Feedback),
    "reward": (*TRAINED, "adapter", Feedback, Reward, "rl_batch"),
    "rl": (*TRAINED, Suites, "adapter", "biomedclip", Feedback, Reward, RL, Threshold, Use),
    "publish": (Run, Model),
    "audit": (*TRAINED, Suites, "adapter", "biomedclip", Api, Threshold),
    "report": STAGES,
}
#: What a step trains anew when its settings have changed, so that the change takes effect.
RETRAINS: dict[str, tuple[Part, ...]] = {
    "data": TRAINED,
    "train": TRAINED,
    "preferences": (Feedback,),
    "reward": (Feedback, Reward, "rl_batch"),
    "rl": (Feedback, Reward, RL),
}
#: What a run has finished once these files are there, and the settings that can then change no more.
FINISHED = (
    ("adapter", f"adapter/{ADAPTER_WEIGHTS}", TRAINED),
    ("reward model", f"reward_model/{ADAPTER_WEIGHTS}", (Feedback, Reward)),
    ("adapters trained on feedback", f"rl/*/adapter/{ADAPTER_WEIGHTS}", (RL,)),
)
#: Settings that ``run.json`` may not name as they are, such as folders outside the project; never published.
LOCAL = "local_settings.json"
#: Names the run's folder that this process, or the one that started it, holds.
HOLDS = "MEDLIB_HOLDS"
LOCK_SECONDS = 5  # processes of a killed command end a moment after it


def adapter_dir(config: RunConfig) -> Path:
    """The adapter to evaluate: the one named, or the run's own."""
    return path(config.adapter) if config.adapter else path(config.run_dir) / "adapter"


def run_dir(config: RunConfig) -> Path:
    """The run's folder, made if missing; notes, answers and reports in it are for its owner."""
    return files.private_folder(path(config.run_dir))


@contextlib.contextmanager
def alone(folder: str | Path) -> Iterator[None]:
    """Hold a run's folder; processes started meanwhile, such as a report's notebooks, belong to the holder.

    Raises
    ------
    ConfigError
        If another command is at work in the folder: two would delete each other's checkpoints.
    """
    folder = path(folder).resolve()
    if os.environ.get(HOLDS) == str(folder):
        yield
        return
    lock = FileLock(files.private_folder(folder) / ".lock")
    try:
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout:
        raise ConfigError(
            f"{folder.name}: another command is at work in this run's folder; wait for it, or choose another "
            "run_dir"
        ) from None
    before = os.environ.get(HOLDS)
    os.environ[HOLDS] = str(folder)
    try:
        yield
    finally:
        os.environ.pop(HOLDS)
        if before:
            os.environ[HOLDS] = before
        lock.release()


# --- run.json -----------------------------------------------------------------------------------------


def record(config: RunConfig, data_hashes: dict[str, str] | None = None, model_kind: str | None = None) -> Path:
    """Write every setting into ``run.json``; what is not given of the rest stays as it was.

    Parameters
    ----------
    data_hashes : content hash of each data file, by name
    model_kind : what the model is, a stand-in or published weights
    """
    folder = run_dir(config)
    before = _read(folder / "run.json")
    known = before.get("parameters", {})
    settings = files.to_json(config.model_dump())
    hashes = before.get("data_hashes", {}) if data_hashes is None else data_hashes
    new = before | provenance.run_record(settings, hashes)
    parameters = new["parameters"]
    same_model = known.get("model") == parameters["model"]
    if kind := model_kind or (same_model and known.get("model_kind")):
        parameters["model_kind"] = kind
    local = {name: value for name, value in settings.items() if name != "run_dir" and parameters[name] != value}
    if local or (folder / LOCAL).is_file():
        files.write_json(folder / LOCAL, local)
    return files.write_json(folder / "run.json", new)


def add(folder: str | Path, **parts: Any) -> Path:
    """Put further parts into a run's ``run.json``; one that is there already is replaced."""
    file = path(folder) / "run.json"
    return files.write_json(file, _read(file) | parts)


def recorded(folder: str | Path) -> RunConfig | None:
    """The settings in a run's ``run.json``; None if there is none yet."""
    file = path(folder) / "run.json"
    values = _read(file).get("parameters")
    if values is None:
        return None
    values = values | _read(path(folder) / LOCAL)
    known = {name: values[name] for name in RunConfig.model_fields if name in values}
    try:
        return resolve(None, **known | {"run_dir": str(folder)})
    except ConfigError as error:
        raise ConfigError(f"{folder}/run.json: {error}") from None


def _read(file: Path) -> dict:
    content = files.read_json(file, ConfigError)
    if not isinstance(content.get("parameters", {}), dict):
        raise ConfigError(f"{file}: not what a run writes, which is an object with its parameters")
    return content


# --- settings of a step -------------------------------------------------------------------------------


def settings_for(
    step: str, given: Mapping[str, Any], profile: str | None = None, new: str = "standin"
) -> RunConfig:
    """The run's own settings, then the profile, then what is given.

    Parameters
    ----------
    step : key of `USES`
    given : settings by name; ``run_dir`` says which run
    profile : profile to layer over the run's own settings. What a profile says of hardware (precision and
        batch) stands as recorded once the adapter is trained.
    new : profile of a run that has no ``run.json`` yet

    Raises
    ------
    ConfigError
        A setting that would not take effect: the step does not use it, or the run has already finished
        what depends on it.
    """
    check_used(step, given)
    folder = given.get("run_dir") or RunConfig().run_dir
    known = recorded(folder)
    if known is None:
        return resolve(profile or new, **given)
    values = profile_settings(profile) if profile else {}
    if any(path(folder).glob(FINISHED[0][1])):
        hardware = load_profile("cpu")
        values = {n: v for n, v in values.items() if n not in hardware or is_neutral(n)}
    config = resolve(None, **known.model_dump() | values | _not_none(given))
    _check_finished(step, folder, known, config)
    return config


def check_used(step: str, given: Mapping[str, Any]) -> None:
    """ConfigError that names the settings given which this step does not use."""
    unused = [name for name in _not_none(given) if name not in fields(*USES[step])]
    if unused:
        raise ConfigError(f"{', '.join(unused)}: would not take effect, the step {step!r} does not use it")


def _check_finished(step: str, folder: str, known: RunConfig, config: RunConfig) -> None:
    changeable = {"run_dir", *fields(*RETRAINS.get(step, ()))}
    for what, pattern, parts in FINISHED:
        if not any(path(folder).glob(pattern)):
            continue
        for name in fields(*parts):
            old, new = getattr(known, name), getattr(config, name)
            if old != new and name not in changeable and not is_neutral(name):
                raise ConfigError(
                    f"{name}={new!r} would not take effect: the {what} of {folder} "
                    f"was trained with {name}={old!r}; omit it, or start another run_dir"
                )


def _not_none(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value is not None}


# --- notebooks ----------------------------------------------------------------------------------------


def from_notebook(names: Mapping[str, Any], step: str = "report") -> RunConfig:
    """Build the configuration of a new run from a notebook's ``globals()``; parameters at None are the profile's.

    With ``profile = None`` the settings in ``run_dir/run.json`` take the profile's place.
    The environment variable ``MEDLIB_PROFILE`` takes the place of a profile left at "standin", so that
    tests can run the committed notebooks in a minute; their results then go to a folder of their own.
    """
    profile, given = _parameters(names)
    check_used(step, given)
    return settings_for(step, given) if profile is None else resolve(profile, **given)


def of_run(names: Mapping[str, Any], step: str) -> RunConfig:
    """The settings of the run that a notebook continues: those in ``run.json``, then the notebook's parameters.

    A change is recorded for the notebooks that follow, but for ``adapter``: whether there is such a folder is
    not known yet. A run without ``run.json`` has the settings of `from_notebook`. Raises as `settings_for`.
    """
    profile, given = _parameters(names)
    config = settings_for(step, given, new=profile or "standin")
    known = recorded(config.run_dir)
    if known and known != (changed := config.model_copy(update={"adapter": known.adapter})):
        record(changed)
    return config


def _parameters(names: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """Profile and settings given, by name."""
    further = names.get("settings") or {}
    if unknown := [name for name in further if name not in RunConfig.model_fields]:
        raise ConfigError(
            f"settings: {', '.join(unknown)} not known; settings: {', '.join(RunConfig.model_fields)}"
        )
    # a notebook may import a module that is called like a parameter
    given = {n: names[n] for n in RunConfig.model_fields if not isinstance(names.get(n), ModuleType | None)}
    given |= further
    profile = names.get("profile", "standin")
    if profile == "standin" and (other := os.environ.get("MEDLIB_PROFILE")):
        profile = other
        if given.get("run_dir") == "runs/latest":
            given["run_dir"] = f"runs/{other}"
    return profile, given
