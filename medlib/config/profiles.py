"""Profiles: settings by name, layered with "+"; ``auto`` is the profile that fits this machine."""

from __future__ import annotations

from typing import Any

import yaml

from medlib.config import hardware
from medlib.config.errors import ConfigError
from medlib.config.hardware import EFFECTIVE_BATCH
from medlib.config.paths import ROOT


def load_profile(name: str) -> dict[str, Any]:
    """Read ``profiles/<name>.yaml``; ConfigError lists the profiles there are.

    Names joined by "+" are read one after the other, the later one wins: ``medgemma-4b+t4`` is the
    recipe of the model on the hardware of a T4; ``auto`` is the hardware found.
    """
    first, plus, rest = name.partition("+")
    if plus:
        return load_profile(first) | load_profile(rest)
    if name == "auto":  # by the device found
        return hardware_settings()
    path = ROOT / "profiles" / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted([*(p.stem for p in path.parent.glob("*.yaml")), "auto"]))
        raise ConfigError(f"profile {name!r} not found; profiles: {known}")
    return yaml.safe_load(path.read_text()) or {}


def hardware_settings(found: dict[str, Any] | None = None) -> dict[str, Any]:
    """The profile's settings, with the accumulation that keeps the effective batch for any process count.

    Raises
    ------
    ConfigError
        The number of processes does not divide the effective batch.
    """
    found = found or hardware.facts()
    values, processes = load_profile(hardware.detect(found)), found.get("processes", 1)
    if EFFECTIVE_BATCH % processes:
        raise ConfigError(f"{processes} processes cannot share a batch of {EFFECTIVE_BATCH}; start 2, 4, 8 or 16")
    share = EFFECTIVE_BATCH // processes
    values["batch_size"] = min(values["batch_size"], share)
    return values | {"gradient_accumulation": share // values["batch_size"]}
