"""What a model is, by its own files: where it lies, what its config.json says, whether it is a stand-in."""

from __future__ import annotations

import os
from pathlib import Path

from medlib.config import files
from medlib.config.errors import ModelError
from medlib.config.paths import ROOT


def locate(model: str) -> str:
    """A folder of this repository if there is one of that name, else a hub name or path as given."""
    folder = ROOT / model
    if os.path.isdir(folder):  # False for what no path can be, such as too long a name
        return str(folder)
    if model.startswith(("models/", "./", "/")) and not os.path.isdir(model):
        raise ModelError(f"{model}: no such model folder; `make standin` rebuilds models/medgemma-nano")
    return model


def model_config(model: str) -> dict:
    """What a model's ``config.json`` says; of a hub model the copy in the cache, empty if there is none.

    Raises
    ------
    ModelError
        If the file is no JSON object.
    """
    place = locate(model)
    file = Path(place) / "config.json" if os.path.isdir(place) else cached(place, "config.json")
    return files.read_json(file, ModelError, f"{model}: config.json") if file else {}


def cached(model: str, name: str) -> Path | None:
    """A hub model's file in the cache of the hub's client; None if it is not there."""
    from huggingface_hub import try_to_load_from_cache  # only where somebody asks about a hub model

    try:
        found = try_to_load_from_cache(model, name)
    except (ValueError, OSError):  # no name that the hub could have
        return None
    return Path(found) if isinstance(found, str) else None


def is_standin(model: str) -> bool:
    """True for a model that this repository made and that knows no medicine (marked in its config.json)."""
    return bool(model_config(model).get("standin"))
