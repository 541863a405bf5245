"""Folders of a run."""

from __future__ import annotations

from pathlib import Path

from medlib.config.paths import path
from medlib.config.settings import RunConfig


def adapter_dir(config: RunConfig) -> Path:
    """The adapter to evaluate: the one named, or the run's own."""
    return path(config.adapter) if config.adapter else path(config.run_dir) / "adapter"


def run_dir(config: RunConfig) -> Path:
    """The run's folder, made if missing."""
    folder = path(config.run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
