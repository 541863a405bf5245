"""Training: labels, what LoRA touches, what is saved, and that the base comes back."""

import json
import warnings

import peft
import pytest
import torch
from safetensors.torch import load_file

from medlib import models, training
from medlib.config import RunConfig
from medlib.schema import ANSWERS

SETTINGS = dict(epochs=2, batch_size=8, eval_batch_size=8, lr=3e-3, evaluations_per_epoch=1)


def encoded(nano, suite, count=24, cached=True):
    processor, base, _ = nano
    scenarios, images_dir = suite[0][:count], suite[1]
    rows = training.encode(processor, scenarios, [images_dir] * len(scenarios))
    return training.cache_image_features(base, rows) if cached else rows


@pytest.fixture(scope="module")
def adapter(nano, suite, tmp_path_factory):
    processor, base, folder = nano
    rows, out = encoded(nano, suite), tmp_path_factory.mktemp("adapter")
    config = RunConfig(model=str(folder), **SETTINGS)
    training.train_adapter(
        base, processor, rows[:16], rows[16:], config, out, extra={"note": "kept"}
    )
    return out


# --- data -----------------------------------------------------------------------------------------


def test_labels_are_the_answer_and_its_end_of_turn_only(nano, suite):
    processor = nano[0]
    for scenario, row in zip(suite[0], encoded(nano, suite, cached=False)):
        labelled = row["labels"] != -100
        assert (
            processor.tokenizer.decode(row["labels"][labelled])
            == f"{ANSWERS[scenario.verdict]}<end_of_turn>"
        )
        assert torch.equal(row["labels"][labelled], row["input_ids"][labelled])
        before = processor.tokenizer.decode(row["input_ids"][: int(labelled.nonzero()[0])])
        assert before.endswith("<start_of_turn>model\n") and scenario.treatment in before
        assert len(row["input_ids"]) == len(row["labels"]) == len(row["token_type_ids"])


def test_cached_features_give_the_loss_of_the_pixels(nano, suite):
    processor, base, _ = nano
    collate = training.collator(processor.tokenizer.pad_token_id)
    losses = []
    for cached in (True, False):
        with torch.no_grad():
            batch = collate(encoded(nano, suite, 6, cached))
            assert ("pixel_values" in batch) != cached
            losses.append(base(**batch).loss)
    assert torch.allclose(*losses, atol=1e-5)
    wrong = collate(encoded(nano, suite, 6))
    wrong["mm_encoder_outputs"]["image"].pooler_output *= 0  # the picture does reach the loss
    with torch.no_grad():
        assert not torch.allclose(base(**wrong).loss, losses[0], atol=1e-5)


def test_padding_is_neither_attended_nor_labelled(nano, suite):
    rows = encoded(nano, suite, 8)
    batch = training.collator(nano[0].tokenizer.pad_token_id)(rows)
    for index, row in enumerate(rows):
        length = len(row["input_ids"])
        assert batch["attention_mask"][index].sum() == length
        assert (batch["labels"][index, length:] == -100).all()
    assert len({len(row["input_ids"]) for row in rows}) > 1


# --- LoRA -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "targets, expected",
    [
        ("attention", training.ATTENTION),
        ("attention+mlp", training.ATTENTION + training.MLP),
    ],
)
def test_lora_touches_the_decoder_only(nano, targets, expected):
    base = nano[1]
    model = peft.get_peft_model(base, training.lora_config(RunConfig(lora_targets=targets)))
    touched = [name for name, module in model.named_modules() if hasattr(module, "lora_A")]
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    model.unload()
    assert len(touched) == len(expected) * base.config.text_config.num_hidden_layers
    assert {name.rsplit(".", 1)[1] for name in touched} == set(expected)
    assert all("language_model" in name and "vision" not in name for name in touched)
    assert trainable and all("lora_" in name for name in trainable)


def test_share_of_trainable_parameters(nano):
    base, rank = nano[1], 4
    model = peft.get_peft_model(base, training.lora_config(RunConfig(lora_rank=rank)))
    trainable, total, share = training.trainable_share(model)
    model.unload()
    text = base.config.text_config
    q, kv = text.num_attention_heads * text.head_dim, text.num_key_value_heads * text.head_dim
    per_layer = 2 * (text.hidden_size + q) + 2 * (text.hidden_size + kv)  # q, o and k, v
    assert trainable == rank * per_layer * text.num_hidden_layers
    assert total == sum(p.numel() for p in base.parameters()) + trainable
    assert share == pytest.approx(100 * trainable / total)


# --- what is saved --------------------------------------------------------------------------------


def test_saved_files_and_figures(adapter, nano):
    for file in (
        "adapter_model.safetensors",
        "adapter_config.json",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "training_metadata.json",
    ):
        assert (adapter / file).is_file(), file
    assert not [
        file.name for file in adapter.iterdir() if file.suffix in (".bin", ".pt", ".pth", ".pkl")
    ]
    metadata = json.loads((adapter / "training_metadata.json").read_text())
    saved = load_file(adapter / "adapter_model.safetensors")
    assert metadata["trainable_parameters"] == sum(tensor.numel() for tensor in saved.values())
    assert metadata["trainable_percent"] == pytest.approx(
        100 * metadata["trainable_parameters"] / metadata["total_parameters"], abs=1e-3
    )
    assert [epoch["epoch"] for epoch in metadata["loss_per_epoch"]] == [1, 2]
    assert all(
        epoch["train_loss"] > 0 and epoch["eval_loss"] > 0 for epoch in metadata["loss_per_epoch"]
    )
    assert metadata["steps"] == 4 and metadata["epochs_run"] == 2
    assert metadata["samples_per_second"] == pytest.approx(32 / metadata["wall_seconds"], rel=0.1)
    assert (
        metadata["peak_memory_mib"] > 50 and not metadata["resumed"] and metadata["note"] == "kept"
    )
    assert metadata["device"].split(":")[0] in ("cpu", "cuda", "mps")
    assert metadata["config"]["lr"] == SETTINGS["lr"]
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(
        nano[2]
    )  # as configured, so a relative name stays one


def test_plain_peft_loads_it_and_gives_the_base_back_bit_for_bit(adapter, nano, suite):
    _, fresh = models.load(str(nano[2]))
    before = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    batch = training.collator(0)(encoded(nano, suite, 4))
    with torch.no_grad():
        plain = fresh(**batch).logits
        model = peft.PeftModel.from_pretrained(fresh, adapter).eval()
        adapted = model(**batch).logits
        back = model.unload()
        again = back(**batch).logits
    saved = load_file(adapter / "adapter_model.safetensors")
    assert any(tensor.abs().max() > 0 for name, tensor in saved.items() if "lora_B" in name)
    assert not torch.allclose(plain, adapted, atol=1e-4)
    after = back.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert torch.equal(again, plain)


def test_training_leaves_the_base_as_it_was(nano, suite, tmp_path):
    processor, base = models.load(str(nano[2]))
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    rows = encoded(nano, suite, 4)
    config = RunConfig(model="models/nano", epochs=1, batch_size=2, lr=0.01)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "error", message=".*peft_config.*"
        )  # nothing left of the first adapter
        first = training.train_adapter(
            base, processor, rows, [], config, tmp_path / "1", quiet=True
        )
        second = training.train_adapter(
            base, processor, rows, [], config, tmp_path / "2", quiet=True
        )
    assert not base.training and "forward" not in base.__dict__
    assert set(base.state_dict()) == set(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())
    one, two = (load_file(folder / "adapter_model.safetensors") for folder in (first, second))
    assert all(torch.equal(one[name], two[name]) for name in one)  # same seed, same adapter
    assert (
        json.loads((first / "adapter_config.json").read_text())["base_model_name_or_path"]
        == "models/nano"
    )


def test_an_interruption_takes_lora_off_the_base(nano, suite, tmp_path, monkeypatch):
    processor, base, folder = nano
    names = set(base.state_dict())

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(training.SFTTrainer, "training_step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        training.train_adapter(
            base, processor, encoded(nano, suite, 4), [], RunConfig(), tmp_path, quiet=True
        )
    assert set(base.state_dict()) == names


# --- learning -------------------------------------------------------------------------------------


def test_loss_goes_down_on_eight_scenarios(nano, suite, tmp_path):
    processor, base, folder = nano
    rows = encoded(nano, suite, 8)
    config = RunConfig(model=str(folder), epochs=8, batch_size=8, lr=0.02, lora_dropout=0)
    training.train_adapter(base, processor, rows, [], config, tmp_path, quiet=True)
    losses = [
        entry["loss"]
        for entry in json.loads((tmp_path / "training_metadata.json").read_text())["history"]
    ]
    assert len(losses) == 8 and losses[-1] < losses[0] - 0.8


def test_early_stopping_keeps_the_checkpoint_of_least_validation_loss(nano, suite, tmp_path):
    processor, base, folder = nano
    train_rows, val_rows = encoded(nano, suite, 8), encoded(nano, suite, 4)
    for row in val_rows:  # answers that training makes ever less likely
        row["labels"] = torch.where(row["labels"] == -100, -100, 7)
    config = RunConfig(
        model=str(folder), epochs=20, batch_size=4, lr=0.02, early_stopping_patience=2
    )
    training.train_adapter(base, processor, train_rows, val_rows, config, tmp_path, quiet=True)
    metadata = json.loads((tmp_path / "training_metadata.json").read_text())
    losses = [entry["eval_loss"] for entry in metadata["history"] if "eval_loss" in entry]
    best = min(losses)
    assert (
        losses.index(best) == len(losses) - 3 and len(losses) == metadata["steps"] < 40
    )  # two worse, then stop
    assert metadata["best_eval_loss"] == best
    batch = training.collator(processor.tokenizer.pad_token_id)(val_rows)
    model = models.attach_adapter(base, tmp_path)
    with torch.no_grad():
        saved = float(model(**batch).loss)
    model.unload()
    assert saved == pytest.approx(best, abs=1e-4) and min(losses[-2:]) > best + 1e-3


def test_loss_per_epoch_averages_and_keeps_the_last_validation():
    history = [
        {"epoch": 0.5, "loss": 4.0},
        {"epoch": 0.5, "eval_loss": 3.5},
        {"epoch": 1.0, "loss": 2.0},
        {"epoch": 1.0, "eval_loss": 2.5},
        {"epoch": 1.5, "loss": 1.0},
    ]
    assert training.losses_per_epoch(history) == [
        {"epoch": 1, "train_loss": 3.0, "eval_loss": 2.5},
        {"epoch": 2, "train_loss": 1.0, "eval_loss": None},
    ]
