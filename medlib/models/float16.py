"""float16 for hardware without bfloat16 (T4, V100): matrix products in half precision, nothing else.

Gemma 3 was trained in bfloat16; its residual stream exceeds 65504, the largest float16 number, and
plain float16 gives nan (https://github.com/huggingface/transformers/issues/36822). Clipping what
overflows makes it finite but costs accuracy (https://github.com/huggingface/transformers/pull/36832).
Here norms, attention, residual stream and logits stay float32; only the weights of linear layers are
float16, and each row that meets them is scaled by a power of two to a length between 1 and 2.
Because a linear layer is linear, scaling back gives the same result, and by Cauchy-Schwarz no product
exceeds twice the length of a weight row: nothing can overflow, for activations up to 1e18. Gradients
take the same way back, so no loss scaling is needed.

Shown on the CPU against float32 (tests/models/test_loading.py); its speed on a T4 has not been measured.
"""

from __future__ import annotations

import torch
from torch import nn

#: Longest weight row whose product with a row shorter than 2 fits into float16.
LONGEST_ROW = torch.finfo(torch.float16).max / 2


def make_safe(model: nn.Module) -> nn.Module:
    """Turn a model whose weights were loaded as float16 into one that computes as said above, in place.

    Raises
    ------
    ValueError
        A weight is too large for float16; names the layer.
    """
    heads = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            dense = module.weight.is_floating_point()
            if dense and not (module.weight.float().norm(dim=1) < LONGEST_ROW).all():
                raise ValueError(f"{name}: its weights exceed float16; set dtype: float32")
            _become(module, _Linear)
        elif isinstance(module, nn.Embedding) and id(module.weight) in heads:  # tied to the output layer
            _become(module, _Embedding)
        else:
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                if tensor.is_floating_point():
                    tensor.data = tensor.data.float()
    return model


def _become(module: nn.Module, behaviour: type) -> None:
    kind = type(module)
    module.__class__ = type(f"Float16{kind.__name__}", (behaviour, kind), {})


class _Linear:
    bias: torch.Tensor | None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        product = _Product.apply(x.float(), self)
        return product if self.bias is None else product + self.bias.float()


class _Embedding:
    weight: torch.Tensor

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return nn.functional.embedding(ids, self.weight).float() * getattr(self, "scalar_embed_scale", 1.0)


class _Product(torch.autograd.Function):
    """x @ weight.T for a frozen weight; keeps no activations for the way back."""

    @staticmethod
    def forward(ctx, x, layer):
        ctx.layer = layer
        return scaled_product(x, dense_weight(layer).t())

    @staticmethod
    def backward(ctx, gradient):
        return scaled_product(gradient, dense_weight(ctx.layer)), None


def scaled_product(rows: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """rows (..., n) float32 times matrix (n, m) float16, float32 (..., m); cannot overflow."""
    length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    scale = torch.exp2(torch.floor(torch.log2(length))).masked_fill(length == 0, 1.0)
    return ((rows / scale).half() @ matrix).float() * scale


def dense_weight(layer: nn.Linear) -> torch.Tensor:
    """The float16 weight (outputs, inputs) of a linear layer, unpacked if it is kept in 4 bits."""
    state = getattr(layer.weight, "quant_state", None)
    if state is None:
        return layer.weight
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(layer.weight.data, state).half()
