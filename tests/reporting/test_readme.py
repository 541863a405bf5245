"""The README's and the docs' tables are those of a run."""

import json

import pytest

from medlib import stats
from medlib.reporting import readme

START, END = readme.RESULTS_MARKS


def _score(accuracy):
    rate = stats.proportion(round(accuracy * 100), 100)
    halves = {"sensitivity": rate, "specificity": rate}
    return {"accuracy": rate, **halves, "n": 100, "spread": 1.0, "by_modality": {"xray": {"accuracy": rate}}}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run with two systems, one of them with an ablation, and a README with old results."""
    monkeypatch.setattr(readme, "write_heatmap", lambda metrics, file: file)
    systems = {"constant": _score(0.5), "medgemma-lora": _score(0.9), "two-questions": _score(0.8)}
    scores = {f"{name}/heldout": score for name, score in systems.items()}
    scores |= {"medgemma-lora text_only/heldout": _score(0.6), "medgemma-lora/core24_val": _score(0.8)}
    metrics = {"headline": "It rose.", "names": {}, "systems": systems, "scores": scores, "tables": {}}
    parameters = {"model": "models/x", "model_kind": "stand-in", "seed": 3}
    record = {"parameters": parameters, "git": {"revision": "0123456789ab"}, "timestamp": "2026-01-02T00:00:00"}
    for name, content in {"metrics": metrics, "run": record}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "docs").mkdir()
    for file in ("README.md", "docs/results.md"):
        (tmp_path / file).write_text(f"before\n{START}\nold\n{END}\nafter\n")
    return tmp_path


def test_the_readme_has_the_headline_and_the_docs_have_all_tables(run):
    readme.update_readme(run, run / "README.md")
    main, details = ((run / file).read_text() for file in ("README.md", "docs/results.md"))
    for text in (main, details):
        assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
        assert "revision `0123456789`" in text
    assert "It rose. Asked two questions of its own pretraining, the untouched stand-in has 80.0%" in main
    assert readme.composed({"systems": {}}) is None
    assert "|:---" not in main and "|:---" in details
    assert "text only" not in main and "text only" in details
    assert "Core set" not in main and "Core set, 8 validation cases" in details
    readme.update_readme(run, run / "README.md")
    assert (run / "README.md").read_text() == main


def test_every_claim_links_to_a_heading_of_the_results():
    metrics = json.loads((readme.gallery.REPORTS / "metrics.json").read_text())
    text = (readme.README.parent / "docs" / "results.md").read_text()
    headings = {readme._anchor(line.lstrip("# ")) for line in text.splitlines() if line.startswith("#")}
    for claim in readme.claims(metrics):
        assert claim in readme.README.read_text()
        assert claim.rpartition("docs/results.md#")[2].rstrip(")") in headings


def test_a_file_without_marks_is_named(run):
    (run / "docs" / "results.md").write_text("nothing")
    with pytest.raises(ValueError, match="results.md: the marks"):
        readme.update_readme(run, run / "README.md")


def test_drawn_and_real_images_stand_side_by_side(tmp_path):
    reports, file = tmp_path / "reports", tmp_path / "README.md"
    metrics = {"systems": {"constant": _score(0.5), "medgemma-lora": _score(0.9)}, "names": {"constant": "Always"}}
    metrics["systems"]["two-questions"] = _score(0.8)
    (reports / "real").mkdir(parents=True)
    (reports / "metrics.json").write_text(json.dumps(metrics))
    start, end = readme.COMPARISON_MARKS
    file.write_text(f"before\n{start}\n{end}\nafter\n")
    readme.update_comparison(file, reports)
    assert file.read_text() == f"before\n{start}\n{end}\nafter\n"  # nothing to compare with yet
    metrics["systems"] = {"constant": _score(0.5), "medgemma-lora": _score(0.7), "medgemma-ppo:1": _score(0.6)}
    (reports / "real" / "metrics.json").write_text(json.dumps(metrics))
    readme.update_comparison(file, reports)
    rows = [line for line in file.read_text().splitlines() if line.startswith("| ")]
    assert [cell.strip() for cell in rows[0].split("|")][1:4] == ["System", "Drawn images", "Images of real"]
    assert rows[1].startswith("| Always | 50.0%") and "90.0%" in rows[2] and "70.0%" in rows[2] and len(rows) == 4
    assert rows[3].count("not asked") == 2


def test_the_readme_compares_what_stands_in_reports(tmp_path):
    copy = tmp_path / "README.md"
    copy.write_text(readme.README.read_text())
    readme.update_comparison(copy)
    assert copy.read_text() == readme.README.read_text()
