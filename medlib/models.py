"""Loading: one path for the real MedGemma and for the stand-in, switched by the model's name."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig

from medlib.config import ROOT


class ModelError(RuntimeError):
    """A model that cannot be had, with what to do about it."""


def locate(model: str) -> str:
    """A folder of this repository if there is one of that name, else a hub name or path as given."""
    folder = ROOT / model
    if folder.is_dir():
        return str(folder)
    if model.startswith(("models/", "./", "/")) and not Path(model).is_dir():
        raise ModelError(f"{model}: no such model folder; `make standin` rebuilds models/medgemma-nano")
    return model


def is_standin(model: str) -> bool:
    """True for a model of this repository that knows no medicine (marked in its config.json)."""
    config = Path(locate(model)) / "config.json"
    return config.is_file() and bool(json.loads(config.read_text()).get("standin"))


def file_hash(file: str | Path) -> str:
    """SHA-256 of a file of weights; ModelError if it is missing."""
    file = Path(file)
    if not file.is_file():
        raise ModelError(f"{file.parent}: {file.name} is missing; train first (`python -m medlib train`)")
    return hashlib.sha256(file.read_bytes()).hexdigest()


def weights_hash(model: str) -> str:
    """SHA-256 of a local model's weights; a hub model is known by its name."""
    file = Path(locate(model)) / "model.safetensors"
    return file_hash(file) if file.is_file() else model


def pick_device() -> torch.device:
    """cuda, mps or cpu, in this order of preference."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def pick_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware has it, else float32: Gemma 3 overflows in float16."""
    bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if bf16 else torch.float32


def load(model: str, use_8bit: bool = False, trust_remote_code: bool = False):
    """Load processor and base model, in evaluation mode on the best device.

    Returns
    -------
    processor : transformers processor
    base : ``Gemma3ForConditionalGeneration`` for MedGemma and for the stand-in alike

    Raises
    ------
    ModelError
        Missing folder, gated or unreachable hub model, missing bitsandbytes.
    """
    name, device = locate(model), pick_device()
    options = {"trust_remote_code": trust_remote_code}
    extra = {"quantization_config": _eight_bit()} if use_8bit else {}
    try:
        processor = AutoProcessor.from_pretrained(name, **options)
        base = AutoModelForImageTextToText.from_pretrained(
            name, dtype=pick_dtype(device), use_safetensors=True, **options, **extra
        )
    except (OSError, ValueError) as error:
        raise ModelError(_explain(name, error)) from error
    processor.tokenizer.padding_side = "left"  # answers are appended and scored at the right end
    return processor, (base if use_8bit else base.to(device)).eval()


def _eight_bit() -> BitsAndBytesConfig:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError("8-bit loading needs bitsandbytes: pip install '.[gpu]'")
    return BitsAndBytesConfig(load_in_8bit=True)


def _explain(name: str, error: Exception) -> str:
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    names, text = {type(e).__name__ for e in chain}, " ".join(map(str, chain))
    if "GatedRepoError" in names or "gated repo" in text or "401 Client" in text or "403 Client" in text:
        return (
            f"{name} is gated. 1. Log in at huggingface.co and accept the terms on the page of {name} "
            "(Health AI Developer Foundations for MedGemma). 2. Run `hf auth login` with a read token, "
            "or set HF_TOKEN. 3. Run again."
        )
    if "Can't load" in text or "connect" in text.lower() or "offline" in text.lower():
        return (
            f"{name}: neither a local folder nor reachable on the hub ({error}). Without network, use "
            "a folder that holds the weights, or the stand-in models/medgemma-nano."
        )
    return f"{name}: {error}"


def attach_adapter(base, adapter: str | Path) -> PeftModel:
    """Put a LoRA adapter on a base model; the base's own weights stay as they are.

    Raises
    ------
    ModelError
        If the folder is not a complete adapter (names the missing file).
    """
    adapter = Path(adapter)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        if not (adapter / file).is_file():
            raise ModelError(f"{adapter}: {file} is missing; train first (`python -m medlib train`)")
    return PeftModel.from_pretrained(base, adapter, use_safetensors=True).eval()
