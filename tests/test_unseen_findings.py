"""The benchmark on findings that training never had: what it counts, and that nothing finished is done again."""

import importlib.util
import json
import sys

import pandas as pd
import pytest

from medlib import stats
from medlib.config import ADAPTER, BASE, ROOT
from medlib.data import sources
from medlib.data.synthetic import grammar

SCENARIOS = grammar.generate("test", 120)
SHOWN = [sources.shown_finding(s) for s in SCENARIOS]


@pytest.fixture
def script(monkeypatch):
    """The module of the script, beside which it finds the others."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("unseen_findings", ROOT / "benchmarks" / "unseen_findings.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "unseen_findings", module)
    spec.loader.exec_module(module)
    return module


def answered(wrong=()):
    """Predictions that are right but for the images of some findings."""
    p = [float((s.verdict == "CORRECT") != (shown in wrong)) for s, shown in zip(SCENARIOS, SHOWN)]
    return stats.predictions_table(SCENARIOS, pd.DataFrame({"p_correct": p}))


def test_cases_are_counted_by_what_the_image_shows(script):
    findings = script.FINDINGS
    missed = "mri/well_circumscribed_mass"
    without = {"left_out": list(findings)}
    without["scores"] = {ADAPTER: script.scores(answered([missed]), SHOWN, findings)}
    everything = {"scores": {name: script.scores(answered(), SHOWN, findings) for name in (ADAPTER, BASE)}}
    table = script.table(without, everything).set_index("Finding")
    assert table.index.tolist() == [*findings, script.EVERY, script.OTHERS]
    assert table.loc[missed, "Trained without"].startswith("0.0%")
    assert table.loc[missed, "Trained with"].startswith("100.0%")
    assert table.loc["xray/ground_glass", "Trained without"].startswith("100.0%")
    assert table.loc[script.OTHERS, "Trained without"].startswith("100.0%")
    counts = table["Cases"].astype(int)
    assert counts[script.EVERY] == counts[list(findings)].sum()
    assert counts[script.EVERY] + counts[script.OTHERS] == len(SCENARIOS)
    assert table.loc[missed, "Care known"] == "no" and table.loc["xray/ground_glass", "Care known"] == "yes"


def test_what_is_finished_is_read_if_weights_and_data_are_the_same(script, tmp_path, monkeypatch):
    facts = {"adapters": {ADAPTER: "abc"}}
    monkeypatch.setattr(script.supervised, "train", lambda config: None)
    monkeypatch.setattr(script.sources, "prepare", lambda config: {"test": None})
    monkeypatch.setattr(script.measured, "facts", lambda *_: facts)
    monkeypatch.setattr(script, "Session", None)  # asking would end with a TypeError
    sizes = {"train_pairs": 12, "test_pairs": 12, "seed": 0}
    file = tmp_path / f"{script.provenance.digest(['tiny', script.FINDINGS, sizes])[:8]}-without" / "result.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"measured": facts, "scores": 1}))
    assert script.one("tiny", script.FINDINGS, True, sizes, str(tmp_path))["scores"] == 1
    file.write_text(json.dumps({"measured": {"adapters": {ADAPTER: "another"}}, "scores": 1}))
    with pytest.raises(TypeError):
        script.one("tiny", script.FINDINGS, True, sizes, str(tmp_path))
