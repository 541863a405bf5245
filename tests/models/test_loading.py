"""Loading: one path for the real model's folder and the stand-in; refusals say what to do."""

import importlib.util
import json
import shutil

import httpx
import pytest
import torch
from huggingface_hub.errors import GatedRepoError
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3Processor
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.siglip import SiglipVisionModel

from medlib.config import ModelError, RunConfig
from medlib.data.suite import Suite
from medlib.models import adapter_files, float16, loading, scoring
from medlib.models.standin import medgemma as medgemma_standin
from medlib.models.standin.medgemma import CHAT_TEMPLATE
from medlib.models.verdict_model import VerdictModel
from medlib.training import encoding, lora, trainer

# --- one code path --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gemma_folder(tmp_path_factory):
    """The files of google/medgemma-4b-it: its image geometry, file and tensor names."""
    folder = tmp_path_factory.mktemp("medgemma")
    tokenizer = medgemma_standin.build_tokenizer(medgemma_standin.corpus())
    processor = Gemma3Processor(
        image_processor=Gemma3ImageProcessorPil(size={"height": 896, "width": 896}),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE,
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
    assert {name.split(".")[0] for name in hub} == {"language_model", "vision_tower", "multi_modal_projector"}
    save_file(hub, folder / "model.safetensors", metadata={"format": "pt"})
    return folder, own


def test_hub_tensor_names_are_read_completely(gemma_folder):
    folder, own = gemma_folder
    loaded = loading.load(str(folder))[1].state_dict()
    assert set(loaded) == set(own)
    assert all(torch.equal(loaded[name].float().cpu(), own[name]) for name in own)


@pytest.mark.parametrize("kind", ["stand-in", "medgemma"])
def test_real_folder_and_standin_take_the_same_path(kind, nano_folder, gemma_folder, suite, tmp_path):
    folder = nano_folder if kind == "stand-in" else gemma_folder[0]
    size, image_tokens = (112, 16) if kind == "stand-in" else (896, 256)
    scenarios, images_dir = suite[0][:4], suite[1]
    processor, base = loading.load(str(folder))
    assert type(base) is Gemma3ForConditionalGeneration and type(processor) is Gemma3Processor
    assert type(base.model.vision_tower) is SiglipVisionModel
    assert loading.is_standin(str(folder)) == (kind == "stand-in")

    rows = encoding.encode(processor, scenarios, [images_dir] * 4)
    assert rows[0]["pixels"]().shape == (1, 3, size, size)
    assert (rows[0]["input_ids"] == base.config.image_token_index).sum() == image_tokens
    rows = encoding.cache_image_features(base, rows)
    config = RunConfig(model=str(folder), batch_size=2, epochs=1, lr=0.01, lora_rank=4)
    adapter = trainer.train_adapter(
        VerdictModel(processor, base), rows, [], config, tmp_path / "adapter", quiet=True
    )
    assert json.loads((adapter / "training_metadata.json").read_text())["steps"] == 2
    asked = Suite("four", scenarios, images_dir)
    untrained = scoring.p_correct(VerdictModel(processor, base), asked, batch_size=4)
    model = VerdictModel(processor, base).with_adapter(adapter).network
    trained = scoring.p_correct(VerdictModel(processor, model), asked, batch_size=4)
    assert len(scoring.free_answers(VerdictModel(processor, model), asked)) == 4
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


@pytest.mark.parametrize("error", [gated_error(), chained(1), chained(3)], ids=["bare", "chained", "deep"])
def test_a_gated_model_says_accept_the_terms_and_log_in(monkeypatch, error):
    monkeypatch.setattr(loading.AutoProcessor, "from_pretrained", refuse_with(error))
    with pytest.raises(ModelError) as caught:
        loading.load("google/medgemma-4b-it")
    message = str(caught.value)
    assert "google/medgemma-4b-it is gated" in message
    assert "accept the terms" in message and "hf auth login" in message and "HF_TOKEN" in message


def test_other_errors_are_not_taken_for_a_gate(monkeypatch):
    error = OSError("Can't load the configuration of '/data/401/403'")
    monkeypatch.setattr(loading.AutoProcessor, "from_pretrained", refuse_with(error))
    with pytest.raises(ModelError, match="neither a local folder nor reachable") as caught:
        loading.load("someone/model-401")
    assert "gated" not in str(caught.value)


@pytest.mark.parametrize("name", ["models/no-such-model", "/no/such/folder"])
def test_a_missing_folder_is_named(name):
    with pytest.raises(ModelError, match=f"{name}: no such model folder"):
        loading.load(name)


def test_weights_are_never_unpickled(nano_folder, tmp_path):
    folder = tmp_path / "pickled"
    shutil.copytree(nano_folder, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="safetensors"):
        loading.load(str(folder))


def test_remote_code_is_off_unless_asked_for(monkeypatch):
    asked = []

    def from_pretrained(name, **options):
        asked.append(options["trust_remote_code"])
        raise OSError("enough")

    monkeypatch.setattr(loading.AutoProcessor, "from_pretrained", from_pretrained)
    for options in ({}, {"trust_remote_code": True}):
        with pytest.raises(ModelError):
            loading.load("some/model", **options)
    assert asked == [False, True]


def test_eight_bit_without_bitsandbytes_says_what_to_install(monkeypatch, nano_folder):
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="bitsandbytes.*pip install"):
        loading.load(str(nano_folder), use_8bit=True)


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_adapter_file_is_named(missing, nano, tmp_path):
    for file in {"adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"} - {missing}:
        (tmp_path / file).write_text("{}")
    with pytest.raises(ModelError, match=f"{missing} is missing"):
        VerdictModel(*nano[:2]).with_adapter(tmp_path)


# --- number formats -------------------------------------------------------------------------------

QUANTIZED = {"8bit": "Linear8bitLt", "4bit": "Linear4bit"}


def needs(package):
    return pytest.mark.skipif(not importlib.util.find_spec(package), reason=f"{package} is not installed")


@pytest.fixture(scope="module")
def huge_folder(nano_folder, tmp_path_factory):
    """The random stand-in with embeddings and norms that let the residual stream pass 65504.

    Every weight is a float16 number, as those of bfloat16 checkpoints are.
    """
    folder = tmp_path_factory.mktemp("huge") / "model"
    shutil.copytree(nano_folder, folder)
    weights = load_file(folder / "model.safetensors")
    for name, tensor in weights.items():
        if name.endswith("embed_tokens.weight"):
            weights[name] = tensor * 8
        if "post_attention_layernorm" in name or "post_feedforward_layernorm" in name:
            weights[name] = (1 + tensor) * 2.0**15 - 1
        weights[name] = weights[name].half().float()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def question(tokens=40):
    ids = torch.randint(10, 500, (2, tokens), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "token_type_ids": torch.zeros_like(ids)}


@torch.no_grad()
def logits(model):
    return model(**question()).logits.float()


def test_float16_is_finite_and_close_where_plain_float16_overflows(huge_folder):
    reference = logits(loading.load(str(huge_folder), dtype="float32")[1])
    plain = Gemma3ForConditionalGeneration.from_pretrained(huge_folder, dtype=torch.float16)
    assert not logits(plain).isfinite().any()
    safe = loading.load(str(huge_folder), dtype="float16")[1]
    assert safe.lm_head.weight.dtype == torch.float16
    assert safe.model.language_model.layers[0].self_attn.q_proj.weight.dtype == torch.float16
    assert safe.model.language_model.norm.weight.dtype == torch.float32
    difference = (logits(safe) - reference).abs().max()
    assert difference < 2e-3 * reference.abs().max()


@pytest.mark.parametrize("size", [1e-15, 1.0, 1e6, 1e15])
def test_a_scaled_product_neither_overflows_nor_vanishes(size):
    rows = torch.randn(5, 300, generator=torch.Generator().manual_seed(0)) * size
    rows[2] = 0
    matrix = torch.randn(300, 7, generator=torch.Generator().manual_seed(1)).half()
    exact = rows.double() @ matrix.double()
    product = float16.scaled_product(rows, matrix).double()
    assert product[2].eq(0).all()
    length = rows.double().norm(dim=1, keepdim=True) * matrix.double().norm(dim=0)
    assert ((product - exact).abs() <= 1e-3 * length + 1e-300).all()


def test_weights_too_large_for_float16_are_refused(nano_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(nano_folder, folder)
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("layers.0.mlp.up_proj.weight"))
    weights[name] = weights[name] * 1e6
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="up_proj.*exceed float16; set dtype: float32"):
        loading.load(str(folder), dtype="float16")


def adapter_gradients(base):
    torch.manual_seed(0)
    config = RunConfig(lora_dropout=0, lora_rank=4)
    model = get_peft_model(base, lora.lora_config(config)).train()
    for name, p in model.named_parameters():
        if "lora_B" in name:  # starts at zero, which would hide the gradient of A
            torch.nn.init.normal_(p, std=0.02)
    asked = question()
    model(**asked, labels=asked["input_ids"]).loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.unload()
    return found


@pytest.mark.parametrize("quantization", [None, pytest.param("4bit", marks=needs("bitsandbytes"))])
def test_float16_gradients_are_those_of_float32(huge_folder, quantization):
    folder = str(huge_folder)
    exact = adapter_gradients(loading.load(folder, dtype="float32", quantization=quantization)[1])
    found = adapter_gradients(loading.load(folder, dtype="float16", quantization=quantization)[1])
    assert exact.keys() == found.keys()
    for name, gradient in exact.items():
        assert gradient.norm() > 0 and (found[name] - gradient).norm() < 0.02 * gradient.norm(), name


def test_the_dtype_of_the_configuration_is_taken(nano_folder):
    config = RunConfig(model=str(nano_folder), dtype="bfloat16", attention="eager")
    base = loading.load_for(config)[1]
    assert base.dtype == torch.bfloat16 and base.config._attn_implementation == "eager"
    assert loading.pick_dtype(torch.device("cpu")) == torch.float32


def test_flash_attention_is_refused_with_what_to_take(nano_folder):
    with pytest.raises(ModelError, match="attention: sdpa"):
        loading.load(str(nano_folder), attention="flash_attention_2")


# --- quantization ---------------------------------------------------------------------------------


def quantized(folder, kind):
    return loading.load(str(folder), dtype="float32", quantization=kind)[1]


@needs("bitsandbytes")
@pytest.mark.parametrize("kind", QUANTIZED)
def test_the_decoder_is_quantized_and_the_rest_is_not(nano_folder, kind):
    base = quantized(nano_folder, kind)
    layers = {
        name: type(module).__name__ for name, module in base.named_modules() if isinstance(module, torch.nn.Linear)
    }
    decoder = {name: layer for name, layer in layers.items() if "language_model.layers" in name}
    assert len(decoder) == 7 * base.config.text_config.num_hidden_layers
    assert set(decoder.values()) == {QUANTIZED[kind]}
    others = {name: layer for name, layer in layers.items() if name not in decoder}
    assert "lm_head" in others and any("vision_tower" in name for name in others)
    assert set(others.values()) == {"Linear"}


@needs("torchao")
def test_torchao_keeps_the_decoder_in_int8_and_the_rest_not(nano_folder):
    base = quantized(nano_folder, "int8")
    kinds = {name: type(p.data).__name__ for name, p in base.named_parameters() if p.ndim == 2}
    decoder = {kind for name, kind in kinds.items() if "language_model.layers" in name}
    assert decoder == {"Int8Tensor"}
    assert "Int8Tensor" not in {kind for name, kind in kinds.items() if "layers" not in name or "tower" in name}


@pytest.mark.parametrize(
    "kind, limit",
    [
        pytest.param("8bit", 0.05, marks=needs("bitsandbytes")),
        pytest.param("int8", 0.05, marks=needs("torchao")),
        pytest.param("4bit", 0.5, marks=needs("bitsandbytes")),
    ],
)
def test_quantized_logits_are_close_and_adapters_train_save_and_load(nano_folder, suite, tmp_path, kind, limit):
    scenarios, images_dir = suite[0][:8], suite[1]
    reference = logits(loading.load(str(nano_folder), dtype="float32")[1])
    processor, base = loading.load(str(nano_folder), dtype="float32", quantization=kind)
    off = (logits(base) - reference).norm() / reference.norm()
    assert 0 < off < limit

    rows = encoding.encode(processor, scenarios, [images_dir] * 8)
    rows = encoding.cache_image_features(base, rows)
    config = RunConfig(model=str(nano_folder), quantization=kind, batch_size=4, epochs=3, lr=0.01, lora_rank=4)
    adapter = trainer.train_adapter(VerdictModel(processor, base), rows, [], config, tmp_path / "a", quiet=True)
    history = json.loads((adapter / "training_metadata.json").read_text())["history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert losses[-1] < 0.9 * losses[0]
    asked = Suite("eight", scenarios, images_dir)
    untrained = scoring.p_correct(VerdictModel(processor, base), asked)
    fresh = loading.load(str(nano_folder), dtype="float32", quantization=kind)[1]
    trained = scoring.p_correct(VerdictModel(processor, fresh).with_adapter(adapter), asked)
    assert (trained != untrained).all() and ((trained > 0) & (trained < 1)).all()


@needs("bitsandbytes")
def test_an_evaluation_does_not_cut_later_gradients_of_4_bit_weights(nano_folder):
    base = quantized(nano_folder, "4bit")
    before = adapter_gradients(base)
    logits(base)  # bitsandbytes would repack the weights here on a CPU with AVX512-BF16
    after = adapter_gradients(base)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    "kind, package, instead",
    [("8bit", "bitsandbytes", "int8"), ("4bit", "bitsandbytes", "int8"), ("int8", "torchao", "4bit")],
)
def test_a_missing_package_is_named_with_what_else_there_is(monkeypatch, nano_folder, kind, package, instead):
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=f"{kind} needs {package}.*pip install") as caught:
        loading.load(str(nano_folder), quantization=kind)
    assert instead in str(caught.value)


@pytest.mark.parametrize("kind", ["8bit", "int8"])
def test_formats_that_do_not_go_together_are_refused(nano_folder, kind):
    with pytest.raises(ModelError, match="float16 does not go with.*4bit"):
        loading.load(str(nano_folder), dtype="float16", quantization=kind)


@pytest.mark.parametrize(
    "field, value, fits",
    [
        ("target_modules", ["q_proj", "v_proj"], True),
        ("target_modules", "all-linear", True),
        ("target_modules", "(.*)*(.*)*(.*)*x", False),
        ("target_modules", ".*.*.*.*.*.*.*.*x", False),
        ("exclude_modules", "(a|a)*b", False),
        ("rank_pattern", {"(.+)+$": 8}, False),
        ("rank_pattern", {r"^model\.layers\.0\.q_proj$": 8}, True),
    ],
)
def test_an_adapter_whose_pattern_could_run_for_ever_is_not_loaded(tmp_path, field, value, fits):
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({field: value}))
    if fits:
        adapter_files.check_patterns(file)
    else:
        with pytest.raises(ModelError, match=f"adapter_config.json, field '{field}'"):
            adapter_files.check_patterns(file)


@pytest.mark.parametrize("targets", ["attention", "attention+mlp", "all-linear", "projector", "vision"])
def test_patterns_of_this_projects_adapters_are_known(tmp_path, targets):
    lora.lora_config(RunConfig(lora_targets=targets)).save_pretrained(tmp_path)
    adapter_files.check_patterns(tmp_path / "adapter_config.json")


@pytest.fixture
def copy(nano_folder, tmp_path):
    return shutil.copytree(nano_folder, tmp_path / "copy")


def test_a_model_without_a_chat_template_is_refused_by_name(copy):
    for file in copy.glob("chat_template*"):
        file.unlink()
    with pytest.raises(ModelError, match="copy: no chat template, so it cannot be asked; take the instr"):
        loading.load_processor(str(copy))


def test_a_model_for_text_only_is_refused_by_name(copy, monkeypatch):
    tokenizer = loading.AutoProcessor.from_pretrained(copy).tokenizer  # what there is of such a model
    monkeypatch.setattr(loading.AutoProcessor, "from_pretrained", lambda *_, **__: tokenizer)
    with pytest.raises(ModelError, match="copy: a model for text only"):
        loading.load_processor(str(copy))


def test_a_file_that_was_not_fetched_or_is_cut_is_named(copy):
    file = copy / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match="copy: a file of weights is cut off or damaged"):
        loading.load(str(copy))
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ModelError, match="copy: model.safetensors is a git-lfs pointer; `git lfs pull`"):
        loading.load(str(copy))
