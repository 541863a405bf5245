"""What figures were measured on, so that those of one model are never shown as another's."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from medlib.config import ADAPTER, METHODS, ConfigError, ModelError, RunConfig, adapter_dir, files, path
from medlib.data import sources
from medlib.data.suite import Suite
from medlib.models import loading
from medlib.models.adapter_files import WEIGHTS
from medlib.training import adapters


def facts(config: RunConfig, suites: dict[str, Suite]) -> dict:
    """Hashes of the base's weights, of each adapter by the name of its system, and of the data."""
    found = {name: folder / WEIGHTS for name, folder in _folders(config, adapter_dir(config)).items()}
    return {
        "model": config.model,
        "base_weights": loading.weights_hash(config.model),
        "adapters": {name: loading.file_hash(file) for name, file in found.items() if file.is_file()},
        "data": sources.hashes(suites),
    }


def _folders(config: RunConfig, own: Path) -> dict[str, Path]:
    """Folder of the adapter of each system."""
    methods = {f"medgemma-{method}": adapters.rl_folder(config, method) / "adapter" for method in METHODS}
    return {ADAPTER: own, **methods}


def still_valid(folder: Path, parts: dict[tuple, pd.DataFrame], now: dict) -> dict[tuple, pd.DataFrame]:
    """Earlier predictions (key: system first) but for those of an adapter that has learned anew since then."""
    before = files.read_json(folder / "metrics.json", ModelError).get("measured", {}).get("adapters", {})
    names = {system.partition(":")[0] for system, *_ in parts}
    changed = {name for name in names if before.get(name) != now["adapters"].get(name)}
    return {key: part for key, part in parts.items() if key[0].partition(":")[0] not in changed}


def check(folder: str | Path, metrics: dict) -> None:
    """Refuse figures that were measured on other weights, another adapter or other data than the run's own.

    A run without an adapter of its own has only figures of others, and says so in ``run.json``.

    Raises
    ------
    ConfigError
        Naming what differs, and what to do.
    """
    folder = path(folder)
    record = files.read_json(folder / "run.json", ModelError)
    config = RunConfig(run_dir=str(folder), seed=record.get("seed") or 0)
    own = {n: f for n, f in _folders(config, folder / "adapter").items() if (f / WEIGHTS).is_file()}
    if ADAPTER not in own or not metrics.get("systems"):
        return
    measured, again = metrics.get("measured"), f"run `evaluate --run-dir {folder.name}` again"
    if not measured:
        raise ConfigError(f"metrics.json: does not say which adapter its figures are of; {again}")
    for name, adapter in own.items():
        if not any(name == system.partition(":")[0] for system in metrics["systems"]):
            continue
        if measured["adapters"].get(name) != loading.file_hash(adapter / WEIGHTS):
            where = adapter.relative_to(folder).as_posix()
            raise ConfigError(f"metrics.json: its figures of {name} are of another adapter than {where}; {again}")
    trained_on = adapters.read_metadata(own[ADAPTER]).get("base_weights")
    if trained_on and trained_on != measured["base_weights"]:
        raise ConfigError(
            f"metrics.json: its figures are of other weights than the adapter was trained on; {again}"
        )
    if (data := record.get("data_hashes")) and data != measured["data"]:
        changed = sorted(
            name for name in data.keys() | measured["data"] if data.get(name) != measured["data"].get(name)
        )
        raise ConfigError(f"metrics.json: its figures are of other data ({', '.join(changed)}); {again}")
