"""Faster fp32 matrix products on a CPU: the same nn.Linear through oneDNN, with the weights packed for it.

PyTorch sends fp32 products to MKL, which does without AVX-512 on AMD processors. oneDNN's own kernels reach about twice
the speed there from a handful of tokens on, and lose nothing on Intel. `benchmarks/stack_throughput.py` shows it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)

# Below this many elements a plain weight is faster for a single token, and small enough to be kept beside the packed.
_KEEP_PLAIN = 1_000_000


class PackedLinear(torch.nn.Module):
    """An nn.Linear over packed weights, for inference."""

    def __init__(self, linear: torch.nn.Linear, *, shared: bool) -> None:
        """shared: the weight is used elsewhere too (tied embeddings), so packing it would only add a copy."""
        super().__init__()
        weight = linear.weight.detach()
        self._packed = weight if shared else _pack(weight)
        plain = weight if shared or weight.numel() < _KEEP_PLAIN else None
        self.weight = self._packed if plain is None else plain
        self._plain = plain
        self.bias = None if linear.bias is None else linear.bias.detach()
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """`[..., in_features]` to `[..., out_features]`."""
        if self._plain is not None and inputs.numel() == self.in_features:
            return F.linear(inputs, self._plain, self.bias)
        return _product(inputs, self._packed, self.bias)


def pack_linears(model: torch.nn.Module) -> int:
    """Replace the nn.Linear modules of an fp32 model on a CPU; returns how many (0: this PyTorch cannot)."""
    if not _works():
        return 0
    replaced = 0
    uses: dict[int, int] = {}
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, torch.Tensor):
            uses[id(weight)] = uses.get(id(weight), 0) + 1
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is torch.nn.Linear and child.weight.dtype is torch.float32:
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


def _works() -> bool:
    """Whether this build has the operators (they are private to PyTorch, used by its compiler) and they are right."""
    mkldnn: Any = torch.backends.mkldnn
    if not mkldnn.is_available():
        return False
    inputs, weight, bias = torch.randn(4, 16), torch.randn(8, 16), torch.randn(8)
    try:
        product = _product(inputs, _pack(weight), bias)
    except (AttributeError, RuntimeError, TypeError):  # gone, or asked for otherwise, in another version
        return False
    return torch.allclose(product, F.linear(inputs, weight, bias), atol=1e-4)
