"""Checkpoints of an unfinished training."""

from __future__ import annotations

import shutil
from pathlib import Path

from transformers.trainer_utils import get_last_checkpoint


def checkpoint_folder(parent: Path, fingerprint: str) -> Path:
    """``parent/checkpoints``, for a training of this fingerprint; checkpoints of any other are deleted."""
    folder = parent / "checkpoints"
    mark = folder / "fingerprint"
    if not (mark.is_file() and mark.read_text() == fingerprint):
        clear_checkpoints(parent)
        folder.mkdir(parents=True)
        mark.write_text(fingerprint)
    return folder


def last_whole_checkpoint(checkpoints: Path) -> str | None:
    """The newest complete checkpoint; the trainer's state is written last, so without it one is cut off."""
    for folder in checkpoints.glob("checkpoint-*"):
        if not (folder / "trainer_state.json").is_file():
            shutil.rmtree(folder)
    return get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None


def clear_checkpoints(out_dir: str | Path) -> None:
    """Delete what an unfinished training has left."""
    shutil.rmtree(Path(out_dir) / "checkpoints", ignore_errors=True)
