"""A model that can be asked for verdicts: its network and the processor that prepares what it reads."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel

from medlib.config import ModelError

#: Regular expressions of `medlib.training.lora`; PEFT tries any other one, too, and some take for ever.
_PART = r"\.\*(?:language_model|vision_tower)\.\*\\\.\((?:[a-z_|]+|\\w\+_proj)\)"
HARMLESS = re.compile(rf"[\w.^$\\-]*|{_PART}|\({_PART}\|{_PART}\)")
PATTERNS = ("target_modules", "exclude_modules", "layers_pattern", "rank_pattern", "alpha_pattern")


def _check_patterns(file: Path) -> None:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        named = {name: config.get(name) or () for name in PATTERNS}
    except (ValueError, RecursionError, AttributeError):
        raise ModelError(f"{file}: not the configuration of an adapter") from None
    for name, value in named.items():
        for text in [value] if isinstance(value, str) else value:
            if not HARMLESS.fullmatch(str(text)):
                raise ModelError(
                    f"{file}, field '{name}': a regular expression that could run for ever; name the modules in a "
                    "list"
                )


class VerdictModel(NamedTuple):
    """Processor and network, which belong together.

    Attributes
    ----------
    processor : transformers processor; its tokenizer pads at the left
    network : the base model, or a ``PeftModel`` over it
    """

    processor: Any
    network: torch.nn.Module

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def with_adapter(self, folder: str | Path) -> VerdictModel:
        """The same with a LoRA adapter on it; the base's own weights stay as they are.

        Raises
        ------
        ModelError
            If the folder is not a complete adapter (names the missing file), or names the modules that it
            changes by a regular expression that is not one of this project's.
        """
        folder = Path(folder)
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            if not (folder / file).is_file():
                raise ModelError(f"{folder}: {file} is missing; train first (`python -m medlib train`)")
        _check_patterns(folder / "adapter_config.json")
        return self._replace(network=PeftModel.from_pretrained(self.network, folder, use_safetensors=True).eval())
