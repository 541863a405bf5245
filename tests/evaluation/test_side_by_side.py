"""Several processes give the folds, answers and adapters that one process gives."""

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from medlib.config import BASE
from medlib.data import sources
from medlib.evaluation import benchmark
from medlib.evaluation.benchmark import Benchmark, core24_all
from medlib.feedback.rl import runs
from medlib.training import adapters, core_folds, supervised

pytestmark = pytest.mark.slow


def in_processes(config, processes):
    return config.model_copy(update={"processes": processes, "run_dir": f"{config.run_dir}-{processes}"})


def same(one, other):
    pd.testing.assert_frame_equal(one.drop(columns="seconds", errors="ignore"),
                                  other.drop(columns="seconds", errors="ignore"), atol=1e-5)  # fmt: skip


def test_folds(small_config):
    config = small_config.model_copy(update={"core_fold_epochs": 0.5, "generate": False})
    everything = core24_all(sources.prepare(config))
    groups = sorted({core_folds.image_group(s) for s in everything.scenarios})[:3]
    few = everything.rows(i for i, s in enumerate(everything.scenarios) if core_folds.image_group(s) in groups)
    same(*(core_folds.core_folds(in_processes(config, n), few) for n in (1, 2)))


def test_answers(small_config, monkeypatch):
    monkeypatch.setattr(benchmark, "MANY", 0)
    parts = []
    for processes in (1, 2):
        config = in_processes(small_config, processes).model_copy(update={"systems": (BASE,), "generate": False})
        run = Benchmark(config)
        run.ask([BASE], run.suites["test"], "heldout")
        run.ask([BASE], run.suites["core_val"], "core24_val")
        if processes == 2:  # this process only reads what the others have answered
            run._answer_side_by_side(processes)
            monkeypatch.setattr("medlib.models.scoring.p_correct", None)
        run.answer()
        parts.append(run.parts)
    for key, frame in parts[0].items():
        same(frame, parts[1][key])


def test_learning_from_feedback(small_config):
    few = {"rl_methods": ("sft", "dpo"), "rl_seeds": 1, "rl_epochs": 0.5, "rl_batch": 4, "rl_samples": 2}
    few |= {"feedback_pairs": 8, "feedback_note_pairs": 4, "reward_epochs": 1}
    adapter = supervised.train(small_config)
    config = small_config.model_copy(update={**few, "adapter": str(adapter)})
    for processes in (1, 2):
        runs.improve(in_processes(config, processes))
    for method in config.rl_methods:
        one, two = (
            load_file(
                adapters.rl_adapter(in_processes(config, n), method, config.seed) / "adapter_model.safetensors"
            )
            for n in (1, 2)
        )
        assert one.keys() == two.keys()
        assert all(np.allclose(one[name], two[name], atol=1e-5) for name in one)
