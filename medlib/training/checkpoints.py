"""Checkpoints of an unfinished training."""

from __future__ import annotations

import shutil
from pathlib import Path

from transformers.trainer_utils import get_last_checkpoint


def last_whole_checkpoint(checkpoints: Path) -> str | None:
    """The newest complete checkpoint; the trainer's state is written last, so without it one is cut off."""
    for folder in checkpoints.glob("checkpoint-*"):
        if not (folder / "trainer_state.json").is_file():
            shutil.rmtree(folder)
    return get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None


def clear_checkpoints(out_dir: str | Path) -> None:
    """Forget an unfinished training."""
    shutil.rmtree(Path(out_dir) / "checkpoints", ignore_errors=True)
