"""Checkpoints of an unfinished training."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

from transformers.trainer_utils import get_last_checkpoint

from medlib.config import files


def checkpoint_folder(parent: Path, fingerprint: str) -> Path:
    """``parent/checkpoints``, for a training of this fingerprint; checkpoints of any other are deleted."""
    folder = parent / "checkpoints"
    mark = folder / "fingerprint"
    if not (mark.is_file() and mark.read_text() == fingerprint):
        clear_checkpoints(parent)
        folder.mkdir(parents=True)
        files.write_text(mark, fingerprint)
    return folder


def last_whole_checkpoint(checkpoints: Path, last: str = "trainer_state.json") -> str | None:
    """The newest complete checkpoint; those without the JSON file that is written ``last`` are deleted."""
    for folder in checkpoints.glob("checkpoint-*"):
        if not _is_json(folder / last):
            shutil.rmtree(folder)
    return get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None


def _is_json(file: Path) -> bool:
    with contextlib.suppress(OSError, ValueError):
        json.loads(file.read_text(encoding="utf-8"))
        return True
    return False


def clear_checkpoints(out_dir: str | Path) -> None:
    """Delete what an unfinished training has left."""
    shutil.rmtree(Path(out_dir) / "checkpoints", ignore_errors=True)
