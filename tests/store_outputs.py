"""Store the outputs that nbval compares in the committed notebooks (``make outputs``).

Only cells without the tag ``nbval-ignore-output`` keep an output: tables and sentences that are equal on every
machine. Run it after a change of a table or sentence, and look at the difference before committing it.
"""

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
IGNORED = "nbval-ignore-output"


def store(file: Path) -> int:
    """Execute a notebook on the small budget and keep what is compared; the number of such cells."""
    notebook = nbformat.read(file, as_version=4)
    executed = nbformat.read(file, as_version=4)
    NotebookClient(executed, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOKS)}}).execute()
    stored = 0
    for cell, done in zip(notebook.cells, executed.cells):
        if cell.cell_type == "code":
            compared = IGNORED not in cell.metadata.get("tags", [])
            cell.outputs = [output for output in done.outputs if compared and not _is_progress(output)]
            cell.execution_count = done.execution_count if cell.outputs else None  # nbval wants one with an output
            stored += bool(cell.outputs)
    file.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
    return stored


def _is_progress(output) -> bool:
    return output.output_type == "stream" and output.name == "stderr"


def compared(file: Path) -> tuple[int, int]:
    """(cells whose output is compared, code cells that have an output or may have one)."""
    cells = [cell for cell in nbformat.read(file, as_version=4).cells if cell.cell_type == "code"]
    silent = ("parameters", "colab")
    cells = [cell for cell in cells if not set(silent) & set(cell.metadata.get("tags", []))]
    return sum(bool(cell.outputs) for cell in cells), len(cells)


if __name__ == "__main__":
    os.environ["MEDLIB_PROFILE"] = "tiny"
    names = sys.argv[1:] or [""]
    for path in sorted({path for name in names for path in NOTEBOOKS.glob(f"{name}*.ipynb")}):
        store(path)
        print(f"{path.name}: {compared(path)[0]} of {compared(path)[1]} cells are compared", flush=True)
