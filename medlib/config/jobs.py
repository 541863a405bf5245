"""Independent jobs side by side: a pool of processes, one thread each, and what each of them is doing."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import psutil

from medlib.config.errors import ModelError

#: Says how many processes work side by side; jobs find 1 in it, so that they start none themselves.
PROCESSES = "MEDLIB_PROCESSES"
#: Names a folder in which every process leaves a line on what it is doing.
PROGRESS = "MEDLIB_PROGRESS"


def cores() -> int:
    """Processes for jobs without a model: ``MEDLIB_PROCESSES``, else one per physical core of this process."""
    if PROCESSES in os.environ:
        return max(1, int(os.environ[PROCESSES]))
    usable = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else os.cpu_count()
    return max(1, min(usable or 1, psutil.cpu_count(logical=False) or 1))


def count(processes: int | None = None) -> int:
    """Processes for jobs that load a model: those asked for, else `cores`, but one on an accelerator."""
    import torch  # only where somebody needs it

    if processes or PROCESSES in os.environ:
        return processes or cores()
    return 1 if torch.accelerator.is_available() else cores()


def run(function: Callable, jobs: Sequence[tuple], processes: int, title: str) -> list[Any]:
    """Call ``function(*job)`` for every job and return the results in the order of the jobs.

    Several processes are started afresh, so ``function`` must be importable and jobs and results picklable; one
    process calls it here. The first error ends the call, and jobs that have not begun are dropped.

    Examples
    --------
    >>> run(pow, [(2, 3), (3, 2)], 1, "powers")
    [8, 9]
    """
    from tqdm.auto import tqdm  # not before `_start_worker` has had its say on bars

    if min(processes, len(jobs)) < 2:
        return [function(*job) for job in jobs]
    with pool(min(processes, len(jobs))) as executor:
        futures = [executor.submit(function, *job) for job in jobs]
        bar = tqdm(as_completed(futures), title, len(jobs), leave=False, disable=None)  # no bar in a log
        for done, future in enumerate(bar, start=1):
            future.result()
            progress(f"{title}: {done} of {len(jobs)}")
        return [future.result() for future in futures]


@contextlib.contextmanager
def pool(processes: int) -> Iterator[ProcessPoolExecutor]:
    """A pool whose processes have one thread, unless ``OMP_NUM_THREADS`` says otherwise, and end with this one.

    Raises
    ------
    ModelError
        If one of them is killed: then the others end too, and what they had finished is on disk.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by a process when it starts
    executor = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _start_worker)
    try:
        yield executor
    except BrokenProcessPool:
        raise ModelError(
            "a process was killed from outside, most often because memory ran out; run again to go on from "
            f"there, with {PROCESSES}=1 if it happens again"
        ) from None
    finally:
        executor.shutdown(cancel_futures=True)


def _start_worker() -> None:
    os.environ[PROCESSES] = "1"
    os.environ["TQDM_DISABLE"] = "1"  # bars of several processes would overwrite each other
    warnings.simplefilter("ignore")  # this process's own will have been seen
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent cannot stop its pool, and a repeated run must not meet the processes of the last one."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def progress(text: str) -> None:
    """Say in one line what this process is doing, to whoever runs the report."""
    if folder := os.environ.get(PROGRESS):
        Path(folder, str(os.getpid())).write_text(text, encoding="utf-8")
