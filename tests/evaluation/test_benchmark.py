"""The whole ladder on a small run: what it asks, what it leaves on disk, what it says of rows not run."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import typer

from medlib import stats
from medlib.cli import run as run_commands
from medlib.config import ADAPTER, BASE, METHODS, ModelError, RunConfig, resolve, run_dir
from medlib.data import corruptions, sources
from medlib.data.synthetic import grammar
from medlib.data.variants import ABLATIONS
from medlib.evaluation import benchmark, measured, summary
from medlib.evaluation.benchmark import LOOKING
from medlib.evaluation.results import Results
from medlib.evaluation.summary import TARGETS
from medlib.models import scoring
from medlib.training import supervised


@pytest.fixture
def config(small_config):
    changes = {"generate": False, "contradiction_pairs": 4, "corruption_pairs": 4}
    return small_config.model_copy(update=changes)


@pytest.fixture
def asked(monkeypatch):
    """Scenarios that a model was asked about."""
    calls, read = [], scoring.read

    def count(model, suite, *args):
        calls.extend(suite.scenarios)
        return read(model, suite, *args)

    monkeypatch.setattr(scoring, "read", count)
    return calls


def test_a_missing_adapter_is_told_at_once(config):
    with pytest.raises(ModelError, match="adapter_model.safetensors is missing"):
        benchmark.evaluate(config)


def test_a_run_from_training_to_benchmark(config, asked):
    supervised.train(config)
    results = benchmark.evaluate(config)
    expected = {
        (BASE, "heldout", ""): 24,
        (BASE, "core24_val", ""): 8,
        (BASE, "core24_folds", ""): 24,
        (ADAPTER, "heldout", ""): 24,
        (ADAPTER, "core24_val", ""): 8,
    }
    expected |= {(ADAPTER, "heldout", name): 24 for name in ABLATIONS}
    assert {key: len(part) for key, part in results.parts.items()} == expected
    count = len(asked)

    again = benchmark.evaluate(config)
    assert len(asked) == count  # nothing was asked twice
    assert all(again.parts[key].equals(part) for key, part in results.parts.items())

    results = benchmark.benchmark(config)
    for suite in ("heldout", "core24_val", "val", "contradiction", "paraphrase", "patients", "renderer"):
        # nobody has said what the note of a core case means, as image statistics need it
        unasked = {"image-statistics"} if suite == "core24_val" else set()
        assert set(results.systems(suite)) == set(rows_asked(config)) - unasked, suite
    for view in corruptions.views():
        assert set(results.systems(view)) == set(LOOKING)
    run = run_dir(config)
    assert set(Results.read(run / "predictions.jsonl").parts) == set(results.parts)
    check_metrics(json.loads((run / "metrics.json").read_text()), results, config)
    check_record(json.loads((run / "run.json").read_text()), config)

    # evaluating again keeps the rows of the other systems
    benchmark.evaluate(config)
    assert set(json.loads((run / "metrics.json").read_text())["systems"]) == set(rows_asked(config))


def rows_asked(config):
    """All but the rows that need feedback, of which this run has none."""
    return [name for name in config.systems if name.removeprefix("medgemma-") not in METHODS]


def check_metrics(record, results, config):
    assert list(record["systems"]) == rows_asked(config)
    assert set(record["not_run"]) == set(config.systems) - set(rows_asked(config))
    assert all("run 07_rl first" in reason for reason in record["not_run"].values())
    assert not [key for key in record["scores"] if key.endswith("/ood")]  # no verdict there
    assert record["names"][BASE].endswith("(stand-in), untouched")
    after = results.of(ADAPTER, "heldout")
    accuracy = (after.predicted == after.verdict).mean()
    assert record["systems"][ADAPTER]["accuracy"]["value"] == pytest.approx(accuracy)
    assert record["systems"]["constant"]["accuracy"]["value"] == 0.5
    assert set(record["tests"]) == set(rows_asked(config)) - {ADAPTER}
    assert all(test["p"] <= test["p_holm"] <= 1 for test in record["tests"].values())
    asked = len(rows_asked(config))
    assert len(record["comparisons"]) == asked * (asked - 1) / 2
    assert record["pairs"]["n"] == 12
    assert f"{accuracy:.1%} accuracy" in record["headline"] and "stand-in" in record["headline"]
    assert len(record["tables"]["Targets on the held-out suite"]) == len(TARGETS)
    suites = {row["Suite"] for row in record["tables"]["Targets on every suite"]}
    assert {summary.SUITES["patients"], summary.SUITES["renderer"]} <= suites
    assert summary.SUITES["unseen"] not in suites  # no finding was held out
    assert len(record["tables"]["Further axes: patient, renderer, unseen findings"]) == asked


def check_record(record, config):
    assert record["seed"] == config.seed and record["parameters"]["lr"] == config.lr
    assert record["parameters"]["model_kind"] == "stand-in, knows no medicine"
    assert set(record["data_hashes"]) == {"core24_train", "core24_val", "train-12-0", "val-12-0", "test-12-0"}
    assert not [v for v in record["parameters"].values() if str(v).startswith("/")]  # no machine's path


def test_a_changed_adapter_is_asked_again_and_nothing_else(config, asked):
    config = config.model_copy(update={"ablations": False})
    supervised.train(config)
    benchmark.evaluate(config)
    before = len(asked)
    supervised.train(config.model_copy(update={"lr": 0.01}))
    benchmark.evaluate(config)
    # 24 held-out and 8 core cases, of the adapter only; the base's answers stand
    assert len(asked) - before == 24 + 8


def test_a_row_that_cannot_be_asked_says_why_and_has_no_number(config, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    rows = ("constant", "openai:gpt-4o", "heuristics")
    results = benchmark.benchmark(config.model_copy(update={"systems": rows}))
    assert set(results.table["system"]) == {"constant", "heuristics"}
    record = json.loads((run_dir(config) / "metrics.json").read_text())
    assert list(record["not_run"]) == ["openai:gpt-4o"] and "OPENAI_API_KEY" in record["not_run"]["openai:gpt-4o"]
    assert set(record["systems"]) == {"constant", "heuristics"}


def test_only_a_row_that_cannot_be_asked(config, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert not len(benchmark.benchmark(config.model_copy(update={"systems": ("openai:gpt-4o",)})))
    record = json.loads((run_dir(config) / "metrics.json").read_text())
    assert record["systems"] == {} and list(record["not_run"]) == ["openai:gpt-4o"]


def test_frames_of_another_model_or_seed_are_not_mixed_in(config, nano_folder, tmp_path):
    benchmark.benchmark(config.model_copy(update={"systems": ("constant", "heuristics")}))
    kept = benchmark.benchmark(config.model_copy(update={"systems": ("constant",)}))
    assert kept.has("heuristics", "heldout")
    other = shutil.copytree(nano_folder, tmp_path / "other")
    (other / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes() + b" ")
    for change in ({"seed": 1}, {"model": str(other)}):
        results = benchmark.benchmark(config.model_copy(update={"systems": ("constant",)} | change))
        assert not results.has("heuristics", "heldout"), change


def test_what_an_api_says_that_is_no_verdict_is_never_right():
    answered = pd.DataFrame(
        {"p_correct": 0.5, "generated": "Hm.", "parsed": [None] * len(SCENARIOS), "completion_tokens": 2}
    )
    frame = stats.predictions_table(SCENARIOS, answered)
    assert stats.score(frame)["accuracy"]["value"] == 0


# --- tables -----------------------------------------------------------------------------------------


SCENARIOS = grammar.generate("test", 120)


def made_up(share_right, sure=0.9, seed=0):
    right = np.random.default_rng(seed).random(len(SCENARIOS)) < share_right
    is_valid = np.array([s.verdict == "CORRECT" for s in SCENARIOS])
    p = np.where(right == is_valid, sure, 1 - sure)
    return stats.predictions_table(SCENARIOS, pd.DataFrame({"p_correct": p, "seconds": 0.1}))


def test_each_rung_is_tested_against_the_one_below():
    shares = {"constant": 0.5, "heuristics": 0.6, "biomedclip-probe": 0.8, ADAPTER: 1.0}
    parts = {(name, "heldout"): made_up(share, seed=n) for n, (name, share) in enumerate(shares.items())}
    steps = summary.climb(Results.join(parts))
    assert steps["step"].tolist() == [
        "heuristics over constant",
        "biomedclip-probe over heuristics",
        f"{ADAPTER} over biomedclip-probe",
    ]
    assert (steps["p_holm"] >= steps["p"]).all() and steps["p_holm"].iloc[-1] < 0.01
    assert all(summary.worst_p(step) >= step["p_cell_holm"] for step in steps.to_dict("records"))


def test_a_step_is_tested_by_pair_too():
    """Twins that are always right together are one observation, not two."""
    pairs = {s.factors["pair"]: number for number, s in enumerate(SCENARIOS[::2])}
    better = [pairs[s.factors["pair"]] < 6 for s in SCENARIOS]  # both members of six pairs
    upper = made_up(1.0)
    wrong = upper["verdict"].map({"CORRECT": "ERROR", "ERROR": "CORRECT"})
    lower = upper.assign(predicted=upper["predicted"].where(~np.array(better), wrong))
    [step] = summary.climb(
        Results.join({("constant", "heldout"): lower, ("heuristics", "heldout"): upper})
    ).to_dict("records")
    assert step["p"] == pytest.approx(2 * 0.5**12) and step["p_cluster"] == pytest.approx(2 * 0.5**6)
    assert summary.worst_p(step) > 0.01 > step["p"]


def test_the_headline_has_the_interval_by_cell_and_says_drawn():
    results = Results.join({(BASE, "heldout"): made_up(0.5), (ADAPTER, "heldout"): made_up(0.95, seed=1)})
    rate = results.score(ADAPTER, "heldout")["accuracy_by_cell"]
    headline = summary.headline(resolve("standin"), results.scores("heldout"))
    assert f"[95% interval {rate['low']:.1%} to {rate['high']:.1%}] on 240 drawn, held-out" in headline
    assert f"of {rate['clusters']} kinds" in headline


def test_targets_stand_beside_every_suite_with_what_the_rules_reach():
    few = made_up(0.9, seed=2).head(8)
    parts = {(name, suite): frame for name in (ADAPTER, "heuristics") for suite, frame in (("core24_val", few),)}
    parts[ADAPTER, "heldout"] = made_up(1.0)
    shown = summary.targets_by_suite(Results.join(parts))
    assert shown["Suite"].unique().tolist() == ["Held out", "Core set, 8 validation cases"]
    core = shown[shown["Suite"].str.startswith("Core")].set_index("Figure")
    assert core.loc["Accuracy", "Measured"] == core.loc["Accuracy", "Hand-written rules"]
    assert core.loc["Spread across modalities", "Met"] == "no"  # two cases a modality show nothing
    assert (shown.loc[shown["Suite"] == "Held out", "Hand-written rules"] == "not asked").all()


def test_demographic_twins_and_age_by_sex():
    before = made_up(1.0)
    wrong = before["verdict"].map({"CORRECT": "ERROR", "ERROR": "CORRECT"})
    changed = before.assign(predicted=before["predicted"].where(before.index >= 6, wrong))
    results = Results.join({(ADAPTER, "heldout"): before, (ADAPTER, "demographics"): changed})
    [row] = summary.demographic_flips(resolve("standin"), results).to_dict("records")
    assert row["Measured"].startswith("2.5%") and row["Met"] == "no"  # 6 of 240
    shown = summary.by_age_and_sex(results)
    assert set(shown["Sex"]) == {"female", "male"} and set(shown["Age"]) == {"18-39", "40-59", "60+"}
    assert shown["n"].astype(int).sum() == 240


def test_further_axes_stand_beside_the_same_cases_and_the_other_findings():
    heldout = made_up(1.0)
    wrong = heldout["verdict"].map({"CORRECT": "ERROR", "ERROR": "CORRECT"})
    some = heldout.head(40).assign(predicted=heldout["predicted"].where(heldout.index >= 10, wrong))
    parts = {(ADAPTER, "heldout"): heldout, (ADAPTER, "renderer"): some, (ADAPTER, "unseen"): heldout.head(60)}
    config = resolve("standin")
    [row] = summary.further_axes(config, Results.join(parts)).to_dict("records")
    assert row["Second renderer"].startswith("75.0%") and row["Same cases, first renderer"].startswith("100.0%")
    assert row["Findings without training"].startswith("100.0%") and "Other findings" in row
    assert "Another patient decides" not in row
    parts[ADAPTER, "patients"] = some
    [row] = summary.further_axes(config, Results.join(parts)).to_dict("records")
    assert row["Another patient decides"].startswith("75.0%")
    assert row["Whole patient pairs"].startswith("75.0%")  # the first five of 20 pairs
    assert summary.further_axes(config, Results.join({(ADAPTER, "heldout"): heldout})).empty


def test_claims_of_few_rows():
    parts = {(ADAPTER, "heldout"): made_up(0.95)}
    [pairs] = summary.claims(Results.join(parts))
    assert pairs["claim"].startswith("both members")
    parts["openai:x", "heldout"] = made_up(1.0, seed=3)  # not local: no claim is made against it
    assert len(summary.claims(Results.join(parts))) == 1
    parts["constant", "heldout"] = made_up(0.5, seed=4)
    assert [claim["met"] for claim in summary.claims(Results.join(parts))][:2] == [True, True]


def test_temperature_comes_from_the_validation_suite_only():
    # too sure on both suites: 80% right at 99% certainty
    parts = {("s", "val"): made_up(0.8, 0.99), ("s", "heldout"): made_up(0.8, 0.99, seed=1)}
    [row] = summary.calibration_table(Results.join(parts)).to_dict("records")
    assert row["temperature"] > 1 and row["ece_after"] < row["ece_before"]
    parts["s", "heldout"] = made_up(0.2, 0.99, seed=2)
    assert summary.temperatures(Results.join(parts))["s"] == row["temperature"]
    # a system without degrees of certainty has no temperature
    assert summary.temperatures(Results.join({("c", "val"): made_up(0.5, 1.0)})) == {}


def test_latency_and_money_are_nan_where_unknown():
    table = summary.latency(
        Results.join({("a", "heldout"): made_up(0.7), ("b", "heldout"): made_up(0.7).assign(usd=0.002)})
    )
    assert table["seconds"].tolist() == pytest.approx([0.1, 0.1])
    assert np.isnan(table["usd_per_1000"][0]) and table["usd_per_1000"][1] == pytest.approx(2.0)


def test_targets_are_plain():
    shown = summary.targets(stats.score(made_up(1.0)))
    assert (shown["Met"] == "yes").all()
    assert "no" in summary.targets(stats.score(made_up(0.5)))["Met"].tolist()


def test_core24_all_is_both_sides(config):
    prepared = sources.prepare(config)
    assert len(benchmark.core24_all(prepared)) == 24
    fewer = sources.prepare(config.model_copy(update={"held_out_findings": ("mri/well_circumscribed_mass",)}))
    assert len(fewer["core_train"]) < 16 and len(benchmark.core24_all(fewer)) == 0


def test_predictions_that_were_cut_off_are_made_again(config):
    cheap = config.model_copy(update={"systems": ("constant", "heuristics")})
    file = run_dir(config) / "predictions.jsonl"
    benchmark.benchmark(cheap)
    whole = file.read_bytes()
    file.write_bytes(whole[:-20])
    benchmark.benchmark(cheap)
    assert file.read_bytes() == whole


def test_a_kill_between_predictions_and_their_stamp_mixes_no_two_runs(config, monkeypatch):
    cheap = config.model_copy(update={"systems": ("constant",)})
    benchmark.benchmark(cheap)
    write_text = benchmark.files.write_text

    def killed(path, *text):
        if path.name == "predictions.sha256":
            raise KeyboardInterrupt
        return write_text(path, *text)

    monkeypatch.setattr(benchmark.files, "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        benchmark.benchmark(cheap.model_copy(update={"seed": 1, "systems": ("constant", "heuristics")}))
    monkeypatch.setattr(benchmark.files, "write_text", write_text)
    assert set(benchmark.benchmark(cheap).table["system"]) == {"constant"}


def test_predictions_stand_in_one_order_whatever_was_there_before_a_rerun():
    parts = {
        (ADAPTER, "heldout"): made_up(0.9),
        (BASE, "heldout"): made_up(0.5),
        (BASE, "core24_val"): made_up(0.5),
    }
    table = Results.join(parts).table
    assert table.equals(Results.join(dict(reversed(parts.items()))).table)
    assert table.equals(Results.join(Results(table).parts).table[table.columns])


def test_verdicts_that_an_order_flips_are_counted():
    plain = pd.DataFrame({"id": list("abcde"), "verdict": "ERROR", "predicted": ["ERROR"] * 4 + ["CORRECT"]})
    ordered = pd.DataFrame({"id": list("abcd"), "verdict": "ERROR", "predicted": ["CORRECT"] + ["ERROR"] * 3})
    share = summary.flipped(plain, ordered)
    assert (share["value"], share["n"]) == (0.25, 4) and share["low"] < 0.25 < share["high"]


def test_cases_that_were_not_judged_are_counted_and_end_a_command_with_1(tmp_path, capsys):
    frame = made_up(0.9).assign(refused=None)
    frame.loc[:2, "refused"] = "a.png: truncated or unreadable image"
    results = Results.join({("constant", "heldout"): frame, (ADAPTER, "heldout", "masked_words"): made_up(0.9)})
    assert summary.refused(results) == {"constant/heldout": 3}
    config = RunConfig(run_dir=str(tmp_path))
    (tmp_path / "metrics.json").write_text(json.dumps({"scores": {}, "not_run": {}, "refused": {"x/heldout": 3}}))
    with pytest.raises(typer.Exit) as end:
        run_commands._print_scores(config)
    assert end.value.exit_code == 1 and "x/heldout: 3 cases not judged" in capsys.readouterr().out


def test_predictions_of_an_adapter_that_learned_anew_are_not_kept(tmp_path):
    (tmp_path / "metrics.json").write_text(
        json.dumps({"measured": {"adapters": {"medgemma-ppo": "a", ADAPTER: "b"}}})
    )
    parts = dict.fromkeys([("medgemma-ppo:1", "x", ""), (ADAPTER, "x", ""), ("constant", "x", "")])
    now = {"adapters": {"medgemma-ppo": "c", ADAPTER: "b"}}
    assert set(measured.still_valid(tmp_path, parts, now)) == {(ADAPTER, "x", ""), ("constant", "x", "")}
