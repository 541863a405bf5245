"""Loading: one path for the real model's folder and the stand-in; refusals say what to do."""

import json
import shutil

import httpx
import pytest
import torch
from huggingface_hub.errors import GatedRepoError
from safetensors.torch import load_file, save_file
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3Processor
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.siglip import SiglipVisionModel

from medlib import evaluation, models, standin, training
from medlib.config import RunConfig
from medlib.data import Suite

# --- one code path --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gemma_folder(tmp_path_factory):
    """The files of google/medgemma-4b-it: its picture geometry, file and tensor names."""
    folder = tmp_path_factory.mktemp("medgemma")
    tokenizer = standin.build_tokenizer(standin.corpus())
    processor = Gemma3Processor(
        image_processor=Gemma3ImageProcessorPil(size={"height": 896, "width": 896}),
        tokenizer=tokenizer,
        chat_template=standin.CHAT_TEMPLATE,
        image_seq_length=256,
    )
    processor.save_pretrained(folder)
    torch.manual_seed(0)
    end_of_turn = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    model = Gemma3ForConditionalGeneration(
        Gemma3Config(
            text_config=dict(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=16,
                query_pre_attn_scalar=16,
                sliding_window=1024,
                pad_token_id=tokenizer.pad_token_id,
            ),
            vision_config=dict(
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=1,
                image_size=896,
                patch_size=14,
                vision_use_head=False,
            ),
            mm_tokens_per_image=256,
            boi_token_index=tokenizer.boi_token_id,
            eoi_token_index=tokenizer.eoi_token_id,
            image_token_index=tokenizer.image_token_id,
            eos_token_id=[tokenizer.eos_token_id, end_of_turn],
        )
    )
    model.save_pretrained(folder)
    # the hub's files are older than this transformers: image processor in a file of its own, and
    # the tensor names of the first Gemma 3 release
    (folder / "processor_config.json").write_text(
        json.dumps({"image_seq_length": 256, "processor_class": "Gemma3Processor"})
    )
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "do_convert_rgb": None,
                "do_normalize": True,
                "do_pan_and_scan": None,
                "do_rescale": True,
                "do_resize": True,
                "image_mean": [0.5] * 3,
                "image_std": [0.5] * 3,
                "image_seq_length": 256,
                "image_processor_type": "Gemma3ImageProcessor",
                "processor_class": "Gemma3Processor",
                "resample": 2,
                "rescale_factor": 1 / 255,
                "size": {"height": 896, "width": 896},
            }
        )
    )
    own, hub = model.state_dict(), {}
    for name, tensor in own.items():
        if name == "lm_head.weight":
            continue  # tied
        name = name.replace("model.language_model.", "language_model.model.", 1)
        name = name.replace("model.vision_tower.", "vision_tower.vision_model.", 1)
        name = name.replace("vision_model.vision_model.", "vision_model.")
        name = name.replace("model.multi_modal_projector.", "multi_modal_projector.", 1)
        hub[name] = tensor.contiguous()
    assert {name.split(".")[0] for name in hub} == {
        "language_model",
        "vision_tower",
        "multi_modal_projector",
    }
    save_file(hub, folder / "model.safetensors", metadata={"format": "pt"})
    return folder, own


def test_hub_tensor_names_are_read_completely(gemma_folder):
    folder, own = gemma_folder
    loaded = models.load(str(folder))[1].state_dict()
    assert set(loaded) == set(own)
    assert all(torch.equal(loaded[name].float().cpu(), own[name]) for name in own)


@pytest.mark.parametrize("kind", ["stand-in", "medgemma"])
def test_real_folder_and_standin_take_the_same_path(
    kind, nano_folder, gemma_folder, suite, tmp_path
):
    folder = nano_folder if kind == "stand-in" else gemma_folder[0]
    size, image_tokens = (112, 16) if kind == "stand-in" else (896, 256)
    scenarios, images_dir = suite[0][:4], suite[1]
    processor, base = models.load(str(folder))
    assert type(base) is Gemma3ForConditionalGeneration and type(processor) is Gemma3Processor
    assert type(base.model.vision_tower) is SiglipVisionModel
    assert models.is_standin(str(folder)) == (kind == "stand-in")

    rows = training.encode(processor, scenarios, [images_dir] * 4)
    assert rows[0]["pixel_values"].shape == (1, 3, size, size)
    assert (rows[0]["input_ids"] == base.config.image_token_index).sum() == image_tokens
    rows = training.cache_image_features(base, rows)
    config = RunConfig(model=str(folder), batch_size=2, epochs=1, lr=0.01, lora_rank=4)
    adapter = training.train_adapter(
        base, processor, rows, [], config, tmp_path / "adapter", quiet=True
    )
    assert json.loads((adapter / "training_metadata.json").read_text())["steps"] == 2
    asked = Suite("four", scenarios, images_dir)
    untrained = evaluation.p_correct(base, processor, asked, batch_size=4)
    model = models.attach_adapter(base, adapter)
    trained = evaluation.p_correct(model, processor, asked, batch_size=4)
    assert len(evaluation.free_answers(model, processor, asked)) == 4
    assert ((trained >= 0) & (trained <= 1)).all() and len(trained) == 4
    assert (trained != untrained).all()


# --- refusals -------------------------------------------------------------------------------------


def refuse_with(error):
    def from_pretrained(*args, **kwargs):
        raise error

    return from_pretrained


def gated_error():
    response = httpx.Response(403, request=httpx.Request("GET", "https://huggingface.co"))
    return GatedRepoError("403 Client Error", response=response)


def chained(depth):
    error = OSError("cannot be had")
    inner = error
    for _ in range(depth - 1):
        inner.__cause__ = OSError("for a reason")
        inner = inner.__cause__
    inner.__cause__ = gated_error()
    return error


@pytest.mark.parametrize(
    "error", [gated_error(), chained(1), chained(3)], ids=["bare", "chained", "deep"]
)
def test_a_gated_model_says_accept_the_terms_and_log_in(monkeypatch, error):
    monkeypatch.setattr(models.AutoProcessor, "from_pretrained", refuse_with(error))
    with pytest.raises(models.ModelError) as caught:
        models.load("google/medgemma-4b-it")
    message = str(caught.value)
    assert "google/medgemma-4b-it is gated" in message
    assert "accept the terms" in message and "hf auth login" in message and "HF_TOKEN" in message


def test_other_errors_are_not_taken_for_a_gate(monkeypatch):
    error = OSError("Can't load the configuration of '/data/401/403'")
    monkeypatch.setattr(models.AutoProcessor, "from_pretrained", refuse_with(error))
    with pytest.raises(models.ModelError, match="neither a local folder nor reachable") as caught:
        models.load("someone/model-401")
    assert "gated" not in str(caught.value)


@pytest.mark.parametrize("name", ["models/no-such-model", "/no/such/folder"])
def test_a_missing_folder_is_named(name):
    with pytest.raises(models.ModelError, match=f"{name}: no such model folder"):
        models.load(name)


def test_weights_are_never_unpickled(nano_folder, tmp_path):
    folder = tmp_path / "pickled"
    shutil.copytree(nano_folder, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(models.ModelError, match="safetensors"):
        models.load(str(folder))


def test_remote_code_is_off_unless_asked_for(monkeypatch):
    asked = []

    def from_pretrained(name, **options):
        asked.append(options["trust_remote_code"])
        raise OSError("enough")

    monkeypatch.setattr(models.AutoProcessor, "from_pretrained", from_pretrained)
    for options in ({}, {"trust_remote_code": True}):
        with pytest.raises(models.ModelError):
            models.load("some/model", **options)
    assert asked == [False, True]


def test_eight_bit_without_bitsandbytes_says_what_to_install(monkeypatch, nano_folder):
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(models.ModelError, match="bitsandbytes.*pip install"):
        models.load(str(nano_folder), use_8bit=True)


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_adapter_file_is_named(missing, nano, tmp_path):
    for file in {"adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"} - {
        missing
    }:
        (tmp_path / file).write_text("{}")
    with pytest.raises(models.ModelError, match=f"{missing} is missing"):
        models.attach_adapter(nano[1], tmp_path)
