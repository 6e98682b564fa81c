"""Faster matrix products on a CPU: the same nn.Linear through oneDNN, with packed weights.

PyTorch sends fp32 products to MKL, which does not use AVX-512 on AMD processors. There oneDNN's own kernels are about
twice as fast from a few tokens on; on Intel they are as fast. bf16 products go to oneDNN anyway, but with weights that
it must rearrange in each call.

oneDNN compiles and keeps a kernel for every number of rows: milliseconds and about a megabyte each, up to a thousand of
them. Real traffic has every number of rows, so rows are padded to a few dozen sizes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)

_DTYPES = (torch.float32, torch.bfloat16)

# Below this number of elements a plain fp32 weight is faster for a single row, and small enough to keep as well.
_KEEP_PLAIN = 1_000_000


class PackedLinear(torch.nn.Module):
    """An nn.Linear over packed weights, for inference."""

    def __init__(self, linear: torch.nn.Linear, *, shared: bool) -> None:
        """shared: the weight has other uses (tied embeddings), so packing it would only add a copy."""
        super().__init__()
        weight = linear.weight.detach()
        self._packed = weight if shared else _pack(weight)
        small = weight.numel() < _KEEP_PLAIN and weight.dtype is torch.float32
        self._plain = weight if shared or small else None
        self.weight = self._packed if self._plain is None else self._plain
        self.bias = None if linear.bias is None else linear.bias.detach()
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map `[..., in_features]` to `[..., out_features]`."""
        count = inputs.numel() // self.in_features
        if count == 1 and self._plain is not None:
            return F.linear(inputs, self._plain, self.bias)
        size = padded_rows(count)
        if size == count:
            return _product(inputs, self._packed, self.bias)
        rows = F.pad(inputs.reshape(count, self.in_features), (0, 0, 0, size - count))
        product = _product(rows, self._packed, self.bias)[:count]
        return product.view(*inputs.shape[:-1], self.out_features)


def padded_rows(count: int) -> int:
    """Return the size that `count` rows are padded to: 33 sizes up to 1,024 rows, 8 for each doubling beyond.

    The padding is at most 7 rows or a quarter.
    """
    if count == 1:
        return 1
    step = 8 if count <= 64 else 16 if count <= 256 else 64 if count <= 1024 else 1 << (count.bit_length() - 4)
    return -(-count // step) * step


def pack_linears(model: torch.nn.Module) -> int:
    """Replace the nn.Linear modules of a model on a CPU. Returns their number; 0 if this PyTorch cannot."""
    dtypes = [dtype for dtype in _DTYPES if _works(dtype)]
    replaced = 0
    uses: dict[int, int] = {}
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, torch.Tensor):
            uses[id(weight)] = uses.get(id(weight), 0) + 1
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is torch.nn.Linear and child.weight.dtype in dtypes:
                setattr(parent, name, PackedLinear(child, shared=uses[id(child.weight)] > 1))
                replaced += 1
    return replaced


def _pack(weight: torch.Tensor) -> torch.Tensor:
    operators: Any = torch.ops.mkldnn
    packed: torch.Tensor = operators._reorder_linear_weight(weight, None)
    return packed


def _product(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    operators: Any = torch.ops.mkldnn
    product: torch.Tensor = operators._linear_pointwise(inputs, weight, bias, "none", [], "")
    return product


def _works(dtype: torch.dtype) -> bool:
    """True if this build has the operators, which are private to PyTorch, and if they compute correctly."""
    mkldnn: Any = torch.backends.mkldnn
    if not mkldnn.is_available():
        return False
    inputs, weight, bias = (torch.randn(shape).to(dtype) for shape in ((4, 16), (8, 16), (8,)))
    try:
        product = _product(inputs, _pack(weight), bias)
    except (AttributeError, RuntimeError, TypeError):  # removed, changed, or not on this processor
        return False
    return torch.allclose(product, F.linear(inputs, weight, bias), atol=1e-4 if dtype is torch.float32 else 0.2)
