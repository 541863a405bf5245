"""Memory, time and money of a training before anything is loaded, from the model's configuration alone.

The model is built on the meta device (shapes without numbers), LoRA is put on it as in training, and
what training will hold is added up part by part. Sequences are taken to be of one length. Held against
measurement on a CPU, in float32 (tests/test_forecast.py, benchmarks/forecast.py); figures for a GPU
rest on the same sums and have not been measured. Time rests on an assumed share of the peak.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import yaml
from transformers import AutoConfig, AutoModelForImageTextToText, Gemma3Config

from medlib import hardware, models, training
from medlib.config import ROOT, ConfigError, RunConfig

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
    folder, shipped = Path(models.locate(model)), SHAPES / f"{Path(model).name}.json"
    try:
        if not folder.is_dir() and shipped.is_file():
            return Gemma3Config.from_json_file(shipped)
        return AutoConfig.from_pretrained(str(folder) if folder.is_dir() else model)
    except (OSError, ValueError) as error:
        known = ", ".join(sorted(file.stem for file in SHAPES.glob("*.json")))
        raise models.ModelError(f"{model}: no configuration to forecast from; shapes that are here: {known}") from error


def on_meta(config: RunConfig):
    """The model with LoRA on it, without any numbers: takes no memory and about a second."""
    with torch.device("meta"):
        base = AutoModelForImageTextToText.from_config(shape(config.model))
        return training.get_peft_model(base, training.lora_config(config))


def prices() -> dict[str, dict]:
    """Rows of data/hardware_prices.yaml by profile."""
    return yaml.safe_load(PRICES.read_text())["profiles"]


def forecast(config: RunConfig, profile: str | None = None, tokens: int | None = None,
             scenarios: int | None = None, pictures: int | None = None) -> dict:
    """What this training will take on the hardware of a profile.

    Parameters
    ----------
    profile : row of data/hardware_prices.yaml; by default that of this machine
    tokens : of one scenario, picture and answer included; by default the picture's, and `TEXT_TOKENS`
    scenarios, pictures : training scenarios and the different pictures in them; by default from
        ``config.train_pairs``, a picture each

    Returns
    -------
    dict with ``parameters``, ``trainable_parameters``, ``memory_gib`` (parts, ``peak`` of training,
    ``image_features``: peak while the tower reads its pictures, in batches that shrink if they must),
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
    device = torch.device({"cpu": "cpu", "mps": "mps"}.get(profile, "cuda"))
    dtype = number_format(config, profile)
    memory = _memory(config, model, dtype, tokens, device)
    flops = _flops(config, model, tokens, scenarios, pictures or scenarios)
    speed = 1e12 * row["peak_tflops"][str(dtype).removeprefix("torch.")] * row["utilisation"] * row["count"]
    hours = flops / speed / 3600
    trainable, total, _ = training.trainable_share(model)
    return {
        "profile": profile, "parameters": total - trainable, "trainable_parameters": trainable,
        "tokens": tokens, "dtype": str(dtype).removeprefix("torch."),
        "memory_gib": {name: round(size / GIB, 3) for name, size in memory.items()},
        "fits": None if row["memory_gb"] is None else memory["peak"] < 1e9 * row["memory_gb"],
        "hours": hours, "usd": None if row["usd_per_hour"] is None else hours * row["usd_per_hour"],
        "samples_per_second": scenarios * config.epochs / (3600 * hours),
        "assumptions": f"{row['utilisation']:.0%} of the peak is an assumption; price of {row['as_of']}",
    }


def sentence(result: dict) -> str:
    """The forecast in one line."""
    memory, money = result["memory_gib"], result["usd"]
    fits = {None: "", True: ", fits", False: ", DOES NOT FIT"}[result["fits"]]
    cost = "nothing rented" if money is None else f"about {money:,.2f} USD"
    return (f"forecast for {result['profile']}: {memory['peak']:.1f} GiB at the peak{fits}; "
            f"about {result['hours']:.1f} h; {cost} ({result['assumptions']})")


def number_format(config: RunConfig, profile: str) -> torch.dtype:
    """The number format that a profile's hardware will use."""
    if config.dtype != "auto":
        return getattr(torch, config.dtype)
    return torch.float32 if profile in ("cpu", "mps", "t4") else torch.bfloat16


# --- memory ----------------------------------------------------------------------------------------


def _memory(config: RunConfig, model, dtype: torch.dtype, tokens: int, device: torch.device) -> dict[str, float]:
    weights = sum(bytes_of(name, p, config, dtype) for name, p in model.named_parameters() if not p.requires_grad)
    adapter = 4 * 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)  # and gradient, AdamW's two
    positions, layers = config.batch_size * tokens, model.config.text_config.num_hidden_layers
    stream, layer, work = _decoder_layer(config, model, dtype, positions)
    if checkpointing(config, device):
        held = layers * stream + layer
    else:
        held = layers * layer
    if config.lora_targets == "vision":
        held += _tower_activations(model.config.vision_config, dtype, config.batch_size)
    logits = _logits(config, model.config.text_config, tokens, device)
    overhead = CUDA_OVERHEAD if device.type == "cuda" else 0
    features = weights + overhead + _tower_work(model.config.vision_config, dtype)
    return {
        "weights": weights, "adapter": adapter, "activations": held, "work": max(work, logits),
        "overhead": overhead, "peak": weights + adapter + held + max(work, logits) + overhead,
        "image_features": features,
    }


def checkpointing(config: RunConfig, device: torch.device) -> bool:
    """Whether activations are computed again instead of kept; unless told otherwise, on a GPU."""
    chosen = config.gradient_checkpointing
    return device.type == "cuda" if chosen is None else chosen


def bytes_of(name: str, parameter: torch.Tensor, config: RunConfig, dtype: torch.dtype) -> float:
    """Bytes that a frozen parameter takes once it is loaded as the configuration says."""
    decoder_matrix = "language_model.layers" in name and parameter.ndim == 2
    kind = config.quantization or ("8bit" if config.use_8bit else None)
    if kind and decoder_matrix:
        return parameter.numel() * QUANTIZED[kind]
    if dtype == torch.float16 and not (parameter.ndim == 2 and "position" not in name and "projector" not in name):
        return parameter.numel() * 4  # medlib.float16 keeps all but the matrices in float32
    return parameter.numel() * dtype.itemsize


def _decoder_layer(config: RunConfig, model, dtype: torch.dtype, positions: int) -> tuple[float, float, float]:
    """Bytes of (residual stream, all that autograd keeps of one layer, gradients on the way back).

    Gemma 3's norms compute in float32 and keep a copy of their input where that is not float32. The
    MLP keeps gate, gelu(gate) and up; sdpa keeps query, key, value and output with the keys repeated
    for every head. Each LoRA layer keeps its input after dropout, the mask, and the low-rank product.
    """
    text = model.config.text_config
    # medlib.float16 computes its activations in float32
    size = 2 if dtype == torch.bfloat16 else 4
    hidden, inner = text.hidden_size, text.intermediate_size
    query, key = text.num_attention_heads * text.head_dim, text.num_key_value_heads * text.head_dim
    norms = 4 * 4 * hidden + 4 * (query + key)
    attention = 4 * query * size
    mlp = 3 * inner * size
    lora = 0.0
    for module in model.base_model.model.model.language_model.layers[0].modules():
        if hasattr(module, "lora_A") and len(module.lora_A):
            kept = size + 1 if config.lora_dropout else size
            lora += module.in_features * kept + config.lora_rank * size
    work = (2 * inner + 2 * hidden) * size + (4 * inner * 2 if dtype == torch.float16 else 0)
    quantized = config.quantization == "4bit"
    dense = hidden * inner * dtype.itemsize if quantized else 0  # one matrix at a time is unpacked
    return (hidden * size * positions, (norms + attention + mlp + lora) * positions, work * positions + dense)


def _logits(config: RunConfig, text, tokens: int, device: torch.device) -> float:
    """TRL scores answers in tiles of 4096 tokens x 32768 words, on a GPU those of the answer only."""
    if device.type == "cuda":
        return config.batch_size * ANSWER_TOKENS * (32768 * 2 + 4 * text.hidden_size)
    return min(config.batch_size * tokens, 4096) * min(text.vocab_size, 32768) * 17


def _tower_work(vision, dtype: torch.dtype, batch: int = 64) -> float:
    """Peak bytes while the frozen tower reads a batch: nothing is kept, two widest layers stand."""
    size = 2 if dtype == torch.bfloat16 else 4
    patches = batch * (vision.image_size // vision.patch_size) ** 2
    return patches * size * (2 * vision.intermediate_size + 2 * vision.hidden_size)


def _tower_activations(vision, dtype: torch.dtype, batch: int) -> float:
    size = 2 if dtype == torch.bfloat16 else 4
    patches = batch * (vision.image_size // vision.patch_size) ** 2
    return vision.num_hidden_layers * patches * size * (10 * vision.hidden_size + 2 * vision.intermediate_size)


# --- time ------------------------------------------------------------------------------------------


def _flops(config: RunConfig, model, tokens: int, scenarios: int, pictures: int) -> float:
    """Floating point operations of the whole training, validation included.

    Forward 2 a weight and token, the same again for the gradient of the activations; frozen weights
    have none of their own. Checkpointing computes the forward pass twice.
    """
    text, vision = model.config.text_config, model.config.vision_config
    frozen = {n: p for n, p in model.named_parameters() if p.ndim == 2}
    decoder = sum(p.numel() for n, p in frozen.items() if "language_model.layers" in n)
    attention = 4 * tokens * text.num_attention_heads * text.head_dim * text.num_hidden_layers
    forward = tokens * (2 * decoder + attention) + ANSWER_TOKENS * 2 * text.vocab_size * text.hidden_size
    tower = sum(p.numel() for n, p in frozen.items() if "vision_tower" in n)
    patches = (vision.image_size // vision.patch_size) ** 2
    look = patches * (2 * tower + 4 * patches * vision.hidden_size * vision.num_hidden_layers)
    again = config.gradient_checkpointing is not False
    steps = scenarios * config.epochs
    validated = 2 * config.val_pairs * max(1, math.ceil(config.epochs * config.evaluations_per_epoch))
    seen = pictures + 2 * config.val_pairs if config.cache_image_features else steps + validated
    return steps * forward * (3 if again else 2) + validated * forward + seen * look
