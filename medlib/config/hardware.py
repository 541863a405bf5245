"""Which profile fits the machine: `facts` looks, `detect` decides, `explain` says why."""

from __future__ import annotations

import os
from typing import Any

#: Scenarios an optimizer step in every profile, whatever the hardware: one recipe, one result.
EFFECTIVE_BATCH = 16


def device() -> str:
    """The device to compute on: cuda, mps or cpu, in this order of preference."""
    import torch  # only where somebody asks

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def facts() -> dict[str, Any]:
    """What is here: ``device``; for cuda also ``name``, ``memory_gb``, ``capability``, ``count``, ``processes``.

    ``processes`` is how many `accelerate launch` started; memory is the first card's, in 2**30 bytes.
    """
    import torch

    if device() == "cuda":
        card = torch.cuda.get_device_properties(0)
        return {
            "device": "cuda",
            "name": card.name,
            "memory_gb": card.total_memory / 2**30,
            "capability": (card.major, card.minor),
            "count": torch.cuda.device_count(),
            "processes": int(os.environ.get("WORLD_SIZE", 1)),
        }
    return {"device": device()}


def detect(found: dict[str, Any] | None = None) -> str:
    """Name of the profile for these facts; those of this machine if none are given.

    Examples
    --------
    >>> detect({"device": "cuda", "name": "Tesla T4", "memory_gb": 14.6, "capability": (7, 5), "count": 1})
    't4'
    """
    return _choose(found or facts())[0]


def explain(found: dict[str, Any] | None = None) -> str:
    """One line: the device, the profile chosen and why."""
    found = found or facts()
    profile, why = _choose(found)
    device = found["device"] if found["device"] != "cuda" else f"{found['name']}, {found['memory_gb']:.0f} GB"
    line = f"{device}; the profile that fits is {profile}: {why}"
    if found.get("count", 1) > 1 and found.get("processes", 1) == 1:
        line += (
            f"; {found['count']} cards are here, one is used: "
            f"`accelerate launch --num_processes {found['count']} -m medlib train` uses all"
        )
    return line


def _choose(found: dict[str, Any]) -> tuple[str, str]:
    device = found["device"]
    if device != "cuda":
        return device, "Apple silicon" if device == "mps" else "no GPU that PyTorch can use"
    memory, capability = found["memory_gb"], tuple(found["capability"])
    number = "compute capability {}.{}".format(*capability)
    if capability < (8, 0):
        return "t4", f"{number} has no bfloat16"
    if memory < 20:
        return "t4", "less than 20 GB"
    if found.get("processes", 1) > 1:
        return "multi-gpu", f"{found['processes']} processes"
    if memory < 38:
        return ("rtx4090" if capability >= (8, 9) else "rtx3090"), f"bfloat16 and about 24 GB, {number}"
    if memory < 75 or capability < (9, 0):
        return "a100", f"bfloat16 and 40 GB or more, {number}"
    return "h100", f"bfloat16 and about 80 GB or more, {number}"
