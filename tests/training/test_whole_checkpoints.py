"""Which checkpoints can be resumed from."""

import json

import pytest
import torch
from safetensors.torch import save_file

from medlib.training.checkpoints import last_whole_checkpoint

FILES = ("adapter_model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json")


@pytest.fixture
def checkpoints(tmp_path):
    for step in (1, 2):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        save_file({"weight": torch.ones(99)}, folder / FILES[0])
        torch.save({"state": torch.ones(99)}, folder / FILES[1])
        torch.save({"cpu": torch.ones(99)}, folder / FILES[2])
        (folder / FILES[3]).write_text(json.dumps({"epoch": step}))
    return tmp_path


def test_the_last_one_is_taken(checkpoints):
    assert last_whole_checkpoint(checkpoints) == str(checkpoints / "checkpoint-2")


@pytest.mark.parametrize("name", FILES)
def test_one_with_a_cut_file_is_left_out(checkpoints, name):
    file = checkpoints / "checkpoint-2" / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert last_whole_checkpoint(checkpoints) == str(checkpoints / "checkpoint-1")
    assert not file.parent.exists()
