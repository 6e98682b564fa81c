"""An engine without a model: it counts the positions in its slots and computes how long each step would have taken."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from muai_lab.simulation.step_time import StepTime, StepWork
from muai_lab.stack.plan import Plan
from muai_lab.stack.prefix_reuse import CopyOut

OUTPUT_TOKEN = 0
"""The token that every sequence produces. Outputs end by their length."""


@dataclass(frozen=True, slots=True)
class VirtualBlock:
    """A block of keys and values that holds nothing but has a size."""

    nbytes: int


class VirtualEngine:
    """Returns the tokens and the duration of each plan.

    noise: relative standard deviation of a step's duration (log-normal around the model's, drawn from `seed`).
    block_bytes: size of each block of the prefix cache.
    """

    def __init__(
        self, slots: int, step_time: StepTime, *, noise: float = 0.0, seed: int = 0, block_bytes: int = 0
    ) -> None:
        self.slots = slots
        self.block_bytes = block_bytes
        self._step_time = step_time
        self._sigma = math.sqrt(math.log1p(noise**2))
        self._random = random.Random(seed)
        self._positions = [0] * slots  # key/value positions that each slot holds

    def copy_out(self, copy: CopyOut) -> list[VirtualBlock]:
        """Return one block for each that the copy asks for."""
        return [VirtualBlock(self.block_bytes)] * len(copy.store.blocks)

    def step(self, plan: Plan) -> tuple[dict[int, int], float]:
        """Return the token of each slot that produces one, and the seconds that the step takes.

        A plan that computes nothing takes the time of its copies, without noise.
        """
        positions = self._positions
        for slot in plan.release:
            positions[slot] = 0
        tokens = dict.fromkeys(plan.decode, OUTPUT_TOKEN)
        # The last token of a sequence is computed now, so it attends to one position more than the slot holds.
        attended = 0
        for slot in plan.decode:
            positions[slot] += 1
            attended += positions[slot]
        prefill_tokens = prefill_pairs = 0
        for chunk in plan.prefill:
            count = len(chunk.tokens)
            prefill_tokens += count
            prefill_pairs += count * chunk.start + count * (count + 1) // 2
            positions[chunk.slot] = chunk.start + count
            if chunk.final:
                tokens[chunk.slot] = OUTPUT_TOKEN
        work = StepWork(prefill_tokens, prefill_pairs, len(plan.decode), attended, _copied(plan))
        seconds = self._step_time.seconds(work)
        if self._sigma and not plan.empty:
            seconds *= math.exp(self._random.gauss(-(self._sigma**2) / 2, self._sigma))
        return tokens, seconds


def _copied(plan: Plan) -> int:
    """Count the positions that a plan copies out of slots and into them."""
    outs = sum(len(out.store.blocks) * out.store.block_tokens for out in plan.copy_out)
    return outs + sum(copy.match.tokens for copy in plan.copy_in)
