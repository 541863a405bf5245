"""Several continuations of one prompt in one row, none of which sees another."""

from __future__ import annotations

import torch


def image_of(types: torch.Tensor) -> torch.Tensor:
    """Number of the image that a token belongs to; -1 for words. int64 tensors (n, tokens)."""
    image = types == 1
    starts = image & ~torch.nn.functional.pad(image, (1, 0))[:, :-1]
    return torch.where(image, starts.cumsum(1), -1)


def masks(model, part: torch.Tensor, position: torch.Tensor, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gemma 3's two attention masks: tokens of an image see each other both ways.

    Parameters
    ----------
    part : -1 for padding, which only padding sees; 0 for the prompt, which all see; k for continuation k
    position : places in the text
    images : from `image_of`
    """
    visible = (part[:, :, None] == part[:, None]) | ((part[:, None] == 0) & (part[:, :, None] > 0))
    distance = position[:, :, None] - position[:, None]
    image = (images[:, :, None] == images[:, None]) & (images[:, None] >= 0)
    near = distance < model.config.get_text_config().sliding_window
    full = visible & ((distance >= 0) | image)
    masks = {"full_attention": full, "sliding_attention": visible & (((distance >= 0) & near) | image)}
    if model.config.get_text_config()._attn_implementation != "eager":
        return {kind: seen[:, None] for kind, seen in masks.items()}
    dtype = model.get_input_embeddings().weight.dtype  # eager attention adds its mask to the scores
    return {
        kind: torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)[:, None]
        for kind, seen in masks.items()
    }
