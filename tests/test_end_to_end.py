"""The whole way of `make report`, on a tiny budget: data, training, evaluation, pages."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from peft import PeftModel

from medlib.config import ROOT
from medlib.models import loading

NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    command = [sys.executable, "-m", "medlib", "report", "--profile", "tiny", "--run-dir", str(folder)]
    command += ["--set", "rl_methods=[dpo]", "--set", "generate=false"]  # `make test` runs the notebooks with all
    two = os.environ | {"MEDLIB_PROCESSES": "2"}  # notebooks and jobs side by side
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=two)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return folder


def test_every_notebook_was_executed_and_rendered(run):
    assert sorted(p.stem for p in (run / "notebooks").glob("*.ipynb")) == NOTEBOOKS
    index = (run / "report" / "index.html").read_text()
    for name in NOTEBOOKS:
        assert f'href="{name}.html"' in index
        page = (run / "report" / f"{name}.html").read_text()
        assert "Traceback" not in page
    assert "stand-in" in index


def test_results_are_complete_and_say_what_made_them(run):
    record = json.loads((run / "run.json").read_text())
    assert record["parameters"]["train_pairs"] == 24
    assert record["packages"]["torch"] and record["git"] is not None and record["data_hashes"]
    report = record["report"]
    assert report["seconds"] > 0 and report["peak_memory_mib"] > 0 and report["processes"] == 2
    assert sorted(report["seconds_by_notebook"]) == NOTEBOOKS
    metrics = json.loads((run / "metrics.json").read_text())
    for system in ("constant", "heuristics", "keyword-probe", "medgemma", "medgemma-lora"):
        accuracy = metrics["systems"][system]["accuracy"]
        assert accuracy["n"] == 48 and accuracy["low"] <= accuracy["value"] <= accuracy["high"]
    assert metrics["systems"]["constant"]["accuracy"]["value"] == 0.5
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    scored = [
        r for r in rows if (r["system"], r["suite"], r.get("ablation", "")) == ("medgemma-lora", "heldout", "")
    ]
    assert len({r["id"] for r in scored}) == 48 and all(0 <= r["p_correct"] <= 1 for r in scored)


def test_text_alone_gives_one_answer_to_both_members_of_an_image_pair(run):
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    without_image = [r for r in rows if (r["system"], r.get("ablation")) == ("medgemma-lora", "text_only")]
    blind = [r for r in without_image if r["pair_kind"] == "image"]
    assert blind and sum(r["predicted"] == r["verdict"] for r in blind) * 2 == len(blind)


def test_the_adapter_loads_with_plain_peft(run):
    _, base = loading.load(loading.locate("models/medgemma-nano"))
    assert PeftModel.from_pretrained(base, run / "adapter").peft_config["default"].r == 16
