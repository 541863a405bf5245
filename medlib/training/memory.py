"""Training that fits into memory: smaller micro-batches, peak memory."""

from __future__ import annotations

import contextlib
import sys

import psutil
import torch

from medlib.config import ModelError, RunConfig
from medlib.training import hooks, processes


def smaller_micro_batch(config: RunConfig) -> RunConfig:
    """Half the micro-batch, or the next smaller one that leaves the effective batch as it is.

    >>> small = smaller_micro_batch(RunConfig(batch_size=6, gradient_accumulation=2))
    >>> small.batch_size, small.gradient_accumulation
    (3, 4)
    """
    rows = config.batch_size * config.gradient_accumulation
    size = next((n for n in range(config.batch_size // 2, 0, -1) if rows % n == 0), 0)
    return config.model_copy(update={"batch_size": size, "gradient_accumulation": rows // max(1, size)})


def until_it_fits(function, batch_size: int, smaller) -> None:
    """Call ``function(batch_size)``; out of memory, again with what ``smaller`` makes of the size.

    accelerate's ``find_executable_batch_size``, but the memory is cleared only after a failure, and
    after the error, whose traceback holds the tensors, is gone.
    """
    size = batch_size
    while True:
        try:
            return function(size)
        except RuntimeError as error:
            if not hooks.should_reduce_batch_size(error):
                raise
        if processes.count() > 1:
            raise ModelError(
                f"out of memory with batch_size={size} in one of {processes.count()} "
                "processes; set batch_size to half and gradient_accumulation to double"
            )
        if size == 1:
            raise ModelError(
                "out of memory with one scenario a forward pass; set "
                "gradient_checkpointing=true, quantization=4bit, or take a smaller model"
            )
        hooks.clear_device_cache(garbage_collection=True)
        size = smaller(size)


def recomputes(config: RunConfig, device: str) -> bool:
    """Whether activations are computed again instead of kept; unless told otherwise, on a GPU."""
    return device == "cuda" if config.gradient_checkpointing is None else config.gradient_checkpointing


def peak_memory_mib() -> float:
    """Peak memory of this process: on the GPU where there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    with contextlib.suppress(ImportError):
        import resource  # not on Windows

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
    info = psutil.Process().memory_info()
    return getattr(info, "peak_wset", info.rss) / 2**20
