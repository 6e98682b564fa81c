"""softmax(q·k)·v in the shape that the device's kernels compute fastest."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scaling: float | None,
    mask: torch.Tensor | None = None,
    is_causal: bool = False,
) -> torch.Tensor:
    """Compute softmax(q·k)·v over `[batch, heads, tokens, dim]`; several query heads may share one key head.

    scaling: of the scores, None for 1/sqrt(dim). mask: boolean or additive, as PyTorch takes it.
    """
    share = query.shape[1] // key.shape[1]
    if share > 1 and not _takes_shared_heads(query, value, mask):
        # Copied here, the keys of a prompt take as much memory as its queries. PyTorch would instead compute the whole
        # matrix of scores, `[heads, tokens, positions]` in fp32.
        key, value = key.repeat_interleave(share, dim=1), value.repeat_interleave(share, dim=1)
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=is_causal,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def attention_of_one(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, scaling: float | None, mask: torch.Tensor | None
) -> torch.Tensor:
    """Compute `attention` for one new token a row, in the faster of two ways."""
    compute = _grouped_attention if _groups_pay(query, key) else attention
    return compute(query, key, value, scaling=scaling, mask=mask)


def _groups_pay(query: torch.Tensor, keys: torch.Tensor) -> bool:
    """True if `_grouped_attention` is faster for one new token a row: on a GPU, and on a CPU for wide groups.

    On a CPU it takes 1.5 times as long with two query heads per key head, and two thirds of the time with seven.
    """
    queries_per_key = query.shape[1] // keys.shape[1]
    return queries_per_key > 1 if query.device.type != "cpu" else queries_per_key >= 4


def _grouped_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, scaling: float | None, mask: torch.Tensor | None
) -> torch.Tensor:
    """Compute `attention` for one token a row, with the heads that share a key head as the tokens of one head.

    They see the same positions, so only the shape differs, and every kernel accepts it. CUDA's fused kernels accept no
    mask together with shared keys: the keys would be copied for each head, in each layer of each step.
    """
    rows, _, _, dim = query.shape
    grouped = query.reshape(rows, key.shape[1], -1, dim)  # [rows, kv_heads, heads / kv_heads, dim]
    attended = F.scaled_dot_product_attention(grouped, key, value, attn_mask=mask, scale=scaling)
    return attended.flatten(1, 2).unsqueeze(2)


def _takes_shared_heads(query: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> bool:
    """True if a fused kernel of the device accepts fewer key heads than query heads: on CUDA the flash kernel only.

    Source: transformers.integrations.sdpa_attention.use_gqa_in_sdpa, and PyTorch's sdp_utils.cpp
    """
    if query.device.type == "cpu":
        return True
    return mask is None and query.dtype is not torch.float32 and query.shape[3] == value.shape[3] <= 256
