"""The reward model: images through TRL's RewardTrainer, nothing of the held-out side, kept and resumed."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from medlib.config import VERDICTS, ModelError, adapter_dir, path
from medlib.data import sources
from medlib.data.suite import Suite
from medlib.feedback import reward_model
from medlib.feedback.preferences import heldout_side, training_side
from medlib.models import loading
from medlib.reporting.notebooks import reward_model as reward_model_page
from medlib.reporting.notebooks.reward_model import REWARD, SUPERVISED
from medlib.training import supervised
from medlib.training.checkpoints import last_whole_checkpoint


@pytest.fixture(scope="module")
def run(nano_folder, tmp_path_factory):
    """Configuration of a run with an adapter, 12 rated pairs and a reward model of a few steps."""
    from medlib.config import RunConfig

    folder = tmp_path_factory.mktemp("reward")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "SUITES_DIR", folder / "suites")
        patch.setattr(sources, "CORE_DIR", folder / "core24")
        config = RunConfig(
            model=str(nano_folder),
            run_dir=str(folder / "run"),
            train_pairs=12,
            val_pairs=12,
            test_pairs=12,
            epochs=1,
            batch_size=8,
            lr=3e-3,
            core_folds=False,
            feedback_pairs=12,
            feedback_note_pairs=4,
            reward_epochs=2,
            reward_lr=2e-3,
            rl_batch=8,
        )
        supervised.train(config)
        reward_model.train(config)
        yield config


def test_the_base_has_the_same_weights_and_a_scalar_head(run):
    _, base = loading.load(run.model)
    _, judge = loading.load(run.model, reward_head=True)
    assert type(judge).__name__ == "Gemma3ForSequenceClassification" and judge.score.weight.shape[0] == 1
    words, numbers = base.state_dict(), judge.state_dict()
    assert set(numbers) - set(words) == {"score.weight"} and set(words) - set(numbers) == {"lm_head.weight"}
    assert all(torch.equal(numbers[name], words[name]) for name in set(numbers) & set(words))


def test_it_starts_from_the_supervised_adapter(run):
    from safetensors.torch import load_file

    model, _ = reward_model._start(run)
    mine = {k.replace(".default", ""): v for k, v in model.state_dict().items() if "lora_" in k}
    theirs = load_file(adapter_dir(run) / "adapter_model.safetensors")
    assert mine and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_head_is_in_full_precision_and_learns_whatever_the_base_is(run, dtype):
    config = run.model_copy(update={"dtype": dtype})
    model, processor = reward_model._start(config)
    rows = reward_model.answer_rows(model, processor, sources.feedback(config).rows(range(1)), config)
    batch = reward_model._collate(processor.tokenizer.pad_token_id)([*rows[0]])
    rewards = model(**batch).logits.squeeze(-1)
    (rewards[0] - rewards[1]).backward()
    head = dict(model.named_parameters())["base_model.model.score.modules_to_save.default.weight"]
    assert head.dtype == rewards.dtype == torch.float32 and (head.grad != 0).any()


def test_a_smaller_micro_batch_gives_the_same_reward_model(run, tmp_path):
    config = run.model_copy(update={"lora_dropout": 0.0, "reward_epochs": 1.0})
    suite, _ = training_side(config)
    results = []
    for size in (8, 3):  # 3 does not divide the batch of 8: two pairs a forward pass
        model, processor = reward_model._start(config)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        rows = reward_model.answer_rows(model, processor, suite.rows(range(16)), config)
        small = config.model_copy(update={"batch_size": size})
        trainer = reward_model._trainer(
            model, processor, rows, np.zeros(len(rows), int), small, tmp_path / str(size)
        )
        assert trainer.args.train_batch_size == {8: 8, 3: 2}[size]
        trainer.train()
        results.append(reward_model.margins(model, processor, suite.rows(range(4)), config))
    assert np.allclose(*results, atol=1e-5) and np.abs(results[0]).max() > 0.01


def test_another_temperature_asks_nothing_again_and_changes_the_probability(run, monkeypatch):
    suite = sources.suite(run, "val").rows(range(4))
    frame, known = reward_model.asked(run, suite), reward_model.metadata(run)
    monkeypatch.setattr(reward_model, "metadata", lambda _: known | {"temperature": 2 * known["temperature"]})
    monkeypatch.setattr(reward_model, "margins", lambda *_: pytest.fail("asked again"))
    warmer = reward_model.asked(run, suite)
    assert np.array_equal(warmer["margin"], frame["margin"])
    assert (np.abs(warmer["p_correct"] - 0.5) < np.abs(frame["p_correct"] - 0.5)).all()


def test_images_read_once_and_images_read_each_time_give_one_reward(run):
    suite = sources.feedback(run).rows(range(4))
    model, processor = reward_model._start(run)
    kept = reward_model.margins(model, processor, suite, run)
    read = reward_model.margins(model, processor, suite, run.model_copy(update={"cache_image_features": False}))
    alone = np.concatenate([reward_model.margins(model, processor, suite.rows([i]), run) for i in range(4)])
    assert np.allclose(kept, read, atol=1e-5) and np.allclose(kept, alone, atol=1e-5)


def test_an_image_changes_the_reward(run):
    suite = sources.feedback(run)
    model, processor = reward_model._start(run)
    other = suite.scenarios[0].model_copy(update={"image": suite.scenarios[-1].image})
    two = Suite("two", [suite.scenarios[0], other], suite.images_dir)
    rows = reward_model.answer_rows(model, processor, two, run)
    collate = reward_model._collate(processor.tokenizer.pad_token_id)
    with torch.no_grad():
        rewards = model.eval()(**collate([row[0] for row in rows])).logits
    assert (rewards[0] - rewards[1]).abs() > 1e-6


def test_chosen_stands_in_the_first_half_of_a_batch(run):
    suite, preferences = training_side(run)
    model, processor = reward_model._start(run)
    rows = reward_model.answer_rows(model, processor, suite, run)
    chosen = (preferences["chosen"] == VERDICTS[1]).to_numpy(int)
    trainer = reward_model._trainer(model, processor, rows, chosen, run, path(run.run_dir) / "x")
    batch = trainer.data_collator([{"row": 0}, {"row": 1}])
    texts = processor.tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)
    said = [text.rsplit("model", 1)[1].split(" - ")[0].strip() for text in texts]
    assert said == [*preferences["chosen"][:2], *preferences["rejected"][:2]]


def test_the_temperature_is_fitted_on_pairs_outside_training(run):
    _, preferences = training_side(run)
    learned, withheld = reward_model.slices(preferences, 0)
    assert sorted([*learned, *withheld]) == list(range(len(preferences))) and len(withheld)
    pairs = preferences["pair"]
    assert not set(pairs[learned]) & set(pairs[withheld])
    _, heldout = heldout_side(run)
    assert not set(pairs) & set(heldout["pair"])
    assert reward_model.metadata(run)["preferences"] == len(learned)


def test_a_finished_one_is_kept_and_another_setting_makes_another(run, monkeypatch):
    file = reward_model.folder(run) / "adapter_model.safetensors"
    before = file.stat().st_mtime_ns
    reward_model.train(run)
    assert file.stat().st_mtime_ns == before
    for change in ({"reward_lr": 1e-3}, {"rater_noise": 0.2}, {"seed": 3}):
        other = run.model_copy(update=change)
        monkeypatch.setattr(reward_model, "adapter_dir", lambda _: path(run.run_dir) / "adapter")
        assert reward_model.fingerprint(other) != reward_model.fingerprint(run)


def test_answers_are_probabilities_cached_on_disk_that_follow_the_margin(run, monkeypatch):
    suite = sources.suite(run, "val").rows(range(6))
    frame = reward_model.asked(run, suite)
    assert frame["id"].tolist() == [s.id for s in suite.scenarios]
    assert ((frame["p_correct"] > 0.5) == (frame["margin"] > 0)).all()
    monkeypatch.setattr(reward_model, "margins", lambda *_: pytest.fail("asked again"))
    assert np.array_equal(reward_model.preferred(run, suite), frame["p_correct"])


def test_an_interrupted_training_gives_the_same_reward_model(run, tmp_path, monkeypatch):
    from safetensors.torch import load_file
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_save(self, args, state, control, **_):
            raise KeyboardInterrupt

    whole = load_file(reward_model.folder(run) / "adapter_model.safetensors")
    monkeypatch.setattr(reward_model, "folder", lambda _: tmp_path / "reward_model")
    build = reward_model._trainer

    def breaks_off(*arguments):
        trainer = build(*arguments)
        trainer.add_callback(Stop)
        return trainer

    monkeypatch.setattr(reward_model, "_trainer", breaks_off)
    with pytest.raises(KeyboardInterrupt):
        reward_model.train(run)
    assert last_whole_checkpoint(tmp_path / "reward_model" / "checkpoints")
    monkeypatch.setattr(reward_model, "_trainer", build)
    resumed = load_file(reward_model.train(run) / "adapter_model.safetensors")
    assert all(torch.allclose(resumed[name], whole[name], atol=1e-6) for name in whole)


def test_preferences_of_one_kind_are_learned(run):
    """All raters say ERROR: after a few steps so does the reward model, on unseen cases."""
    suite, preferences = training_side(run)
    model, processor = reward_model._start(run)
    rows = reward_model.answer_rows(model, processor, suite, run)
    config = run.model_copy(update={"reward_epochs": 4.0})
    unseen = sources.suite(run, "val").rows(range(6))
    reward_model._trainer(model, processor, rows, np.ones(len(rows), int), config, path(run.run_dir) / "y").train()
    assert (reward_model.margins(model, processor, unseen, run) < 0).all()


# --- tables and sentences ---------------------------------------------------------------------------------


def _frame(verdicts, margins, severities, gold=None, simulated=True):
    p = reward_model.probability(np.array(margins))
    return pd.DataFrame(
        {
            "id": [f"s{i}" for i in range(len(p))],
            "pair": [f"p{i // 2}" for i in range(len(p))],
            "modality": "xray",
            "verdict": verdicts,
            "gold": gold or verdicts,
            "p_correct": p,
            "margin": margins,
            "predicted": np.where(p >= 0.5, "CORRECT", "ERROR"),
            "severity": severities,
            "cost_impact": 0,
            "simulated": simulated,
            "kind": "Image decides",
        }
    )


def test_severity_agrees_with_the_margin_only_if_it_grows_with_it():
    severities = ["moderate", "high", "critical"] * 10
    grows = _frame(["ERROR"] * 30, [-1.0, -2.0, -3.0] * 10, severities)
    falls = _frame(["ERROR"] * 30, [-3.0, -2.0, -1.0] * 10, severities)
    assert reward_model_page.severity_agreement(grows)["value"] == pytest.approx(1)
    assert "more certain about more severe errors" in reward_model_page.severity_sentence({REWARD: grows})
    assert "less certain about more severe errors" in reward_model_page.severity_sentence({REWARD: falls})
    one = _frame(["ERROR"] * 4, [-1.0] * 4, ["high"] * 4)
    for few in (one, one.head(1), one.head(0)):  # without an error scipy failed
        assert "two severities" in reward_model_page.severity_sentence({REWARD: few})


def test_sentences_do_not_claim_more_than_the_cases_show():
    verdicts, severities = ["CORRECT", "ERROR"] * 20, ["none", "high"] * 20
    guessing = _frame(verdicts, [1.0] * 40, severities)
    assert "not distinguishable from guessing" in reward_model_page.meaning_sentence({REWARD: guessing})
    good = _frame(verdicts, [2.0, -2.0] * 20, severities)
    held = {REWARD: good, SUPERVISED: guessing}
    assert "something that the adapter did not know" in reward_model_page.accuracy_sentence(held)
    same = {REWARD: good, SUPERVISED: good}
    assert "too few to tell the two apart" in reward_model_page.accuracy_sentence(same)
    table = reward_model_page.severity_table(held)
    assert table["Cases"].tolist() == [20, 20]
    assert reward_model_page.margin_for_chosen(good).tolist() == [2.0] * 40


def test_simulated_raters_are_called_so_and_only_they_are_held_against_the_gold_verdict():
    verdicts, severities = ["CORRECT", "ERROR", "ERROR"] * 10, ["none", "high", "critical"] * 10
    gold = ["ERROR", *verdicts[1:]]  # one consensus is wrong
    ours, theirs = (
        _frame(verdicts, [1.0, -1.0, -2.0] * 10, severities, gold),
        _frame(verdicts, [1.0] * 30, severities, gold),
    )
    held = {REWARD: ours, SUPERVISED: theirs}
    table = reward_model_page.accuracy_table(held, held).set_index("Preferred by")
    assert table["As the simulated raters"].str[:4].tolist() == ["100.", "33.3", "66.7", "96.7"]
    for said in (
        reward_model_page.accuracy_sentence,
        reward_model_page.calibration_sentence,
        reward_model_page.severity_sentence,
        reward_model_page.meaning_sentence,
    ):
        assert "simulated raters" in said(held)
    assert "simulated" in reward_model_page.severity_table(held).columns[0]

    people = {name: frame.assign(simulated=False) for name, frame in held.items()}
    table = reward_model_page.accuracy_table(people, people)
    assert not [name for name in table if "gold verdict" in name or "simulated" in name] and len(table) == 3
    assert "clinicians" in reward_model_page.accuracy_sentence(people)


def test_a_loss_that_is_no_number_stops_it_and_leaves_no_reward_model(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run.run_dir, copy, ignore=shutil.ignore_patterns("reward_model"))
    broken = run.model_copy(update={"run_dir": str(copy), "reward_lr": 1e38})
    with pytest.raises(ModelError, match="the .* is not a number .* with reward_lr=1e.38 and float32"):
        reward_model.train(broken)
    assert not reward_model.metadata(broken)
