import json
import threading
import time
from pathlib import Path

import nbformat
import pytest

from medlib.config import jobs
from medlib.reporting import execute, pages


def test_a_notebook_gets_the_parameters_it_declares(finished_run):
    first = nbformat.read(finished_run / "notebooks" / "01_data.ipynb", as_version=4)
    assert set(first.metadata.papermill.parameters) == {"size", "run_dir"}
    printed = "".join(output.get("text", "") for cell in first.cells for output in cell.get("outputs", []))
    assert "size is 5 in " in printed
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


def test_resume_reruns_what_changed_and_all_after_it(finished_run, monkeypatch):
    started = []
    monkeypatch.setattr(execute, "_execute", lambda source, *_: started.append(source.stem))
    sources = [str(path) for path in sorted(finished_run.parent.glob("*.ipynb"))]
    monkeypatch.setattr(execute.runs, "add", lambda *_, **__: None)  # run.json stays that of the finished run
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


def test_notebooks_run_in_the_order_of_their_numbers():
    order = [Path(name).name[:2] for name in execute._all_notebooks()]
    assert order == sorted(set(order)) and len(order) >= 11


def test_two_notebooks_run_side_by_side_but_none_before_those_that_it_needs(tmp_path, monkeypatch):
    names = ("03_train_lora", "01_data", "04_evaluate")
    for name in names:
        nbformat.write(nbformat.v4.new_notebook(), tmp_path / f"{name}.ipynb")
    both, ended, seen = threading.Barrier(2, timeout=20), [], {}

    def run(source, target, *_):
        seen[source.stem] = list(ended)
        if source.stem != "04_evaluate":
            both.wait()  # broken unless the other one runs too
        nbformat.write(nbformat.read(source, 4), target)
        ended.append(source.stem)

    monkeypatch.setattr(execute, "_execute", run)
    sources = [str(tmp_path / f"{name}.ipynb") for name in names]
    execute.run_notebooks(tmp_path / "run", {}, sources, first=(ended.append, ("images",)), processes=2)
    assert set(ended) == {"images", *names} and ended[0] == "images"
    assert "03_train_lora" in seen["04_evaluate"]


def test_notebooks_that_are_not_listed_wait_for_all_before_them():
    needs = execute._needs(["00_quickstart", "mine", "yours"])
    assert needs == {"00_quickstart": set(), "mine": {"00_quickstart"}, "yours": {"00_quickstart", "mine"}}


def test_every_notebook_has_its_needs_and_a_first_guess_of_its_time():
    names = [Path(name).stem for name in execute._all_notebooks()]
    assert set(names) <= execute.NEEDS.keys() and set(names) <= execute.SECONDS.keys()
    for number, name in enumerate(names):
        assert set(execute.NEEDS[name]) <= {*names[:number], "ahead"}


def test_a_run_records_its_time_and_memory(finished_run):
    report = json.loads((finished_run / "run.json").read_text())["report"]
    assert report["seconds"] > 0 and report["peak_memory_mib"] > 0
    assert report["seconds_by_notebook"].keys() == {"01_data", "02_score"}


def test_progress_names_what_runs_and_the_time_left(tmp_path, monkeypatch):
    steps = {"03_train_lora": (), "04_evaluate": ()}
    watch = execute._Watch(list(steps), steps, tmp_path / "progress")
    monkeypatch.setitem(watch.running, "03_train_lora", time.monotonic() - 130)
    jobs.progress("training: step 2 of 9")
    line = watch.line()
    assert "[1/2] 03_train_lora 2:10 (training: step 2 of 9)" in line
    assert line.endswith("min left")
    watch.close()
    assert not (tmp_path / "progress").exists()
    jobs.progress("nobody listens")
