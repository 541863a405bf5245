"""A model that can be asked for verdicts: its network and the processor that prepares what it reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel

from medlib.config import ModelError


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
            If the folder is not a complete adapter (names the missing file).
        """
        folder = Path(folder)
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            if not (folder / file).is_file():
                raise ModelError(f"{folder}: {file} is missing; train first (`python -m medlib train`)")
        return self._replace(network=PeftModel.from_pretrained(self.network, folder, use_safetensors=True).eval())
