"""Made-up learning curves, one for each diagnosis."""

import json

import numpy as np
import pytest

from medlib.config import RunConfig, run_dir
from medlib.models.verdict_model import VerdictModel
from medlib.training import diagnostics, encoding, trainer
from medlib.training.diagnostics import NOTHING

GUESS = 0.077  # ln 2 over nine tokens


def curve(train, val, **config):
    """Metadata of a run of 100 steps in 4 epochs, with equally spaced losses."""
    history = [
        {"step": step, "epoch": step / 25, name: float(loss)}
        for name, losses in {"loss": train, "eval_loss": val}.items()
        for step, loss in ((round(100 * (i + 1) / len(losses)), loss) for i, loss in enumerate(losses))
    ]
    history.sort(key=lambda entry: entry["step"])
    return {"history": history, "config": RunConfig(epochs=4, **config).model_dump()}


falling = np.geomspace(3, 0.005, 20)


def names(found):
    return [finding["diagnosis"] for finding in found]


def test_a_good_curve_needs_nothing():
    found = diagnostics.diagnose(curve(falling, [0.3, 0.05, 0.02, 0.011, 0.0100, 0.0101]), GUESS)
    assert names(found) == [NOTHING] and found[0]["parameters"] == {}
    assert "0.3 to 0.01" in found[0]["evidence"]


def test_overfitting_gives_less_room_and_more_data():
    metadata = curve(falling, [0.3, 0.05, 0.02, 0.04, 0.06, 0.09], lora_rank=16, lora_dropout=0.1)
    (found,) = diagnostics.diagnose(metadata, GUESS)
    assert found["diagnosis"] == "overfitting" and "0.02 (step 50) to 0.09" in found["evidence"]
    assert found["parameters"] == {"epochs": 2, "lora_dropout": 0.2, "lora_rank": 8, "paraphrase_copies": 1}
    assert "epochs 4 → 2" in found["changes"]


def test_jitter_of_the_validation_loss_is_not_overfitting():
    assert names(diagnostics.diagnose(curve(falling, [0.3, 0.02, 0.0043, 0.0053, 0.0044]), GUESS)) == [
        NOTHING
    ]  # 23% above the best, and yet a thousandth of a nat


def test_a_plateau_at_the_loss_of_a_guess_is_underfitting():
    plateau = np.concatenate([np.geomspace(3, 0.08, 8), np.full(12, 0.078)])
    validation = [0.09, 0.08, 0.0785, 0.078, 0.0779]
    (found,) = diagnostics.diagnose(curve(plateau, validation, lr=1e-4), GUESS)
    assert found["diagnosis"] == "underfitting" and "0.077" in found["evidence"]
    new = found["parameters"]
    assert new["lora_rank"] == 32 and new["lr"] == 2e-4 and new["lora_targets"] == "attention+mlp"
    assert RunConfig(**new)
    assert names(diagnostics.diagnose(curve(plateau, validation))) == [NOTHING]  # no guess known


def test_a_loss_still_falling_is_not_converged():
    (found,) = diagnostics.diagnose(curve(np.geomspace(3, 1, 20), [2.8, 2.2, 1.7, 1.2]), GUESS)
    assert found["diagnosis"] == "not converged" and found["parameters"] == {"epochs": 8}
    assert "1.2" in found["evidence"] and "1.7" in found["evidence"]


def test_a_loss_that_climbs_back_has_too_high_a_learning_rate():
    climbs = np.concatenate([np.geomspace(3, 0.1, 8), np.linspace(0.2, 2.5, 12)])
    found = diagnostics.diagnose(curve(climbs, [0.5, 0.2, 1.0, 2.4], lr=3e-2), GUESS)
    assert found[0]["diagnosis"] == "learning rate too high"
    assert found[0]["parameters"]["lr"] == pytest.approx(1e-2)
    assert "overfitting" not in names(found)  # training loss rises, too
    rising = diagnostics.diagnose(curve(np.linspace(3, 9, 20), [4, 5, 7, 9]), GUESS)
    assert rising[0]["diagnosis"] == "learning rate too high"


def test_one_hard_batch_is_no_climb():
    loss = falling.copy()
    loss[12] = 2.0
    assert names(diagnostics.diagnose(curve(loss, [0.3, 0.05, 0.02, 0.0195]), GUESS)) == [NOTHING]


@pytest.mark.parametrize("where", ["train", "val"])
def test_a_loss_that_is_no_number_has_diverged(where):
    bad = [1.0, 0.5, float("nan"), float("nan")]
    metadata = curve(bad, [1.0, 0.5, 0.4]) if where == "train" else curve(falling, bad)
    (found,) = diagnostics.diagnose(json.loads(json.dumps(metadata)), GUESS)
    assert found["diagnosis"] == "diverged" and found["parameters"]["lr"] == pytest.approx(2e-5)


def test_too_few_measurements_are_said_to_be_too_few():
    (found,) = diagnostics.diagnose(curve(falling, [0.5]), GUESS)
    assert found["diagnosis"].startswith("too few measurements") and found["parameters"]
    without = {**curve(falling, [0.5])}
    without["history"] = [e for e in without["history"] if "loss" in e]
    assert "0 of validation loss" in diagnostics.diagnose(without, GUESS)[0]["diagnosis"]


def test_proposals_are_settings_that_the_configuration_accepts():
    overfits, plateau = [0.3, 0.05, 0.02, 0.04, 0.09], [0.08, 0.078, 0.078]
    for metadata in (
        curve(falling, overfits, lora_dropout=0.5, lora_rank=2, paraphrase_copies=2),
        curve(np.geomspace(3, 0.078, 20), plateau, lora_targets="all-linear", lora_dropout=0.0),
        curve(np.linspace(3, 9, 20), [4, 5, 7, 9]),
    ):
        for found in diagnostics.diagnose(metadata, GUESS):
            assert RunConfig(**metadata["config"] | found["parameters"])
            assert all(metadata["config"][n] != value for n, value in found["parameters"].items())


def test_table_of_a_real_run(nano, small_config):
    processor, base, _ = nano
    scenarios, folder = _scenarios(small_config)
    rows = encoding.encode(processor, scenarios, [folder] * len(scenarios))
    trainer.train_adapter(
        VerdictModel(processor, base), rows, rows[:8], small_config, run_dir(small_config) / "adapter", quiet=True
    )
    table = diagnostics.table(small_config)
    assert list(table) == ["Diagnosis", "Evidence", "Change"] and len(table) >= 1
    assert 0.02 < diagnostics.guessing_loss(small_config) < 0.2


def _scenarios(config):
    from medlib.data import sources

    suite = sources.suite(config, "train")
    return suite.scenarios[:24], suite.images_dir
