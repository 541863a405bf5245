"""Run the notebooks, each after those that it needs and with the parameters that it declares."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from graphlib import TopologicalSorter
from pathlib import Path

import nbformat
import papermill
import psutil
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.exceptions import PapermillExecutionError
from papermill.translators import PythonTranslator

from medlib.config import ROOT, files, jobs, path, runs

NOTEBOOKS = ROOT / "notebooks"


#: What a notebook's results rest on; one that is not listed waits for all notebooks before it.
NEEDS = {
    "00_quickstart": (),
    "01_data": (),
    "02_data_audit": (),
    "03_train_lora": (),
    "04_evaluate": ("03_train_lora", "ahead"),
    "05_collect_feedback": ("03_train_lora",),
    "06_reward_model": ("05_collect_feedback",),
    "07_rl": ("04_evaluate", "06_reward_model"),
    "08_benchmark": ("07_rl",),
    "09_error_analysis": ("08_benchmark",),
    "10_cost": ("08_benchmark",),
    "11_audit_a_case": ("07_rl",),
}
#: Seconds of each step as a first guess: the stand-in on two cores (benchmarks/README.md).
SECONDS = {
    "first": 17,
    "ahead": 100,
    "00_quickstart": 12,
    "01_data": 24,
    "02_data_audit": 42,
    "03_train_lora": 160,
    "04_evaluate": 100,
    "05_collect_feedback": 24,
    "06_reward_model": 90,
    "07_rl": 180,
    "08_benchmark": 90,
    "09_error_analysis": 73,
    "10_cost": 37,
    "11_audit_a_case": 40,
}
EVERY = 25.0  # seconds between two lines on the progress


def run_notebooks(
    run_dir: str | Path,
    parameters: dict,
    notebooks: list[str] | None = None,
    resume: bool = True,
    timeout: float | None = None,
    first: tuple[Callable, tuple] | None = None,
    ahead: tuple[Callable, tuple] | None = None,
    processes: int = 1,
) -> list[Path]:
    """Execute notebooks into ``run_dir/notebooks``, each after those that it needs (`NEEDS`).

    Each runs in the current working folder, with the parameters that its cell tagged
    ``parameters`` declares, and always with ``run_dir``. Time and memory go into ``run.json``.

    Parameters
    ----------
    run_dir : str or Path
        Folder of the run; made when missing.
    parameters : dict
        Settings by name, of types that JSON has. Those that a notebook does not declare are not
        passed to it.
    notebooks : list of str, optional
        Paths, or names in ``notebooks/`` such as ``03_train`` or just ``03``. All by default.
    resume : bool
        Skip a notebook that already finished with the same cells and the same parameters, unless
        one that it needs has to run. Changes in ``medlib`` itself are not seen; pass False after those.
    timeout : float, optional
        Seconds that one cell may take.
    first : (function, arguments), optional
        Called before any notebook that has to run, such as what draws the images that all of them read.
    ahead : (function, arguments), optional
        Work that needs no notebook, done in a process of its own beside the first ones; left out
        if nothing runs side by side.
    processes : int
        With more than one, two notebooks run side by side where neither needs the other.

    Returns
    -------
    list of Path
        The executed notebooks.

    Raises
    ------
    FileNotFoundError
        If a notebook does not exist.
    RuntimeError
        If a cell fails; names notebook, cell, line and error. What was executed is kept.
    """
    run_dir = path(run_dir)
    sources = {source.stem: source for source in map(_find_notebook, notebooks or _all_notebooks())}
    settings = json.loads(json.dumps(parameters, default=str))
    settings["run_dir"] = relative(run_dir)
    files.private_folder(run_dir)
    (run_dir / "notebooks").mkdir(exist_ok=True)
    targets = {name: run_dir / "notebooks" / source.name for name, source in sources.items()}
    needs = _needs(list(sources))

    steps: dict[str, tuple[Callable, tuple]] = {}
    stale: set[str] = set()
    for number, (name, source) in enumerate(sources.items(), start=1):
        declared = _declared_parameters(source)
        passed = {k: v for k, v in settings.items() if k in declared or k == "run_dir"}
        if resume and not stale & needs[name] and _finished(targets[name], source, passed):
            print(f"[{number}/{len(sources)}] {name}: already finished, skipped", flush=True)
        else:
            stale.add(name)
            steps[name] = (_execute, (source, targets[name], passed, timeout))
    if ahead and processes > 1 and "04_evaluate" in steps:
        steps["ahead"] = (_in_a_process, ahead)
    if not steps:
        return list(targets.values())
    if first:
        steps["first"] = first
        needs = {name: needs.get(name, set()) | {"first"} for name in steps if name != "first"}
    with runs.alone(run_dir.resolve()), _watch(list(sources), steps, run_dir / "progress") as watch:
        _run_steps(
            steps, {name: needs.get(name, set()) & steps.keys() for name in steps}, min(2, processes), watch
        )
    durations = {name: _record(target).get("duration") or 0 for name, target in targets.items()}
    facts = {
        "seconds": round(watch.seconds, 1),
        "resumed": not sources.keys() <= steps.keys(),  # then the seconds are those of the rest
        "seconds_by_notebook": {name: round(seconds, 1) for name, seconds in durations.items()},
        "peak_memory_mib": round(watch.peak_memory_mib),
        "processes": processes,
        "threads": os.environ.get("OMP_NUM_THREADS"),
    }
    runs.add(run_dir.resolve(), report=facts)
    return list(targets.values())


@contextlib.contextmanager
def _watch(names: list[str], steps: dict, folder: Path) -> Iterator[_Watch]:
    watch = _Watch(names, steps, folder)
    try:
        yield watch
    finally:
        watch.close()


def _needs(names: list[str]) -> dict[str, set[str]]:
    return {name: set(NEEDS.get(name, names[:number])) for number, name in enumerate(names)}


def _run_steps(steps: dict, needs: dict[str, set[str]], side_by_side: int, watch: _Watch) -> None:
    """Call every step after those that it needs; the first error ends it."""
    order, running = TopologicalSorter(needs), {}
    order.prepare()
    with ThreadPoolExecutor(side_by_side) as threads:
        try:
            while order.is_active():
                # side by side the longest first, so that both end together; else in the order of the numbers
                by_length = (lambda name: -SECONDS.get(name, 0)) if side_by_side > 1 else None
                for name in sorted(order.get_ready(), key=by_length):
                    running[threads.submit(watch.timed, name, *steps[name])] = name
                done, _ = wait(running, timeout=1, return_when=FIRST_COMPLETED)
                watch.look()
                for future in done:
                    name = running.pop(future)
                    future.result()
                    order.done(name)
        except KeyboardInterrupt:  # the threads end with their kernels
            for child in psutil.Process().children(recursive=True):
                child.kill()
            raise
        finally:
            threads.shutdown(wait=False, cancel_futures=True)


def _in_a_process(function: Callable, arguments: tuple) -> None:
    with jobs.pool(1) as executor:
        executor.submit(function, *arguments).result()


class _Watch:
    """Prints what is running and how long the rest may take, and measures time and memory."""

    def __init__(self, names: list[str], steps: dict, folder: Path) -> None:
        self.label = {name: f"[{number}/{len(names)}] {name}" for number, name in enumerate(names, start=1)}
        self.label["first"] = "images of the suites"
        self.label["ahead"] = "beside them: what needs no adapter"
        self.left, self.folder = {name: SECONDS.get(name, 30) for name in steps}, folder
        self.running: dict[str, float] = {}
        self.guessed, self.measured = 0.0, 0.0
        self.started = self.told = time.monotonic()
        self.peak_memory_mib = 0.0
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        os.environ[jobs.PROGRESS] = str(folder.resolve())

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def timed(self, name: str, function: Callable, arguments: tuple) -> None:
        """Call a step, from the thread in which it runs."""
        print(f"{self.label[name]}: running", flush=True)
        self.running[name] = started = time.monotonic()
        try:
            function(*arguments)
        except Exception as error:
            print(f"{self.label[name]}: failed ({type(error).__name__})", flush=True)
            raise
        else:
            seconds = time.monotonic() - started
            self.guessed, self.measured = self.guessed + self.left.pop(name), self.measured + seconds
            print(f"{self.label[name]}: finished in {seconds:.0f} s", flush=True)
        finally:
            del self.running[name]

    def look(self) -> None:
        """Note the memory in use, and print a line if it is time for one."""
        memory = 0
        for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
            with contextlib.suppress(psutil.Error):  # ended meanwhile
                memory += process.memory_info().rss
        self.peak_memory_mib = max(self.peak_memory_mib, memory / 2**20)
        if time.monotonic() - self.told > EVERY:
            self.told = time.monotonic()
            print(self.line(), flush=True)

    def line(self) -> str:
        """Which steps run and for how long, what their processes do, and the time left."""
        now = time.monotonic()
        running = "; ".join(f"{self.label[name]} {_clock(now - start)}" for name, start in [*self.running.items()])
        files = [file for file in self.folder.iterdir() if time.time() - file.stat().st_mtime < 30]
        doing = ", ".join(sorted({file.read_text(encoding="utf-8") for file in files} - {""}))
        pace = (self.measured + 120) / (self.guessed + 120)  # the first short steps say little
        rest = [max(5.0, pace * self.left[n] - (now - self.running.get(n, now))) for n in [*self.left]]
        left = max([sum(rest) / max(1, len(self.running)), *rest])
        return (
            f"{running}{f' ({doing})' if doing else ''}; total {_clock(self.seconds)}, "
            f"about {max(1, round(left / 60))} min left"
        )

    def close(self) -> None:
        os.environ.pop(jobs.PROGRESS, None)
        shutil.rmtree(self.folder, ignore_errors=True)


def _clock(seconds: float) -> str:
    """
    >>> _clock(130)
    '2:10'
    """
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _all_notebooks() -> list[str]:
    found = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    if not found:
        raise FileNotFoundError(f"no notebook NN_*.ipynb in {NOTEBOOKS.name}/")
    return [str(file) for file in found]


def _find_notebook(name: str | Path) -> Path:
    """Path of a notebook given as a path or as the start of a name in ``notebooks/``."""
    if Path(name).is_file():
        return Path(name)
    found = sorted(NOTEBOOKS.glob(f"{Path(name).name.removesuffix('.ipynb')}*.ipynb"))
    if len(found) != 1:
        raise FileNotFoundError(f"{name}: {len(found)} notebooks in {NOTEBOOKS.name}/ match")
    return found[0]


def _declared_parameters(source: Path) -> set[str]:
    """Names that a notebook's cell tagged ``parameters`` sets."""
    cells = nbformat.read(source, as_version=4).cells
    tagged = [cell for cell in cells if "parameters" in tags(cell)]
    return {found.name for cell in tagged for found in PythonTranslator.inspect(cell)}


def relative(file: Path) -> str:
    """Path seen from the working folder where it lies inside, so that pages name no machine."""
    file = file.resolve()
    return file.relative_to(Path.cwd()).as_posix() if file.is_relative_to(Path.cwd()) else str(file)


def _execute(source: Path, target: Path, parameters: dict, timeout: float | None) -> None:
    try:
        papermill.execute_notebook(
            str(source), relative(target), parameters=parameters, kernel_name="python3",
            language="python", progress_bar=False, execution_timeout=timeout,
            extra_arguments=["--IPKernelApp.log_level=CRITICAL"],  # else it warns at each start
        )  # fmt: skip
    except PapermillExecutionError as error:
        where = f"cell In [{error.exec_count}]"
        line = _failing_line(error.traceback)
        what = f"{error.ename}: {error.evalue}"
    except (CellTimeoutError, DeadKernelError) as error:
        where, line, what = "a cell", "", f"{type(error).__name__}: {error}"
    else:
        return
    at_line = f", line `{line}`" if line else ""
    raise RuntimeError(
        f"notebook {source.name} failed in {where}{at_line}: {what}\nexecuted up to there: {relative(target)}"
    )


def _failing_line(traceback: list[str]) -> str:
    """Source line of the cell that an IPython traceback points at, or an empty string."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(traceback))
    arrow = re.search(r"^-+> *\d+ ?(.*)$", text, flags=re.MULTILINE)
    return arrow.group(1).strip() if arrow else ""


def _record(target: Path) -> dict:
    """What papermill noted about an execution."""
    return nbformat.read(target, as_version=4).metadata.get("papermill", {})


def _finished(target: Path, source: Path, parameters: dict) -> bool:
    """Whether ``target`` is a complete execution of ``source`` with these parameters."""
    if not target.is_file():
        return False
    try:
        done = nbformat.read(target, as_version=4)
    except (nbformat.reader.NotJSONError, nbformat.ValidationError, ValueError):
        return False  # a write that was cut off
    record = done.metadata.get("papermill", {})
    if record.get("exception") or not record.get("end_time"):
        return False
    ours = [cell.source for cell in done.cells if "injected-parameters" not in tags(cell)]
    theirs = [cell.source for cell in nbformat.read(source, as_version=4).cells]
    return ours == theirs and record.get("parameters") == parameters


def tags(cell) -> list[str]:
    return cell.metadata.get("tags", [])
