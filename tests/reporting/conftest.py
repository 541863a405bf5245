"""Two tiny notebooks, and a run in which they were executed and rendered."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

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


# --- a page in a browser


@pytest.fixture
def serve(tmp_path):
    """A function that serves one cell of code by Voilà and gives the page's address."""
    pytest.importorskip("voila", reason="voila is missing: pip install '.[browser]'")
    servers = []

    def start(code: str) -> str:
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
        notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, tmp_path / "view.ipynb")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        own = {"HOME": str(tmp_path), "JUPYTER_CONFIG_DIR": str(tmp_path / "config")}  # no settings of the user
        options = [f"--port={port}", "--no-browser", "--Voila.ip=127.0.0.1"]
        with open(tmp_path / "voila.log", "wb") as log:
            command = [sys.executable, "-m", "voila", str(tmp_path / "view.ipynb"), *options]
            servers.append(subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | own))
        _wait_for(address := f"http://127.0.0.1:{port}/", servers[-1], tmp_path / "voila.log")
        return address

    yield start
    for server in servers:
        server.terminate()
        server.wait(30)


def _wait_for(address, server, log, seconds=60):
    for _ in range(2 * seconds):
        if server.poll() is not None:
            break
        try:
            urllib.request.urlopen(f"{address}no-such-page", timeout=5)
        except urllib.error.HTTPError:
            return  # it answers
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"Voilà does not answer:\n{log.read_text()[-2000:]}")


@pytest.fixture
def page():
    """A page of 1200 x 900 points in a browser without a network beyond this machine."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is missing: pip install '.[browser]'"
    )
    browser = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )
    if browser is None:
        pytest.skip("no chromium here")
    with playwright.sync_playwright() as driver:
        # a container's root has no sandbox to give
        chromium = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 1200, "height": 900})
        page.set_default_timeout(60_000)
        yield page
        chromium.close()
