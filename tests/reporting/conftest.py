"""Two tiny notebooks, and a run in which they were executed and rendered."""

import json

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from medlib.config import runs
from medlib.reporting import execute, pages

FIRST = [
    new_markdown_cell("# Look at the data\n\nEvery *case* is drawn <b>twice</b>.\n\nMore text."),
    new_code_cell("size = 3\nrun_dir = ''", metadata={"tags": ["parameters"]}),
    new_code_cell(
        "import base64, sys\n"
        "from IPython.display import HTML, Image, display\n"
        "print(f'size is {size} in {run_dir}')\n"
        "print('<script>alert(1)</script>')\n"
        "print('a warning', file=sys.stderr)\n"
        "display(HTML('<table class=\"dataframe\"><tr><td>42</td></tr></table>'\n"
        "    '<script src=\"https://example.org/x.js\"></script>'\n"
        '    \'<img src="https://example.org/x.png" alt="remote">\'))\n'
        "display(HTML('<div><progress value=3 max=9></progress> step 3 of 9</div>'))\n"
        "display(Image(data=base64.b64decode('" + "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ"
        "AAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==')))"
    ),
]
SECOND = [
    new_markdown_cell("# Score the answers"),
    new_code_cell("run_dir = ''\nlimit = 1", metadata={"tags": ["parameters"]}),
    new_code_cell("ratio = 1 / (limit - 1)\nratio"),
]


@pytest.fixture
def notebooks(tmp_path):
    """Two tiny notebooks; the second fails unless it is told another limit."""
    paths = []
    for name, cells in {"01_data": FIRST, "02_score": SECOND}.items():
        paths.append(tmp_path / f"{name}.ipynb")
        nbformat.write(new_notebook(cells=cells), paths[-1])
    return [str(path) for path in paths]


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """Both notebooks executed and rendered once, for all tests that only look."""
    folder = tmp_path_factory.mktemp("finished")
    for name, cells in {"01_data": FIRST, "02_score": SECOND}.items():
        nbformat.write(new_notebook(cells=cells), folder / f"{name}.ipynb")
    run_dir = folder / "run"
    sources = [str(path) for path in sorted(folder.glob("*.ipynb"))]
    execute.run_notebooks(run_dir, {"size": 5, "limit": 3, "unknown": "x"}, sources)
    rates = {"accuracy": {"value": 0.875, "n": 24, "low": 0.69, "high": 0.957}}
    missed = {"count": 1, "n": 6, "upper": 0.4}
    metrics = {
        "headline": "Tuned beats base & <prior>.",
        "systems": {
            "base <model>": {"n": 24, "accuracy": {"value": None, "n": 0}, "odd": [1]},
            "tuned": {"n": 24, **rates, "critical_misses": missed, "per_modality": {"mri": rates}},
        },
        "tables": {"By hand": "| a | b |\n|---|---|\n| <i>x</i> | 2 |", "Rows": [{"k": 1}]},
    }
    (run_dir / "metrics.json").write_text(json.dumps(metrics))
    record = {"parameters": {"model": "models/stand-in"}, "git": {"dirty": True}}
    runs.add(run_dir, **record)
    pages.render(run_dir)
    return run_dir
