"""Show a run as web pages that need no network.

`render` turns the executed notebooks of a run's folder into ``report/index.html`` and one page per
notebook. Pages hold no script and load nothing, so they open from a mail attachment or a memory
stick as they do from a server.
"""

from __future__ import annotations

import json
import re
from html import escape
from pathlib import Path

import jinja2
import nbformat
import pandas as pd
from bs4 import BeautifulSoup, Doctype
from bs4.element import PreformattedString
from markupsafe import Markup
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbconvert.preprocessors import CoalesceStreamsPreprocessor, TagRemovePreprocessor

from medlib.config import NOT_A_DEVICE, ROOT, STANDIN_NOTICE, files, path, provenance
from medlib.evaluation import measured
from medlib.reporting import execute
from medlib.reporting.execute import NOTEBOOKS
from medlib.stats import text

# The browser itself refuses scripts and anything from a network, whatever a cell has put out.
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; font-src data:; form-action 'none'; "
    "base-uri 'none'"
)

#: nbconvert takes the folder ``medlib`` in it for a template; the page of a notebook is its ``index.html.j2``.
TEMPLATES = Path(__file__).parent / "templates"

# Scores of `medlib.stats.scores.score` in the headline table; rates come with their 95% interval.
SCORES = {
    "n": "Cases",
    "accuracy": "Accuracy (95% CI)",
    "sensitivity": "Valid treatments recognised",
    "specificity": "Errors caught",
    "critical_misses": "Critical errors missed",
    "spread": "Spread (points)",
    "ece": "Calibration error",
    "constant_answer_share": "Most frequent answer",
}


def render(run_dir: str | Path) -> Path:
    """Write the run's pages to ``run_dir/report``.

    Reads the executed notebooks, ``run.json`` (see `medlib.config.provenance`) and, where there is one,
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
    DataError
        If a JSON file cannot be read; names the file.
    ConfigError
        If the figures in ``metrics.json`` are of another adapter, other weights or other data than the run's.
    """
    run_dir = path(run_dir)
    executed = sorted((run_dir / "notebooks").glob("*.ipynb"))
    if not executed:
        raise FileNotFoundError(f"{execute.relative(run_dir / 'notebooks')}: no executed notebook")
    notebooks = [nbformat.read(file, as_version=4) for file in executed]
    record = files.read_json(run_dir / "run.json")
    metrics = files.read_json(run_dir / "metrics.json")
    measured.check(run_dir, metrics)

    pages: list[dict] = [{"file": "index.html", "label": "Overview"}]
    for place, notebook in zip(executed, notebooks):
        title, summary = introduction(notebook, place.stem)
        pages.append({
            "file": f"{place.stem}.html",
            "label": place.stem.replace("_", " "),
            "title": title,
            "summary": summary,
            "failed": bool(notebook.metadata.get("papermill", {}).get("exception")),
        })  # fmt: skip

    report = run_dir / "report"
    for page, notebook in zip(pages[1:], notebooks):
        files.write_text(report / page["file"], _without_machine(_notebook_html(notebook, page, pages), run_dir))
    index = files.write_text(report / "index.html", _without_machine(_index_html(pages, record, metrics), run_dir))
    for old in report.glob("*.html"):
        if old.name not in {page["file"] for page in pages}:
            old.unlink()
    return index


def _without_machine(html: str, run_dir: Path) -> str:
    """Places of this machine in a page, in other words: they name people and patients."""
    for place, word in ((run_dir.resolve(), "RUN"), (ROOT, "PROJECT"), (Path.home(), "HOME")):
        if len(place.parts) > 1:
            html = html.replace(str(place), word)
    return html


def _markdown(text: str) -> str:
    """HTML of markdown; HTML inside it is shown as text."""
    renderer = IPythonRenderer(escape=True, exclude_anchor_links=True)
    return MarkdownWithMath(renderer=renderer).render(text)


def introduction(notebook, default: str) -> tuple[str, str]:
    """First heading and first paragraph of a notebook, as plain text."""
    texts = [
        cell.source
        for cell in notebook.cells
        if cell.cell_type == "markdown" and "papermill-error-cell-tag" not in execute.tags(cell)
    ]
    soup = BeautifulSoup(_markdown("\n\n".join(texts)), "html.parser")
    heading, paragraph = soup.find(["h1", "h2"]), soup.find("p")
    title = heading.get_text(" ", strip=True) if heading else default
    return title, " ".join(paragraph.get_text().split()) if paragraph else ""


def _notebook_html(notebook, page: dict, pages: list[dict]) -> str:
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not is_noise(output)]
    exporter = HTMLExporter(
        template_name="medlib",
        extra_template_basedirs=[str(TEMPLATES)],
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        exclude_anchor_links=True,
        embed_images=True,
    )
    exporter.register_preprocessor(CoalesceStreamsPreprocessor, enabled=True)
    hidden = {"colab"}  # the cell that installs there says nothing to a reader
    exporter.register_preprocessor(TagRemovePreprocessor(remove_cell_tags=hidden), enabled=True)
    exporter.log.disabled = True  # it warns of each figure without a description
    resources = {
        "metadata": {"name": page["title"], "path": str(NOTEBOOKS)},
        "title": page["title"],
        "policy": POLICY,
        "pages": pages,
        "here": page["file"],
    }
    html, _ = exporter.from_notebook_node(notebook, resources=resources)
    return re.sub(
        r'href="(\d\d_\w+)\.ipynb"', r'href="\1.html"', _without_network(html)
    )  # the page of that notebook


def is_noise(output) -> bool:
    """Whether a cell's output is a warning or a progress bar rather than a result."""
    if output.output_type == "stream":
        return output.name == "stderr"
    data = output.get("data", {})
    html = "".join(data.get("text/html", ""))
    return "application/vnd.jupyter.widget-view+json" in data or ("<progress" in html and "<table" not in html)


def _without_network(html: str) -> str:
    """Drop scripts, frames, forms, redirects, progress bars and everything that would be loaded from elsewhere."""
    soup = BeautifulSoup(html, "html.parser")
    for element in soup(["script", "link", "iframe", "object", "embed", "base", "form"]):
        element.decompose()
    for element in soup("meta"):  # a policy forbids neither refresh nor what stands before it
        if str(element.get("http-equiv", "")).strip().lower() not in ("", "content-security-policy"):
            element.decompose()
    for element in soup("progress"):
        (element.parent if element.parent.table is None else element).decompose()
    for element in soup(src=True):
        if not element["src"].startswith("data:"):
            element.replace_with(element.get("alt", ""))
    _escape_the_rest(soup)
    return str(soup)


def _escape_the_rest(soup: BeautifulSoup) -> None:
    """Drop or escape the strings that are written as they are: a browser may find elements in them."""
    for node in soup(string=lambda node: isinstance(node, PreformattedString)):  # comments, CDATA, declarations
        if not (isinstance(node, Doctype) and node is soup.contents[0]):
            node.extract()
    for style in soup("style"):
        if "<" in style.text:
            style.string = style.text.replace("<", r"\3c ")


def _index_html(pages: list[dict], record: dict, metrics: dict) -> str:
    tables = []
    systems, names = metrics.get("systems"), metrics.get("names") or {}
    if isinstance(systems, dict) and systems:
        systems = {names.get(name, name): scores for name, scores in systems.items()}
        tables.append(("Results", _table_html(_score_rows(systems))))
        if by_modality := _modality_rows(systems):
            tables.append(("Accuracy by modality", _table_html(by_modality)))
    extra = metrics.get("tables")
    for title, table in (extra if isinstance(extra, dict) else {}).items():
        tables.append((title, _markdown(table) if isinstance(table, str) else _table_html(table)))
    templates = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES / "medlib"), autoescape=True)
    html = templates.get_template("overview.html.j2").render(
        title="Auditing clinical decisions: report of one run",
        policy=POLICY,
        pages=pages,
        here="index.html",
        notices=[STANDIN_NOTICE, NOT_A_DEVICE] if is_stand_in(record) else [NOT_A_DEVICE],
        headline=metrics.get("headline"),
        recommendation=metrics.get("recommendation"),
        tables=[(title, Markup(table)) for title, table in tables],
        provenance=list(_flat(provenance.public(record))),
    )
    return _without_network(html)


def is_stand_in(record: dict) -> bool:
    """Whether ``run.json`` names a stand-in as its model."""
    parameters = record.get("parameters") or {}
    named = [str(value) for key, value in parameters.items() if "model" in key.lower()]
    return any(re.search(r"stand[ _-]?in", name, flags=re.IGNORECASE) for name in named)


def _score_rows(systems: dict) -> list[dict]:
    """One row per system with the scores of `medlib.stats.scores.score` that a reader asks for first."""
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
        return text.cell(score)
    if "count" in score:
        return f"{text.cell(score['count'])} of {text.cell(score.get('n'))}"
    if "per_1000" in score:
        return text.cell(score["per_1000"], ",.0f")
    complete = not any(pd.isna(score.get(key)) for key in ("value", "low", "high"))
    return text.rate_text(score) if complete else text.cell(score.get("value"))


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
        "<tr>" + "".join(f"<td>{escape(text.cell(value))}</td>" for value in row) + "</tr>\n" for row in rows
    )
    return f'<table class="scores"><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>'


def _flat(record: dict, prefix: str = ""):
    """Yield (name such as ``git: revision``, text) for each leaf of a nested dict."""
    for key, value in record.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}: ")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)
