import json
import re
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

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
    (run_dir / "run.json").write_text(json.dumps(record))
    pages.render(run_dir)
    return run_dir


def page(run_dir, name):
    return BeautifulSoup((run_dir / "report" / name).read_text(encoding="utf-8"), "html.parser")


def outputs(soup):
    return " ".join(tag.get_text(" ") for tag in soup.select(".jp-Cell-outputWrapper"))


def test_a_notebook_gets_the_parameters_it_declares(finished_run):
    first = nbformat.read(finished_run / "notebooks" / "01_data.ipynb", as_version=4)
    assert set(first.metadata.papermill.parameters) == {"size", "run_dir"}
    assert "size is 5 in " in outputs(page(finished_run, "01_data.html"))
    second = nbformat.read(finished_run / "notebooks" / "02_score.ipynb", as_version=4)
    assert set(second.metadata.papermill.parameters) == {"limit", "run_dir"}
    assert second.cells[-1].outputs[0].data["text/plain"] == "0.5"


def test_failure_names_notebook_cell_line_and_error_and_resume_goes_on(notebooks, tmp_path, capsys):
    run_dir = tmp_path / "run"
    with pytest.raises(RuntimeError) as failure:
        execute.run_notebooks(run_dir, {}, notebooks)
    message = str(failure.value)
    assert "02_score.ipynb failed in cell In [3]" in message
    assert "line `ratio = 1 / (limit - 1)`" in message
    assert "ZeroDivisionError: division by zero" in message
    partial = nbformat.read(run_dir / "notebooks" / "02_score.ipynb", as_version=4)
    assert partial.cells[-1].outputs[0].ename == "ZeroDivisionError"

    index = pages.render(run_dir)
    assert "did not finish" in index.read_text()

    capsys.readouterr()
    execute.run_notebooks(run_dir, {"limit": 2}, notebooks)
    printed = capsys.readouterr().out
    assert "01_data: already finished, skipped" in printed
    assert "02_score: finished" in printed
    pages.render(run_dir)
    assert "did not finish" not in index.read_text()


def test_resume_reruns_what_changed_and_all_after_it(finished_run, monkeypatch, capsys):
    started = []
    monkeypatch.setattr(execute, "_execute", lambda source, *_: started.append(source.stem))
    sources = [str(path) for path in sorted(finished_run.parent.glob("*.ipynb"))]
    same = {"size": 5, "limit": 3, "unknown": "y"}

    execute.run_notebooks(finished_run, same, sources)
    assert started == []
    execute.run_notebooks(finished_run, same | {"limit": 4}, sources)
    assert started == ["02_score"]
    started.clear()
    execute.run_notebooks(finished_run, same | {"size": 4}, sources)
    assert started == ["01_data", "02_score"]
    started.clear()
    execute.run_notebooks(finished_run, same, sources, resume=False)
    assert started == ["01_data", "02_score"]


def test_changed_or_cut_off_notebook_is_not_finished(finished_run, tmp_path):
    source = finished_run.parent / "01_data.ipynb"
    target = finished_run / "notebooks" / "01_data.ipynb"
    parameters = nbformat.read(target, as_version=4).metadata.papermill.parameters
    assert execute._finished(target, source, parameters)

    edited = nbformat.read(source, as_version=4)
    edited.cells[-1].source += "\n# edited"
    nbformat.write(edited, tmp_path / "edited.ipynb")
    assert not execute._finished(target, tmp_path / "edited.ipynb", parameters)

    cut = tmp_path / "cut.ipynb"
    cut.write_text(target.read_text()[:200])
    assert not execute._finished(cut, source, parameters)


def test_unknown_notebook_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="99_nothing"):
        execute.run_notebooks(tmp_path / "run", {}, ["99_nothing"])


def test_code_is_folded_and_outputs_are_not(finished_run):
    soup = page(finished_run, "01_data.html")
    folded = soup.select("details.code")
    assert [tag.summary.text for tag in folded] == [
        "Show default parameters", "Show parameters of this run", "Show code",
    ]  # fmt: skip
    assert not any(tag.has_attr("open") for tag in folded)
    assert all(code.find_parent("details") for code in soup.select(".highlight"))
    assert not any(tag.find_parent("details") for tag in soup.select(".jp-Cell-outputWrapper"))
    assert "42" in outputs(soup)


def test_warnings_and_progress_bars_are_left_out(finished_run):
    shown = outputs(page(finished_run, "01_data.html"))
    assert "a warning" not in shown
    assert "step 3 of 9" not in shown


def test_links_between_pages_resolve(finished_run):
    names = {path.name for path in (finished_run / "report").iterdir()}
    assert names == {"index.html", "01_data.html", "02_score.html"}
    for name in names:
        links = page(finished_run, name).nav.find_all("a")
        assert {link["href"] for link in links} == names
        assert [link["href"] for link in links if link.get("aria-current")] == [name]


def test_pages_load_nothing_and_run_nothing(finished_run):
    for path in (finished_run / "report").glob("*.html"):
        soup = page(finished_run, path.name)
        assert not soup(["script", "link", "iframe", "object", "embed"])
        assert all(tag["src"].startswith("data:") for tag in soup(src=True))
        assert not re.search(r"(@import|url\()", " ".join(tag.text for tag in soup("style")))
        policy = soup.find("meta", attrs={"http-equiv": "Content-Security-Policy"})
        assert policy["content"].startswith("default-src 'none'")
        assert soup.find("meta", attrs={"name": "viewport"})
    assert "<script>alert(1)</script>" in outputs(page(finished_run, "01_data.html"))


def test_images_are_embedded(finished_run):
    images = page(finished_run, "01_data.html").select(".jp-Cell-outputWrapper img")
    assert [image["src"][:30] for image in images] == ["data:image/png;base64,iVBORw0K"]


def test_index_shows_scores_tables_and_provenance(finished_run):
    soup = page(finished_run, "index.html")
    results, modality, by_hand, rows, provenance = soup.find_all("table")
    cells = [[cell.text for cell in row(["th", "td"])] for row in results("tr")]
    assert cells == [
        ["System", "Cases", "Accuracy (95% CI)", "Critical errors missed"],
        ["base <model>", "24", "–", "–"],
        ["tuned", "24", "87.5\xa0% [69.0,\xa095.7]", "1 of 6"],
    ]
    assert [cell.text for cell in modality("td")] == ["tuned", "87.5\xa0% [69.0,\xa095.7]"]
    assert [cell.text for cell in by_hand("td")] == ["<i>x</i>", "2"]
    assert rows.td.text == "1"
    entries = {row.th.text: row.td.text for row in provenance("tr")}
    assert entries == {"parameters: model": "models/stand-in", "git: dirty": "true"}
    assert "Tuned beats base & <prior>." in soup.text
    links = soup.select("ol.notebooks li")
    assert links[0].a.text == "Look at the data"
    assert links[0].p.text == "Every case is drawn <b>twice</b>."


@pytest.mark.parametrize(
    "model, warned", [("models/standin", True), ("a stand-in", True), ("google/medgemma-4b-it", False)]
)
def test_disclaimers(model, warned):
    html = pages._index_html([{"file": "index.html"}], {"parameters": {"model_name": model}}, {})
    assert ("knows no medicine" in html) == warned
    assert "not a medical device" in html


def test_unfamiliar_metrics_are_left_out_and_broken_json_is_named(tmp_path, finished_run):
    for odd in ({"systems": []}, {"systems": {"a": 1}}, {"tables": "x"}, {"tables": {"t": [7]}}):
        assert "Overview" in pages._index_html([{"file": "index.html", "label": "Overview"}], {},
                                                odd)  # fmt: skip
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(ValueError, match="metrics.json"):
        pages.read_json(tmp_path / "metrics.json")


def test_rendering_an_empty_run_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="no executed notebook"):
        pages.render(tmp_path)


def test_notebooks_run_in_the_order_of_their_numbers():
    order = [Path(name).name[:2] for name in execute._all_notebooks()]
    assert order == sorted(set(order)) and len(order) >= 11
