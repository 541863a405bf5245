"""A whole small run: what it leaves on disk, what it does not do twice, what it refuses."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from medlib import core24, data, evaluation, models, training, workflow
from medlib.schema import DataError, read_scenarios


def counted(monkeypatch, module, name):
    """Count the calls of a function that still does its work."""
    function, calls = getattr(module, name), []

    def wrapper(*args, **kwargs):
        calls.append(kwargs.get("label", name))
        return function(*args, **kwargs)

    monkeypatch.setattr(module, name, wrapper)
    return calls


def test_a_run_from_training_to_benchmark(small_config, monkeypatch):
    config = small_config.model_copy(update={"generate": False})
    trained = counted(monkeypatch, training, "train_adapter")
    predicted = counted(monkeypatch, evaluation, "predict")

    # an adapter that is not there yet is told at once
    with pytest.raises(models.ModelError, match="adapter_model.safetensors is missing"):
        workflow.evaluate(config)
    with pytest.raises(models.ModelError, match="no trained adapter"):
        workflow.training_metadata(config)

    adapter = workflow.train(config)
    assert workflow.training_metadata(config)["steps"] == 5  # 24 + 16 scenarios, 8 a batch
    assert workflow.train(config) == adapter and len(trained) == 1
    assert not predicted

    frames = workflow.evaluate(config)
    suites = {
        "medgemma/heldout": 24,
        "medgemma/core24_val": 8,
        "medgemma/core24_folds": 24,
        "medgemma-lora/heldout": 24,
        "medgemma-lora/core24_val": 8,
        "medgemma-lora text_only/heldout": 24,
        "medgemma-lora image_only/heldout": 24,
        "medgemma-lora swapped/heldout": 24,
    }
    assert {key: len(frame) for key, frame in frames.items()} == suites
    assert sorted(predicted) == sorted(suites)
    run = workflow.run_dir(config)
    assert len(list((run / "predictions").glob("*.jsonl"))) == len(suites)
    assert set(evaluation.read_predictions(run / "predictions.jsonl")) == set(suites)

    again = workflow.evaluate(config)
    assert len(predicted) == len(suites)  # nothing was asked twice
    assert all(again[key].equals(frames[key]) for key in suites)

    # a changed setting is asked again; of a changed adapter its own rows only
    del predicted[:]
    asked = workflow.evaluate(config.model_copy(update={"generate": True, "ablations": False}))
    assert len(predicted) == len(suites) - 3 and "generated" in asked["medgemma/heldout"]
    del predicted[:]
    changed = config.model_copy(update={"lr": 0.01})
    workflow.train(changed)
    assert len(trained) == 2
    workflow.evaluate(changed)
    assert sorted(predicted) == sorted(key for key in suites if key.startswith("medgemma-lora"))

    frames = workflow.benchmark(changed)
    check_metrics(json.loads((run / "metrics.json").read_text()), frames)
    check_record(json.loads((run / "run.json").read_text()), changed)


def check_metrics(record, frames):
    assert list(record["systems"]) == list(workflow.LADDER)
    assert (
        set(record["scores"]) == set(frames) >= {"keyword-probe/heldout", "heuristics/core24_folds"}
    )
    after = frames["medgemma-lora/heldout"]
    accuracy = (after.predicted == after.verdict).mean()
    assert record["systems"]["medgemma-lora"]["accuracy"]["value"] == pytest.approx(accuracy)
    assert record["systems"]["constant"]["accuracy"]["value"] == 0.5
    assert set(record["tests"]) == set(workflow.LADDER) - {"medgemma-lora"}
    assert all(test["p"] <= test["p_holm"] <= 1 for test in record["tests"].values())
    assert record["pairs"]["n"] == 12
    assert f"{accuracy:.1%} accuracy" in record["headline"] and "stand-in" in record["headline"]
    assert len(record["tables"]["Targets on the held-out suite"]) == len(workflow.BARS)


def check_record(record, config):
    assert record["seed"] == config.seed and record["parameters"]["lr"] == config.lr
    assert record["parameters"]["model_kind"] == "stand-in, knows no medicine"
    assert set(record["data_hashes"]) == {
        "core24_train",
        "core24_val",
        "train-12-0",
        "val-12-0",
        "test-12-0",
    }
    assert not [
        v for v in record["parameters"].values() if str(v).startswith("/")
    ]  # no machine's path


def test_training_again_from_scratch_on_demand(small_config, monkeypatch):
    config = small_config.model_copy(update={"train_pairs": 0, "val_pairs": 0})
    workflow.train(config)
    resumed = []
    train_adapter = training.train_adapter

    def watch(*args, **kwargs):
        folder = train_adapter(*args, **kwargs)
        resumed.append(json.loads((folder / "training_metadata.json").read_text())["resumed"])
        return folder

    monkeypatch.setattr(training, "train_adapter", watch)
    workflow.train(config, resume=False)
    assert resumed == [False]


def test_dry_run_counts_and_trains_nothing(small_config, monkeypatch):
    trained = counted(monkeypatch, training, "train_adapter")
    counts = workflow.dry_run(small_config)
    assert counts["training_scenarios"] == 24 + 16 and not trained
    share = 100 * counts["trainable_parameters"] / counts["total_parameters"]
    assert counts["trainable_percent"] == pytest.approx(share, abs=1e-3)
    assert 5 < counts["answer_tokens"] < counts["tokens_of_first_scenario"]
    assert "stand-in" in counts["model"]


def test_core_folds_never_judge_a_picture_that_was_trained_on(small_config, monkeypatch):
    core24.build(data.CORE_DIR)
    suites = {split: data.core(small_config, split) for split in ("train", "val")}
    everything = data.Suite(
        "all", suites["train"].scenarios + suites["val"].scenarios, suites["val"].images_dir
    )
    processor, base = workflow.load_model(small_config)
    names = {
        tuple(row["input_ids"].tolist()): s
        for s, row in zip(
            everything.scenarios,
            training.encode(processor, everything.scenarios, [everything.images_dir] * 24),
        )
    }
    trained_on, judged, adapters = [], [], []

    def train_adapter(base, processor, rows, val_rows, config, out_dir, **options):
        assert not val_rows and not options["resume"]
        trained_on.append(
            {names[tuple(row["input_ids"].tolist())].factors["image_group"] for row in rows}
        )
        return out_dir

    def predict(model, processor, scenarios, *args):
        judged.append({s.factors["image_group"] for s in scenarios})
        return evaluation.pd.DataFrame([{"id": s.id} for s in scenarios])

    class Adapter:
        def unload(self):
            adapters.append("unloaded")

    monkeypatch.setattr(training, "train_adapter", train_adapter)
    monkeypatch.setattr(evaluation, "predict", predict)
    monkeypatch.setattr(models, "attach_adapter", lambda base, folder: Adapter())
    frame = workflow.core_folds(small_config, processor, base, everything)
    assert sorted(frame.id) == sorted(s.id for s in everything.scenarios)
    groups = {s.factors["image_group"] for s in everything.scenarios}
    assert len(judged) == len(trained_on) == len(adapters) == len(groups)
    for judged_groups, trained_groups in zip(judged, trained_on):
        assert len(judged_groups) == 1 and trained_groups == groups - judged_groups


def test_a_mask_in_place_of_a_scan_is_refused_unless_allowed(small_config, tmp_path):
    data.ensure_core()
    folder = tmp_path / "pictures"
    shutil.copytree(data.CORE_DIR / "images", folder)
    scenarios = read_scenarios(data.CORE_DIR / "train.jsonl")
    row, masked = next((i, s) for i, s in enumerate(scenarios, start=1) if s.image.endswith(".png"))
    mask = np.zeros((224, 224), np.uint8)
    mask[60:120, 80:160] = 255
    Image.fromarray(mask).save(folder / masked.image)
    config = small_config.model_copy(update={"images_dir": str(folder)})
    for refuse in (lambda: data.core(config, "train"), lambda: workflow.train(config)):
        with pytest.raises(DataError) as error:
            refuse()
        message = str(error.value)
        assert f"core24/train.jsonl, row {row} ({masked.id}), field 'image'" in message
        assert masked.image in message and "mask" in message and "--allow-masks" in message
    allowed = data.core(config.model_copy(update={"allow_masks": True}), "train")
    assert len(allowed.scenarios) == 16 and allowed.images_dir == folder


def test_suites_share_nothing(small_config):
    suites = data.prepare(small_config)
    assert data.overlap(suites) == {"finding": 0, "treatment": 0, "image": 0, "id": 0}
    assert data.hashes(suites) == data.hashes(data.prepare(small_config))
