"""Learning from feedback: one budget for all methods, an honest monitor, a choice made on validation alone."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medlib.config import ConfigError, resolve
from medlib.evaluation import compare_methods
from medlib.evaluation.results import Results, run_seed
from medlib.feedback import reward_model
from medlib.feedback.rl import monitor, ppo, runs
from medlib.feedback.rl.monitor import Monitor
from medlib.feedback.rl.rewards import explain, severity_weights, verdict_rewards
from medlib.feedback.rl.task import minibatches
from medlib.models import loading, scoring
from medlib.reporting.notebooks import rl as rl_page
from medlib.reporting.notebooks.rl import WATCHED
from medlib.training import adapters


@given(st.integers(2, 60), st.floats(0.3, 5), st.integers(2, 16), st.integers(0, 3))
def test_every_case_comes_once_per_epoch_and_never_twice_in_an_update(cases, epochs, batch, seed):
    batches = minibatches(cases, epochs, batch, seed)
    assert all(len(set(b)) == len(b) == min(batch, cases) for b in batches)
    assert len(batches) == round(epochs * cases / min(batch, cases))
    assert all(np.array_equal(a, b) for a, b in zip(batches, minibatches(cases, epochs, batch, seed)))
    per_epoch = max(1, cases // min(batch, cases))
    counts = np.bincount(np.concatenate(batches[:per_epoch]) if batches else [], minlength=cases)
    assert counts.max(initial=0) <= 1


@given(st.lists(st.floats(0.01, 0.99), min_size=1, max_size=8), st.floats(0.01, 0.99))
def test_kl_is_zero_at_the_start_and_positive_elsewhere(p, other):
    p = np.array(p)
    assert monitor.kl(p, p) == 0
    assert monitor.kl(p, np.full_like(p, other)) >= -1e-12


def test_a_missed_critical_error_costs_most():
    sure_of_error = np.zeros(4)
    rewards = verdict_rewards(sure_of_error, severity_weights(["none", "moderate", "high", "critical"]))
    assert rewards[:, 0].tolist() == [-1, -1, -2, -4]  # of the verdict CORRECT
    assert (rewards[:, 0] == -rewards[:, 1]).all()
    undecided = verdict_rewards(np.array([0.5]), np.array([4.0]))
    assert (undecided == 0).all()


def test_the_reward_of_one_case_is_explained():
    table = explain(0.25, "critical").set_index("verdict")
    assert table["preferred"].to_dict() == {"CORRECT": 0.25, "ERROR": 0.75}
    assert (table["weight"] == 4).all()
    assert table["reward"].tolist() == verdict_rewards(np.array([0.25]), np.array([4.0]))[0].tolist()


def test_a_changed_constant_of_a_method_makes_other_runs(small_config, monkeypatch):
    for module, name in ((adapters, "supervised_hash"), (loading, "base_hash"), (reward_model, "fingerprint")):
        monkeypatch.setattr(module, name, lambda _: "same")
    before = runs.fingerprint(small_config)
    monkeypatch.setattr(ppo, "CLIP_EPSILON", 0.3)
    after = runs.fingerprint(small_config)
    assert before["ppo"] != after["ppo"] and before["dpo"] == after["dpo"]
    assert set(runs.constants("dpo")) == {"BETA", "SFT_WEIGHT"}


class _Model:
    """As much of a model as a monitor touches."""

    training = False

    def __init__(self):
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def named_parameters(self):
        return [("weight", self.weight)]

    def eval(self):
        return self

    def train(self, mode=True):
        return self


def _monitor(monkeypatch, answers, texts=("CORRECT - yes",), updates=10, limit=0.5):
    from medlib.data.cases import LabelledCase, Patient

    scenarios = [
        LabelledCase(
            id=f"s{i}",
            modality="xray",
            image="a.png",
            patient=Patient(age=50, sex="male", complaint="cough"),
            finding="x",
            treatment="y",
            verdict=v,
            error_type="none" if v == "CORRECT" else "overtreatment",
            severity="none" if v == "CORRECT" else "high",
            cost_impact=0,
        )
        for i, v in enumerate(["CORRECT", "ERROR"])
    ]
    suite = type("S", (), {"scenarios": scenarios})()
    answers = iter(answers)
    words = pd.DataFrame({"generated": list(texts) * 2, "parsed": ["CORRECT", None]})
    monkeypatch.setattr(scoring, "ask", lambda *_: words.assign(p_correct=next(answers)))
    settings = resolve("standin", rl_kl_limit=limit)
    return Monitor(_Model(), None, suite, np.array([[1.0, -1.0], [-2.0, 2.0]]), settings, updates)


def test_a_monitor_stops_a_run_that_goes_too_far(monkeypatch):
    watched = _monitor(monkeypatch, [[0.5, 0.5], [0.6, 0.4], [0.999, 0.001]])
    assert [watched(update, loss=1.0) for update in range(1, 5)] == [False, False, False, True]
    first, last = watched.history[0], watched.history[-1]
    assert first["probe_kl"] == 0 and last["probe_kl"] > 0.5
    assert last["probe_accuracy"] == 1 and last["probe_same_answer"] == 0.5 and last["probe_parsed"] == 0.5
    assert first["probe_reward"] == 0 and last["probe_reward"] == pytest.approx(1.5, abs=0.01)
    assert watched.history[1] == {"update": 1, "loss": 1.0}


def _learn(watched, updates):
    """Updates that each move the only weight by 1; whether each of them stopped the run."""
    stopped = []
    for update in updates:
        watched.model.weight.data += 1
        stopped.append(watched(update))
    return stopped


def test_a_run_that_went_too_far_keeps_the_last_adapter_within_the_limit(monkeypatch):
    watched = _monitor(monkeypatch, [[0.5, 0.5], [0.6, 0.4], [0.999, 0.001]])
    assert _learn(watched, range(1, 5)) == [False, False, False, True]
    assert watched.model.weight.item() == 2  # measured after update 2 and after update 4
    assert watched.history[-1]["stopped"]
    sentence = rl_page.watched_sentence(
        pd.DataFrame(watched.history).assign(method="ppo", seed=0), resolve("standin", rl_kl_limit=0.5)
    )
    assert "kept is the adapter of the last measurement within it" in sentence
    assert rl_page.kept(pd.DataFrame(watched.history))["probe_kl"].max() < 0.5


def test_a_run_that_goes_on_knows_whether_its_adapter_is_within_the_limit(monkeypatch):
    for p, kept in ((0.6, 7.0), (0.999, 0.0)):
        watched = _monitor(monkeypatch, [[0.5, 0.5], [p, 1 - p], [0.999, 0.001]])
        watched.model.weight.data += 7  # what a checkpoint brings
        watched.resumed([{"update": 3, "loss": 1.0}])
        assert _learn(watched, [4]) == [True]
        assert watched.model.weight.item() == kept and watched.history[0] == {"update": 3, "loss": 1.0}


def _frame(wrong=(), severity="critical", n=40, missing_pairs=False):
    rows = []
    for i in range(n):
        verdict = "CORRECT" if i % 2 else "ERROR"
        right = i not in wrong
        said = verdict if right else {"CORRECT": "ERROR", "ERROR": "CORRECT"}[verdict]
        rows.append(
            {
                "id": f"s{i}",
                "modality": ["xray", "mri"][i % 4 // 2],
                "verdict": verdict,
                "predicted": said,
                "p_correct": 0.9 if said == "CORRECT" else 0.1,
                "cost_impact": 0,
                "pair": f"p{i // 2}",
                "severity": "none" if verdict == "CORRECT" else severity,
            }
        )
    return pd.DataFrame(rows)


#: As many errors as in the suites.
EVEN = resolve("standin", error_prevalence=0.5)


def _results(**wrong_by_system):
    return Results.join(
        {
            (name.replace("_", "-").replace("--", ":"), suite): _frame(wrong)
            for name, wrong in wrong_by_system.items()
            for suite in ("tuning", "val_contradiction", "heldout", "contradiction")
        }
    )


def test_the_recommendation_turns_where_contradicting_notes_get_frequent():
    """Before feedback 4 plain critical errors of 20 are missed and 10 with a note; afterwards 5 and none."""
    parts = {
        ("medgemma-lora", "tuning"): _frame({0, 2, 4, 6}),
        ("medgemma-lora", "val_contradiction"): _frame(set(range(0, 20, 2))),
        ("medgemma-dpo", "tuning"): _frame({0, 2, 4, 6, 8}),
        ("medgemma-dpo", "val_contradiction"): _frame(),
    }
    results = Results.join(parts)
    # the lines cross where (1 - k) 4 + 10 k = (1 - k) 5, at k = 1 / 11, for any prevalence of errors
    assert compare_methods.flips(results, resolve("standin")) == [(0.0, "medgemma-lora"), (0.091, "medgemma-dpo")]
    assert compare_methods.recommended(results, resolve("standin", note_prevalence=0.09)) == "medgemma-lora"
    assert compare_methods.recommended(results, resolve("standin", note_prevalence=0.1)) == "medgemma-dpo"
    sentence = rl_page.recommendation(results, resolve("standin"))
    assert (
        "at first medgemma-nano (stand-in) + LoRA, from 9.1% on medgemma-nano (stand-in) + LoRA + DPO" in sentence
    )


def test_the_weights_are_those_of_the_user():
    results = _results(medgemma_lora={0}, medgemma_ppo={1, 3, 5})  # a miss against three needless queries
    half = {"error_prevalence": 0.5}
    assert compare_methods.recommended(results, resolve("standin", **half)) == "medgemma-ppo"
    cheap = resolve("standin", **half, miss_weights=(1, 1, 1))
    assert compare_methods.recommended(results, cheap) == "medgemma-lora"


def test_further_seeds_are_no_systems_of_the_ladder():
    results = _results(medgemma_lora={0}, medgemma_ppo={1}, medgemma_ppo__1={1, 3})
    assert results.systems("heldout") == ["medgemma-lora", "medgemma-ppo"]
    assert results.seeds("medgemma-ppo", "heldout") == ["medgemma-ppo", "medgemma-ppo:1"]
    assert run_seed("openai:gpt-4o") == ("openai:gpt-4o", "") and run_seed("medgemma-dpo:2") == (
        "medgemma-dpo",
        "2",
    )
    shown = compare_methods.table(results, resolve("standin")).set_index("system")
    assert shown.loc["medgemma-ppo", "accuracy"] == [39 / 40, 38 / 40]
    assert shown.loc["medgemma-lora", "critical_misses"] == [1]


def test_the_supervised_adapter_is_kept_where_validation_has_one_verdict():
    results = _results(medgemma_lora={1}, medgemma_ppo=())
    one = {key: frame[frame["verdict"] == "CORRECT"] for key, frame in results.parts.items()}
    assert compare_methods.recommended(Results.join(one), EVEN) == "medgemma-lora"
    sentence = compare_methods.recommendation(Results.join(one), EVEN, {"medgemma-lora": "it"})
    assert sentence.startswith("Keep it: the validation cases do not hold both verdicts")


def test_the_choice_rests_on_validation_and_not_on_held_out_cases():
    results = _results(medgemma_lora={0}, medgemma_ppo={1}, medgemma_dpo={0, 2})
    assert compare_methods.recommended(results, EVEN) == "medgemma-ppo"
    worse = {"heldout": _frame(set(range(20))), "contradiction": _frame({0, 2})}
    worse = results.parts | {("medgemma-ppo", suite, ""): frame for suite, frame in worse.items()}
    assert compare_methods.recommended(Results.join(worse), EVEN) == "medgemma-ppo"
    assert compare_methods.recommended(_results(medgemma_lora={0}), EVEN) is None


def test_the_sentence_names_the_choice_or_keeps_the_supervised_adapter():
    settings = EVEN
    results = _results(medgemma_lora={0}, medgemma_ppo={1}, medgemma_grpo={0})
    sentence = rl_page.recommendation(results, settings)
    assert sentence.startswith("Use medgemma-nano (stand-in) + LoRA + PPO") and "n = 40" in sentence
    kept = rl_page.recommendation(_results(medgemma_lora=(), medgemma_ppo={1}), settings)
    assert kept.startswith("Keep medgemma-nano (stand-in) + LoRA:")
    assert rl_page.methods_table(_results(medgemma_lora={0}, medgemma_ppo={1}), settings).shape[0] == 2


def test_one_seed_has_no_range():
    settings, once = resolve("standin", rl_seeds=1), _results(medgemma_lora={0}, medgemma_ppo={1})
    table = rl_page.methods_table(once, settings)
    assert (
        table["Seeds"].tolist() == [1, 1]
        and not table.astype(str).stack().str.contains("seeds)", regex=False).any()
    )
    assert "seeds)" not in rl_page.recommendation(once, settings)
    both = _results(medgemma_lora={0}, medgemma_ppo={1}, medgemma_ppo__1={1, 3})
    twice = rl_page.methods_table(both, settings)
    assert twice.iloc[1].astype(str).str.contains("2 seeds)", regex=False).any()


def _history(last):
    start = dict(kl=0.0, reward=1.0, accuracy=0.95, parsed=1.0, length=40.0, same_answer=0.5)
    return pd.DataFrame(
        [
            {"method": "ppo", "seed": 0, "update": update, **{f"probe_{k}": v for k, v in values.items()}}
            for update, values in ((0, start), (9, start | last))
        ]
    )


@pytest.mark.parametrize(
    "last, message",
    [
        (dict(kl=0.3), "No sign of a hacked reward"),
        (dict(kl=0.3, parsed=0.6), "fewer answers parse in PPO"),
        (dict(kl=0.3, same_answer=0.9), "one verdict is given more often in PPO"),
        (dict(kl=0.3, reward=2.0, accuracy=0.7), "reward rose while right verdicts fell in PPO"),
        (dict(kl=5.0), "stopped at 5.00 nats"),
    ],
)
def test_a_hacked_reward_is_reported(last, message):
    assert message in rl_page.watched_sentence(_history(last), resolve("standin"))


def test_the_watched_figure_has_a_panel_for_everything_watched():
    figure = rl_page.watched(_history(dict(kl=1.5)), resolve("standin"))
    assert len(figure.axes) == len(WATCHED)


def test_an_unknown_method_is_refused(small_config):
    with pytest.raises(ConfigError, match="rl_methods: reinforce not known; methods: sft, ppo, grpo, dpo"):
        runs.improve(small_config.model_copy(update={"rl_methods": ("reinforce",)}))


def test_rows_without_a_run_say_so(small_config):
    from medlib.config import ModelError, NotRun
    from medlib.data import sources
    from medlib.systems import Session

    with pytest.raises(NotRun, match="DPO, seed 0: no adapter; run 07_rl first"):
        Session(small_config, sources.prepare(small_config)).system("medgemma-dpo")
    with pytest.raises(ModelError):
        adapters.rl_adapter(small_config, "ppo", 3)


def test_rehearsed_cases_are_whole_training_pairs_with_their_known_verdict(small_config):
    from medlib.data import sources

    train = sources.suite(small_config, "train")
    again = runs.rehearsed(train, 5, seed=0)
    pairs = [s.factors["pair"] for s in again.scenarios]
    assert len(again) == 10 and len(set(pairs)) == 5
    assert [s.id for s in runs.rehearsed(train, 5, seed=0).scenarios] == [s.id for s in again.scenarios]
    assert len(runs.rehearsed(train, 0, seed=0)) == 0

    rated = sources.feedback(small_config.model_copy(update={"feedback_pairs": 4, "feedback_note_pairs": 0}))
    table = pd.DataFrame({"chosen": ["ERROR"] * len(rated), "rejected": "CORRECT", "severity": "critical"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "training_side", lambda _: (rated, table))
        patch.setattr(reward_model, "preferred", lambda _, suite: np.full(len(suite), 0.25))
        suite, table, preferred = runs.training_cases(small_config.model_copy(update={"rl_rehearsal_pairs": 5}))
    assert len(suite) == len(table) == len(preferred) == len(rated) + 10
    known = table[table["rehearsed"]]
    assert known["chosen"].tolist() == [s.verdict for s in suite.scenarios[len(rated) :]]
    assert (known["chosen"] != known["rejected"]).all() and (preferred[: len(rated)] == 0.25).all()
    assert (preferred[len(rated) :] == (known["chosen"] == "CORRECT")).all()
    assert (
        suite.image(suite.scenarios[-1]).tobytes()
        == again.image(next(s for s in again.scenarios if s.id == suite.scenarios[-1].id)).tobytes()
    )
