"""PPO by TorchRL: what it reads, what it learns, what it leaves behind, and how it resumes."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from tensordict import TensorDict

from medlib.config import STANDIN, ModelError, RunConfig
from medlib.data.suite import Suite
from medlib.feedback.rl import packing, ppo, trl_hooks
from medlib.feedback.rl.ppo import SKIPPED_GRADIENT
from medlib.feedback.rl.rewards import verdict_rewards
from medlib.feedback.rl.task import Task
from medlib.models import loading, scoring
from medlib.models.verdict_model import VerdictModel


class FakeMonitor:
    """Stands for `monitor.Monitor`: keeps the history, raises or stops at a given update."""

    def __init__(self, breaks_at=None, stops_at=None):
        self.history, self.breaks_at, self.stops_at = [], breaks_at, stops_at

    def __call__(self, update, **figures):
        if update == self.breaks_at:
            raise KeyboardInterrupt
        self.history.append({"update": update, **{name: float(value) for name, value in figures.items()}})
        return update == self.stops_at

    def resumed(self, history):
        self.history[:] = history


@pytest.fixture(scope="module")
def base():
    """(processor, model): the stand-in, which can write verdicts and knows nothing of the right one."""
    torch.set_num_threads(1)
    return loading.load(STANDIN)


@pytest.fixture
def task(base, suite, tmp_path):
    """A bandit of 8 cases: which verdict is the better one is given by ``better``, and worth ``weights``."""
    processor, model = base

    def make(better="CORRECT", weights=None, rows=range(8), monitor=None, folder="run", **settings):
        if hasattr(make, "model"):
            make.model.unload()
        torch.manual_seed(0)
        lora = LoraConfig(r=4, target_modules=r".*language_model.*\.[qv]_proj", lora_dropout=0.1)
        make.model = get_peft_model(model, lora)
        config = RunConfig(
            **{"rl_epochs": 12, "rl_batch": 4, "rl_samples": 4, "batch_size": 4, "ppo_lr": 1e-2, "rl_beta": 0.01}
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
    if hasattr(make, "model"):
        make.model.unload()


def p_correct(task):
    return scoring.p_correct(VerdictModel(task.processor, task.model.eval()), task.suite)


def adapter(model):
    return {name: value.detach().clone() for name, value in model.named_parameters() if "lora_" in name}


# --- what is read -----------------------------------------------------------------------------------


@pytest.mark.parametrize("cached", [True, False])
def test_the_policy_is_the_one_that_is_evaluated(task, cached):
    task = task(cache_image_features=cached)
    task.model.eval()
    rows = packing.prompts(task)
    cases = torch.tensor([5, 0, 5, 3])
    scores = ppo.verdict_scores(task, rows, cases)
    assert scores.requires_grad and scores.dtype == torch.float32
    expected = scoring.p_correct(VerdictModel(task.processor, task.model), task.suite)[cases]
    np.testing.assert_allclose(scores.softmax(-1)[:, 0].detach(), expected, atol=1e-5)
    model, suite = VerdictModel(task.processor, task.model), task.suite
    batch = scoring.prompt_batch(model, suite.scenarios, [suite.image(s) for s in suite.scenarios])
    whole = scoring.score_answers(model, batch)
    np.testing.assert_allclose(scores.detach(), whole[cases], atol=1e-4)
    assert np.ptp(whole[:, 0]) > 1e-3  # the test can fail: cases differ


def test_the_value_sees_the_end_of_the_prompt_and_no_padding(task):
    task = task(eval_batch_size=8)
    task.model.eval()
    rows = packing.prompts(task)
    _, together = ppo.supervised(task, rows)
    for name in ("input_ids", "token_type_ids"):
        assert len({len(row[name]) for row in rows}) > 1  # so there is padding
    states = []
    for row in rows:
        batch = packing.prompt_batch([row], "cpu")
        with torch.no_grad():
            states.append(task.model(**batch, output_hidden_states=True).hidden_states[-1][0, -1])
    states = torch.stack(states)
    alone = (states - states.mean(0)) / (states.std(0, correction=0) + 1e-6) / states.shape[1] ** 0.5
    torch.testing.assert_close(together, alone, atol=1e-3, rtol=1e-3)
    assert not task.model.get_output_embeddings()._forward_pre_hooks


# --- what is learnt ---------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.floats(-4, 4), st.floats(0.01, 1)), min_size=1, max_size=8))
def test_cases_with_hardly_a_gradient_are_skipped_and_no_others(drawn):
    advantage, p = map(torch.tensor, zip(*[pair for pair in drawn for _ in range(2)]))
    samples = TensorDict({"advantage": advantage[:, None], "action_log_prob": p.log()}, [len(p)])
    informative = ppo._informative(samples, 2).view(-1, 2)
    by_case = (advantage.abs() * (1 - p)).view(-1, 2).sum(1)
    assert (informative[:, 0] == informative[:, 1]).all() and informative.any()
    kept = by_case[informative[:, 0]]
    assert kept.sum() >= (1 - SKIPPED_GRADIENT) * by_case.sum() - 1e-4
    assert kept.sum() - kept.min() <= (1 - SKIPPED_GRADIENT) * by_case.sum() + 1e-4  # one less is too few


@given(st.lists(st.lists(st.floats(-6, 6), min_size=3, max_size=5), min_size=1, max_size=4))
def test_the_likelihood_of_any_verdict_favours_neither(logits):
    width = max(map(len, logits))
    logits = torch.tensor([row + [-6.0] * (width - len(row)) for row in logits], requires_grad=True)
    scores = logits.log_softmax(-1)[:, :2]
    likelihood = ppo.verdict_likelihood(scores)
    assert likelihood.item() == pytest.approx(scores.exp().sum(-1).log().mean().item(), abs=1e-5)
    gradient = torch.autograd.grad(likelihood, logits)[0] * len(logits)
    no_verdict = 1 - scores.detach().exp().sum(-1)
    torch.testing.assert_close(gradient[:, :2], no_verdict[:, None].expand(-1, 2) / 2, atol=1e-5, rtol=1e-4)


def test_only_the_adapter_learns(task):
    task = task(rl_epochs=1)
    task.model.eval()
    learner = ppo._learner(task, packing.prompts(task))
    value = [p.detach().clone() for p in learner.loss.critic_network.parameters()]
    frozen = {name: p.detach().clone() for name, p in task.model.named_parameters() if not p.requires_grad}
    before = adapter(task.model)
    for update in (1, 2):  # the first has a learning rate of 0, so that it moves nothing
        ppo.learn(task, learner, ppo.sample(task, learner, task.minibatches()[0]))
        learner.schedule.step()
    with_gradient = {name for name, p in task.model.named_parameters() if p.grad is not None}
    assert with_gradient == set(before) and all(".default." in name for name in with_gradient)
    assert all(torch.equal(p, frozen[name]) for name, p in task.model.named_parameters() if name in frozen)
    assert any(not torch.equal(p, before[name]) for name, p in adapter(task.model).items())
    assert any(not torch.equal(p, old) for p, old in zip(learner.loss.critic_network.parameters(), value))


@pytest.mark.parametrize("better", ["CORRECT", "ERROR"])
def test_the_bandit_is_solved(task, better):
    # not fine-tuned, the model must first learn to give a verdict at all
    task = task(better, rows=range(4), rl_epochs=24)
    side = (lambda p: p) if better == "CORRECT" else (lambda p: 1 - p)
    before = side(p_correct(task)).mean()
    ppo.improve(task)
    assert side(p_correct(task)).mean() > max(0.9, before)
    assert [entry["update"] for entry in task.monitor.history] == list(range(1, 25))
    first, last = task.monitor.history[0], task.monitor.history[-1]
    assert {"reward", "kl", "entropy", "loss"} < set(last) and np.isfinite(list(last.values())).all()
    assert first["kl"] == pytest.approx(0, abs=1e-6) and last["kl"] > 0.01
    assert last["reward"] == pytest.approx(0.9) and last["entropy"] < first["entropy"]


@pytest.mark.parametrize("weights, expected", [([4, 4, 1, 1], "CORRECT"), ([1, 1, 4, 4], "ERROR")])
def test_of_two_opinions_the_more_severe_one_wins(task, weights, expected):
    # the same case four times: two say CORRECT, two say ERROR
    task = task(["CORRECT", "CORRECT", "ERROR", "ERROR"], weights, rows=[0, 0, 0, 0], rl_samples=8)
    ppo.improve(task)
    assert (p_correct(task).mean() > 0.5) == (expected == "CORRECT")


def test_the_divergence_holds_the_policy_back(task):
    def moved(beta):
        run = task("ERROR", rl_beta=beta, ppo_lr=1e-3, rows=range(4), rl_epochs=6, folder=f"beta{beta}")
        ppo.improve(run)
        return run.monitor.history[-1]["kl"]

    assert moved(20.0) < 0.3 * moved(0.0)


# --- what is left behind ----------------------------------------------------------------------------


@pytest.mark.parametrize("recompute", [False, True])
def test_the_model_is_restored(task, recompute):
    task = task(rl_epochs=1, rows=range(4), gradient_checkpointing=recompute)
    task.model.train()
    names = {name for name, _ in task.model.named_parameters()}
    ppo.improve(task)
    model = task.model
    assert set(model.peft_config) == {"default"} and model.active_adapters == ["default"]
    assert {name for name, _ in model.named_parameters()} == names and model.training
    assert {m.p for name, m in model.named_modules() if name.endswith("lora_dropout.default")} == {0.1}
    assert not model.get_base_model().is_gradient_checkpointing
    assert all(p.requires_grad == ("lora_" in name) for name, p in model.named_parameters())
    assert not (task.folder / "checkpoints").exists()


@pytest.mark.parametrize("change", [{"batch_size": 2}, {"gradient_checkpointing": True}])
def test_less_memory_gives_the_same_adapter(task, change):
    results = []
    for settings in ({}, change):
        run = task(rl_epochs=3, rows=range(4), folder=f"run{len(settings)}", **settings)
        ppo.improve(run)
        results.append(adapter(run.model))
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], atol=1e-3, rtol=1e-2)


def test_an_interrupted_run_ends_with_the_same_adapter(task):
    whole = task(rl_epochs=2, folder="whole")
    ppo.improve(whole)
    expected = adapter(whole.model)
    broken = task(rl_epochs=2, monitor=FakeMonitor(breaks_at=4))
    with pytest.raises(KeyboardInterrupt):
        ppo.improve(broken)
    checkpoints = broken.folder / "checkpoints"
    assert {file.name for file in checkpoints.iterdir()} == {"fingerprint", "state.safetensors"}
    again = task(rl_epochs=2)
    ppo.improve(again)
    for name, value in adapter(again.model).items():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=1e-5)
    assert again.monitor.history == [pytest.approx(entry) for entry in whole.monitor.history]
    assert [entry["update"] for entry in again.monitor.history] == [1, 2, 3, 4] and not checkpoints.exists()


def test_a_run_of_other_settings_starts_anew(task):
    broken = task(rl_epochs=2, monitor=FakeMonitor(breaks_at=4))
    with pytest.raises(KeyboardInterrupt):
        ppo.improve(broken)
    other = task(rl_epochs=2, ppo_lr=1e-3)
    assert not (trl_hooks.checkpoints(other, "ppo") / "state.safetensors").exists()


def test_a_run_stops_when_it_has_gone_too_far(task):
    task = task(rows=range(4), monitor=FakeMonitor(stops_at=3))
    ppo.improve(task)
    assert [entry["update"] for entry in task.monitor.history] == [1, 2, 3]


def test_a_loss_that_is_no_number_stops_a_run(task):
    with pytest.raises(ModelError, match="the .* is not a number .* with ppo_lr=1e.38 and float32"):
        ppo.improve(task(rows=range(4), ppo_lr=1e38))
