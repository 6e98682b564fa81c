"""Choosing the next token from logits, the same way for every step engine that holds its logits in torch tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from muai_lab.engines.base import Sampling, SlotFaults

_COLDEST = 1e-30  # temperature below which fp32 would divide by 0
_HEAD = 256  # tokens that are sorted at first


@dataclass(slots=True)
class _SlotState:
    sampling: Sampling
    random: np.random.Generator | None  # None: greedy, draws nothing


class SlotSampler:
    """Sampling state per slot.

    Each slot draws its own uniform numbers, one a token, from its own seeded generator (Philox); the token is the
    inverse of the cumulative distribution at it. So a seed gives the same tokens whatever else is in the batch.
    """

    def __init__(self) -> None:
        self._states: dict[int, _SlotState] = {}

    def open(self, slot: int, sampling: Sampling, *, drawn: int = 0) -> None:
        """Begin a sequence in `slot`. drawn: tokens that it drew before it lost an earlier slot."""
        random = None
        if sampling.temperature > 0.0:
            random = np.random.Generator(np.random.Philox(_entropy(sampling.seed)))
            random.random(drawn)
        self._states[slot] = _SlotState(sampling, random)

    def release(self, slot: int) -> None:
        """Forget the slot's state; an unknown slot is ignored."""
        self._states.pop(slot, None)

    def choose(self, logits: torch.Tensor, slots: Sequence[int]) -> list[int]:
        """One token id for each row of `logits` [rows, vocabulary]; row i belongs to `slots[i]`.

        Raises SlotFaults if the tokens of some rows cannot be drawn.
        """
        states = [self._states[slot] for slot in slots]
        drawn = [row for row, state in enumerate(states) if state.random is not None]
        tokens: list[int] = logits.argmax(dim=-1).tolist() if len(drawn) < len(states) else [0] * len(states)
        if not drawn:
            return tokens
        drawing = [states[row] for row in drawn]
        rows = logits.float() if len(drawn) == len(states) else logits[drawn].float()
        uniform = [state.random.random() for state in drawing if state.random is not None]
        faults: dict[int, Exception] = {}
        try:
            found = _draw(rows, drawing, uniform)
        except Exception as error:
            found, faults = _draw_each(rows, drawing, uniform)
            if len(faults) == len(drawn):
                raise error
        for row, token in zip(drawn, found, strict=True):
            tokens[row] = token
        if faults:
            failed = {slots[drawn[at]]: error for at, error in faults.items()}
            raise SlotFaults({slot: tokens[row] for row, slot in enumerate(slots) if slot not in failed}, failed)
        return tokens


def _entropy(seed: int | None) -> int | None:
    """Any integer is a seed, negative ones too (OpenAI's API allows them); None draws fresh entropy."""
    return None if seed is None else seed % 2**64


def _draw_each(
    logits: torch.Tensor, states: Sequence[_SlotState], uniform: Sequence[float]
) -> tuple[list[int], dict[int, Exception]]:
    """The same row by row: the tokens, and what rows ran into for which there is none (0 stands in their place)."""
    tokens, faults = [0] * len(states), {}
    for row, state in enumerate(states):
        try:
            (tokens[row],) = _draw(logits[row : row + 1], [state], uniform[row : row + 1])
        except Exception as error:  # noqa: BLE001 - told to the caller
            faults[row] = error
    return tokens, faults


def _draw(logits: torch.Tensor, states: Sequence[_SlotState], uniform: Sequence[float]) -> list[int]:
    """One token a row: temperature, then top-k, then top-p (nucleus, Holtzman et al. 2019), then inverse CDF.

    The CDF runs over tokens from the likeliest down: small differences of logits, as another batch makes them, then
    hardly ever change the token. Sorting a whole vocabulary would take longer than the model, so the likeliest tokens
    are tried first, and the rest is sorted only for rows that need it. uniform: each row's number in [0, 1).
    """
    rules = _Rules.of(states, uniform, logits)
    tokens, decided = _pick(logits, rules, head=min(_HEAD, logits.shape[1]))
    open_rows = (~decided).nonzero().squeeze(1)
    if len(open_rows):
        tokens[open_rows], _ = _pick(logits[open_rows], rules.rows(open_rows), head=logits.shape[1])
    drawn: list[int] = tokens.tolist()
    return drawn


@dataclass(frozen=True, slots=True)
class _Rules:
    """What applies to each row, as columns `[rows, 1]`; `uniform` is the row's random number in [0, 1)."""

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    uniform: torch.Tensor

    @classmethod
    def of(cls, states: Sequence[_SlotState], uniform: Sequence[float], logits: torch.Tensor) -> _Rules:
        numbers = [
            [max(state.sampling.temperature, _COLDEST) for state in states],
            [float(_kept(state.sampling.top_k, logits.shape[1])) for state in states],  # exact: fp64 counts to 2^53
            [state.sampling.top_p for state in states],
            uniform,
        ]
        # One copy to the device: each waits there for the step whose logits these are.
        columns = torch.tensor(numbers, dtype=torch.float64).to(logits.device).unsqueeze(2)
        return cls(*columns)

    def rows(self, index: torch.Tensor) -> _Rules:
        return _Rules(self.temperature[index], self.top_k[index], self.top_p[index], self.uniform[index])


def _kept(top_k: int, vocabulary: int) -> int:
    """Number of tokens that `top_k` keeps; any integer may be asked for, and more than a tensor can hold."""
    return min(top_k, vocabulary) if top_k > 0 else vocabulary


def _likeliest(logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` largest logits of each row, largest first, and their tokens.

    On a CPU the order of equal ones depends on the row alone. On a GPU it depends on the kernel, which depends on the
    number of rows, and 16-bit logits are often equal: there they come in the order of tokens, or else a seed would give
    other tokens in other company.
    """
    if logits.device.type == "cpu":
        largest = logits.topk(count)
        return largest.values, largest.indices
    return _in_order_of_tokens(logits, logits.topk(count).indices)


def _in_order_of_tokens(logits: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of these tokens `[rows, count]`, largest first, equal ones in the order of tokens; and the tokens."""
    tokens = tokens.sort(dim=-1).values
    ordered, places = logits.gather(1, tokens).sort(dim=-1, descending=True, stable=True)
    return ordered, tokens.gather(1, places)


def _pick(logits: torch.Tensor, rules: _Rules, *, head: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token of each row `[rows]`, and whether the `head` likeliest tokens were enough to tell it `[rows]`."""
    whole = head == logits.shape[1]
    # A stable sort keeps ties in the order of tokens.
    ordered, order = logits.sort(dim=-1, descending=True, stable=True) if whole else _likeliest(logits, head)
    # Less the largest first: a tiny temperature then ends in argmax, not in inf / inf.
    weights = ((ordered.double() - ordered[:, :1]) / rules.temperature).exp()
    rank = torch.arange(head, device=logits.device)
    weights = weights.masked_fill(rank >= rules.top_k, 0.0)
    complete = torch.full_like(rules.top_k, whole, dtype=torch.bool) | (rules.top_k <= head)
    total = weights.sum(dim=-1, keepdim=True)
    if not whole:
        everything = ((logits - ordered[:, :1]) / rules.temperature.float()).exp().sum(dim=-1, keepdim=True).double()
        total = torch.where(complete, total, everything)
    probabilities = weights / total
    # A token stays if the tokens before it have not yet reached top_p: the one that crosses the line is kept.
    before = probabilities.cumsum(dim=-1) - probabilities
    kept = probabilities.masked_fill((before >= rules.top_p) & (rank > 0), 0.0)
    cumulative = kept.cumsum(dim=-1)
    known = cumulative[:, -1:]
    closed = complete | ((rules.top_p < 1) & (known >= rules.top_p))
    target = rules.uniform * torch.where(closed, known, 1.0)
    decided = closed | ((rules.top_p >= 1) & (target < known))
    # The first rank whose cumulative probability exceeds the target; never one of probability zero behind the nucleus.
    last = ((kept > 0).sum(dim=-1, keepdim=True) - 1).clamp_min(0)
    chosen = torch.searchsorted(cumulative, target, right=True).minimum(last)
    if not whole:
        # Tokens as likely as the last of the head may be in it or not: which of them it is, only a whole sort can tell.
        # So it is with the probability of all that a top_k beyond the head keeps.
        decided &= ordered.gather(1, chosen) > ordered[:, -1:]
        decided &= complete | (rules.top_k >= logits.shape[1])
    return order.gather(1, chosen).squeeze(1), decided.squeeze(1)
