"""What answers and trainings are known by: the content of a model's files, the pixels and the prompt."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from huggingface_hub import HfApi

from medlib.config import ANSWERS, ModelError, provenance
from medlib.config.models import cached, locate
from medlib.data.images import PIXELS_VERSION
from medlib.models import prompts

#: Files beside the weights that decide what a model reads: settings, tokenizer, image processor, chat template.
READING = (".json", ".jinja", ".model", ".txt")


def file_hash(file: str | Path) -> str:
    """SHA-256 of a file of weights; ModelError if it is missing."""
    file = Path(file)
    if not file.is_file():
        raise ModelError(f"{file.parent}: {file.name} is missing; train first (`python -m medlib train`)")
    state = file.stat()
    return _content(file.resolve(), state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=256)
def _content(file: Path, modified: int, size: int) -> str:
    """SHA-256 of a file in this state: shards have gigabytes and are asked for by every system."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def weights_hash(model: str) -> str:
    """SHA-256 over all weight files of a local model, every shard; ``name@commit`` of a hub model."""
    folder = Path(locate(model))
    if not folder.is_dir():
        return f"{model}@{commit(model)}"
    return provenance.digest({file.name: file_hash(file) for file in sorted(folder.glob("*.safetensors"))})


def base_hash(model: str) -> str:
    """SHA-256 over all that decides what a model makes of a case before any adapter.

    Its weights, its tokenizer and settings, the prompt with its answers, and the version of the pixel function.
    """
    folder = Path(locate(model))
    files = sorted(file for file in folder.iterdir() if file.suffix in READING) if folder.is_dir() else []
    settings = {file.name: file_hash(file) for file in files}
    made_of = [weights_hash(model), settings, prompts.INSTRUCTION, prompts.VERSION, ANSWERS, PIXELS_VERSION]
    return provenance.digest(made_of)


@functools.lru_cache(maxsize=16)
def commit(model: str, timeout_s: float = 5) -> str:
    """Commit of a hub model: the one that the hub has now, else the one in the cache, else ""."""
    try:
        return HfApi().model_info(model, timeout=timeout_s).sha or ""
    except Exception:  # whichever error the hub's HTTP client has for a host that does not answer
        file = cached(model, "config.json")
        return file.parent.name if file else ""


def is_lfs_pointer(file: Path) -> bool:
    """Whether a file is what git-lfs leaves in the place of a large one that it did not fetch."""
    with file.open("rb") as content:
        return content.read(40).startswith(b"version https://git-lfs")
