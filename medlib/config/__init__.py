"""Settings of a run, profiles, hardware, folders and the words of the task."""

from medlib.config.errors import ConfigError, DataError, ModelError, NotRun
from medlib.config.paths import ROOT, path
from medlib.config.profiles import hardware_settings, load_profile
from medlib.config.runs import adapter_dir, from_notebook, of_run, run_dir
from medlib.config.settings import DUAL_STANDIN, ROWS, STANDIN, RunConfig, resolve
from medlib.config.terms import (
    ADAPTER,
    ANSWERS,
    BASE,
    METHODS,
    MODALITIES,
    NOT_A_DEVICE,
    SEVERITIES,
    STANDIN_NOTICE,
    VERDICTS,
)

__all__ = [
    "ADAPTER",
    "ANSWERS",
    "BASE",
    "ConfigError",
    "DUAL_STANDIN",
    "DataError",
    "METHODS",
    "MODALITIES",
    "ModelError",
    "NOT_A_DEVICE",
    "NotRun",
    "ROOT",
    "ROWS",
    "RunConfig",
    "SEVERITIES",
    "STANDIN",
    "STANDIN_NOTICE",
    "VERDICTS",
    "adapter_dir",
    "from_notebook",
    "hardware_settings",
    "load_profile",
    "of_run",
    "path",
    "resolve",
    "run_dir",
]
