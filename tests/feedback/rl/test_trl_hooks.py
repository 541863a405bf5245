"""GRPO and DPO by TRL: what they read, what they learn, and what they leave behind."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from peft import LoraConfig, get_peft_model

from medlib.config import ANSWERS, STANDIN, RunConfig
from medlib.data.suite import Suite
from medlib.feedback.rl import dpo, grpo, packing, sft, trl_hooks
from medlib.feedback.rl.rewards import verdict_rewards
from medlib.feedback.rl.task import Task
from medlib.models import loading, scoring
from medlib.models.prompts import answer_tokens
from medlib.models.verdict_model import VerdictModel

METHODS = {"grpo": grpo, "dpo": dpo, "sft": sft}
VERDICTS = ("CORRECT", "ERROR")
LORA = LoraConfig(r=4, target_modules=r".*language_model.*\.[qv]_proj", lora_dropout=0.1)


class FakeMonitor:
    """Stands for `monitor.Monitor`: keeps the history, raises or stops at a given update."""

    def __init__(self, breaks_at=None, stops_at=None):
        self.history, self.breaks_at, self.stops_at = [], breaks_at, stops_at

    def __call__(self, update, **figures):
        if update == self.breaks_at:
            raise KeyboardInterrupt
        self.history.append({"update": update, **figures})
        return update == self.stops_at

    def resumed(self, history):
        self.history[:] = history


@pytest.fixture(scope="module")
def policy(suite):
    """(processor, model, adapter's tensors): writes both verdicts to 4 cases and does not know which is right."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    processor, base = loading.load(STANDIN)
    model = get_peft_model(base, LORA)
    four = Suite("bandit", suite[0][:4], suite[1])
    rows = packing.prompts(SimpleNamespace(suite=four, config=RunConfig(), model=model, processor=processor))
    answers, mask, cases = both_answers(processor, 4)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(25):
        logits = packing.answer_logits(model, rows, cases, answers)
        loss = -(packing.log_probabilities(logits, answers)[0] * mask).sum() / mask.sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    taught = adapter(model)
    model.unload()
    return processor, base, taught


@pytest.fixture
def task(policy, suite, tmp_path):
    """A bandit of 4 cases: which verdict is the better one is given by ``better``, and worth ``weights``."""
    processor, base, taught = policy

    def make(better="CORRECT", weights=None, rows=range(4), monitor=None, folder="run", **settings):
        if hasattr(make, "model"):
            make.model.unload()
        make.model = get_peft_model(base, LORA)
        make.model.load_state_dict(taught, strict=False)
        config = RunConfig(
            **{
                "rl_epochs": 3,
                "rl_batch": 2,
                "rl_samples": 4,
                "batch_size": 2,
                "grpo_lr": 1e-2,
                "dpo_lr": 1e-2,
                "sft_lr": 1e-2,
                "rl_beta": 0.01,
            }
            | settings
        )
        cases = Suite("bandit", [suite[0][row] for row in rows], suite[1])
        chosen = [better] * len(cases) if isinstance(better, str) else list(better)
        rejected = ["ERROR" if verdict == "CORRECT" else "CORRECT" for verdict in chosen]
        weights = np.ones(len(cases)) if weights is None else np.array(weights, dtype=float)
        preferred = np.array([0.95 if verdict == "CORRECT" else 0.05 for verdict in chosen])
        out = tmp_path / folder
        out.mkdir(exist_ok=True)
        return Task(
            config,
            0,
            make.model,
            processor,
            cases,
            pd.DataFrame({"chosen": chosen, "rejected": rejected}),
            verdict_rewards(preferred, weights),
            weights,
            out,
            monitor or FakeMonitor(),
        )

    yield make
    make.model.unload()


def trainer_of(task, method):
    """(trainer, prompts) as `improve` makes them."""
    rows = packing.prompts(task)
    folder = trl_hooks.checkpoints(task, method)
    if method == "grpo":
        return grpo._trainer(task, rows, folder), rows
    return dpo._trainer(task, rows, folder, task.config.dpo_lr, {"sigmoid": 1.0, "sft": 1.0}), rows


def p_correct(task):
    return scoring.p_correct(VerdictModel(task.processor, task.model.eval()), task.suite)


def adapter(model):
    return {name: value.detach().clone() for name, value in model.named_parameters() if "lora_" in name}


def both_answers(processor, n):
    """(answers, mask, cases): CORRECT and ERROR for each of n cases, padded."""
    tokens = list(map(torch.tensor, answer_tokens(processor)))
    answers = packing.pad_sequence(tokens, batch_first=True)
    mask = packing.pad_sequence([torch.ones_like(t) for t in tokens], batch_first=True)
    return answers.repeat(n, 1), mask.repeat(n, 1), np.repeat(range(n), 2).tolist()


# --- what is read -----------------------------------------------------------------------------------


@pytest.mark.parametrize("cached", [True, False])
def test_trl_sees_images_as_evaluation_does(task, cached, monkeypatch):
    task = task(cache_image_features=cached)
    with trl_hooks.restored(task.model):
        trainer, rows = trainer_of(task, "grpo")
    model, suite = VerdictModel(task.processor, task.model.eval()), task.suite
    batch = scoring.prompt_batch(model, suite.scenarios, [suite.image(s) for s in suite.scenarios])
    expected = scoring.score_answers(model, batch)
    answers, mask, cases = both_answers(task.processor, len(task.suite))
    ids = torch.cat([torch.tensor(cases)[:, None], answers], 1)

    def read():
        with torch.no_grad():
            logp = trainer._get_per_token_logps_and_entropies(
                task.model, ids, torch.cat([torch.ones(len(ids), 1).long(), mask], 1), answers.shape[1]
            )[0]
        return (logp * mask).sum(1).view(-1, 2).numpy()

    np.testing.assert_allclose(read(), expected, atol=1e-4)
    np.testing.assert_allclose(dpo.reference(task, rows), expected, atol=1e-4)
    # the test can fail: an image whose tokens see only backwards is another image
    monkeypatch.setattr(packing, "image_of", lambda types: torch.full_like(types, -1))
    assert np.abs(read() - expected).max() > 1e-2


@pytest.mark.parametrize("window, attention", [(512, "sdpa"), (20, "sdpa"), (20, "eager")])
def test_packed_answers_and_their_gradient_are_those_read_one_by_one(task, window, attention, monkeypatch):
    task = task(rows=range(3))
    text, rows = task.model.config.get_text_config(), packing.prompts(task)
    answers, mask, cases = both_answers(task.processor, 3)
    monkeypatch.setattr(text, "sliding_window", window)
    monkeypatch.setattr(text, "_attn_implementation", attention)

    def packed():
        return packing.answer_logits(task.model, rows, cases, answers)

    def one_by_one():
        parts = []
        for case, answer in zip(cases, answers):
            batch = packing.prompt_batch([rows[case]], "cpu")
            more = {
                "input_ids": answer[None],
                "attention_mask": torch.ones_like(answer[None]),
                "token_type_ids": torch.zeros_like(answer[None]),
            }
            batch |= {name: torch.cat([batch[name], value], 1) for name, value in more.items()}
            parts.append(task.model(**batch, use_cache=False).logits[0, -len(answer) - 1 : -1])
        return torch.stack(parts)

    results = []
    for read in (packed, one_by_one):
        task.model.eval().zero_grad()
        logp = packing.log_probabilities(read(), answers)[0] * mask
        (logp.sum(1) * torch.arange(1.0, 7)).sum().backward()
        gradient = [p.grad.clone() for p in task.model.parameters() if p.requires_grad]
        results.append((logp.detach(), torch.cat([g.flatten() for g in gradient])))
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(results[0][1], results[1][1], atol=1e-3, rtol=1e-3)


def test_sampled_answers_come_with_their_log_probabilities(task):
    task = task()
    rows, ends = packing.prompts(task), [1, *task.processor.tokenizer.convert_tokens_to_ids(["<end_of_turn>"])]
    torch.manual_seed(0)
    tokens, logp = grpo.sample(task.model.eval(), packing.prompt_batch(rows, "cpu"), 3, 12, ends)
    assert len(tokens) == 12 and max(map(len, tokens)) <= 12
    assert all(len(t) == 12 or t[-1] in ends for t in tokens)
    assert len(set(map(tuple, tokens))) > 1
    answers = packing.pad_sequence([torch.tensor(t) for t in tokens], batch_first=True)
    with torch.no_grad():
        logits = packing.answer_logits(task.model, rows, np.repeat(range(4), 3).tolist(), answers)
    read = packing.log_probabilities(logits, answers)[0]
    for row, scores in enumerate(logp):
        np.testing.assert_allclose(read[row, : len(scores)], scores, atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_cases_come_in_the_order_of_the_minibatches(task, method):
    task = task(rl_epochs=2, rows=range(6))
    with trl_hooks.restored(task.model):
        trainer, _ = trainer_of(task, method)
        seen = []
        for batch in trainer.get_train_dataloader():
            seen += [item["case"] for item in batch] if method == "grpo" else batch["input_ids"][:, 0].tolist()
    expected = [minibatch.tolist() for minibatch in task.minibatches()]
    if method == "grpo":
        assert seen == [row for minibatch in expected for row in minibatch for _ in range(4)]
    else:  # chosen answers, then rejected ones
        assert seen == [row for minibatch in expected for row in minibatch * 2]


def test_an_answer_that_is_no_verdict_is_as_bad_as_the_worst_verdict():
    weights = np.array([1.0, 4.0])
    task = SimpleNamespace(rewards=verdict_rewards(np.array([0.9, 0.2]), weights), weights=weights)
    figures = {}
    answers = [ANSWERS["CORRECT"] + "\n", ANSWERS["ERROR"], "It may be so", "CORRECT - Treatment does not match"]
    rewards = grpo.judge(task, completions=answers, case=[0, 1, 0, 0], prompts=[], log_metric=figures.__setitem__)
    assert rewards == pytest.approx([0.8, 2.4, -4.0, -4.0])
    assert figures == {"parsed": pytest.approx(3 / 4)}


# --- what is learnt ---------------------------------------------------------------------------------


@pytest.mark.parametrize("better", VERDICTS)
@pytest.mark.parametrize("method", METHODS)
def test_the_bandit_is_solved(task, method, better):
    task = task(better)
    before = p_correct(task)
    METHODS[method].improve(task)
    after = p_correct(task)
    side = (lambda p: p) if better == "CORRECT" else (lambda p: 1 - p)
    assert side(after).mean() > max(0.9, side(before).mean())
    figures = task.monitor.history[-1]
    assert [entry["update"] for entry in task.monitor.history] == list(range(1, 7))
    assert {"loss", "entropy"} < set(figures) and np.isfinite(list(figures.values())).all()


@pytest.mark.parametrize("weights, expected", [([4, 4, 1, 1], "CORRECT"), ([1, 1, 4, 4], "ERROR")])
@pytest.mark.parametrize("method", METHODS)
def test_of_two_opinions_the_more_severe_one_wins(task, method, weights, expected):
    # the same case four times: two say CORRECT, two say ERROR
    task = task(
        ["CORRECT", "CORRECT", "ERROR", "ERROR"],
        weights,
        rows=[0, 0, 0, 0],
        rl_epochs=7,
        rl_batch=4,
        batch_size=4,
        rl_samples=8,
    )
    METHODS[method].improve(task)
    assert (p_correct(task).mean() > 0.5) == (expected == "CORRECT")


# --- what is left behind ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_the_model_is_restored(task, method):
    task = task(rl_epochs=1)
    task.model.train()
    frozen = {name: p.detach().clone() for name, p in task.model.named_parameters() if not p.requires_grad}
    before, names = adapter(task.model), {name for name, _ in task.model.named_parameters()}
    METHODS[method].improve(task)
    model = task.model
    assert set(model.peft_config) == {"default"} and model.active_adapters == ["default"]
    assert {name for name, _ in model.named_parameters()} == names and model.training
    assert "forward" not in model.__dict__ and "forward" not in model.get_base_model().__dict__
    dropout = {module.p for name, module in model.named_modules() if name.endswith("lora_dropout.default")}
    assert dropout == {0.1}
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)
    assert any(not torch.equal(value, before[name]) for name, value in adapter(model).items())
    assert all(p.requires_grad == ("lora_" in name) for name, p in model.named_parameters())
    assert not (task.folder / "checkpoints").exists()


@pytest.mark.parametrize("method", METHODS)
def test_an_interrupted_run_ends_with_the_same_adapter(task, method):
    def settings(**more):
        return {"rl_epochs": 2, "folder": f"{method}{len(more)}", **more}

    whole = task(**settings())
    METHODS[method].improve(whole)
    expected = adapter(whole.model)
    broken = task(**settings(monitor=FakeMonitor(breaks_at=3)))
    with pytest.raises(KeyboardInterrupt):
        METHODS[method].improve(broken)
    assert set(broken.model.peft_config) == {"default"}
    assert (broken.folder / "checkpoints" / "checkpoint-2" / "history.json").is_file()
    again = task(**settings(monitor=FakeMonitor()))
    METHODS[method].improve(again)
    for name, value in adapter(again.model).items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-4)
    assert [entry["update"] for entry in again.monitor.history] == list(range(1, 5))
    assert again.monitor.history[-1]["loss"] == pytest.approx(whole.monitor.history[-1]["loss"], abs=1e-4)


def test_checkpoints_of_other_settings_are_deleted(task):
    first = task(monitor=FakeMonitor(breaks_at=3), rl_epochs=2)
    with pytest.raises(KeyboardInterrupt):
        dpo.improve(first)
    other = task(rl_epochs=2, dpo_lr=1e-3)
    assert not list(trl_hooks.checkpoints(other, "dpo").glob("checkpoint-*"))


@pytest.mark.parametrize("method", METHODS)
def test_a_run_stops_when_it_has_gone_too_far(task, method):
    task = task(monitor=FakeMonitor(stops_at=3))
    METHODS[method].improve(task)
    assert [entry["update"] for entry in task.monitor.history] == [1, 2, 3]
