"""``run.json``: what made a run."""

from __future__ import annotations

from pathlib import Path

from medlib.config import RunConfig, runs
from medlib.data import sources
from medlib.data.suite import Suite
from medlib.models import loading


def write_record(config: RunConfig, suites: dict[str, Suite]) -> Path:
    """``run.json``: what made this run."""
    return runs.record(config, sources.hashes(suites), loading.model_kind(config.model))
