"""The choice of the next token from logits, the same for every step engine that has its logits in torch tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from muai_lab.engines.base import Sampling, SlotFaults

_COLDEST = 1e-30  # temperature below which fp32 would divide by 0
_HEAD = 256  # tokens that are sorted first


@dataclass(slots=True)
class _SlotState:
    sampling: Sampling
    random: np.random.Generator | None  # None: greedy, draws nothing


class SlotSampler:
    """Sampling state per slot.

    Each slot draws one uniform number per token from its own seeded generator (Philox). The token is the inverse of the
    cumulative distribution at that number. So a seed gives the same tokens in any batch.
    """

    def __init__(self) -> None:
        self._states: dict[int, _SlotState] = {}

    def open(self, slot: int, sampling: Sampling, *, drawn: int = 0) -> None:
        """Begin a sequence in `slot`. drawn: tokens that it had drawn when it lost an earlier slot."""
        random = None
        if sampling.temperature > 0.0:
            random = np.random.Generator(np.random.Philox(_entropy(sampling.seed)))
            random.random(drawn)
        self._states[slot] = _SlotState(sampling, random)

    def release(self, slot: int) -> None:
        """Drop the slot's state; an unknown slot is ignored."""
        self._states.pop(slot, None)

    def choose(self, logits: torch.Tensor, slots: Sequence[int]) -> list[int]:
        """Choose one token id for each row of `logits` [rows, vocabulary]; row i belongs to `slots[i]`.

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
    """Return the generator's seed: OpenAI's API also allows negative integers. None draws fresh entropy."""
    return None if seed is None else seed % 2**64


def _draw_each(
    logits: torch.Tensor, states: Sequence[_SlotState], uniform: Sequence[float]
) -> tuple[list[int], dict[int, Exception]]:
    """Draw row by row. Returns the tokens (0 for a failed row), and the errors by row."""
    tokens, faults = [0] * len(states), {}
    for row, state in enumerate(states):
        try:
            (tokens[row],) = _draw(logits[row : row + 1], [state], uniform[row : row + 1])
        except Exception as error:  # noqa: BLE001 - the caller gets it
            faults[row] = error
    return tokens, faults


def _draw(logits: torch.Tensor, states: Sequence[_SlotState], uniform: Sequence[float]) -> list[int]:
    """Draw one token per row: temperature, top-k, top-p (nucleus, Holtzman et al. 2019), then the inverse CDF.

    The CDF runs over tokens from the likeliest down, so the small differences of logits in another batch hardly ever
    change the token. Sorting the whole vocabulary would take longer than the model. So the likeliest tokens are tried
    first, and the rest is sorted only for rows that need it. uniform: each row's number in [0, 1).
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
    """The sampling rules of each row, as columns `[rows, 1]`; `uniform` is the row's random number in [0, 1)."""

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
        # One copy to the device: each copy waits there for the step that computes these logits.
        columns = torch.tensor(numbers, dtype=torch.float64).to(logits.device).unsqueeze(2)
        return cls(*columns)

    def rows(self, index: torch.Tensor) -> _Rules:
        return _Rules(self.temperature[index], self.top_k[index], self.top_p[index], self.uniform[index])


def _kept(top_k: int, vocabulary: int) -> int:
    """Return the number of tokens that `top_k` keeps; it may be any integer, even one that no tensor can hold."""
    return min(top_k, vocabulary) if top_k > 0 else vocabulary


def _likeliest(logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the `count` largest logits of each row, largest first, and their tokens.

    On a CPU the order of equal logits depends on the row alone. On a GPU it depends on the kernel, and so on the number
    of rows, and 16-bit logits are often equal. There equal logits are put in the order of tokens; else a seed would
    give other tokens in another batch.
    """
    if logits.device.type == "cpu":
        largest = logits.topk(count)
        return largest.values, largest.indices
    return _in_order_of_tokens(logits, logits.topk(count).indices)


def _in_order_of_tokens(logits: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits of these tokens `[rows, count]`, largest first, equal ones by token; and the tokens."""
    tokens = tokens.sort(dim=-1).values
    ordered, places = logits.gather(1, tokens).sort(dim=-1, descending=True, stable=True)
    return ordered, tokens.gather(1, places)


def _pick(logits: torch.Tensor, rules: _Rules, *, head: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the token of each row `[rows]`, and True if the `head` likeliest tokens were enough `[rows]`."""
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
    # A token stays if the tokens before it do not reach top_p: the one that crosses the threshold is kept.
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
        # Tokens as likely as the last of the head may be in it or not: only a whole sort decides which of them it is.
        # The same holds for the probability of the tokens that a top_k beyond the head keeps.
        decided &= ordered.gather(1, chosen) > ordered[:, -1:]
        decided &= complete | (rules.top_k >= logits.shape[1])
    return order.gather(1, chosen).squeeze(1), decided.squeeze(1)
