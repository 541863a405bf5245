"""Checkpoints of an unfinished training."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
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
    """The newest complete checkpoint; one with a cut file, or without its ``last`` JSON, is deleted."""
    for folder in checkpoints.glob("checkpoint-*"):
        if not _is_whole(folder, last):
            shutil.rmtree(folder)
    return get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None


def _is_whole(folder: Path, last: str) -> bool:
    try:
        for name in {"trainer_state.json", last}:
            json.loads((folder / name).read_text(encoding="utf-8"))
        for file in folder.glob("*.safetensors"):
            with safe_open(file, "pt"):
                pass
    except (OSError, ValueError, SafetensorError):
        return False
    # what torch saves is an archive with its index at the end
    return all(zipfile.is_zipfile(file) for file in [*folder.glob("*.pt"), *folder.glob("*.pth")])


def clear_checkpoints(out_dir: str | Path) -> None:
    """Delete what an unfinished training has left."""
    shutil.rmtree(Path(out_dir) / "checkpoints", ignore_errors=True)
