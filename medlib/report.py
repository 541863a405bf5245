"""Run the notebooks in order and show a run as web pages that need no network.

`run_notebooks` executes them into the run's folder; `render` turns what was executed into
``report/index.html`` and one page for each notebook. Pages hold no script and load nothing, so
they open from a mail attachment or a memory stick as they do from a server.
"""

from __future__ import annotations

import json
import re
import time
from html import escape
from pathlib import Path

import jinja2
import nbformat
import pandas as pd
import papermill
from bs4 import BeautifulSoup
from markupsafe import Markup
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbconvert.preprocessors import CoalesceStreamsPreprocessor
from papermill.exceptions import PapermillExecutionError
from papermill.translators import PythonTranslator

from medlib import metrics

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
#: They compare every adapter, those of 10_rl too, so they run behind it; readers find them by number.
SCORED_LAST = ("04", "05", "06", "07")


# ---- execution ---------------------------------------------------------------------------------


def run_notebooks(
    run_dir: str | Path,
    parameters: dict,
    notebooks: list[str] | None = None,
    resume: bool = True,
    timeout: float | None = None,
) -> list[Path]:
    """Execute notebooks into ``run_dir/notebooks``, those that train before those that compare.

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
    settings["run_dir"] = _relative(run_dir)
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
    found = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"), key=lambda f: (f.name[:2] in SCORED_LAST, f.name))
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
    tagged = [cell for cell in cells if "parameters" in _tags(cell)]
    return {found.name for cell in tagged for found in PythonTranslator.inspect(cell)}


def _relative(path: Path) -> str:
    """Path seen from the working folder where it lies inside, so that pages name no machine."""
    path = path.resolve()
    return path.relative_to(Path.cwd()).as_posix() if path.is_relative_to(Path.cwd()) else str(path)


def _execute(source: Path, target: Path, parameters: dict, timeout: float | None) -> None:
    try:
        papermill.execute_notebook(
            str(source), _relative(target), parameters=parameters, kernel_name="python3",
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
        f"notebook {source.name} failed in {where}{at_line}: {what}\n"
        f"executed up to there: {_relative(target)}"
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
    ours = [cell.source for cell in done.cells if "injected-parameters" not in _tags(cell)]
    theirs = [cell.source for cell in nbformat.read(source, as_version=4).cells]
    return ours == theirs and record.get("parameters") == parameters


def _tags(cell) -> list[str]:
    return cell.metadata.get("tags", [])


# ---- pages -------------------------------------------------------------------------------------

# The browser itself refuses scripts and anything from a network, whatever a cell has put out.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; font-src data:"

STYLE = """
*, *::before, *::after { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; color: #1f2328; background: #fff;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
nav { position: sticky; top: 0; z-index: 1; display: flex; overflow-x: auto; gap: .25rem;
  padding: .4rem 1rem; white-space: nowrap; background: #f6f8fa;
  border-bottom: 1px solid #d1d9e0; }
nav a { padding: .35rem .6rem; border-radius: 6px; color: #0550ae; text-decoration: none; }
nav a:hover { background: #e6eaef; }
nav a[aria-current] { color: #fff; background: #0550ae; }
main { max-width: 66rem; margin: 0 auto; padding: 1rem; overflow-wrap: break-word; }
h1, h2, h3, h4 { line-height: 1.25; margin: 1.6em 0 .6em; }
h1 { margin-top: .6em; font-size: 1.75rem; }
a { color: #0550ae; }
img, svg, video, canvas { max-width: 100%; height: auto; }
table { display: block; width: max-content; max-width: 100%; overflow-x: auto; margin: 1rem 0;
  border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums;
  /* a shadow at the right edge, covered once the last column is in view */
  background: linear-gradient(to left, #fff 40%, transparent) right / 2rem 100% no-repeat local,
    linear-gradient(to left, #0003, transparent) right / .6rem 100% no-repeat scroll; }
table, th, td { border: 0; }
th, td { padding: .35rem .7rem; border-bottom: 1px solid #d1d9e0; vertical-align: top; }
th { text-align: left; line-height: 1.3; }
thead th { vertical-align: bottom; }
th:first-child, td:first-child { padding-left: 0; }
table.scores td:first-child { min-width: 8rem; }
table.dataframe td, table.scores :is(th, td):not(:first-child) { text-align: right; }
pre { overflow-x: auto; margin: .5rem 0; padding: .6rem .8rem; border-radius: 6px;
  background: #f6f8fa; font-size: .85rem; line-height: 1.45; }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono",
  monospace; }
blockquote { margin: 1rem 0; padding-left: 1rem; border-left: 4px solid #d1d9e0; }
details.code { margin: .6rem 0; font-size: .85rem; }
summary { cursor: pointer; color: #59636e; padding: .25rem 0; }
.jp-Cell { margin: .75rem 0; }
.jp-OutputArea-output pre { white-space: pre-wrap; }
.jp-OutputArea-output { max-width: 100%; overflow-x: auto; }
.notice { margin: 1rem 0; padding: .7rem 1rem; border-left: 5px solid #bf8700;
  background: #fff8c5; }
.failed { color: #a40e26; font-weight: 600; }
.headline { font-size: 1.15rem; }
ol.notebooks { padding-left: 0; list-style: none; }
ol.notebooks li { margin: 1rem 0; }
ol.notebooks p { margin: .2rem 0; }
table.provenance { display: table; width: 100%; table-layout: fixed; }
table.provenance :is(th, td) { overflow-wrap: anywhere; line-height: 1.45; }
table.provenance th { width: 40%; font-weight: 500; color: #59636e; }
@media print { nav { display: none; } }
"""

HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{{ policy }}">
<title>{{ title | e }}</title>
<style>{{ style }}</style>
"""

NAVIGATION = """<nav aria-label="Pages of this report">
{% for page in pages %}<a href="{{ page.file | urlencode }}"
{%- if page.file == here %} aria-current="page"{% endif %}>{{ page.label | e }}</a>
{% endfor %}</nav>
"""

# Jupyter's own `lab` template gives the cells; the frame around them is ours.
NOTEBOOK_PAGE = (
    """{% extends 'base.html.j2' %}
{% block header %}{% with title = resources.title, style = resources.style,
    policy = resources.policy %}"""
    + HEAD
    + """{% endwith %}
{% for css in resources.inlining.css %}<style>{{ css }}</style>{% endfor %}
</head>
{% endblock %}
{% block body_header %}<body class="jp-Notebook">
{% with pages = resources.pages, here = resources.here %}"""
    + NAVIGATION
    + """{% endwith %}<main>{% endblock %}
{% block input_group %}<details class="code">
<summary>Show {{ {'parameters': 'default parameters', 'injected-parameters':
    'parameters of this run'}[(cell.metadata.tags or [''])[0]] or 'code' }}</summary>
{{ super() }}</details>{% endblock %}
{% block stream_stdout %}{% if 'log' in (cell.metadata.tags or []) %}<details class="code">
<summary>Show log</summary>
{{ super() }}</details>{% else %}{{ super() }}{% endif %}{% endblock %}
{% block body_footer %}</main></body>{% endblock %}
{% block footer %}</html>{% endblock %}
"""
)

INDEX_PAGE = (
    HEAD
    + """</head>
<body>
"""
    + NAVIGATION
    + """<main>
<h1>{{ title }}</h1>
{% for notice in notices %}<p class="notice">{{ notice }}</p>
{% endfor %}
{% if headline %}<p class="headline">{{ headline }}</p>{% endif %}
{% if recommendation %}<p>{{ recommendation }}</p>{% endif %}
{% for name, table in tables %}<h2>{{ name }}</h2>
{{ table }}
{% endfor %}
<h2>Notebooks</h2>
<ol class="notebooks">
{% for page in pages[1:] %}<li><a href="{{ page.file | urlencode }}">{{ page.title }}</a>
{% if page.failed %}<span class="failed">(did not finish)</span>{% endif %}
{% if page.summary %}<p>{{ page.summary }}</p>{% endif %}</li>
{% endfor %}</ol>
{% if provenance %}<h2>Provenance</h2>
<table class="provenance">
{% for name, value in provenance %}<tr><th scope="row">{{ name }}</th><td>{{ value }}</td></tr>
{% endfor %}</table>{% endif %}
</main>
</body>
</html>
"""
)

# Scores of `medlib.metrics.score` in the headline table; rates come with their 95 % interval.
SCORES = {
    "n": "Cases",
    "accuracy": "Accuracy (95 % CI)",
    "sensitivity": "Valid treatments recognised",
    "specificity": "Errors caught",
    "critical_misses": "Critical errors missed",
    "spread": "Spread (points)",
    "ece": "Calibration error",
    "constant_answer_share": "Most frequent answer",
    "expected_cost": "US dollars lost / 1000 cases",
}

NOT_A_DEVICE = (
    "Research only: this is not a medical device. Nothing here may be used to make, check or "
    "change a decision about a patient."
)
STAND_IN = (
    "This run used a small stand-in model that knows no medicine. Its numbers show that the "
    "pipeline works from data to report; they say nothing about MedGemma."
)


def render(run_dir: str | Path) -> Path:
    """Write the run's pages to ``run_dir/report``.

    Reads the executed notebooks, ``run.json`` (see `medlib.provenance`) and, where there is one,
    ``metrics.json``: ``{"headline": text, "systems": {name: scores}, "tables": {title: table}}``
    with a table as markdown or as a list of rows. Anything else in it is left out.

    Returns
    -------
    Path
        ``report/index.html``.

    Raises
    ------
    FileNotFoundError
        If the run has no executed notebook.
    ValueError
        If a JSON file cannot be read; names the file.
    """
    run_dir = Path(run_dir)
    executed = sorted((run_dir / "notebooks").glob("*.ipynb"))
    if not executed:
        raise FileNotFoundError(f"{_relative(run_dir / 'notebooks')}: no executed notebook")
    notebooks = [nbformat.read(path, as_version=4) for path in executed]
    record = _read_json(run_dir / "run.json")
    found = _read_json(run_dir / "metrics.json")

    pages = [{"file": "index.html", "label": "Overview"}]
    for path, notebook in zip(executed, notebooks):
        title, summary = _introduction(notebook, path.stem)
        pages.append({
            "file": f"{path.stem}.html",
            "label": path.stem.replace("_", " "),
            "title": title,
            "summary": summary,
            "failed": bool(notebook.metadata.get("papermill", {}).get("exception")),
        })  # fmt: skip

    report = run_dir / "report"
    report.mkdir(exist_ok=True)
    for old in report.glob("*.html"):
        old.unlink()
    for page, notebook in zip(pages[1:], notebooks):
        html = _notebook_html(notebook, page, pages)
        (report / page["file"]).write_text(html, encoding="utf-8")
    index = report / "index.html"
    index.write_text(_index_html(pages, record, found), encoding="utf-8")
    return index


def _read_json(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name}: not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path.name}: expected an object, found {type(content).__name__}")
    return content


def _markdown(text: str) -> str:
    """HTML of markdown; HTML inside it is shown as text."""
    renderer = IPythonRenderer(escape=True, exclude_anchor_links=True)
    return MarkdownWithMath(renderer=renderer).render(text)


def _introduction(notebook, default: str) -> tuple[str, str]:
    """First heading and first paragraph of a notebook, as plain text."""
    texts = [
        cell.source
        for cell in notebook.cells
        if cell.cell_type == "markdown" and "papermill-error-cell-tag" not in _tags(cell)
    ]
    soup = BeautifulSoup(_markdown("\n\n".join(texts)), "html.parser")
    heading, paragraph = soup.find(["h1", "h2"]), soup.find("p")
    title = heading.get_text(" ", strip=True) if heading else default
    return title, " ".join(paragraph.get_text().split()) if paragraph else ""


def _notebook_html(notebook, page: dict, pages: list[dict]) -> str:
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _is_noise(output)]
    exporter = HTMLExporter(
        template_name="lab",
        template_file="notebook_page.html.j2",
        extra_loaders=[jinja2.DictLoader({"notebook_page.html.j2": NOTEBOOK_PAGE})],
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        exclude_anchor_links=True,
        embed_images=True,
    )
    exporter.register_preprocessor(CoalesceStreamsPreprocessor, enabled=True)
    exporter.log.disabled = True  # it warns of each figure without a description
    resources = {
        "metadata": {"name": page["title"], "path": str(NOTEBOOKS)},
        "title": page["title"], "style": STYLE, "policy": POLICY,
        "pages": pages, "here": page["file"],
    }  # fmt: skip
    html, _ = exporter.from_notebook_node(notebook, resources=resources)
    return _without_network(html)


def _is_noise(output) -> bool:
    """Whether a cell's output is a warning or a progress bar rather than a result."""
    if output.output_type == "stream":
        return output.name == "stderr"
    data = output.get("data", {})
    html = "".join(data.get("text/html", ""))
    return "application/vnd.jupyter.widget-view+json" in data or (
        "<progress" in html and "<table" not in html
    )


def _without_network(html: str) -> str:
    """Drop scripts, frames, progress bars and everything that would be loaded from elsewhere."""
    soup = BeautifulSoup(html, "html.parser")
    for element in soup(["script", "link", "iframe", "object", "embed", "base"]):
        element.decompose()
    for element in soup("progress"):
        (element.parent if element.parent.table is None else element).decompose()
    for element in soup(src=True):
        if not element["src"].startswith("data:"):
            element.replace_with(element.get("alt", ""))
    return str(soup)


def _index_html(pages: list[dict], record: dict, found: dict) -> str:
    tables = []
    systems, names = found.get("systems"), found.get("names") or {}
    if isinstance(systems, dict) and systems:
        systems = {names.get(name, name): scores for name, scores in systems.items()}
        tables.append(("Results", _table_html(_score_rows(systems))))
        if by_modality := _modality_rows(systems):
            tables.append(("Accuracy by modality", _table_html(by_modality)))
    extra = found.get("tables")
    for title, table in (extra if isinstance(extra, dict) else {}).items():
        tables.append((title, _markdown(table) if isinstance(table, str) else _table_html(table)))
    html = (
        jinja2.Environment(autoescape=True)
        .from_string(INDEX_PAGE)
        .render(
            title="Auditing clinical decisions: report of one run",
            style=Markup(STYLE),
            policy=POLICY,
            pages=pages,
            here="index.html",
            notices=[STAND_IN, NOT_A_DEVICE] if _is_stand_in(record) else [NOT_A_DEVICE],
            headline=found.get("headline"),
            recommendation=found.get("recommendation"),
            tables=[(title, Markup(table)) for title, table in tables],
            provenance=list(_flat(record)),
        )
    )
    return _without_network(html)


def _is_stand_in(record: dict) -> bool:
    """Whether ``run.json`` names a stand-in as its model."""
    parameters = record.get("parameters") or {}
    named = [str(value) for key, value in parameters.items() if "model" in key.lower()]
    return any(re.search(r"stand[ _-]?in", name, flags=re.IGNORECASE) for name in named)


def _score_rows(systems: dict) -> list[dict]:
    """One row per system with the scores of `medlib.metrics.score` that a reader asks for first."""
    return [
        {"System": name, **{
            label: _score_text(scores[key]) for key, label in SCORES.items() if key in scores
        }}
        for name, scores in systems.items()
        if isinstance(scores, dict)
    ]  # fmt: skip


def _modality_rows(systems: dict) -> list[dict]:
    """One row per system with its accuracy in each modality."""
    rows = []
    for name, scores in systems.items():
        groups = scores.get("per_modality") if isinstance(scores, dict) else None
        if isinstance(groups, dict) and groups:
            accuracy = {group: rates.get("accuracy") for group, rates in groups.items()}
            rows.append({"System": name} | {k: _score_text(v) for k, v in accuracy.items()})
    return rows


def _score_text(score) -> str:
    """Text of one score: a number, a rate with its interval, a count of cases or a cost."""
    if not isinstance(score, dict):
        return _number(score)
    if "count" in score:
        return f"{_number(score['count'])} of {_number(score.get('n'))}"
    if "per_1000" in score:
        return "–" if score["per_1000"] is None else f"{score['per_1000']:,.0f}"
    value, low, high = (score.get(key) for key in ("value", "low", "high"))
    if None in (value, low, high) or value != value:
        return _number(value)
    space = "\N{NO-BREAK SPACE}"  # a line may break before the interval only
    return f"{100 * value:.1f}{space}% [{100 * low:.1f},{space}{100 * high:.1f}]"


def _number(value) -> str:
    """Text of a table entry: fractions to three decimals, a dash for what is undefined."""
    if value is None or value != value:
        return "–"
    if not isinstance(value, float):
        return str(value)
    if abs(value) >= 1:
        return f"{value:,.1f}"
    return f"{value:.3f}" if abs(value) >= 0.001 or value == 0 else f"{value:.1e}"


def _table_html(rows) -> str:
    """HTML table of a list of dicts, or of a list of lists whose first is the header."""
    if not isinstance(rows, list) or not rows:
        return "<p>No rows.</p>"
    if all(isinstance(row, dict) for row in rows):
        header = list(dict.fromkeys(key for row in rows for key in row))
        rows = [[row.get(key) for key in header] for row in rows]
    else:
        header, *rows = [row if isinstance(row, list) else [row] for row in rows]
    head = "".join(f'<th scope="col">{escape(str(name).replace("_", " "))}</th>' for name in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(_number(value))}</td>" for value in row) + "</tr>\n"
        for row in rows
    )
    return f'<table class="scores"><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>'


def _flat(record: dict, prefix: str = ""):
    """Yield (name such as ``git: revision``, text) for each leaf of a nested dict."""
    for key, value in record.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}: ")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)


# ---- README --------------------------------------------------------------------------------------

README = NOTEBOOKS.parent / "README.md"
RESULTS_MARKS = "<!-- results: written by `make report` -->", "<!-- end of results -->"


def update_readme(run_dir: str | Path, readme: str | Path = README) -> Path:
    """Write the run's tables between the two marks of the README, so that no figure is typed.

    Raises
    ------
    FileNotFoundError
        If the run has no ``metrics.json``.
    ValueError
        If the README lacks the marks.
    """
    readme, metrics_file = Path(readme), Path(run_dir) / "metrics.json"
    if not metrics_file.is_file():
        raise FileNotFoundError(f"{metrics_file}: no results; run the evaluation first")
    text, (start, end) = readme.read_text(encoding="utf-8"), RESULTS_MARKS
    if not 0 <= text.find(start) < text.find(end):
        raise ValueError(f"{readme}: the marks {start!r} and {end!r} are missing")
    results = _results_markdown(_read_json(metrics_file), _read_json(Path(run_dir) / "run.json"))
    before, after = text.split(start)[0], text.split(end)[1]
    readme.write_text(f"{before}{start}\n\n{results}\n\n{end}{after}", encoding="utf-8")
    return readme


def _row_name(name: str, names: dict[str, str]) -> str:
    """A reader's name for ``medgemma-lora`` or, with a part of the input withheld, ``medgemma-lora text_only``."""
    system, _, withheld = name.partition(" ")
    return names.get(system, system) + (f", {withheld.replace('_', ' ')}" if withheld else "")


SUITE_TITLES = {
    "heldout": "Held-out suite, generated", "core24_val": "Core set, 8 validation cases",
    "core24_folds": "Core set, all 24, leave one image group out (adapter of the other core cases only)",
}


def _results_markdown(found: dict, record: dict) -> str:
    scores, parameters = found["scores"], record["parameters"]
    names, parts = found.get("names") or {}, [found["headline"], *filter(None, [found.get("recommendation")])]
    for suite, title in SUITE_TITLES.items():
        rows = {key.rsplit("/", 1)[0]: score for key, score in scores.items() if key.endswith(f"/{suite}")}
        # a further seed, such as medgemma-ppo:1, is no row of its own
        rows = {n: score for n, score in rows.items() if ":" not in n or n.partition(":")[0] not in names}
        order = [name for name in names if name in rows]
        order += sorted(set(rows) - set(order))
        if order:
            shown = {name: _row_name(name, names) for name in order}
            table = metrics.results_table({shown[name]: rows[name] for name in order})
            parts += [f"**{title}**", metrics.to_markdown(table)]
    for title, rows in found["tables"].items():
        parts += [f"**{title}**", metrics.to_markdown(pd.DataFrame(rows))]
    made = f"Model `{parameters['model']}` ({parameters['model_kind']}), seed {parameters['seed']}, "
    made += f"revision `{str(record['git'].get('revision'))[:10]}`, {record['timestamp'][:10]}."
    return "\n\n".join([*parts, made])
