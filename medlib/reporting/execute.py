"""Run the notebooks in order, each with the parameters that it declares."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import nbformat
import papermill
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.exceptions import PapermillExecutionError
from papermill.translators import PythonTranslator

from medlib.config import ROOT

NOTEBOOKS = ROOT / "notebooks"


# ---- execution ---------------------------------------------------------------------------------


def run_notebooks(
    run_dir: str | Path,
    parameters: dict,
    notebooks: list[str] | None = None,
    resume: bool = True,
    timeout: float | None = None,
) -> list[Path]:
    """Execute notebooks into ``run_dir/notebooks``, in the order of their numbers.

    Each runs in the current working folder, with the parameters that its cell tagged
    ``parameters`` declares, and always with ``run_dir``.

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
        Skip a notebook that already finished with the same cells and the same parameters, until
        the first one that has to run: those after it run too, since they may read its results.
        Changes in ``medlib`` itself are not seen; pass False after those.
    timeout : float, optional
        Seconds that one cell may take.

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
    run_dir = Path(run_dir)
    sources = [_find_notebook(name) for name in notebooks or _all_notebooks()]
    settings = json.loads(json.dumps(parameters, default=str))
    settings["run_dir"] = relative(run_dir)
    (run_dir / "notebooks").mkdir(parents=True, exist_ok=True)

    executed = []
    for number, source in enumerate(sources, start=1):
        target = run_dir / "notebooks" / source.name
        declared = _declared_parameters(source)
        passed = {k: v for k, v in settings.items() if k in declared or k == "run_dir"}
        label = f"[{number}/{len(sources)}] {source.stem}"
        if resume and _finished(target, source, passed):
            print(f"{label}: already finished, skipped", flush=True)
        else:
            resume = False
            print(f"{label}: running", flush=True)
            start = time.monotonic()
            _execute(source, target, passed, timeout)
            print(f"{label}: finished in {time.monotonic() - start:.0f} s", flush=True)
        executed.append(target)
    return executed


def _all_notebooks() -> list[str]:
    found = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    if not found:
        raise FileNotFoundError(f"no notebook NN_*.ipynb in {NOTEBOOKS.name}/")
    return [str(path) for path in found]


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


def relative(path: Path) -> str:
    """Path seen from the working folder where it lies inside, so that pages name no machine."""
    path = path.resolve()
    return path.relative_to(Path.cwd()).as_posix() if path.is_relative_to(Path.cwd()) else str(path)


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
