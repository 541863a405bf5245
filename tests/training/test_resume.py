"""A training that was killed ends where one that was not would have."""

import json
import os
import signal
import subprocess
import sys

import torch
from safetensors.torch import load_file
from trl import SFTTrainer

from medlib.config import ROOT, RunConfig
from medlib.data.cases import read_scenarios
from medlib.models import loading
from medlib.models.verdict_model import VerdictModel
from medlib.training import encoding, trainer

# 6 steps an epoch, a checkpoint every 3; the child dies in step 5, amid the first epoch
SETTINGS = dict(epochs=2, batch_size=4, eval_batch_size=8, lr=3e-3, lora_rank=4, evaluations_per_epoch=2)

CHILD = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from trl import SFTTrainer
from tests.training.test_resume import train

step = SFTTrainer.training_step
def dies_in_step_five(trainer, *args, **kwargs):
    if trainer.state.global_step == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(trainer, *args, **kwargs)
SFTTrainer.training_step = dies_in_step_five
train(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
"""


def train(model, images_dir, out_dir):
    """The training of this test, from nothing but folders."""
    processor, base = loading.load(model)
    scenarios = read_scenarios(images_dir.parent / "scenarios.jsonl")
    rows = encoding.encode(processor, scenarios, [images_dir] * len(scenarios))
    rows = encoding.cache_image_features(base, rows)
    config = RunConfig(model=model, **SETTINGS)
    return trainer.train_adapter(VerdictModel(processor, base), rows, rows[:8], config, out_dir, quiet=True)


def test_a_killed_training_resumes_to_the_same_adapter(nano_folder, suite, tmp_path, monkeypatch):
    steps, training_step = [], SFTTrainer.training_step

    def counted_step(trainer, *args, **kwargs):
        steps.append(trainer.state.global_step)
        return training_step(trainer, *args, **kwargs)

    monkeypatch.setattr(SFTTrainer, "training_step", counted_step)
    model, images_dir = str(nano_folder), suite[1]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    killed = subprocess.run(
        [sys.executable, "-c", CHILD, model, str(images_dir), str(tmp_path / "killed")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    checkpoints = tmp_path / "killed" / "checkpoints"
    assert [folder.name for folder in checkpoints.glob("checkpoint-*")] == ["checkpoint-3"]
    assert not (tmp_path / "killed" / "adapter_model.safetensors").exists()
    (checkpoints / "checkpoint-4").mkdir()  # as if the power had gone while it was written
    (checkpoints / "checkpoint-4" / "adapter_model.safetensors").write_bytes(b"half")

    resumed = train(model, images_dir, tmp_path / "killed")
    assert steps == list(range(3, 12))  # it went on from its checkpoint
    whole = train(model, images_dir, tmp_path / "whole")
    metadata = {folder: json.loads((folder / "training_metadata.json").read_text()) for folder in (resumed, whole)}
    assert metadata[resumed]["resumed"] and not metadata[whole]["resumed"]
    assert metadata[resumed]["steps"] == metadata[whole]["steps"] == 12
    losses = [[e.get("loss", e.get("eval_loss")) for e in metadata[f]["history"]] for f in (resumed, whole)]
    assert losses[0] == losses[1]
    samples = [metadata[f]["samples_per_second"] * metadata[f]["wall_seconds"] for f in (resumed, whole)]
    assert abs(samples[0] / 36 - 1) < 0.2 and abs(samples[1] / 48 - 1) < 0.2  # those of this process only
    one, two = (load_file(folder / "adapter_model.safetensors") for folder in (resumed, whole))
    assert set(one) == set(two)
    assert all(torch.equal(one[name], two[name]) for name in one)
