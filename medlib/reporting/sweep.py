"""Sweeps over the recipe: Optuna proposes, each trial runs 03_train_lora, validation loss decides.

The held-out suite plays no part. A study lives in SQLite in the run's folder, or wherever ``storage``
says, so that many machines can share it; a trial lives in ``run_dir/trials/NNN``. Run the same command
again to resume. Trials are not pruned: a trial is a notebook, which ends by early stopping.
"""

from __future__ import annotations

import json
import re
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import yaml
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from pydantic import ValidationError

from medlib.config import ROOT, ConfigError, RunConfig, files, path, run_dir, runs
from medlib.config.settings import Data, Model, Run, Training, fields, is_neutral
from medlib.reporting import execute
from medlib.training import adapters

SPACES = ROOT / "profiles" / "sweep"
TRIES = 3  # of one trial; what kills the process each time is not tried for ever
HEARTBEAT_S = 10
GRACE = 3  # heartbeats that a trial may miss before it is taken for killed
optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings("ignore", category=ExperimentalWarning)
#: Queues the recipe of a killed trial with its folder, so that its training resumes.
RETRY = RetryHeartbeatStaleTrialCallback(max_retry=TRIES - 1)

Objective = Callable[[RunConfig], float]


def sweep(
    config: RunConfig,
    trials: int,
    space: str | Path = "lora",
    storage: str | None = None,
    name: str = "lora",
    objective: Objective | None = None,
    heartbeat_s: int = HEARTBEAT_S,
) -> optuna.Study:
    """Try ``trials`` recipes and keep what each scored; a second call resumes where the first stopped.

    Proposals depend on the seed, the number of recipes before and the scores so far: a sweep that was stopped or
    killed proposes what it would have proposed, and machines that share a study never repeat each other.

    Parameters
    ----------
    config : RunConfig
        What the trials share; ``run_dir`` is the sweep's.
    trials : int
        Trials of the study in all, those of earlier calls and of other machines included.
    space : str or Path
        Name in ``profiles/sweep``, or a YAML file.
    storage : str, optional
        ``journal:FILE`` on a disk that the machines share, or any URL that Optuna takes, such as
        ``postgresql://...``; default ``run_dir/sweep.db``.
    name : str
        The study's name in its storage.
    objective : callable, optional
        ``objective(config of the trial)`` gives the loss; default :func:`train_notebook`.
    heartbeat_s : int
        Seconds between heartbeats. A trial that misses `GRACE` of them is taken for killed: it is
        marked failed, and its recipe is tried again in its folder.

    Raises
    ------
    ConfigError
        A bad space, or a study of this name that was made with other settings.
    """
    limits_by_name = read_space(space)
    study = open_study(config, limits_by_name, storage, name, heartbeat_s)

    def run(trial: optuna.Trial) -> float:
        if _is_surplus(study, trial, trials):
            trial.set_user_attr("surplus", True)
            raise optuna.TrialPruned
        place = _place(study, trial)
        study.sampler = _sampler(config.seed * 100_003 + place)
        values = {key: _suggest(trial, key, limits) for key, limits in limits_by_name.items()}
        folder = _folder(trial, place)
        trial.set_user_attr("folder", folder)
        own = {**values, "run_dir": f"{config.run_dir}/trials/{folder}"}
        try:
            return (objective or train_notebook)(config.model_copy(update=own))
        except KeyboardInterrupt:
            RETRY(study, study.trials[trial.number])
            raise

    while True:
        _retry_killed(study, heartbeat_s)
        if _used(study) >= trials:
            return study
        while _used(study) < trials:
            study.optimize(run, n_trials=1, catch=(RuntimeError,), callbacks=[_tell])


def train_notebook(config: RunConfig) -> float:
    """Run 03_train_lora into the trial's folder; gives the least loss on the validation suite."""
    runs.record(config)
    execute.run_notebooks(path(config.run_dir), {"profile": None}, ["03"])
    return adapters.training_metadata(config)["best_eval_loss"]


def table(study: optuna.Study) -> pd.DataFrame:
    """One row per trial, best first: trial (its folder), parameters, validation_loss, minutes, state."""
    names = sorted({name for trial in study.trials for name in trial.params})
    rows = [
        {
            "trial": int(_folder(t, t.number)),
            **{name: t.params.get(name) for name in names},
            "validation_loss": t.value,
            "minutes": t.duration.total_seconds() / 60 if t.duration else None,
            "state": t.state.name.lower(),
        }
        for t in study.trials
        if not t.user_attrs.get("surplus")
    ]
    columns = ["trial", *names, "validation_loss", "minutes", "state"]
    return pd.DataFrame(rows, columns=columns).sort_values("validation_loss", ignore_index=True)


def write_best(study: optuna.Study, file: str | Path) -> Path:
    """The best recipe as a profile: in ``profiles/`` it is used as ``--profile medgemma-4b+NAME``."""
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not done:
        raise ConfigError(f"study {study.study_name}: no trial has finished")
    best, file = study.best_trial, path(file)
    head = (
        f"# Trial {best.number} of study {study.study_name}, the best of {len(done)}: "
        f"validation loss {best.value:.4g}.\n"
    )
    return files.write_text(file, head + yaml.safe_dump(best.params, sort_keys=False))


# --- what may change -------------------------------------------------------------------------------


def read_space(space: str | Path) -> dict[str, dict[str, Any]]:
    """Limits by name, from ``profiles/sweep/NAME.yaml`` or a YAML file; ConfigError names the field."""
    file = Path(space) if str(space).endswith((".yaml", ".yml")) else SPACES / f"{space}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(file.stem for file in SPACES.glob("*.yaml")))
        raise ConfigError(f"space {space!r} not found; spaces: {known}")
    limits = yaml.safe_load(file.read_text()) or {}
    for name, given in limits.items():
        where = f"{file.name}, field {name!r}"
        if name not in RunConfig.model_fields:
            raise ConfigError(f"{where}: not one of {', '.join(RunConfig.model_fields)}")
        if name not in fields(Model, Training) or is_neutral(name):
            raise ConfigError(f"{where}: would not take effect, no trial's loss depends on it")
        keys = set(given) if isinstance(given, dict) else set()
        if keys != {"choices"} and not {"low", "high"} <= keys <= {"low", "high", "step", "log"}:
            raise ConfigError(f"{where}: expected choices: [...], or low, high and perhaps step or log")
        for value in given.get("choices", [given.get("low"), given.get("high")]):
            try:
                RunConfig(**{name: value})
            except ValidationError as error:
                why = error.errors()[0]["msg"]
                raise ConfigError(f"{where}: {value!r} is out of range ({why})") from None
    return limits


def _suggest(trial: optuna.Trial, name: str, limits: dict[str, Any]):
    if "choices" in limits:
        return trial.suggest_categorical(name, limits["choices"])
    whole = isinstance(limits["low"], int) and isinstance(limits["high"], int)
    return (trial.suggest_int if whole else trial.suggest_float)(name, **limits)


def _sampler(seed: int) -> optuna.samplers.BaseSampler:
    # not multivariate: that one would propose before the trial has its number
    return optuna.samplers.TPESampler(seed=seed, multivariate=False)


# --- the study -------------------------------------------------------------------------------------


def open_study(
    config: RunConfig, space: dict, storage: str | None, name: str, heartbeat_s: int = HEARTBEAT_S
) -> optuna.Study:
    """Make or reopen a study; ConfigError names the settings in which it differs from this call."""
    if storage is not None and storage.startswith("journal:"):
        file = path(storage.removeprefix("journal:"))
        file.parent.mkdir(parents=True, exist_ok=True)
        shared = _Journal(JournalFileBackend(str(file)), heartbeat_s)
    else:
        shared = RDBStorage(
            storage or f"sqlite:///{run_dir(config) / 'sweep.db'}",
            heartbeat_interval=heartbeat_s,
            grace_period=GRACE * heartbeat_s,
            heartbeat_stale_trial_callback=_try_again,
        )
    study = optuna.create_study(
        storage=shared, study_name=name, load_if_exists=True, sampler=_sampler(config.seed)
    )
    fixed = config.of(Run, Model, Data, Training)
    mine = {"space": space} | {field: value for field, value in sorted(fixed.items()) if field not in space}
    mine = json.loads(json.dumps(mine))  # as the storage gives it back: a tuple is a list there
    theirs = study.user_attrs.get("settings")
    if theirs is None:
        study.set_user_attr("settings", mine)
    else:
        other = [field for field in mine if field in theirs and theirs[field] != mine[field]]
        if other:
            raise ConfigError(
                f"study {name!r} was made with other settings ({', '.join(other)}); "
                "give the same settings, or another name"
            )
    return study


def _used(study: optuna.Study) -> int:
    """Trials that count: all but those waiting, tried again or in excess."""
    return len(_counted(study.get_trials(deepcopy=False)))


def _counted(trials: list[optuna.trial.FrozenTrial]) -> list[optuna.trial.FrozenTrial]:
    replaced = {number for t in trials for number in RETRY.retry_history(t)}
    return [
        t
        for t in trials
        if t.state != TrialState.WAITING and t.number not in replaced and not t.user_attrs.get("surplus")
    ]


def _folder(trial: optuna.Trial | optuna.trial.FrozenTrial, place: int) -> str:
    """The folder that a trial has or, if it is new, gets."""
    given = str(trial.user_attrs.get("folder", ""))
    return given if re.fullmatch(r"\d{3,9}", given) else f"{place:03d}"  # others write to a shared study, too


def _place(study: optuna.Study, trial: optuna.Trial) -> int:
    """Recipes that were begun before a trial's; one that is tried again is one recipe."""
    earlier = [t for t in study.get_trials(deepcopy=False) if t.number < trial.number]
    return sum(not RETRY.retry_history(t) and not t.user_attrs.get("surplus") for t in earlier)


def _is_surplus(study: optuna.Study, trial: optuna.Trial, wanted: int) -> bool:
    """True if another process began the last trial, or queued this one again, at the same moment."""
    earlier = [t for t in _counted(study.get_trials(deepcopy=False)) if t.number < trial.number]
    again = RETRY.retry_history(study.trials[trial.number])
    return len(earlier) >= wanted or (bool(again) and again in map(RETRY.retry_history, earlier))


class _Journal(JournalStorage, BaseHeartbeat):
    """A journal with the heartbeat that Optuna gives to databases alone.

    It counts beats, since a file has no clock that machines share: a trial is stale if this process sees
    the same count for the grace period.
    """

    def __init__(self, backend: JournalFileBackend, seconds: int) -> None:
        super().__init__(backend)
        self.seconds, self._count, self._seen = seconds, {}, {}

    def record_heartbeat(self, trial_id: int) -> None:
        self._count[trial_id] = self._count.get(trial_id, 0) + 1
        try:
            self.set_trial_user_attr(trial_id, "heartbeat", self._count[trial_id])
        except UpdateFinishedTrialError:  # another machine took it for killed
            pass

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        now, stale = time.monotonic(), []
        for trial in self.get_all_trials(study_id, deepcopy=False, states=(TrialState.RUNNING,)):
            number, count = trial._trial_id, trial.user_attrs.get("heartbeat")
            if number not in self._seen or self._seen[number][0] != count:
                self._seen[number] = count, now
            elif now - self._seen[number][1] > GRACE * self.seconds:
                stale.append(number)
        return stale

    def get_heartbeat_interval(self) -> int:
        return self.seconds

    def get_heartbeat_stale_trial_callback(self) -> Callable:
        return _try_again


def _retry_killed(study: optuna.Study, heartbeat_s: int) -> None:
    """Fail and queue again the running trials whose heartbeat has stopped."""
    optuna.storages.fail_stale_trials(study)
    if study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        time.sleep((GRACE + 1) * heartbeat_s)
        optuna.storages.fail_stale_trials(study)


def _try_again(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
    print(f"trial {trial.number} was killed", flush=True)
    RETRY(study, trial)


def _tell(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
    if not trial.user_attrs.get("surplus"):
        recipe = ", ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in trial.params.items()
        )
        said = trial.state.name.lower() if trial.value is None else f"validation loss {trial.value:.4g}"
        print(f"trial {trial.number}: {recipe}: {said}", flush=True)
