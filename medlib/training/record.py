"""``run.json``: what made a run."""

from __future__ import annotations

from pathlib import Path

from medlib.config import RunConfig, provenance, run_dir
from medlib.data import sources
from medlib.data.suite import Suite
from medlib.models import loading


def write_record(config: RunConfig, suites: dict[str, Suite]) -> Path:
    """``run.json``: what made this run."""
    kind = "stand-in, knows no medicine" if loading.is_standin(config.model) else "published weights"
    parameters = config.model_dump() | {"model_kind": kind}
    return provenance.write_run(run_dir(config), parameters, sources.hashes(suites))
