"""Choosing the next token from logits, the same way for every step engine that holds its logits in torch tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from muai_lab.engines.base import Sampling


@dataclass(slots=True)
class _SlotState:
    sampling: Sampling
    random: np.random.Generator | None  # None: greedy, draws nothing


class SlotSampler:
    """Sampling state per slot.

    Each slot draws its own uniform numbers, one a token, from its own seeded generator (Philox); the token is the
    inverse of the cumulative distribution at that number. So a seed gives the same tokens whatever else is in the batch.
    """

    def __init__(self) -> None:
        self._states: dict[int, _SlotState] = {}

    def open(self, slot: int, sampling: Sampling) -> None:
        """Begin a sequence in `slot`."""
        greedy = sampling.temperature <= 0.0
        random = None if greedy else np.random.Generator(np.random.Philox(sampling.seed))
        self._states[slot] = _SlotState(sampling, random)

    def release(self, slot: int) -> None:
        """Forget the slot's state; an unknown slot is ignored."""
        self._states.pop(slot, None)

    def choose(self, logits: torch.Tensor, slots: Sequence[int]) -> list[int]:
        """One token id for each row of `logits` [rows, vocabulary]; row i belongs to `slots[i]`."""
        tokens: list[int] = logits.argmax(dim=-1).tolist()
        drawn = [row for row, slot in enumerate(slots) if self._states[slot].random is not None]
        if drawn:
            rows = logits if len(drawn) == len(tokens) else logits[drawn]
            states = [self._states[slots[row]] for row in drawn]
            for row, token in zip(drawn, _draw(rows.float(), states), strict=True):
                tokens[row] = token
        return tokens


def _draw(logits: torch.Tensor, states: Sequence[_SlotState]) -> list[int]:
    """Temperature, then top-k, then top-p (nucleus, Holtzman et al. 2019), then inverse-CDF sampling."""
    device = logits.device
    temperature = torch.tensor([state.sampling.temperature for state in states], device=device).unsqueeze(1)
    # A stable sort keeps ties in token order, so that equal logits give equal samples on every device.
    ordered, order = (logits / temperature).sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.softmax(dim=-1)
    rank = torch.arange(logits.shape[1], device=device)
    vocabulary = logits.shape[1]
    top_k = torch.tensor([state.sampling.top_k or vocabulary for state in states], device=device).unsqueeze(1)
    probabilities = probabilities.masked_fill(rank >= top_k, 0.0)
    probabilities /= probabilities.sum(dim=-1, keepdim=True)
    top_p = torch.tensor([state.sampling.top_p for state in states], device=device).unsqueeze(1)
    # A token stays if the tokens before it have not yet reached top_p: the one that crosses the line is kept.
    before = probabilities.cumsum(dim=-1) - probabilities
    kept = probabilities.masked_fill((before >= top_p) & (rank > 0), 0.0)
    cumulative = kept.double().cumsum(dim=-1)
    uniform = [state.random.random() for state in states if state.random is not None]
    target = torch.tensor(uniform, dtype=torch.float64, device=device).unsqueeze(1) * cumulative[:, -1:]
    # The first rank whose cumulative probability exceeds the target; never one of probability zero behind the nucleus.
    last = (kept > 0).sum(dim=-1, keepdim=True) - 1
    chosen = torch.searchsorted(cumulative, target, right=True).minimum(last)
    tokens: list[int] = order.gather(1, chosen).squeeze(1).tolist()
    return tokens
