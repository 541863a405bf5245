"""``reports/``: executed notebooks that are small, clean and belong to the committed ones."""

import base64
import io
import json

import nbformat
import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from medlib import stats
from medlib.config import ROOT, ConfigError, runs
from medlib.evaluation.results import Results
from medlib.reporting import gallery, show

TABLE = show.table(pd.DataFrame({"System": ["a"], "n": [1234]}), "one").data


def png(noise):
    pixels = np.random.default_rng(0).integers(0, 256 if noise else 2, (200, 400, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels if noise else 255 * (pixels[:1, :1] + 0 * pixels)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def committed():
    return new_notebook(
        cells=[
            new_markdown_cell("# Does it work?\n\nA page.", id="intro"),
            new_code_cell("run_dir = 'runs/latest'", id="set", metadata={"tags": ["parameters"]}),
            new_code_cell("show()", id="show"),
        ]
    )


def executed():
    notebook = committed()
    outputs = [
        new_output("stream", name="stderr", text="a warning"),
        new_output("stream", name="stdout", text=f"wrote {ROOT}/runs/a"),
        new_output("display_data", {"text/html": TABLE, "text/plain": "<HTML object at 0x7f00ab>"}),
        new_output("display_data", {"image/png": png(noise=True)}),
        new_output("display_data", {"image/png": png(noise=False)}),
        new_output("display_data", {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}}),
    ]
    notebook.cells[2].outputs = outputs
    notebook.cells[2].metadata["papermill"] = {"duration": 1}
    notebook.cells.insert(2, new_code_cell("run_dir = 'runs/a'", metadata={"tags": ["injected-parameters"]}))
    notebook.metadata["papermill"] = {"output_path": f"{ROOT}/runs/a/notebooks/00_one.ipynb"}
    return notebook


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """(run, notebooks, reports), of one notebook."""
    run, notebooks = tmp_path / "run", tmp_path / "notebooks"
    for folder, notebook in ((run / "notebooks", executed()), (notebooks, committed())):
        folder.mkdir(parents=True)
        nbformat.write(notebook, folder / "00_one.ipynb")
    record = {
        "parameters": {"model": "models/x", "model_kind": "stand-in", "images_dir": None, "seed": 0},
        "git": {"revision": "0123456789abc"},
        "timestamp": "2026-01-02T03:04:05",
    }
    (run / "run.json").write_text(json.dumps(record))
    (run / "metrics.json").write_text("{}")
    cases = [
        {"id": f"c{i}", "modality": "xray", "verdict": v, "severity": "none", "p_correct": 1 / (i + 2)}
        | {
            "predicted": "ERROR",
            "generated": "ERROR - no",
            "system": "constant",
            "suite": "heldout",
            "ablation": "",
        }
        for i, v in enumerate(["CORRECT", "ERROR", "ERROR"])
    ]
    stats.write_predictions(run / "predictions.jsonl", pd.DataFrame(cases))
    monkeypatch.setattr(gallery, "NOTEBOOKS", notebooks)
    return run, notebooks, tmp_path / "reports"


def test_the_committed_reports_belong_to_the_notebooks():
    if not gallery.REPORTS.is_dir():
        pytest.skip("no reports/ yet: `make report-full` writes it")
    assert gallery.problems() == []
    for folder in gallery.REPORTS.iterdir():
        assert not folder.is_dir() or gallery.unpublishable(folder) == []


def test_an_executed_notebook_becomes_clean_and_small(folders):
    run, notebooks, reports = folders
    gallery.update(run, reports)
    assert gallery.problems(reports, notebooks) == []
    file = reports / "00_one.ipynb"
    assert file.stat().st_size < (run / "notebooks" / "00_one.ipynb").stat().st_size / 2
    report = nbformat.read(file, as_version=4)
    outputs = report.cells[3].outputs
    kinds = [list(output.get("data", {})) for output in outputs]
    assert kinds == [[], ["text/html", "text/plain"], ["image/jpeg"], ["image/png"]]
    assert outputs[0].text == "wrote runs/a"
    assert "papermill" not in report.metadata and report.cells[3].metadata == {}


def test_every_prediction_lies_beside_the_notebooks(folders):
    run, _, reports = folders
    gallery.update(run, reports)
    here, there = (Results.read(file) for file in (reports / gallery.PREDICTIONS, run / "predictions.jsonl"))
    assert here.score("constant", "heldout")["accuracy"] == there.score("constant", "heldout")["accuracy"]
    assert here.table["p_correct"].tolist() == there.table["p_correct"].tolist()
    assert "generated" in there.table and "generated" not in here.table


def test_predictions_of_own_data_name_no_case_and_give_the_same_figures(folders):
    run, _, _ = folders
    table = pd.read_json(run / "predictions.jsonl", lines=True).assign(
        id=["doe_jane_1", "doe_jane_2", "doe_jane_1"], cell="group doe_jane", pair=["p", "p", None]
    )
    stats.write_predictions(run / "predictions.jsonl", table)
    content = gallery.predictions(run, named=False)
    assert b"doe" not in content
    shown = pd.read_parquet(io.BytesIO(content))
    assert shown["id"].tolist() == ["id 0", "id 1", "id 0"] and shown["pair"].isna().tolist() == [
        False,
        False,
        True,
    ]
    there = Results.read(run / "predictions.jsonl").score("constant", "heldout")
    assert Results(shown).score("constant", "heldout")["accuracy_by_cell"] == there["accuracy_by_cell"]


@pytest.mark.parametrize("folder", [".", *(f.name for f in gallery.REPORTS.glob("*") if f.is_dir())])
def test_the_committed_figures_follow_from_the_committed_predictions(folder):
    file = gallery.REPORTS / folder / gallery.PREDICTIONS
    if not file.is_file():
        pytest.skip(f"no reports/{folder}/predictions.parquet: `medlib report --update-reports` writes it")
    results, shown = Results.read(file), json.loads((file.parent / gallery.METRICS).read_text())["systems"]
    kinds = ("accuracy", "sensitivity", "specificity", "accuracy_by_cell")
    for system, figures in shown.items():
        if results.has(system, "heldout"):
            again = results.score(system, "heldout")
            assert all(again[key] == pytest.approx(figures[key]) for key in kinds)


def test_a_path_in_the_figures_is_no_less_one_of_a_machine(tmp_path):
    (tmp_path / gallery.METRICS).write_text('{"measured": {"model": "/home/jane/standin"}}')
    assert gallery.unpublishable(tmp_path) == ["metrics.json: a path of some machine: /home/j…"]
    assert gallery._named("at /home/jane/standin", {"/home/jane/standin": "standin"}) == "at standin"


def test_a_table_is_aligned_without_styles():
    soup = BeautifulSoup(gallery.plain_html(TABLE), "html.parser")
    assert soup.style is None and not soup.find(class_=True) and not soup.find(id=True)
    assert [cell["align"] for cell in soup.select("tbody td")] == ["left", "right"]


def test_the_index_says_what_the_run_was(folders):
    run, _, reports = folders
    text = gallery.update(run, reports).read_text()
    assert "[00_one](00_one.ipynb) | Does it work?" in text
    assert "0123456789" in text and "2026-01-02" in text and "knows no medicine" in text


@pytest.mark.parametrize("name", ["images_dir", "ratings"])
def test_what_must_stay_private_is_refused(folders, name):
    run, _, reports = folders
    (run / "run.json").write_text(json.dumps({"parameters": {name: "somewhere"}}))
    with pytest.raises(ConfigError, match="must not be published|patient data"):
        gallery.update(run, reports)
    assert not reports.exists()


@pytest.fixture
def own_run(folders):
    """The same run on labelled images of one's own; a function writes its record."""
    run, _, _ = folders
    record = json.loads((run / "run.json").read_text())

    def on(table):
        folder = run.parent / "clinic"
        folder.mkdir()
        Image.new("RGB", (8, 8)).save(folder / "a.png")
        (folder / "cases.csv").write_text(table)
        record["parameters"] |= {"data_dir": str(folder), "model": str(run.parent / "models" / "tuned")}
        (run / "run.json").write_text(json.dumps(record))

    return on


def test_of_images_of_ones_own_only_charts_are_kept(folders, own_run):
    run, notebooks, reports = folders
    own_run("file,modality,finding,group\na.png,xray,normal,1\n")
    notebook = executed()
    chart = new_code_cell("chart()", metadata={"tags": ["chart"]}, outputs=notebook.cells[3].outputs[-3:-1])
    notebook.cells.append(chart)
    nbformat.write(notebook, run / "notebooks" / "00_one.ipynb")
    index = gallery.update(run, reports)
    assert index == reports / "clinic" / "README.md"
    text = index.read_text()
    assert "pictures are left" in text and "`tuned`" in text and str(run.parent) not in text
    cells = nbformat.read(index.parent / "00_one.ipynb", as_version=4).cells
    pictures = [[k for o in c.get("outputs", []) for k in o.get("data", {}) if "image" in k] for c in cells]
    assert pictures[3] == [] and len(pictures[-1]) == 2
    assert sum("may not be published" in o.get("text", "") for o in cells[3].outputs) == 2


def test_the_folder_is_found_behind_the_hash_in_the_record(folders, own_run):
    run, _, reports = folders
    own_run("file,modality,finding,group\na.png,xray,normal,1\n")
    runs.record(runs.recorded(run))
    assert "clinic" not in (run / "run.json").read_text()
    assert gallery.update(run, reports) == reports / "clinic" / "README.md"


def test_notes_of_ones_own_are_not_published(folders, own_run):
    run, _, reports = folders
    own_run("id,image,finding,treatment,verdict\n1,a.png,Clear lungs,None,CORRECT\n")
    with pytest.raises(ConfigError, match="notes of data_dir"):
        gallery.update(run, reports)


def test_an_incomplete_run_and_one_that_is_too_large_are_refused(folders, monkeypatch):
    run, _, reports = folders
    with monkeypatch.context() as patch, pytest.raises(ConfigError, match="MB at the smallest figures"):
        patch.setattr(gallery, "MAX_BYTES", 1000)
        gallery.update(run, reports)
    (run / "notebooks" / "00_one.ipynb").unlink()
    with pytest.raises(ConfigError, match="00_one.ipynb"):
        gallery.update(run, reports)


def test_the_check_finds_what_does_not_belong(folders):
    run, notebooks, reports = folders
    gallery.update(run, reports)
    changed = committed()
    changed.cells[2].source = "show(more)"
    nbformat.write(changed, notebooks / "00_one.ipynb")
    nbformat.write(changed, notebooks / "01_two.ipynb")
    failed = executed()
    failed.cells[3].outputs = [new_output("error", ename="E", evalue="/home/somebody/x", traceback=[])]
    failed.cells[0].source = "in /home/somebody/x"
    nbformat.write(failed, reports / "00_one.ipynb")
    nbformat.write(failed, reports / "09_old.ipynb")
    text = "\n".join(gallery.problems(reports, notebooks))
    for part in (
        "01_two.ipynb: not in",
        "09_old.ipynb: no such",
        "cells are not",
        "a cell failed",
        "a path of some",
    ):
        assert part in text
