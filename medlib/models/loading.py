"""Loading: one path for the real MedGemma and for the stand-in, switched by the model's name."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
from pathlib import Path

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from transformers import (
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    AutoProcessor,
    BitsAndBytesConfig,
    TorchAoConfig,
)

from medlib.config import ModelError, RunConfig, hardware, path
from medlib.config.models import is_standin, locate
from medlib.models import features, float16, prompts
from medlib.models.verdict_model import VerdictModel
from medlib.models.weights import base_hash, file_hash, is_lfs_pointer, weights_hash

__all__ = [
    "base_hash",
    "file_hash",
    "is_standin",
    "load",
    "load_for",
    "load_processor",
    "locate",
    "model_kind",
    "model_label",
    "pick_device",
    "pick_dtype",
    "quantization_config",
    "reachable",
    "weights_hash",
]


def pick_device() -> torch.device:
    """cuda, mps or cpu, in this order of preference."""
    return torch.device(hardware.device())


def pick_dtype(device: torch.device, dtype: str = "auto") -> torch.dtype:
    """The number format asked for; auto: bfloat16 where the hardware has it, else float32."""
    if dtype != "auto":
        return getattr(torch, dtype)
    bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if bf16 else torch.float32


def reachable(model: str, timeout_s: float = 5) -> bool:
    """True for a folder, and for a hub model if the hub answers at once, even with a refusal."""
    if Path(name := locate(model)).is_dir():
        return True
    try:
        HfApi().model_info(name, timeout=timeout_s)
    except HfHubHTTPError:
        return True
    except Exception:  # whichever error the hub's HTTP client has for a host that does not answer
        return False
    return True


def load_processor(model: str, trust_remote_code: bool = False, **options):
    """Tokenizer and image processor alone, without the weights; ModelError as :func:`load`."""
    name = locate(model)
    _refuse_pointers(Path(name))
    try:
        processor = AutoProcessor.from_pretrained(name, trust_remote_code=trust_remote_code, **options)
    except (OSError, ValueError) as error:
        raise ModelError(_explain(name, error)) from error
    if not hasattr(processor, "image_processor"):
        raise ModelError(f"{name}: a model for text only, without an image processor; take one that reads images")
    if not (processor.chat_template or processor.tokenizer.chat_template):
        raise ModelError(
            f"{name}: no chat template, so it cannot be asked; take the instruction-tuned model (mostly named -it)"
        )
    processor.tokenizer.padding_side = "left"  # answers are appended and scored at the right end
    prompts.read_literally(processor.tokenizer)
    return processor


def load(
    model: str,
    use_8bit: bool = False,
    trust_remote_code: bool = False,
    *,
    dtype: str = "auto",
    quantization: str | None = None,
    attention: str = "sdpa",
    reward_head: bool = False,
) -> VerdictModel:
    """Load a base model with its processor, in evaluation mode on the best device.

    Parameters
    ----------
    dtype : auto, float32, bfloat16 or float16; Gemma 3 overflows in plain float16, so that one is
        `medlib.models.float16`
    quantization : None, "8bit", "4bit" (NF4) or "int8", of the decoder's linear layers; ``use_8bit``
        is the same as "8bit"
    attention : sdpa or eager; Gemma 3 has no flash_attention_2, which drops the mask of image tokens
    reward_head : a new head of one number in place of the one over words

    Returns
    -------
    VerdictModel
        Its network is a ``Gemma3ForConditionalGeneration`` for MedGemma and for the stand-in alike, or with
        a reward head a ``Gemma3ForSequenceClassification``.

    Raises
    ------
    ModelError
        Missing folder, gated or unreachable hub model, missing package, formats that do not go together.
    """
    name, device = locate(model), pick_device()
    if use_8bit and quantization not in (None, "8bit"):
        raise ModelError(f"use_8bit does not go with quantization: {quantization}; leave one of them out")
    quantization = quantization or ("8bit" if use_8bit else None)
    dtype = pick_dtype(device, dtype)
    if dtype == torch.float16 and quantization in ("8bit", "int8"):
        raise ModelError(
            f"dtype: float16 does not go with quantization: {quantization}; take 4bit, or dtype: float32"
        )
    options = {"quantization_config": quantization_config(quantization, dtype)} if quantization else {}
    options |= {"num_labels": 1} if reward_head else {}
    processor = load_processor(model, trust_remote_code)
    try:
        auto = AutoModelForSequenceClassification if reward_head else AutoModelForImageTextToText
        with _no_warning_of_a_new_head() if reward_head else contextlib.nullcontext():
            base = auto.from_pretrained(
                name,
                dtype=dtype,
                use_safetensors=True,
                attn_implementation=attention,
                trust_remote_code=trust_remote_code,
                **options,
            )
        if dtype == torch.float16:
            float16.make_safe(base)
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(_explain(name, error)) from error
    if quantization == "4bit":
        _keep_trainable(base)
    return VerdictModel(processor, (base if quantization in ("8bit", "4bit") else base.to(device)).eval())


def _no_warning_of_a_new_head():
    from trl.trainer.reward_trainer import suppress_seqcls_warning  # takes seconds, and only reward models need it

    return suppress_seqcls_warning()


def load_for(config: RunConfig, reward_head: bool = False) -> VerdictModel:
    """The base model as a configuration says; what it makes of images is kept beside the run, for all runs."""
    model = load(
        config.model,
        config.use_8bit,
        config.trust_remote_code,
        dtype=config.dtype,
        quantization=config.quantization,
        attention=config.attention,
        reward_head=reward_head,
    )
    if config.cache_image_features:
        folder = path(config.run_dir).parent / ".image_features"
        features.keep_on_disk(model.network, model.processor.image_processor, folder)
    return model


#: Left in full precision: the tower sees the finding, and the output layer is tied to the embeddings.
FULL_PRECISION = ["lm_head", "score", "model.vision_tower", "model.multi_modal_projector"]


def quantization_config(kind: str, dtype: torch.dtype):
    """How transformers is told to keep the decoder's weights in 8 or 4 bits.

    "8bit" is LLM.int8 (Dettmers 2022, arXiv:2208.07339), "4bit" NF4 with quantized constants (Dettmers
    2023, arXiv:2305.14314), "int8" torchao's weight-only format, for devices that bitsandbytes lacks.

    Raises
    ------
    ModelError
        The package is missing; says what to install, and what else there is.
    """
    package = "torchao" if kind == "int8" else "bitsandbytes"
    if importlib.util.find_spec(package) is None:
        other = "8bit or 4bit" if kind == "int8" else "int8 (torchao; the one to take on Apple's mps)"
        raise ModelError(f"quantization: {kind} needs {package}: pip install '.[gpu]'; or take {other}")
    if kind == "int8":
        from torchao.quantization import Int8WeightOnlyConfig

        return TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=FULL_PRECISION)
    # a line for every call: activations of 8-bit layers are rounded through float16, by design
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    if kind == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=FULL_PRECISION)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=FULL_PRECISION,
    )


def _keep_trainable(base) -> None:
    """On some CPUs the first evaluation would repack 4-bit weights for good and cut later gradients."""
    for module in base.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _explain(name: str, error: Exception) -> str:
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    names, text = {type(e).__name__ for e in chain}, " ".join(map(str, chain))
    if "GatedRepoError" in names or "gated repo" in text or "401 Client" in text or "403 Client" in text:
        return (
            f"{name} is gated. 1. Log in at huggingface.co and accept the terms on the page of {name} "
            "(Health AI Developer Foundations for MedGemma). 2. Run `hf auth login` with a read token, "
            "or set HF_TOKEN. 3. Run again."
        )
    if "Flash Attention" in text:
        return "attention: flash_attention_2 would drop Gemma 3's mask over image tokens; set attention: sdpa"
    if "Can't load" in text or "connect" in text.lower() or "offline" in text.lower():
        return (
            f"{name}: neither a local folder nor reachable on the hub ({error}). Without network, use "
            "a folder that holds the weights, or the stand-in models/medgemma-nano."
        )
    if isinstance(error, SafetensorError):
        return f"{name}: a file of weights is cut off or damaged ({error}); fetch it again"
    return f"{name}: {error}"


def _refuse_pointers(folder: Path) -> None:
    """ModelError for a folder that git-lfs has not filled."""
    for file in folder.iterdir() if folder.is_dir() else ():
        if file.is_file() and is_lfs_pointer(file):
            raise ModelError(f"{folder}: {file.name} is a git-lfs pointer; `git lfs pull` fetches the file")


def model_kind(model: str) -> str:
    """What a model is, as ``run.json`` says it."""
    return "stand-in, knows no medicine" if is_standin(model) else "published weights"


def model_label(config: RunConfig) -> str:
    """How figures and tables name the model; a stand-in is always called one."""
    kind = f" ({model_kind(config.model)})" if is_standin(config.model) else ""
    return f"{Path(config.model).name}{kind}"
