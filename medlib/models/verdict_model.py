"""A model that can be asked for verdicts: its network and the processor that prepares what it reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch

from medlib.models import adapter_files


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
            If the folder is not a complete adapter, or its adapter does not fit, see `adapter_files.attach`.
        """
        return self._replace(network=adapter_files.attach(self.network, folder).eval())
