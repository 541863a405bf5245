"""Memory, time and money of a training before anything is loaded, from the model's configuration alone.

The model is built on the meta device (shapes without numbers), LoRA is put on it as in training, and
what training will hold is added up part by part. Sequences are taken to be of one length. Held against
measurement on a CPU, in float32 (tests/training/test_forecast.py, benchmarks/forecast.py); figures for a GPU
rest on the same sums and have not been measured. Time rests on an assumed share of the peak.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import yaml
from peft import get_peft_model
from transformers import AutoConfig, AutoModelForImageTextToText, Gemma3Config

from medlib.config import ROOT, ConfigError, ModelError, RunConfig, hardware
from medlib.models import loading
from medlib.training import lora, memory

GIB = 2**30
SHAPES = ROOT / "models" / "shapes"
PRICES = ROOT / "data" / "hardware_prices.yaml"

#: Text of an audit question and its answer in tokens, and the answer's share; measured on our scenarios.
TEXT_TOKENS, ANSWER_TOKENS = 140, 9
#: What CUDA itself, its libraries and gaps between blocks take; an assumption.
CUDA_OVERHEAD = 1.5 * GIB
#: Bytes of one quantized weight with its scales; NF4 with doubly quantized constants (arXiv:2305.14314).
QUANTIZED = {"8bit": 1.0, "int8": 1.0, "4bit": 0.5 + 1 / 64 + 4 / (64 * 256)}


def shape(model: str) -> Gemma3Config:
    """The configuration of a model: from its folder, from models/shapes/, else from the hub.

    Raises
    ------
    ModelError
        It is in none of these places.
    """
    folder, shipped = Path(loading.locate(model)), SHAPES / f"{Path(model).name}.json"
    try:
        if not folder.is_dir() and shipped.is_file():
            return Gemma3Config.from_json_file(shipped)
        return AutoConfig.from_pretrained(str(folder) if folder.is_dir() else model)
    except (OSError, ValueError) as error:
        known = ", ".join(sorted(file.stem for file in SHAPES.glob("*.json")))
        raise ModelError(f"{model}: no configuration to forecast from; shapes here: {known}") from error


def on_meta(config: RunConfig):
    """The model with LoRA on it, without any numbers: takes no memory and about a second."""
    with torch.device("meta"):
        base = AutoModelForImageTextToText.from_config(shape(config.model))
        return get_peft_model(base, lora.lora_config(config))


def prices() -> dict[str, dict]:
    """Rows of data/hardware_prices.yaml by profile."""
    return yaml.safe_load(PRICES.read_text())["profiles"]


def forecast(
    config: RunConfig,
    profile: str | None = None,
    tokens: int | None = None,
    scenarios: int | None = None,
    images: int | None = None,
) -> dict:
    """What this training will take on the hardware of a profile.

    Parameters
    ----------
    profile : row of data/hardware_prices.yaml; by default that of this machine
    tokens : of one scenario, image and answer included; by default the image's, and `TEXT_TOKENS`
    scenarios, images : training scenarios and the different images in them; by default from
        ``config.train_pairs``, an image each

    Returns
    -------
    dict with ``parameters``, ``trainable_parameters``, ``memory_gib`` (parts, ``peak`` of training,
    ``image_features``: peak while the tower reads its images, in batches that shrink if they must),
    ``fits``, ``hours``, ``usd`` (None if nothing is rented), ``samples_per_second``, ``assumptions``

    Raises
    ------
    ConfigError
        The profile has no row.
    """
    profile = profile or hardware.detect()
    if profile not in (table := prices()):
        raise ConfigError(f"{PRICES.name}: no row {profile!r}; rows: {', '.join(table)}")
    row, model = table[profile], on_meta(config)
    shapes = model.config
    tokens = tokens or shapes.mm_tokens_per_image + TEXT_TOKENS
    scenarios = scenarios or 2 * config.train_pairs + 16
    device = profile if profile in ("cpu", "mps") else "cuda"
    dtype = number_format(config, profile)
    sizes = _memory(config, model, dtype, tokens, device)
    flops = _flops(config, model, tokens, scenarios, images or scenarios, memory.recomputes(config, device))
    speed = 1e12 * row["peak_tflops"][str(dtype).removeprefix("torch.")] * row["utilisation"] * row["count"]
    hours = flops / speed / 3600
    trainable, total, _ = lora.trainable_share(model)
    return {
        "profile": profile,
        "parameters": total - trainable,
        "trainable_parameters": trainable,
        "tokens": tokens,
        "dtype": str(dtype).removeprefix("torch."),
        "memory_gib": {name: round(size / GIB, 3) for name, size in sizes.items()},
        "fits": None
        if row["memory_gb"] is None
        else max(sizes["peak"], sizes["image_features"]) < 1e9 * row["memory_gb"],
        "hours": hours,
        "usd": None if row["usd_per_hour"] is None else hours * row["usd_per_hour"],
        "samples_per_second": scenarios * config.epochs / (3600 * hours),
        "assumptions": f"time assumes {row['utilisation']:.0%} of the peak speed, price as of {row['as_of']}",
    }


def sentence(result: dict) -> str:
    """The forecast in one line."""
    parts, hours, money = result["memory_gib"], result["hours"], result["usd"]
    peak = max(parts["peak"], parts["image_features"])  # training, or the tower's pass before it
    fits = {None: "", True: ", fits", False: ", DOES NOT FIT"}[result["fits"]]
    time = f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.0f} min"
    cost = "" if money is None else f" and {money:,.2f} USD"
    return f"on {result['profile']}: {peak:.1f} GiB at the peak{fits}; about {time}{cost}; {result['assumptions']}"


def number_format(config: RunConfig, profile: str) -> torch.dtype:
    """The number format that a profile's hardware will use."""
    if config.dtype != "auto":
        return getattr(torch, config.dtype)
    return torch.float32 if profile in ("cpu", "mps", "t4") else torch.bfloat16


# --- memory ----------------------------------------------------------------------------------------


def _memory(config: RunConfig, model, dtype: torch.dtype, tokens: int, device: str) -> dict[str, float]:
    parameters = list(model.named_parameters())
    weights = sum(weight_bytes(name, p, config, dtype) for name, p in parameters if not p.requires_grad)
    # float32 numbers: the adapter, its gradient, and AdamW's two moments
    adapter = 4 * 4 * sum(p.numel() for _, p in parameters if p.requires_grad)
    text, vision = model.config.text_config, model.config.vision_config
    positions, size = config.batch_size * tokens, activation_bytes(dtype)
    layer = positions * layer_bytes(config, model, dtype, tokens, device)
    kept = text.num_hidden_layers * layer
    if memory.recomputes(config, device):  # the inputs of all layers, and one of them in full
        kept = text.num_hidden_layers * positions * text.hidden_size * size + layer
    if config.lora_targets == "vision":
        kept += (
            vision.num_hidden_layers
            * _patches(vision, config.batch_size)
            * size
            * (10 * vision.hidden_size + 2 * vision.intermediate_size)
        )
    gradients = positions * size * (2 * text.intermediate_size + 2 * text.hidden_size)
    if config.quantization == "4bit":  # one matrix at a time is unpacked
        gradients += text.hidden_size * text.intermediate_size * dtype.itemsize
    work = max(gradients, _head_bytes(config, text, device))
    overhead = CUDA_OVERHEAD if device == "cuda" else 0
    # the frozen tower keeps nothing; two layers of its widest part stand at a time
    looking = _patches(vision, min(64, config.eval_batch_size))
    looking *= size * 2 * (vision.intermediate_size + vision.hidden_size)
    return {
        "weights": weights,
        "adapter": adapter,
        "activations": kept,
        "work": work,
        "overhead": overhead,
        "peak": weights + adapter + kept + work + overhead,
        "image_features": weights + looking + overhead,
    }


def weight_bytes(name: str, parameter: torch.Tensor, config: RunConfig, dtype: torch.dtype) -> float:
    """Bytes that a frozen parameter takes once it is loaded as the configuration says."""
    kind = config.quantization or ("8bit" if config.use_8bit else None)
    if kind and "language_model.layers" in name and parameter.ndim == 2:
        return parameter.numel() * QUANTIZED[kind]
    matrix = parameter.ndim == 2 and "position" not in name and "mm_input" not in name
    if dtype == torch.float16 and not matrix:
        return parameter.numel() * 4  # medlib.models.float16 keeps all but the matrices in float32
    return parameter.numel() * dtype.itemsize


def activation_bytes(dtype: torch.dtype) -> int:
    """Bytes of one activation; medlib.models.float16 computes them in float32."""
    return 2 if dtype == torch.bfloat16 else 4


def layer_bytes(config: RunConfig, model, dtype: torch.dtype, tokens: int, device: str) -> float:
    """Bytes a position that autograd keeps of one decoder layer.

    Gemma 3's norms compute in float32 and keep their input so. The MLP keeps gate, gelu(gate) and up;
    attention keeps query, key, value and output, keys repeated for every head, and its mask. A LoRA
    layer keeps its input after dropout, the dropout's mask and the low-rank product.
    """
    text, size = model.config.text_config, activation_bytes(dtype)
    query, key = text.num_attention_heads * text.head_dim, text.num_key_value_heads * text.head_dim
    norms = 4 * (4 * text.hidden_size + query + key)
    attention = size * (4 * query + tokens)
    mlp = size * 3 * text.intermediate_size
    mask = 0 if config.lora_dropout == 0 else 1 if device == "cuda" else 4  # bool on CUDA, float elsewhere
    adapted = [
        m for m in model.base_model.model.model.language_model.layers[0].modules() if getattr(m, "lora_A", None)
    ]
    lora = sum(m.in_features * (size + mask) + config.lora_rank * size for m in adapted)
    return norms + attention + mlp + lora


def _head_bytes(config: RunConfig, text, device: str) -> float:
    """Scores of the answer's words, with gradient; on CUDA TRL goes over the vocabulary in tiles."""
    rows = config.batch_size * ANSWER_TOKENS
    return rows * (32768 * 2 + 4 * text.hidden_size) if device == "cuda" else rows * text.vocab_size * 4 * 4


def _patches(vision, images: int) -> int:
    return images * (vision.image_size // vision.patch_size) ** 2


# --- time ------------------------------------------------------------------------------------------


def _flops(config: RunConfig, model, tokens: int, scenarios: int, images: int, twice: bool) -> float:
    """Floating point operations of the whole training, validation included.

    Forward 2 a weight and token, the same again for the gradient of the activations; frozen weights
    have none of their own. Checkpointing computes the forward pass twice.
    """
    text, vision = model.config.text_config, model.config.vision_config
    matrices = [(name, p.numel()) for name, p in model.named_parameters() if p.ndim == 2]
    decoder = sum(size for name, size in matrices if "language_model.layers" in name)
    attention = 4 * tokens * text.num_attention_heads * text.head_dim * text.num_hidden_layers
    forward = tokens * (2 * decoder + attention) + ANSWER_TOKENS * 2 * text.vocab_size * text.hidden_size
    tower = sum(size for name, size in matrices if "vision_tower" in name)
    patches = _patches(vision, 1)
    look = patches * (2 * tower + 4 * patches * vision.hidden_size * vision.num_hidden_layers)
    steps = scenarios * config.epochs
    validated = 2 * config.val_pairs * max(1, math.ceil(config.epochs * config.evaluations_per_epoch))
    seen = images + 2 * config.val_pairs if config.cache_image_features else steps + validated
    return steps * forward * (3 if twice else 2) + validated * forward + seen * look
