"""A training whose numbers are none stops at once and leaves no adapter."""

import pytest
import torch

from medlib.config import ModelError, RunConfig
from medlib.models.verdict_model import VerdictModel
from medlib.training import adapters, encoding, finite, trainer


def train(nano, suite, out, **settings):
    processor, base, folder = nano
    rows = encoding.encode(processor, suite[0][:8], [suite[1]] * 8)
    rows = encoding.cache_image_features(base, rows)
    config = RunConfig(model=str(folder), batch_size=2, evaluations_per_epoch=1, **settings)
    return trainer.train_adapter(VerdictModel(processor, base), rows, rows[:4], config, out, quiet=True)


def test_a_loss_that_is_no_number_stops_a_training_and_names_rate_and_precision(nano, suite, tmp_path):
    with pytest.raises(ModelError, match=r"stopped at step \d+: the .*not a number.* lr=1e\+38 and float32"):
        train(nano, suite, tmp_path, lr=1e38, epochs=2)
    assert not (tmp_path / "adapter_model.safetensors").exists() and not adapters.read_metadata(tmp_path)
    assert not any("lora_" in name for name, _ in nano[1].named_parameters())  # the base is as it was


def test_a_gradient_that_is_no_number_stops_a_training(nano, suite, tmp_path, monkeypatch):
    step = trainer.hooks.SFTTrainer.training_step

    def broken(self, model, *args, **kwargs):
        loss = step(self, model, *args, **kwargs)
        next(p for p in model.parameters() if p.grad is not None).grad[0] = float("inf")
        return loss

    monkeypatch.setattr(trainer.hooks.SFTTrainer, "training_step", broken)
    with pytest.raises(ModelError, match="stopped at step 1: the gradient is not a number"):
        train(nano, suite, tmp_path, epochs=1)
    assert not (tmp_path / "adapter_model.safetensors").exists()


def test_weights_that_are_no_numbers_are_not_saved(nano, suite, tmp_path, monkeypatch):
    monkeypatch.setattr(finite, "check", lambda *_: None)
    train(nano, suite, tmp_path / "whole", epochs=1)
    monkeypatch.undo()
    model = VerdictModel(*nano[:2]).with_adapter(tmp_path / "whole").network
    next(p for name, p in model.named_parameters() if "lora_B" in name).data[0] = torch.nan
    config = RunConfig(ppo_lr=0.5)
    with pytest.raises(ModelError, match=r"the weight .*lora_B.* is not a number \(nan\) with ppo_lr=0.5"):
        adapters.save_adapter(model, nano[0], config, tmp_path / "broken", rate="ppo_lr")
    assert not (tmp_path / "broken").exists()
    model.unload()
