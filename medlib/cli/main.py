"""The command line: ``python -m medlib --help``; every command calls the functions that the notebooks call."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from medlib.cli import audit, data, feedback, options, run, share
from medlib.config.errors import printable

app = options.app()


@app.callback()
def settings(
    data_cache: Annotated[
        Optional[Path], typer.Option(help="folder for generated data sets and images (or MEDLIB_HOME)")
    ] = None,
) -> None:
    """Fine-tune MedGemma with LoRA to audit clinical decisions, and measure it."""
    if data_cache:  # before anything asks where they lie; notebooks that a command runs inherit it
        os.environ["MEDLIB_HOME"] = os.path.abspath(os.path.expanduser(data_cache))


for group in (data, run, audit, share, feedback):
    app.add_typer(group.app)


def main() -> None:
    """Run a command; a problem that the user can fix is one message, not a traceback."""
    from medlib.config import ConfigError, DataError, ModelError, NotRun

    try:
        app()
    except (ConfigError, DataError, ModelError, NotRun) as error:
        sys.exit(f"error: {error}")
    except OSError as error:  # a disk that is full, a folder that may not be written, a name too long
        if not error.filename:
            raise
        sys.exit(f"error: {printable(str(error.filename)[:300])}: {error.strerror}")
    except RuntimeError as error:
        if "notebook" not in str(error):
            raise
        sys.exit(f"error: {printable(str(error))}")
