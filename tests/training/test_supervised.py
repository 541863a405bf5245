"""A whole small run: what it leaves on disk, what it does not do twice, what it refuses."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from medlib.config import DataError, ModelError, RunConfig
from medlib.data import core24, sources
from medlib.data.cases import read_scenarios
from medlib.data.suite import Suite
from medlib.models import loading, scoring
from medlib.models.verdict_model import VerdictModel
from medlib.training import adapters, core_folds, encoding, supervised, trainer


def counted(monkeypatch, module, name):
    """Count the calls of a function that still does its work."""
    function, calls = getattr(module, name), []

    def wrapper(*args, **kwargs):
        calls.append(kwargs.get("label", name))
        return function(*args, **kwargs)

    monkeypatch.setattr(module, name, wrapper)
    return calls


def test_an_adapter_is_trained_once(small_config, monkeypatch):
    trained = counted(monkeypatch, trainer, "train_adapter")
    with pytest.raises(ModelError, match="no trained adapter"):
        adapters.training_metadata(small_config)
    adapter = supervised.train(small_config)
    assert adapters.training_metadata(small_config)["steps"] == 5  # 24 + 16 scenarios, 8 a batch
    assert supervised.train(small_config) == adapter and len(trained) == 1
    supervised.train(small_config.model_copy(update={"lr": 0.01}))
    assert len(trained) == 2


def test_training_again_from_scratch_on_demand(small_config, monkeypatch):
    config = small_config.model_copy(update={"train_pairs": 0, "val_pairs": 0})
    supervised.train(config)
    resumed = []
    train_adapter = trainer.train_adapter

    def watch(*args, **kwargs):
        folder = train_adapter(*args, **kwargs)
        resumed.append(json.loads((folder / "training_metadata.json").read_text())["resumed"])
        return folder

    monkeypatch.setattr(trainer, "train_adapter", watch)
    supervised.train(config, resume=False)
    assert resumed == [False]


def test_dry_run_counts_and_trains_nothing(small_config, monkeypatch):
    trained = counted(monkeypatch, trainer, "train_adapter")
    counts = supervised.dry_run(small_config)
    assert counts["training_scenarios"] == 24 + 16 and not trained
    share = 100 * counts["trainable_parameters"] / counts["total_parameters"]
    assert counts["trainable_percent"] == pytest.approx(share, abs=1e-3)
    assert 5 < counts["answer_tokens"] < counts["tokens_of_first_scenario"]
    assert "stand-in" in counts["model"]


def test_core_folds_never_judge_a_image_that_was_trained_on(small_config, monkeypatch):
    core24.build(sources.CORE_DIR)
    suites = {split: sources.core(small_config, split) for split in ("train", "val")}
    everything = Suite("all", suites["train"].scenarios + suites["val"].scenarios, suites["val"].images_dir)
    processor, base = loading.load_for(small_config)
    names = {
        tuple(row["input_ids"].tolist()): s
        for s, row in zip(
            everything.scenarios, encoding.encode(processor, everything.scenarios, [everything.images_dir] * 24)
        )
    }
    trained_on, judged, adapters = [], [], []

    def train_adapter(model, rows, val_rows, config, out_dir, **options):
        assert not val_rows and not options["resume"]
        trained_on.append({names[tuple(row["input_ids"].tolist())].factors["image_group"] for row in rows})
        return out_dir

    def p_correct(model, suite):
        judged.append({s.factors["image_group"] for s in suite.scenarios})
        return np.full(len(suite), 0.5)

    class Adapter:
        def unload(self):
            adapters.append("unloaded")

    monkeypatch.setattr(trainer, "train_adapter", train_adapter)
    monkeypatch.setattr(scoring, "p_correct", p_correct)
    monkeypatch.setattr(VerdictModel, "with_adapter", lambda base, folder: VerdictModel(processor, Adapter()))
    config = small_config.model_copy(update={"generate": False})
    frame = core_folds.core_folds(config, everything, lambda: VerdictModel(processor, base))
    assert sorted(frame.id) == sorted(s.id for s in everything.scenarios)
    groups = {s.factors["image_group"] for s in everything.scenarios}
    assert len(judged) == len(trained_on) == len(adapters) == len(groups)
    for judged_groups, trained_groups in zip(judged, trained_on):
        assert len(judged_groups) == 1 and trained_groups == groups - judged_groups
    again = core_folds.core_folds(config, everything, lambda: VerdictModel(processor, base))
    assert again.equals(frame) and len(judged) == len(groups)  # nothing trained twice


def test_a_mask_in_place_of_a_scan_is_refused_unless_allowed(small_config, tmp_path):
    sources.ensure_core()
    folder = tmp_path / "images"
    shutil.copytree(sources.CORE_DIR / "images", folder)
    scenarios = read_scenarios(sources.CORE_DIR / "train.jsonl")
    row, masked = next((i, s) for i, s in enumerate(scenarios, start=1) if s.image.endswith(".png"))
    mask = np.zeros((224, 224), np.uint8)
    mask[60:120, 80:160] = 255
    Image.fromarray(mask).save(folder / masked.image)
    config = small_config.model_copy(update={"images_dir": str(folder)})
    for refuse in (lambda: sources.core(config, "train"), lambda: supervised.train(config)):
        with pytest.raises(DataError) as error:
            refuse()
        message = str(error.value)
        assert f"core24/train.jsonl, row {row} ({masked.id}), field 'image'" in message
        assert masked.image in message and "mask" in message and "--allow-masks" in message
    allowed = sources.core(config.model_copy(update={"allow_masks": True}), "train")
    assert len(allowed.scenarios) == 16 and allowed.images_dir == folder


def test_suites_share_nothing(small_config):
    suites = sources.prepare(small_config)
    assert sources.overlap(suites) == {"finding": 0, "treatment": 0, "image": 0, "id": 0}
    assert sources.hashes(suites) == sources.hashes(sources.prepare(small_config))


def test_note_pairs_are_trained_on_if_asked_for(small_config):
    more = small_config.model_copy(update={"note_pairs": 4})
    supervised.train(more)
    assert adapters.training_metadata(more)["steps"] == 6  # 24 + 16 + 8 scenarios, 8 a batch
    supervised.train(small_config)
    assert adapters.training_metadata(small_config)["steps"] == 5


def test_patient_pairs_are_trained_on_if_asked_for(small_config):
    supervised.train(small_config.model_copy(update={"patient_pairs": 4}))
    assert adapters.training_metadata(small_config)["steps"] == 6  # 24 + 16 + 8 scenarios, 8 a batch


def test_a_core_image_that_was_cut_off_is_drawn_again(small_config):
    sources.ensure_core()
    for image in (next((sources.CORE_DIR / "images").glob(f"*{suffix}")) for suffix in (".jpg", ".png")):
        whole = image.read_bytes()
        image.write_bytes(whole[:-100])
        sources.ensure_core()
        assert image.read_bytes() == whole


@pytest.mark.parametrize("text", ["", '{"fingerprint": "', None])
def test_an_adapter_without_whole_metadata_counts_as_not_trained(tmp_path, text):
    (tmp_path / "adapter_model.safetensors").touch()
    if text is not None:
        (tmp_path / adapters.METADATA).write_text(text)
    assert adapters.read_metadata(tmp_path) == {}
    (tmp_path / adapters.METADATA).write_text('{"fingerprint": "x"}')
    assert adapters.read_metadata(tmp_path) == {"fingerprint": "x"}


def test_old_metadata_never_stand_beside_new_weights(small_config, monkeypatch):
    adapter, write_text = supervised.train(small_config), trainer.files.write_text

    def killed(path, text):
        if path.name == adapters.METADATA:
            raise KeyboardInterrupt
        return write_text(path, text)

    monkeypatch.setattr(trainer.files, "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        supervised.train(small_config.model_copy(update={"lr": 1e-3}))
    assert adapters.read_metadata(adapter) == {}


def test_a_real_image_that_changed_in_its_folder_is_trained_on_anew(suite, nano_folder, tmp_path):
    folder = shutil.copytree(suite[1], tmp_path / "images")
    config = RunConfig(model=str(nano_folder), images_dir=str(folder))

    def fingerprint():
        core, rest = Suite("core", suite[0][:4], folder), Suite("rest", suite[0][4:8], suite[1])
        return supervised._train_fingerprint(config, {"core_train": core, "train": rest, "val": rest})

    before = fingerprint()
    assert fingerprint() == before
    Image.new("RGB", (64, 64), "red").save(folder / suite[0][0].image)
    assert fingerprint() != before
