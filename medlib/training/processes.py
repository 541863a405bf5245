"""Several processes: who this one is, and how a notebook starts more of itself.

From a terminal, `accelerate launch --config_file profiles/accelerate/ddp.yaml -m medlib train` does
the same. Tested with two gloo processes on a CPU; NCCL and GPUs are untested.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from accelerate import PartialState, debug_launcher, notebook_launcher

from medlib.training import hooks


def state() -> PartialState:
    """This process among its like; on a GPU machine it also picks this process's GPU."""
    # without a GPU accelerate sees the other processes only if it is told that there is none
    return PartialState(cpu=not torch.accelerator.is_available())


def count() -> int:
    """How many processes train together; 1 unless a launcher started more."""
    return state().num_processes


def sharded() -> bool:
    """True under FSDP, where no process holds the whole model; accelerate shards on accelerators only."""
    fsdp = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    return fsdp and torch.accelerator.is_available()


def say(text: str) -> None:
    """Print once, whatever the number of processes."""
    if state().is_main_process:
        print(text, flush=True)


def notebook(function: Callable, arguments: tuple = (), processes: int | None = None) -> None:
    """Call ``function(*arguments)`` in every one of several processes, from a notebook.

    The function must load its model itself, and nothing may have touched the GPU in the notebook
    before: the processes are forked. What it returns is lost; it leaves its results on disk.

    Parameters
    ----------
    function : for example `medlib.training.supervised.train`
    processes : int, optional
        One a GPU by default. Without a GPU they talk over gloo, and more than one gains nothing but
        a test of the real thing.

    Examples
    --------
    >>> processes.notebook(supervised.train, (config,), processes=2)  # doctest: +SKIP
    """
    count = processes or max(1, torch.cuda.device_count())
    hooks.forget_processes()
    if count == 1:
        function(*arguments)
    elif torch.cuda.is_available():
        notebook_launcher(function, arguments, num_processes=count)
    else:
        debug_launcher(function, arguments, num_processes=count)
