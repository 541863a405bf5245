"""An adapter goes on a base only if all of it fits: names, shapes, and the base it was trained on."""

import json
import shutil

import pytest
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from medlib.config import ModelError
from medlib.models import adapter_files

DECODER = r".*language_model.*\.(q_proj|v_proj)"


@pytest.fixture
def adapter(nano, tmp_path):
    """An adapter of rank 4 whose every weight is 0.01."""
    _, base, folder = nano
    model = get_peft_model(base, LoraConfig(r=4, target_modules=DECODER, task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.fill_(0.01)
    model.peft_config["default"].base_model_name_or_path = str(folder)
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    model.unload()
    return tmp_path


def change(adapter, **settings):
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def is_bare(base):
    return not any("lora_" in name for name, _ in base.named_parameters())


def test_an_adapter_that_fits_is_loaded_whole(nano, adapter):
    model = adapter_files.attach(nano[1], adapter)
    lora = [p for name, p in model.named_parameters() if "lora_" in name]
    assert lora and all((p == 0.01).all() and not p.requires_grad for p in lora)
    second = adapter_files.attach(model, adapter, "second", trainable=True)
    assert second is model and model.active_adapters == ["second"]
    assert all(p.requires_grad for name, p in model.named_parameters() if ".second." in name)
    model.unload()


def renamed(tensors):
    return {name.replace("language_model", "other_model"): tensor for name, tensor in tensors.items()}


def fewer(tensors):
    return dict(list(tensors.items())[1:])


def narrower(tensors):
    return {name: t[:2] if "lora_A" in name else t[:, :2] for name, t in tensors.items()}


@pytest.mark.parametrize("changed", [renamed, fewer, narrower])
def test_weights_that_do_not_fit_are_refused_and_the_base_stays(nano, adapter, changed):
    file = adapter / "adapter_model.safetensors"
    save_file({name: t.contiguous() for name, t in changed(load_file(file)).items()}, file)
    with pytest.raises(ModelError, match=r"weights do not fit this base, such as base_model.*file: .*needed: "):
        adapter_files.attach(nano[1], adapter)
    assert is_bare(nano[1])


def test_layers_that_the_base_lacks_are_refused(nano, adapter):
    change(adapter, target_modules=["no_such_layer"])
    with pytest.raises(ModelError, match="does not fit this base"):
        adapter_files.attach(nano[1], adapter)
    assert is_bare(nano[1])


def test_another_base_is_refused_by_its_content(nano, adapter):
    metadata = adapter / "training_metadata.json"
    metadata.write_text(json.dumps({"base_weights": "0" * 64}))
    change(adapter, base_model_name_or_path="models/other")
    with pytest.raises(ModelError, match="was trained on models/other, and the base here .* with other weights"):
        adapter_files.attach(nano[1], adapter)
    metadata.unlink()  # of an adapter made elsewhere only the name is known
    with pytest.raises(ModelError, match="was trained on models/other"):
        adapter_files.attach(nano[1], adapter)
    change(adapter, base_model_name_or_path=f"elsewhere/{nano[2].name}")
    adapter_files.attach(nano[1], adapter).unload()


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "adapter_model.safetensors is cut off"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "is a git-lfs pointer"),
    ],
)
def test_a_cut_file_is_named(nano, adapter, content, message):
    file = adapter / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100] if content is None else content)
    with pytest.raises(ModelError, match=message):
        adapter_files.attach(nano[1], adapter)
    change(adapter, peft_type="NOTHING")
    with pytest.raises(ModelError, match="adapter_config.json is not what PEFT writes"):
        adapter_files.attach(nano[1], adapter)
    (adapter / "adapter_config.json").write_text("{")
    with pytest.raises(ModelError, match="adapter_config.json is not what PEFT writes"):
        adapter_files.attach(nano[1], adapter)


def test_a_second_adapter_that_does_not_fit_leaves_the_first(nano, adapter, tmp_path_factory):
    model = adapter_files.attach(nano[1], adapter)
    other = shutil.copytree(adapter, tmp_path_factory.mktemp("other") / "adapter")
    tensors = load_file(other / "adapter_model.safetensors")
    save_file(fewer(tensors), other / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="do not fit"):
        adapter_files.attach(model, other, "second")
    assert list(model.peft_config) == ["default"] and model.active_adapters == ["default"]
    model.unload()
