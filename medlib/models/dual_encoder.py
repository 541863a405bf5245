"""BiomedCLIP in the classes of transformers: images and sentences as vectors of one space.

The published model (Zhang et al., 2023, arXiv:2303.00915) is an open_clip checkpoint: a timm ViT-B/16
and PubMedBERT, each summed up by its first token and projected to 512 numbers. open_clip needs
torchvision; here the same weights live in `VisionTextDualEncoderModel`, through a small key map.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import snapshot_download
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    VisionTextDualEncoderProcessor,
    ViTConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from medlib.config import ModelError
from medlib.models.loading import locate, pick_device

CONTEXT_LENGTH = 256  # tokens
HEAD_SIZE = 64  # of every ViT-S/B/L in timm and of BERT; the weights themselves do not tell
OPEN_CLIP_CONFIG = "open_clip_config.json"
OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")

#: open_clip's names -> ours; the fused q, k, v of timm are split in `key_map`.
RENAMES = (
    (r"visual\.trunk\.cls_token", "vision_model.embeddings.cls_token"),
    (r"visual\.trunk\.pos_embed", "vision_model.embeddings.position_embeddings"),
    (r"visual\.trunk\.patch_embed\.proj\.", "vision_model.embeddings.patch_embeddings.projection."),
    (r"visual\.trunk\.blocks\.(\d+)\.norm1\.", r"vision_model.layers.\1.layernorm_before."),
    (r"visual\.trunk\.blocks\.(\d+)\.norm2\.", r"vision_model.layers.\1.layernorm_after."),
    (r"visual\.trunk\.blocks\.(\d+)\.attn\.proj\.", r"vision_model.layers.\1.attention.o_proj."),
    (r"visual\.trunk\.blocks\.(\d+)\.mlp\.", r"vision_model.layers.\1.mlp."),
    (r"visual\.trunk\.norm\.", "vision_model.layernorm."),
    (r"visual\.head\.proj\.", "visual_projection."),
    (r"text\.transformer\.", "text_model."),
    (r"text\.proj\.", "text_projection."),
)
FUSED = re.compile(r"visual\.trunk\.blocks\.(\d+)\.attn\.qkv\.(weight|bias)")
#: What old checkpoints hold and open_clip ignores.
UNUSED = re.compile(r"text\.transformer\.(embeddings\.position_ids|pooler\..*)")

CONVERT = """\
{model}: no {weights} in the open_clip folder. The published open_clip_pytorch_model.bin is a pickle,
which can run code as it loads; only safetensors are read here. Convert it once yourself:
{download}  python - <<'END'
  import torch
  from safetensors.torch import save_file
  weights = torch.load("{folder}/open_clip_pytorch_model.bin", map_location="cpu", weights_only=True)
  save_file({{name: tensor.clone() for name, tensor in weights.items()}}, "{folder}/{weights}")
  END
then give the folder {folder} as the model."""


# --- the model ------------------------------------------------------------------------------------


class FirstToken(torch.nn.Module):
    """The first token as it is, where ViT and BERT would put one more dense layer."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(n, tokens, width) -> (n, width)."""
        return hidden_states[:, 0]


class BiomedCLIP(VisionTextDualEncoderModel):
    """Dual encoder with BiomedCLIP's pooling (first token) and text projection (two layers).

    The parent's ``forward``, ``get_image_features`` and ``get_text_features`` do the rest.

    References
    ----------
    open_clip, ``TimmModel`` and ``HFTextEncoder`` with ``cls_last_hidden_state_pooler``.
    """

    def __init__(self, config: VisionTextDualEncoderConfig) -> None:
        vision = AutoModel.from_config(config.vision_config, add_pooling_layer=False)
        text = AutoModel.from_config(config.text_config, add_pooling_layer=False)
        super().__init__(config, vision, text)
        self.vision_model.pooler, self.text_model.pooler = FirstToken(), FirstToken()
        middle = (self.text_embed_dim + self.projection_dim) // 2
        self.text_projection = torch.nn.Sequential(
            torch.nn.Linear(self.text_embed_dim, middle, bias=False),
            torch.nn.GELU(),
            torch.nn.Linear(middle, self.projection_dim, bias=False),
        )


@torch.inference_mode()
def embed_images(processor, model, images: Iterable[Image.Image], batch_size: int = 64):
    """Unit vectors of RGB images, float32 array (n, projection); a generator will do."""
    vectors, images = [np.empty((0, model.projection_dim), np.float32)], iter(images)
    while batch := list(islice(images, batch_size)):
        pixels = processor.image_processor(batch, return_tensors="pt")["pixel_values"]
        vectors.append(_unit(model.get_image_features(pixels.to(model.device))))
    return np.concatenate(vectors)


@torch.inference_mode()
def embed_texts(processor, model, texts: Sequence[str], batch_size: int = 128) -> np.ndarray:
    """Unit vectors of sentences, float32 array (n, projection); equal ones are encoded once."""
    distinct = sorted(set(texts), key=lambda text: (len(text), text))  # equal lengths: little padding
    vectors: dict[str, np.ndarray] = {}
    for start in range(0, len(distinct), batch_size):
        part = distinct[start : start + batch_size]
        tokens = processor.tokenizer(
            part,
            padding=True,
            truncation=True,
            max_length=CONTEXT_LENGTH,
            split_special_tokens=True,  # "[SEP]" in a note is text
            return_tensors="pt",
        ).to(model.device)
        vectors |= zip(part, _unit(model.get_text_features(**tokens)))
    rows = [vectors[text] for text in texts]
    return np.array(rows, np.float32).reshape(len(rows), model.projection_dim)


def _unit(features) -> np.ndarray:
    return torch.nn.functional.normalize(features.pooler_output.float(), dim=-1).cpu().numpy()


# --- loading --------------------------------------------------------------------------------------


def load(model: str, trust_remote_code: bool = False):
    """Load a dual encoder, in evaluation mode on the best device.

    Parameters
    ----------
    model : str
        Folder of this repository, folder anywhere, or hub name; in transformers' format or in
        open_clip's (``open_clip_config.json`` and safetensors).
    trust_remote_code : bool
        Let a hub tokenizer run its own code.

    Returns
    -------
    processor : VisionTextDualEncoderProcessor
    encoder : BiomedCLIP

    Raises
    ------
    ModelError
        Missing or unreachable model, only pickled weights, weights that do not fit; says what to do.
    """
    folder = _folder(model)
    options = {"trust_remote_code": trust_remote_code}
    if (folder / OPEN_CLIP_CONFIG).is_file():
        processor, encoder = _load_open_clip(model, folder, options)
    else:
        try:
            image_processor = CLIPImageProcessorPil.from_pretrained(folder)
            tokenizer = AutoTokenizer.from_pretrained(folder, **options)
            encoder = BiomedCLIP.from_pretrained(folder, use_safetensors=True)
        except (OSError, ValueError) as error:
            reason = f"{model}: not a complete dual encoder in transformers' format ({error})"
            raise ModelError(reason) from error
        processor = VisionTextDualEncoderProcessor(image_processor, tokenizer)
    return processor, encoder.to(pick_device()).eval()


def _folder(model: str) -> Path:
    """The model's folder; a hub model is fetched, without any pickle it may hold."""
    folder = Path(locate(model))
    if folder.is_dir():
        return folder
    try:
        return Path(snapshot_download(model, allow_patterns=["*.json", "*.safetensors", "vocab.txt"]))
    except Exception as error:  # the hub client and its transport raise many types
        raise ModelError(
            f"{model}: neither a local folder nor reachable on the hub ({type(error).__name__}: "
            f"{error}). Without network, give a folder that holds the weights, or the stand-in "
            "models/biomedclip-nano."
        ) from error


def fingerprint(model: str) -> str:
    """SHA-256 over the model's files: weights, settings, tokenizer; ModelError if it cannot be had."""
    digest = hashlib.sha256()
    for file in sorted(_folder(model).iterdir()):
        if file.suffix in (".json", ".safetensors", ".txt"):
            digest.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _load_open_clip(model: str, folder: Path, options: dict):
    settings = json.loads((folder / OPEN_CLIP_CONFIG).read_text())
    text = settings["model_cfg"]["text_cfg"]
    check_open_clip(model, settings)
    file = next((folder / name for name in OPEN_CLIP_WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        local = Path(locate(model)).is_dir()
        download = "" if local else f"  hf download {model} --local-dir biomedclip\n"
        raise ModelError(
            CONVERT.format(
                model=model,
                weights=OPEN_CLIP_WEIGHTS[0],
                download=download,
                folder=folder if local else "biomedclip",
            )
        )
    weights = load_file(file)
    try:
        encoder = BiomedCLIP(config_of(weights))
        encoder.load_state_dict(key_map(weights))
    except (KeyError, RuntimeError) as error:
        raise ModelError(f"{file}: not BiomedCLIP's layout of weights ({error})") from error
    own = any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt"))
    name = folder if own else text["hf_tokenizer_name"]
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{model}: no tokenizer in {folder} and {name} not found ({error}); "
            "put tokenizer.json or vocab.txt beside the weights"
        ) from error
    return VisionTextDualEncoderProcessor(_image_processor(settings, encoder), tokenizer), encoder


def check_open_clip(model: str, settings: dict) -> None:
    """Refuse what the weights' shapes cannot tell: another pooling, another way to resize."""
    vision, text = (settings["model_cfg"][side] for side in ("vision_cfg", "text_cfg"))
    resize = settings.get("preprocess_cfg", {}).get("resize_mode", "shortest")
    facts = {
        "vision_cfg.timm_pool": (vision.get("timm_pool", "avg"), ("", "token")),
        "text_cfg.hf_pooler_type": (
            text.get("hf_pooler_type", text.get("pooler_type")),
            ("cls_last_hidden_state_pooler",),
        ),
        "preprocess_cfg.resize_mode": (resize, ("shortest",)),
    }
    for field, (value, known) in facts.items():
        if value not in known:
            raise ModelError(
                f"{model}, {OPEN_CLIP_CONFIG}, field '{field}': {value!r} is not "
                f"supported; it must be {' or '.join(map(repr, known))}, as in BiomedCLIP"
            )


def config_of(weights: dict[str, torch.Tensor]) -> VisionTextDualEncoderConfig:
    """The sizes, read off the shapes of an open_clip checkpoint (heads of 64)."""
    trunk, bert = "visual.trunk.", "text.transformer."
    width, _, patch, _ = weights[f"{trunk}patch_embed.proj.weight"].shape
    side = round((weights[f"{trunk}pos_embed"].shape[1] - 1) ** 0.5)  # one position is the class token's
    vocabulary, text_width = weights[f"{bert}embeddings.word_embeddings.weight"].shape
    vision = ViTConfig(
        hidden_size=width,
        num_hidden_layers=_count(weights, rf"{trunk}blocks"),
        num_attention_heads=width // HEAD_SIZE,
        patch_size=patch,
        image_size=side * patch,
        intermediate_size=len(weights[f"{trunk}blocks.0.mlp.fc1.weight"]),
        layer_norm_eps=1e-6,  # timm's
    )
    text = BertConfig(
        vocab_size=vocabulary,
        hidden_size=text_width,
        num_attention_heads=text_width // HEAD_SIZE,
        num_hidden_layers=_count(weights, rf"{bert}encoder.layer"),
        intermediate_size=len(weights[f"{bert}encoder.layer.0.intermediate.dense.weight"]),
        max_position_embeddings=len(weights[f"{bert}embeddings.position_embeddings.weight"]),
    )
    projection = len(weights["visual.head.proj.weight"])
    return VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=projection)


def _count(weights: dict, prefix: str) -> int:
    numbers = [re.match(rf"{prefix}\.(\d+)\.", name) for name in weights]
    return 1 + max(int(match[1]) for match in numbers if match)


def key_map(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """An open_clip checkpoint of BiomedCLIP under the names of `BiomedCLIP`.

    timm keeps queries, keys and values of a block as the three thirds of one matrix, in this order.
    """
    mapped = {}
    for name, tensor in weights.items():
        if UNUSED.fullmatch(name):
            continue
        if fused := FUSED.fullmatch(name):
            for part, third in zip("qkv", tensor.chunk(3)):
                mapped[f"vision_model.layers.{fused[1]}.attention.{part}_proj.{fused[2]}"] = third
            continue
        for pattern, replacement in RENAMES:
            name, count = re.subn(f"^{pattern}", replacement, name)
            if count:
                break
        mapped[name] = tensor
    return mapped


def _image_processor(settings: dict, encoder: BiomedCLIP) -> CLIPImageProcessorPil:
    """Shortest side to the encoder's size, centre crop, normalisation: as open_clip, with PIL."""
    facts, size = settings.get("preprocess_cfg", {}), encoder.config.vision_config.image_size
    # without them the processor's own default, CLIP's mean and deviation, is open_clip's as well
    statistics = {f"image_{name}": list(facts[name]) for name in ("mean", "std") if name in facts}
    return CLIPImageProcessorPil(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        resample=Image.Resampling[facts.get("interpolation", "bicubic").upper()],
        **statistics,
    )
