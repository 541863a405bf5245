"""Adapters that a run leaves behind: where they are and what training wrote about them."""

from __future__ import annotations

import contextlib
from pathlib import Path

from medlib.config import METHODS, ModelError, RunConfig, adapter_dir, files, path
from medlib.models import adapter_files, loading
from medlib.training import finite

METADATA = adapter_files.METADATA


def read_metadata(adapter: Path) -> dict:
    """What training wrote beside an adapter, last of all; empty if it is not whole, then it is trained again."""
    with contextlib.suppress(OSError, ModelError):
        if (adapter / adapter_files.WEIGHTS).is_file():
            return adapter_files.read_metadata(adapter)
    return {}


def training_metadata(config: RunConfig) -> dict:
    """What training wrote about itself; ModelError if there is no adapter yet."""
    metadata = read_metadata(adapter_dir(config))
    if not metadata:
        raise ModelError(f"{config.run_dir}/adapter: no trained adapter; run 03_train_lora first")
    return metadata


def base(config: RunConfig) -> dict[str, str]:
    """What an adapter's metadata say about the base that it belongs to: its name, and its weights by content."""
    return {"base_model": config.model, "base_weights": loading.weights_hash(config.model)}


def save_adapter(
    model, processor, config: RunConfig, out: Path, weights: dict | None = None, rate: str = "lr"
) -> None:
    """Write the adapter "default" and the processor's files, so that they load on any machine.

    The metadata of an earlier adapter go first: `METADATA` is written when everything else is there.

    Parameters
    ----------
    weights : state dict, where no process holds the whole model
    rate : setting that was the learning rate, for the message

    Raises
    ------
    ModelError
        A weight is not a number; nothing is written.
    """
    recipe = finite.recipe(rate, getattr(config, rate), next(model.parameters()).dtype)
    for name, parameter in (weights or dict(model.named_parameters())).items():
        if ".default" in name or weights:
            finite.check(f"weight {name}", finite.norm([parameter]), "its end", recipe)
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
    return loading.file_hash(adapter_dir(config) / adapter_files.WEIGHTS)
