"""Checkpoints that a kill cut off are not resumed from."""

import pytest

from medlib.training.checkpoints import checkpoint_folder, last_whole_checkpoint


def checkpoint(folder, step, **files):
    own = folder / f"checkpoint-{step}"
    own.mkdir(parents=True)
    for name, text in files.items():
        (own / f"{name}.json").write_text(text)
    return own


@pytest.mark.parametrize("state", [{}, {"trainer_state": ""}, {"trainer_state": '{"epoch": 1'}])
def test_a_checkpoint_without_its_whole_state_is_deleted(tmp_path, state):
    whole, torn = checkpoint(tmp_path, 3, trainer_state="{}"), checkpoint(tmp_path, 6, **state)
    assert last_whole_checkpoint(tmp_path) == str(whole) and not torn.exists()


def test_a_checkpoint_lacks_what_a_hook_writes_after_the_trainer(tmp_path):
    whole = checkpoint(tmp_path, 3, trainer_state="{}", history="[]")
    checkpoint(tmp_path, 6, trainer_state="{}")
    assert last_whole_checkpoint(tmp_path, "history.json") == str(whole)


def test_checkpoints_of_another_training_are_deleted(tmp_path):
    folder = checkpoint_folder(tmp_path, "one")
    kept = checkpoint(folder, 3, trainer_state="{}")
    assert checkpoint_folder(tmp_path, "one") == folder and kept.exists()
    checkpoint_folder(tmp_path, "two")
    assert not kept.exists()
