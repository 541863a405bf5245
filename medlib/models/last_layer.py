"""The decoder's last layer, computed only where its result is read: elsewhere keys and values suffice."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.gemma3.modeling_gemma3 import (
    Gemma3DecoderLayer,
    apply_rotary_pos_emb,
    eager_attention_forward,
)


def can_trim(model) -> bool:
    """False where something else stands around the last layer: FSDP, checkpointing, hooks, another model."""
    layers = getattr(model.get_decoder(), "layers", None) if hasattr(model, "get_decoder") else None
    if not layers or type(layers[-1]) is not Gemma3DecoderLayer:
        return False
    layer = layers[-1]
    hooks = (layer, layer.self_attn)
    plain = not any(m._forward_hooks or m._forward_pre_hooks or "forward" in m.__dict__ for m in hooks)
    return plain and not (layer.gradient_checkpointing and layer.training)


@contextlib.contextmanager
def read_at_the_end(model, keep: int) -> Iterator[None]:
    """Within, the decoder's last layer gives hidden states of the last ``keep`` positions alone.

    Use it with ``logits_to_keep=keep``. Results and gradients are equal: earlier positions of the last layer
    feed nothing but their keys and values, and these are made for all positions. Where `can_trim` says no,
    nothing changes.
    """
    if not can_trim(model):
        yield
        return
    layer = model.get_decoder().layers[-1]
    layer.forward = _trimmed(layer, keep)
    try:
        yield
    finally:
        del layer.forward


def _trimmed(layer: Gemma3DecoderLayer, keep: int):
    """`Gemma3DecoderLayer.forward` for the last ``keep`` positions."""
    whole, attention = layer.forward, layer.self_attn
    implementation = attention.config._attn_implementation
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)

    def forward(hidden_states, position_embeddings=None, attention_mask=None, cache=None, **options):
        if not (isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 4):
            # a mask left out means "causal", counted from the first query
            return whole(hidden_states, position_embeddings, attention_mask, cache=cache, **options)[:, -keep:]
        inputs, residual = layer.input_layernorm(hidden_states), hidden_states[:, -keep:]

        def heads(project, x):
            return project(x).view(*x.shape[:-1], -1, attention.head_dim).transpose(1, 2)

        query = attention.q_norm(heads(attention.q_proj, inputs[:, -keep:]))
        key, value = attention.k_norm(heads(attention.k_proj, inputs)), heads(attention.v_proj, inputs)
        query = apply_rotary_pos_emb(query, query, *(table[:, -keep:] for table in position_embeddings))[0]
        key = apply_rotary_pos_emb(key, key, *position_embeddings)[0]
        if cache is not None:
            key, value = cache.update(key, value, attention.layer_idx)
        options.pop("position_ids", None)
        mixed = attend(
            attention,
            query,
            key,
            value,
            attention_mask[..., -keep:, :],
            scaling=attention.scaling,
            dropout=attention.attention_dropout if attention.training else 0.0,
            sliding_window=attention.sliding_window,
            **options,
        )[0]
        mixed = attention.o_proj(mixed.reshape(*residual.shape[:-1], -1).contiguous())
        hidden = residual + layer.post_attention_layernorm(mixed)
        return hidden + layer.post_feedforward_layernorm(layer.mlp(layer.pre_feedforward_layernorm(hidden)))

    return forward
