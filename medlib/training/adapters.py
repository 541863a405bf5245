"""Adapters that a run leaves behind: where they are and what training wrote about them."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from medlib.config import METHODS, ModelError, RunConfig, adapter_dir, files, path
from medlib.models import loading

METADATA = "training_metadata.json"


def read_metadata(adapter: Path) -> dict:
    """What training wrote beside an adapter, last of all; empty if it is not whole, then it is trained again."""
    with contextlib.suppress(OSError, ValueError):
        if (adapter / "adapter_model.safetensors").is_file():
            return json.loads((adapter / METADATA).read_text(encoding="utf-8"))
    return {}


def training_metadata(config: RunConfig) -> dict:
    """What training wrote about itself; ModelError if there is no adapter yet."""
    metadata = read_metadata(adapter_dir(config))
    if not metadata:
        raise ModelError(f"{config.run_dir}/adapter: no trained adapter; run 03_train_lora first")
    return metadata


def save_adapter(model, processor, config: RunConfig, out: Path, weights: dict | None = None) -> None:
    """Write the adapter "default" and the processor's files, so that they load on any machine.

    The metadata of an earlier adapter go first: `METADATA` is written when everything else is there.

    Parameters
    ----------
    weights : state dict, where no process holds the whole model
    """
    model.peft_config["default"].base_model_name_or_path = config.model  # not this machine's path
    # embeddings are untouched; "auto" would ask the hub
    options = dict(selected_adapters=["default"], save_embedding_layers=False, state_dict=weights)
    (out / METADATA).unlink(missing_ok=True)
    with files.replacements(out) as unfinished:
        model.save_pretrained(unfinished, **options)
        processor.save_pretrained(unfinished)
        (unfinished / "README.md").unlink(missing_ok=True)  # PEFT's card names folders of this machine


# --- runs -------------------------------------------------------------------------------------------


def rl_folder(config: RunConfig, method: str, seed: int | None = None) -> Path:
    """Where a method's run keeps its adapter; the first seed unless told otherwise."""
    return path(config.run_dir) / "rl" / f"{method}-{config.seed if seed is None else seed}"


def rl_metadata(config: RunConfig, method: str, seed: int) -> dict:
    """What a finished run wrote about itself; empty if it has not finished."""
    return read_metadata(rl_folder(config, method, seed) / "adapter")


def rl_adapter(config: RunConfig, method: str, seed: int) -> Path:
    """The adapter of a finished run; ModelError if there is none that went on from this supervised adapter."""
    where = f"{config.run_dir}/rl: {METHODS[method]}, seed {seed}"
    known = rl_metadata(config, method, seed)
    if not known:
        raise ModelError(f"{where}: no adapter; run 07_rl first (`python -m medlib rl`)")
    if known["supervised"] != supervised_hash(config):
        raise ModelError(f"{where}: went on from another supervised adapter; run 07_rl again")
    return rl_folder(config, method, seed) / "adapter"


def supervised_hash(config: RunConfig) -> str:
    """SHA-256 of the adapter that every run starts from."""
    return loading.file_hash(adapter_dir(config) / "adapter_model.safetensors")
