"""Memory, time and money from a model's configuration alone, against what PyTorch really keeps."""

import contextlib

import pytest
import torch
from peft import get_peft_model

from medlib.config import ConfigError, ModelError, RunConfig, resolve
from medlib.models import loading
from medlib.training import forecast, lora, supervised
from medlib.training.forecast import TEXT_TOKENS

PUBLISHED = {  # parameters of the checkpoints on the hub
    "google/medgemma-4b-it": 4_300_079_472,
    "google/medgemma-1.5-4b-it": 4_300_079_472,
    "google/medgemma-27b-it": 27_432_406_640,
}


@pytest.mark.parametrize("model", PUBLISHED)
def test_real_shapes_have_the_published_number_of_parameters(model):
    result = forecast.forecast(RunConfig(model=model), "h100")
    assert result["parameters"] == PUBLISHED[model]
    assert result["memory_gib"]["weights"] == pytest.approx(2 * PUBLISHED[model] / 2**30, rel=1e-3)
    assert result["tokens"] == 256 + TEXT_TOKENS


def test_a_model_without_a_shape_lists_those_there_are(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("not reachable")

    monkeypatch.setattr(forecast.AutoConfig, "from_pretrained", refuse)
    with pytest.raises(ModelError, match="medgemma-27b-it, medgemma-4b-it"):
        forecast.shape("someone/else")


def test_an_unknown_row_lists_those_there_are():
    with pytest.raises(ConfigError, match="rtx4090"):
        forecast.forecast(RunConfig(), "t5")


# --- against what is really kept ------------------------------------------------------------------


def kept_by_autograd(config, dtype, batch=2, tokens=120):
    """Bytes of all tensors that a training forward pass of the decoder leaves for the way back."""
    _, base = loading.load_for(config)
    model = get_peft_model(base, lora.lora_config(config)).train()
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # alive, so that no address comes twice
        return tensor

    cast = torch.autocast("cpu", torch.bfloat16) if dtype == "bfloat16" else contextlib.nullcontext()
    ids = torch.randint(10, 500, (batch, tokens), generator=torch.Generator().manual_seed(0))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), cast:
        model.base_model.model.model(input_ids=ids, token_type_ids=torch.zeros_like(ids), use_cache=False)
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("targets", ["attention", "attention+mlp"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_forecast_activations_are_those_that_autograd_keeps(nano_folder, dtype, targets):
    config = RunConfig(model=str(nano_folder), dtype=dtype, lora_targets=targets)
    model, batch, tokens = forecast.on_meta(config), 2, 120
    layers = model.config.text_config.num_hidden_layers
    each = forecast.layer_bytes(config, model, getattr(torch, dtype), tokens, "cpu")
    kept = kept_by_autograd(config, dtype, batch, tokens)
    assert layers * batch * tokens * each == pytest.approx(kept, rel=0.05)


@pytest.mark.parametrize(
    "dtype, quantization",
    [
        ("float32", None),
        ("bfloat16", None),
        ("float16", None),
        ("float32", "8bit"),
        ("float32", "4bit"),
        ("float16", "4bit"),
    ],
)
def test_forecast_weights_are_those_that_are_loaded(nano_folder, dtype, quantization):
    if quantization:
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    config = RunConfig(model=str(nano_folder), dtype=dtype, quantization=quantization)
    base = loading.load_for(config)[1]
    loaded = sum(p.numel() * p.element_size() for p in base.parameters())
    for p in base.parameters():  # scales of NF4: 8 bits a block of 64, float32 a block of 256 of these
        if state := getattr(p, "quant_state", None):
            loaded += state.absmax.numel() + 4 * state.state2.absmax.numel()
    weights = sum(
        forecast.weight_bytes(n, p, config, getattr(torch, dtype))
        for n, p in forecast.on_meta(config).named_parameters()
        if not p.requires_grad
    )
    assert weights == pytest.approx(loaded, rel=0.01)


def test_trainable_parameters_are_those_of_the_loaded_model(nano_folder):
    config = RunConfig(model=str(nano_folder), lora_targets="attention+mlp", lora_rank=8)
    model = get_peft_model(loading.load_for(config)[1], lora.lora_config(config))
    trainable, total, _ = lora.trainable_share(model)
    result = forecast.forecast(config, "cpu")
    assert (result["trainable_parameters"], result["parameters"]) == (trainable, total - trainable)
    assert result["memory_gib"]["adapter"] == pytest.approx(16 * trainable / 2**30, abs=1e-3)


# --- what follows ---------------------------------------------------------------------------------


def peak(profile="rtx3090", **changes):
    return forecast.forecast(resolve("medgemma-4b+rtx3090", **changes), profile)["memory_gib"]["peak"]


def test_memory_moves_as_it_must():
    assert peak(quantization="4bit") < peak(quantization="8bit") < peak()
    assert peak(gradient_checkpointing=True) < peak(gradient_checkpointing=False)
    assert peak(batch_size=2, gradient_checkpointing=False) < peak(gradient_checkpointing=False)
    assert peak(lora_targets="attention+mlp") > peak()


def test_a_model_that_is_too_large_is_said_not_to_fit():
    result = forecast.forecast(resolve("medgemma-4b+rtx3090", model="google/medgemma-27b-it"), "rtx3090")
    assert result["fits"] is False and "DOES NOT FIT" in forecast.sentence(result)
    small = forecast.forecast(resolve("medgemma-4b+rtx3090"), "rtx3090")
    assert small["fits"] is True and ", fits" in forecast.sentence(small)


def test_time_and_money_follow_from_speed_and_price(monkeypatch):
    config = resolve("medgemma-4b+h100")
    before = forecast.forecast(config, "h100")
    assert before["usd"] == pytest.approx(before["hours"] * 2.49)
    rows = forecast.prices()
    rows["h100"] |= {"utilisation": rows["h100"]["utilisation"] / 2, "usd_per_hour": 10}
    monkeypatch.setattr(forecast, "prices", lambda: rows)
    after = forecast.forecast(config, "h100")
    assert after["hours"] == pytest.approx(2 * before["hours"])
    assert after["usd"] == pytest.approx(10 * after["hours"])
    twice = forecast.forecast(config.model_copy(update={"gradient_checkpointing": True}), "h100")
    assert after["hours"] < twice["hours"] < 1.5 * after["hours"]
    assert forecast.forecast(config, "cpu")["usd"] is None


def test_a_dry_run_without_the_hub_forecasts_from_the_shipped_shape(small_config, monkeypatch):
    def refuse(*args, **kwargs):
        assert kwargs["local_files_only"]
        raise OSError("Can't load the processor")

    monkeypatch.setattr(loading, "reachable", lambda model: False)
    monkeypatch.setattr(loading.AutoProcessor, "from_pretrained", refuse)
    config = small_config.model_copy(update={"model": "google/medgemma-27b-it", "quantization": "4bit"})
    counts = supervised.dry_run(config, "medgemma-4b+h100")
    assert counts["total_parameters"] - counts["trainable_parameters"] == 27_432_406_640
    assert "no tokenizer, no weights" in counts["not_loaded"]
    assert "on h100" in counts["forecast"] and "fits" in counts["forecast"]
    assert counts["memory_peak_gib"] > counts["memory_weights_gib"] > 10
