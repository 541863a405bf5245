"""Putting a LoRA adapter on a base: the one door, which takes an adapter only if all of it fits."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from medlib.config import ModelError, files
from medlib.config.terms import ADAPTER_WEIGHTS
from medlib.models.weights import is_lfs_pointer, weights_hash

#: Regular expressions of `medlib.training.lora`; PEFT tries any other one, too, and some take for ever.
_PART = r"\.\*(?:language_model|vision_tower)\.\*\\\.\((?:[a-z_|]+|\\w\+_proj)\)"
HARMLESS = re.compile(rf"[\w.^$\\-]*|{_PART}|\({_PART}\|{_PART}\)")
PATTERNS = ("target_modules", "exclude_modules", "layers_pattern", "rank_pattern", "alpha_pattern")
CONFIG, WEIGHTS, METADATA = "adapter_config.json", ADAPTER_WEIGHTS, "training_metadata.json"


def attach(
    network: torch.nn.Module, folder: str | Path, name: str = "default", trainable: bool = False
) -> PeftModel:
    """A base, or a base with other adapters, with the adapter of a folder switched on.

    Raises
    ------
    ModelError
        A file is missing, cut off or no adapter, or names modules by a regular expression that is not one of this
        project's; the adapter was trained on another base; or its weights do not
        fit (names, shapes). The base is then as it was before.
    """
    folder = Path(folder)
    for file in (CONFIG, WEIGHTS):
        _check_there(folder / file)
    config, shapes = read_config(folder), _shapes(folder)
    _check_base(network, folder, config)
    # PEFT writes the name in use here, and would warn that it is another spelling
    config.inference_mode, config.base_model_name_or_path = not trainable, None
    try:
        if isinstance(network, PeftModel):
            network.add_adapter(name, config)
            model = network
        else:
            model = get_peft_model(network, config, adapter_name=name)
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # of modules that are not there
        if not isinstance(network, PeftModel):
            _take_out(network)
        raise ModelError(f"{folder}: the adapter does not fit this base ({_first(error)})") from None
    # no look at the embeddings, which no adapter here changes: PEFT would ask the hub about them
    wanted = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    expected = {key: tuple(tensor.shape) for key, tensor in wanted.items()}
    if wrong := sorted(key for key in shapes | expected if shapes.get(key) != expected.get(key)):
        network.delete_adapter(name) if model is network else model.unload()
        key = wrong[0]
        raise ModelError(
            f"{folder}: {len(wrong):,} weights do not fit this base, such as {key} (file: {shapes.get(key)}, "
            f"needed: {expected.get(key)}); name the base that the adapter was trained on as model"
        )
    set_peft_model_state_dict(model, load_file(folder / WEIGHTS), adapter_name=name)
    model.set_adapter(name, inference_mode=not trainable)
    return model


def _take_out(network: torch.nn.Module) -> None:
    """Put back the base's own modules, where an adapter was put in only in part."""
    for name, module in list(network.named_modules()):
        if isinstance(module, BaseTunerLayer):
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, module.get_base_layer())


def read_config(folder: Path) -> PeftConfig:
    """What ``adapter_config.json`` says; ModelError if the file is missing or no such settings."""
    _check_there(folder / CONFIG)
    check_patterns(folder / CONFIG)
    try:
        config = PeftConfig.from_pretrained(folder)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"{folder}: {CONFIG} is not what PEFT writes ({_first(error)})") from None
    if not isinstance(config, LoraConfig):
        raise ModelError(f"{folder}: {CONFIG} is not that of a LoRA adapter")
    return config


def _check_there(file: Path) -> None:
    if not file.is_file():
        raise ModelError(f"{file.parent}: {file.name} is missing; train first (`python -m medlib train`)")


def check_patterns(file: Path) -> None:
    """ModelError if an adapter's settings hold a regular expression that is not one of this project's."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        named = {name: config.get(name) or () for name in PATTERNS}
        texts = [(name, str(text)) for name, v in named.items() for text in ([v] if isinstance(v, str) else v)]
    except (ValueError, RecursionError, AttributeError, TypeError):
        raise ModelError(f"{file.parent}: {CONFIG} is not what PEFT writes") from None
    for name, text in texts:
        if not HARMLESS.fullmatch(text):
            raise ModelError(
                f"{file}, field '{name}': a regular expression that could run for ever; name the modules in a list"
            )


def read_metadata(folder: Path) -> dict:
    """What training wrote about an adapter; empty if there is nothing, ModelError if it is no JSON object."""
    return files.read_json(folder / METADATA, ModelError)


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shape of each weight of an adapter, read without loading them."""
    try:
        with safe_open(folder / WEIGHTS, "pt") as held:
            return {name: tuple(held.get_slice(name).get_shape()) for name in held.keys()}
    except (SafetensorError, OSError) as error:
        if is_lfs_pointer(folder / WEIGHTS):
            raise ModelError(
                f"{folder}: {WEIGHTS} is a git-lfs pointer; `git lfs pull` fetches the file"
            ) from None
        raise ModelError(f"{folder}: {WEIGHTS} is cut off or no safetensors file ({_first(error)})") from None


def _check_base(network: torch.nn.Module, folder: Path, config: PeftConfig) -> None:
    """Refuse an adapter that was trained on another base, by the content of its weights or else by its name."""
    used = network.config.name_or_path
    trained_on = str(config.base_model_name_or_path or "")
    metadata = read_metadata(folder)
    before, now = str(metadata.get("base_weights", "")), weights_hash(used) if used else ""
    if not before or not now or "@" in before + now:  # the hub's commits say nothing about a folder
        same = Path(trained_on).name == Path(used).name or not (trained_on and used)
    else:
        same = before == now
    if not same:
        raise ModelError(
            f"{folder}: this adapter was trained on {trained_on}, and the base here is {used} with other weights; "
            "name the former as model"
        )


def _first(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
