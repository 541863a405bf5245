"""What answers and trainings are known by: a changed file is another model, a moved one is not."""

import shutil

import pytest
from safetensors.torch import load_file, save_file

from medlib.models import prompts, weights


@pytest.fixture
def sharded(nano_folder, tmp_path):
    """The nano model in two shards, as the real MedGemma is stored."""
    tensors = load_file(nano_folder / "model.safetensors")
    names = sorted(tensors)
    for file in nano_folder.glob("*.json"):
        shutil.copy(file, tmp_path)
    for number, part in enumerate((names[:5], names[5:]), start=1):
        save_file({n: tensors[n] for n in part}, tmp_path / f"model-0000{number}-of-00002.safetensors")
    return tmp_path


def test_every_shard_counts(sharded):
    before = weights.weights_hash(str(sharded))
    file = sharded / "model-00002-of-00002.safetensors"
    tensors = load_file(file)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, file)
    assert weights.weights_hash(str(sharded)) != before
    save_file(tensors, file)
    assert weights.weights_hash(str(sharded)) == before


def test_a_moved_model_is_the_same(sharded, tmp_path_factory):
    moved = shutil.copytree(sharded, tmp_path_factory.mktemp("moved") / "model")
    assert weights.base_hash(str(moved)) == weights.base_hash(str(sharded))


def test_tokenizer_prompt_and_pixels_count(sharded, monkeypatch):
    found = {weights.base_hash(str(sharded))}
    for module, name in ((weights, "PIXELS_VERSION"), (prompts, "INSTRUCTION"), (prompts, "VERSION")):
        monkeypatch.setattr(module, name, "another")
        found.add(weights.base_hash(str(sharded)))
    file = sharded / "tokenizer_config.json"
    file.write_text(file.read_text() + "\n")
    found.add(weights.base_hash(str(sharded)))
    assert len(found) == 5


def test_a_hub_model_is_known_by_its_commit(monkeypatch):
    for commit in ("aaa", "bbb"):
        monkeypatch.setattr(weights, "commit", lambda model, commit=commit: commit)
        assert weights.weights_hash("google/medgemma-4b-it") == f"google/medgemma-4b-it@{commit}"
