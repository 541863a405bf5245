"""Training: labels, what LoRA touches, what is saved, and that the base comes back."""

import json
import warnings

import peft
import pytest
import torch
from safetensors.torch import load_file

from medlib.config import ANSWERS, ConfigError, ModelError, RunConfig
from medlib.models import features, loading
from medlib.models import features as features_store
from medlib.models.verdict_model import VerdictModel
from medlib.training import encoding, hooks, lora, memory, processes, trainer
from medlib.training.lora import ATTENTION, CHANGES_IMAGES, MLP

SETTINGS = dict(epochs=2, batch_size=8, eval_batch_size=8, lr=3e-3, evaluations_per_epoch=1)


def encoded(nano, suite, count=24, cached=True):
    processor, base, _ = nano
    scenarios, images_dir = suite[0][:count], suite[1]
    rows = encoding.encode(processor, scenarios, [images_dir] * len(scenarios))
    return encoding.cache_image_features(base, rows) if cached else rows


@pytest.fixture(scope="module")
def adapter(nano, suite, tmp_path_factory):
    processor, base, folder = nano
    rows, out = encoded(nano, suite), tmp_path_factory.mktemp("adapter")
    config = RunConfig(model=str(folder), **SETTINGS)
    trainer.train_adapter(VerdictModel(processor, base), rows[:16], rows[16:], config, out, extra={"note": "kept"})
    return out


# --- data -----------------------------------------------------------------------------------------


def test_labels_are_the_answer_and_its_end_of_turn_only(nano, suite):
    processor = nano[0]
    for scenario, row in zip(suite[0], encoded(nano, suite, cached=False)):
        labelled = row["labels"] != -100
        assert processor.tokenizer.decode(row["labels"][labelled]) == f"{ANSWERS[scenario.verdict]}<end_of_turn>"
        assert torch.equal(row["labels"][labelled], row["input_ids"][labelled])
        before = processor.tokenizer.decode(row["input_ids"][: int(labelled.nonzero()[0])])
        assert before.endswith("<start_of_turn>model\n") and scenario.treatment in before
        assert len(row["input_ids"]) == len(row["labels"]) == len(row["token_type_ids"])


def test_cached_features_give_the_loss_of_the_pixels(nano, suite):
    processor, base, _ = nano
    collate = encoding.collator(processor.tokenizer.pad_token_id)
    losses = []
    for cached in (True, False):
        with torch.no_grad():
            batch = collate(encoded(nano, suite, 6, cached))
            assert ("pixel_values" in batch) != cached
            losses.append(base(**batch).loss)
    assert torch.allclose(*losses, atol=1e-5)
    wrong = collate(encoded(nano, suite, 6))
    wrong["mm_encoder_outputs"]["image"].pooler_output *= 0  # the image does reach the loss
    with torch.no_grad():
        assert not torch.allclose(base(**wrong).loss, losses[0], atol=1e-5)


def test_padding_is_neither_attended_nor_labelled(nano, suite):
    rows = encoded(nano, suite, 8)
    batch = encoding.collator(nano[0].tokenizer.pad_token_id)(rows)
    for index, row in enumerate(rows):
        length = len(row["input_ids"])
        assert batch["attention_mask"][index].sum() == length
        assert (batch["labels"][index, length:] == -100).all()
    assert len({len(row["input_ids"]) for row in rows}) > 1


# --- LoRA -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("targets, expected", [("attention", ATTENTION), ("attention+mlp", ATTENTION + MLP)])
def test_lora_touches_the_decoder_only(nano, targets, expected):
    base = nano[1]
    model = peft.get_peft_model(base, lora.lora_config(RunConfig(lora_targets=targets)))
    touched = [name for name, module in model.named_modules() if hasattr(module, "lora_A")]
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    model.unload()
    assert len(touched) == len(expected) * base.config.text_config.num_hidden_layers
    assert {name.rsplit(".", 1)[1] for name in touched} == set(expected)
    assert all("language_model" in name and "vision" not in name for name in touched)
    assert trainable and all("lora_" in name for name in trainable)


def test_share_of_trainable_parameters(nano):
    base, rank = nano[1], 4
    model = peft.get_peft_model(base, lora.lora_config(RunConfig(lora_rank=rank)))
    trainable, total, share = lora.trainable_share(model)
    model.unload()
    text = base.config.text_config
    q, kv = text.num_attention_heads * text.head_dim, text.num_key_value_heads * text.head_dim
    per_layer = 2 * (text.hidden_size + q) + 2 * (text.hidden_size + kv)  # q, o and k, v
    assert trainable == rank * per_layer * text.num_hidden_layers
    assert total == sum(p.numel() for p in base.parameters()) + trainable
    assert share == pytest.approx(100 * trainable / total)


VARIANTS = {
    "rslora": dict(use_rslora=True),
    "dora": dict(use_dora=True),
    "all-linear": dict(lora_targets="all-linear"),
    "projector": dict(lora_targets="projector"),
    "vision": dict(lora_targets="vision"),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_trains_saves_loads_and_goes_away(nano, suite, tmp_path, name):
    processor, folder = nano[0], str(nano[2])
    base = loading.load(folder)[1]
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    config = RunConfig(model=folder, epochs=2, batch_size=8, lr=0.01, lora_rank=4, **VARIANTS[name])
    rows = encoded(nano, suite, 8, cached=not lora.why_no_features(config))
    trainer.train_adapter(VerdictModel(processor, base), rows, [], config, tmp_path, quiet=True)
    assert json.loads((tmp_path / "training_metadata.json").read_text())["steps"] == 2

    batch = encoding.collator(processor.tokenizer.pad_token_id)(encoded(nano, suite, 4, cached=False))
    with torch.no_grad():
        plain = base(**batch).logits
        model = VerdictModel(processor, base).with_adapter(tmp_path).network
        adapted = model(**batch).logits
        with model.disable_adapter():  # as the benchmark asks the base while the adapter is on it
            off = model(**batch).logits
        model.unload()
        again = base(**batch).logits
    assert (adapted - plain).abs().max() > 1e-3
    assert torch.equal(off, plain) and torch.equal(again, plain)
    after = base.state_dict()
    assert set(after) == set(before) and all(torch.equal(after[n], before[n]) for n in before)

    saved = load_file(tmp_path / "adapter_model.safetensors")
    moved = {n for n, tensor in saved.items() if "lora_B" in n and tensor.abs().max() > 0}
    assert moved == {n for n in saved if "lora_B" in n}  # the gradient reached every one
    assert any("vision_tower" in n for n in saved) == (name == "vision")
    assert any("multi_modal_projector" in n for n in saved) == (name == "projector")
    assert any("magnitude" in n for n in saved) == (name == "dora")
    assert any("mlp" in n for n in saved) == (name == "all-linear")
    assert not any("lm_head" in n or "embed" in n for n in saved)


def test_rslora_scales_by_the_root_of_the_rank(nano):
    for rs, scale in ((False, 32 / 16), (True, 32 / 4)):
        model = peft.get_peft_model(nano[1], lora.lora_config(RunConfig(use_rslora=rs)))
        scales = {m.scaling["default"] for m in model.modules() if hasattr(m, "lora_A")}
        model.unload()
        assert scales == {scale}


def test_dora_on_the_projector_is_refused():
    with pytest.raises(ConfigError, match="projector: DoRA"):
        lora.lora_config(RunConfig(lora_targets="projector", use_dora=True))


def test_features_are_kept_only_where_training_leaves_them_alone(monkeypatch):
    assert not lora.why_no_features(RunConfig(lora_targets="all-linear"))
    for targets in CHANGES_IMAGES:
        assert f"lora_targets={targets}" in lora.why_no_features(RunConfig(lora_targets=targets))
    monkeypatch.setattr(processes, "sharded", lambda: True)
    assert "FSDP" in lora.why_no_features(RunConfig())
    assert lora.lora_config(RunConfig(lora_dropout=0.1)).lora_dropout == 0


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
    assert not [file.name for file in adapter.iterdir() if file.suffix in (".bin", ".pt", ".pth", ".pkl")]
    metadata = json.loads((adapter / "training_metadata.json").read_text())
    saved = load_file(adapter / "adapter_model.safetensors")
    assert metadata["trainable_parameters"] == sum(tensor.numel() for tensor in saved.values())
    assert metadata["trainable_percent"] == pytest.approx(
        100 * metadata["trainable_parameters"] / metadata["total_parameters"], abs=1e-3
    )
    assert [epoch["epoch"] for epoch in metadata["loss_per_epoch"]] == [1, 2]
    assert all(epoch["train_loss"] > 0 and epoch["eval_loss"] > 0 for epoch in metadata["loss_per_epoch"])
    assert metadata["steps"] == 4 and metadata["epochs_run"] == 2
    assert metadata["samples_per_second"] == pytest.approx(32 / metadata["wall_seconds"], rel=0.1)
    assert metadata["peak_memory_mib"] > 50 and not metadata["resumed"] and metadata["note"] == "kept"
    assert metadata["device"].split(":")[0] in ("cpu", "cuda", "mps")
    assert metadata["config"]["lr"] == SETTINGS["lr"]
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(nano[2])  # as configured, so a relative name stays one


def test_plain_peft_loads_it_and_gives_the_base_back_bit_for_bit(adapter, nano, suite):
    _, fresh = loading.load(str(nano[2]))
    before = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    batch = encoding.collator(0)(encoded(nano, suite, 4))
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
    processor, base = loading.load(str(nano[2]))
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    rows = encoded(nano, suite, 4)
    config = RunConfig(model=str(nano[2]), epochs=1, batch_size=2, lr=0.01)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*peft_config.*")  # nothing left of the first adapter
        first = trainer.train_adapter(VerdictModel(processor, base), rows, [], config, tmp_path / "1", quiet=True)
        second = trainer.train_adapter(VerdictModel(processor, base), rows, [], config, tmp_path / "2", quiet=True)
    assert not base.training and "forward" not in base.__dict__
    assert set(base.state_dict()) == set(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())
    one, two = (load_file(folder / "adapter_model.safetensors") for folder in (first, second))
    assert all(torch.equal(one[name], two[name]) for name in one)  # same seed, same adapter
    assert json.loads((first / "adapter_config.json").read_text())["base_model_name_or_path"] == str(nano[2])


def test_an_interruption_takes_lora_off_the_base(nano, suite, tmp_path, monkeypatch):
    processor, base, folder = nano
    names = set(base.state_dict())

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(hooks.SFTTrainer, "training_step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        trainer.train_adapter(
            VerdictModel(processor, base), encoded(nano, suite, 4), [], RunConfig(), tmp_path, quiet=True
        )
    assert set(base.state_dict()) == names


# --- learning -------------------------------------------------------------------------------------


def test_loss_goes_down_on_eight_scenarios(nano, suite, tmp_path):
    processor, base, folder = nano
    rows = encoded(nano, suite, 8)
    config = RunConfig(model=str(folder), epochs=8, batch_size=8, lr=0.02, lora_dropout=0)
    trainer.train_adapter(VerdictModel(processor, base), rows, [], config, tmp_path, quiet=True)
    losses = [entry["loss"] for entry in json.loads((tmp_path / "training_metadata.json").read_text())["history"]]
    assert len(losses) == 8 and losses[-1] < losses[0] - 0.8


def test_early_stopping_keeps_the_checkpoint_of_least_validation_loss(nano, suite, tmp_path):
    processor, base, folder = nano
    train_rows, val_rows = encoded(nano, suite, 8), encoded(nano, suite, 4)
    for row in val_rows:  # answers that training makes ever less likely
        row["labels"] = torch.where(row["labels"] == -100, -100, 7)
    config = RunConfig(model=str(folder), epochs=20, batch_size=4, lr=0.02, early_stopping_patience=2)
    trainer.train_adapter(VerdictModel(processor, base), train_rows, val_rows, config, tmp_path, quiet=True)
    metadata = json.loads((tmp_path / "training_metadata.json").read_text())
    losses = [entry["eval_loss"] for entry in metadata["history"] if "eval_loss" in entry]
    best = min(losses)
    assert losses.index(best) == len(losses) - 3 and len(losses) == metadata["steps"] < 40  # two worse, then stop
    assert metadata["best_eval_loss"] == best
    batch = encoding.collator(processor.tokenizer.pad_token_id)(val_rows)
    model = VerdictModel(processor, base).with_adapter(tmp_path).network
    with torch.no_grad():
        saved = float(model(**batch).loss)
    model.unload()
    assert saved == pytest.approx(best, abs=1e-4) and min(losses[-2:]) > best + 1e-3


# --- throughput and memory -------------------------------------------------------------------------


def weights(folder):
    return load_file(folder / "adapter_model.safetensors")


#: Adam divides by the gradient's size, so rounding in a tiny gradient is a part of a whole step of 2e-4.
SAME = 5e-6


def largest_difference(one, two):
    one, two = weights(one), weights(two)
    assert set(one) == set(two)
    return max(float((one[name] - two[name]).abs().max()) for name in one)


def test_rows_of_a_image_share_it_and_it_goes_through_the_tower_once(nano, suite, monkeypatch):
    shown, tower = [], nano[1].get_image_features
    monkeypatch.setattr(nano[1], "get_image_features", lambda p: shown.append(len(p)) or tower(p))
    features._KNOWN.clear()  # what other tests have seen
    rows = encoded(nano, suite)
    images = {s.image for s in suite[0]}
    assert sum(shown) == len(images) < len(rows)
    assert encoding.cache_image_features(nano[1], rows) is rows and sum(shown) == len(images)  # none twice


def test_a_batch_has_the_rows_it_would_have_longest_first():
    lengths = torch.randint(100, 200, (499,), generator=torch.Generator().manual_seed(0)).tolist()
    orders = [encoding.epoch_order(lengths, 32, seed=1, epoch=epoch) for epoch in range(2)]
    assert all(sorted(order) == list(range(499)) for order in orders)
    assert orders[0] == encoding.epoch_order(lengths, 32, 1, 0)
    assert orders[0] != orders[1] and orders[0] != encoding.epoch_order(lengths, 32, 3, 0)
    plain = torch.randperm(499, generator=torch.Generator().manual_seed(1)).tolist()
    for n in range(0, 499, 32):
        assert set(orders[0][n : n + 32]) == set(plain[n : n + 32])

    def padding(order):
        batches = [[lengths[i] for i in order[n : n + 8]] for n in range(0, 499, 8)]
        return sum(max(b) * len(b) - sum(b) for b in batches) / sum(lengths)

    assert padding(orders[0]) < 0.5 * padding(plain)


def test_grouping_by_length_saves_padding_and_changes_no_adapter(nano, suite, tmp_path, monkeypatch):
    tokens, step = [], hooks.SFTTrainer.training_step
    monkeypatch.setattr(
        hooks.SFTTrainer,
        "training_step",
        lambda trainer, model, inputs, *rest: (
            tokens.append(inputs["input_ids"].numel()) or step(trainer, model, inputs, *rest)
        ),
    )
    folders, seen = [], []
    for grouped in (False, True):
        config = RunConfig(
            model=str(nano[2]),
            epochs=2,
            batch_size=2,
            gradient_accumulation=4,
            lr=2e-4,
            lora_dropout=0,
            group_by_length=grouped,
        )
        folders.append(
            trainer.train_adapter(
                VerdictModel(*nano[:2]), encoded(nano, suite, 20), [], config, tmp_path / str(grouped), quiet=True
            )
        )
        seen.append(sum(tokens))
        tokens.clear()
    assert seen[1] < seen[0]
    assert largest_difference(*folders) < SAME


def test_features_once_or_pixels_at_every_step_give_one_adapter(nano, suite, tmp_path):
    config = RunConfig(model=str(nano[2]), epochs=2, batch_size=8, lr=2e-4, lora_dropout=0)
    folders, losses = [], []
    for cached in (True, False):
        folders.append(
            trainer.train_adapter(
                VerdictModel(*nano[:2]),
                encoded(nano, suite, 16, cached),
                encoded(nano, suite, 8, cached),
                config,
                tmp_path / str(cached),
                quiet=True,
            )
        )
        history = json.loads((folders[-1] / "training_metadata.json").read_text())["history"]
        losses.append([e.get("loss", e.get("eval_loss")) for e in history])
    assert len(losses[0]) >= 8 and losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert largest_difference(*folders) < SAME


def test_workers_load_the_images_and_change_nothing(nano, suite, tmp_path):
    config = RunConfig(model=str(nano[2]), epochs=1, batch_size=4, lr=0.01, lora_dropout=0)
    rows = encoded(nano, suite, 8, cached=False)
    folders = [
        trainer.train_adapter(
            VerdictModel(*nano[:2]),
            rows,
            [],
            config.model_copy(update={"workers": workers}),
            tmp_path / str(workers),
            quiet=True,
        )
        for workers in (0, 1)
    ]
    assert largest_difference(*folders) == 0


def test_micro_batches_of_one_effective_batch_train_one_adapter(nano, suite, tmp_path):
    """Answers of unequal length: a mean of micro-batch means would not be the mean over the batch."""
    rows = encoded(nano, suite, 20)
    for row in rows[::3]:
        row["labels"] = row["labels"].clone()
        row["labels"][-4:] = -100
    folders = []
    for size, passes in ((8, 1), (4, 2), (2, 4)):
        config = RunConfig(
            model=str(nano[2]), epochs=2, batch_size=size, gradient_accumulation=passes, lr=2e-4, lora_dropout=0
        )
        folders.append(
            trainer.train_adapter(VerdictModel(*nano[:2]), rows, [], config, tmp_path / str(size), quiet=True)
        )
    moved = max(float(t.abs().max()) for n, t in weights(folders[0]).items() if "lora_B" in n)
    assert moved > 5e-4  # means of means would be as far off as that
    assert max(largest_difference(folders[0], other) for other in folders[1:]) < SAME
    steps = [json.loads((f / "training_metadata.json").read_text())["steps"] for f in folders]
    assert steps == [6, 6, 6]  # 20 rows, 8 a step, the last of each epoch with 4


def test_the_loss_is_trls_own(nano, suite, tmp_path, monkeypatch):
    """Scoring only the answer's positions, as on a CPU, gives what TRL's fused head gives."""
    config = RunConfig(model=str(nano[2]), epochs=1, batch_size=4, lr=2e-4, lora_dropout=0)
    rows = encoded(nano, suite, 16)
    ours = trainer.train_adapter(VerdictModel(*nano[:2]), rows, [], config, tmp_path / "ours", quiet=True)
    monkeypatch.delattr(hooks.SupervisedTrainer, "compute_loss")
    trls = trainer.train_adapter(VerdictModel(*nano[:2]), rows, [], config, tmp_path / "trl", quiet=True)
    assert largest_difference(ours, trls) < SAME


def out_of_memory_above(monkeypatch, rows, after_step=0):
    """Forward passes of more than some rows fail as CUDA fails; returns the sizes that were tried."""
    tried, step = [], hooks.SFTTrainer.training_step

    def training_step(trainer, model, inputs, *rest):
        size = len(inputs["input_ids"])
        tried.append((trainer.state.global_step, size))
        if size > rows and trainer.state.global_step >= after_step:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return step(trainer, model, inputs, *rest)

    monkeypatch.setattr(hooks.SFTTrainer, "training_step", training_step)
    return tried


def test_out_of_memory_halves_the_micro_batch(nano, suite, tmp_path, monkeypatch, capsys):
    config = RunConfig(model=str(nano[2]), epochs=2, batch_size=8, lr=2e-4, lora_dropout=0)
    rows = encoded(nano, suite, 16)
    whole = trainer.train_adapter(VerdictModel(*nano[:2]), rows, rows[:8], config, tmp_path / "whole", quiet=True)
    tried = out_of_memory_above(monkeypatch, 2)
    small = trainer.train_adapter(VerdictModel(*nano[:2]), rows, rows[:8], config, tmp_path / "small", quiet=True)
    said = capsys.readouterr().out
    assert "out of memory with 8 scenarios" in said and "out of memory with 4 scenarios" in said
    assert "with 2, and 4 passes an optimizer step: the effective batch stays" in said
    assert tried[:3] == [(0, 8), (0, 4), (0, 2)] and {size for _, size in tried[2:]} == {2}
    metadata = json.loads((small / "training_metadata.json").read_text())
    assert metadata["steps"] == 4 and metadata["config"]["batch_size"] == 2
    assert metadata["config"]["gradient_accumulation"] == 4
    assert largest_difference(whole, small) < SAME
    assert not any("lora" in name for name in nano[1].state_dict())


def test_out_of_memory_amid_a_training_loses_nothing(nano, suite, tmp_path, monkeypatch):
    """The third epoch's first batch no longer fits; two epochs are not trained again."""
    config = RunConfig(
        model=str(nano[2]), epochs=4, batch_size=8, lr=2e-4, lora_dropout=0, evaluations_per_epoch=1
    )
    rows = encoded(nano, suite, 16)
    whole = trainer.train_adapter(VerdictModel(*nano[:2]), rows, rows[:8], config, tmp_path / "whole", quiet=True)
    tried = out_of_memory_above(monkeypatch, 4, after_step=4)
    small = trainer.train_adapter(VerdictModel(*nano[:2]), rows, rows[:8], config, tmp_path / "small", quiet=True)
    assert tried == [(n, 8) for n in range(5)] + [(n, 4) for n in range(4, 8) for _ in range(2)]
    assert largest_difference(whole, small) < SAME
    history = [json.loads((f / "training_metadata.json").read_text())["history"] for f in (whole, small)]
    assert [e["step"] for e in history[0]] == [e["step"] for e in history[1]]


def test_one_scenario_that_does_not_fit_says_what_to_do(nano, suite, tmp_path, monkeypatch):
    out_of_memory_above(monkeypatch, 0)
    with pytest.raises(ModelError, match="one scenario.*gradient_checkpointing=true"):
        trainer.train_adapter(
            VerdictModel(*nano[:2]), encoded(nano, suite, 4), [], RunConfig(batch_size=4), tmp_path, quiet=True
        )


def test_another_error_is_not_taken_for_memory(nano, suite, tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(hooks.SFTTrainer, "training_step", broken)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        trainer.train_adapter(
            VerdictModel(*nano[:2]), encoded(nano, suite, 4), [], RunConfig(), tmp_path, quiet=True
        )


def test_one_of_several_processes_cannot_shrink_alone(nano, suite, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 2)
    out_of_memory_above(monkeypatch, 2)
    with pytest.raises(ModelError, match="batch_size=4 in one of 2 processes.*to half"):
        trainer.train_adapter(
            VerdictModel(*nano[:2]), encoded(nano, suite, 8), [], RunConfig(batch_size=4), tmp_path, quiet=True
        )


@pytest.mark.parametrize(
    "size, passes, expected", [(8, 1, (4, 2)), (6, 1, (3, 2)), (3, 1, (1, 3)), (5, 4, (2, 10)), (7, 1, (1, 7))]
)
def test_a_smaller_micro_batch_divides_the_batch(size, passes, expected):
    small = memory.smaller_micro_batch(RunConfig(batch_size=size, gradient_accumulation=passes))
    assert (small.batch_size, small.gradient_accumulation) == expected


def test_the_tower_too_is_run_in_smaller_batches_when_memory_is_short(nano, suite, monkeypatch):
    features, sizes = nano[1].get_image_features, []

    def get_image_features(pixels):
        sizes.append(len(pixels))
        if len(pixels) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return features(pixels)

    plain = encoded(nano, suite, 12)
    monkeypatch.setattr(nano[1], "get_image_features", get_image_features)
    features_store._KNOWN.clear()  # or nothing would be computed again
    small = encoded(nano, suite, 12)
    assert sizes[0] > sizes[1] > sizes[-2] == 2
    for one, two in zip(plain, small):
        assert torch.allclose(one["image_features"], two["image_features"], atol=1e-5)


def test_loss_per_epoch_averages_and_keeps_the_last_validation():
    history = [
        {"epoch": 0.5, "loss": 4.0},
        {"epoch": 0.5, "eval_loss": 3.5},
        {"epoch": 1.0, "loss": 2.0},
        {"epoch": 1.0, "eval_loss": 2.5},
        {"epoch": 1.5, "loss": 1.0},
    ]
    assert trainer.losses_per_epoch(history) == [
        {"epoch": 1, "train_loss": 3.0, "eval_loss": 2.5},
        {"epoch": 2, "train_loss": 1.0, "eval_loss": None},
    ]
