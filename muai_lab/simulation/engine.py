"""An engine that only keeps the books: the lengths of its slots, and how long each step would have taken."""

from __future__ import annotations

import math
import random

from muai_lab.simulation.step_time import StepTime, StepWork
from muai_lab.stack.scheduler import Plan

OUTPUT_TOKEN = 0
"""The token that every sequence produces; outputs end by their length."""


class VirtualEngine:
    """Answers a plan with its tokens and its duration.

    noise: relative standard deviation of a step's duration (log-normal around the model's, drawn from `seed`).
    """

    def __init__(self, slots: int, step_time: StepTime, *, noise: float = 0.0, seed: int = 0) -> None:
        self.slots = slots
        self._step_time = step_time
        self._sigma = math.sqrt(math.log1p(noise**2))
        self._random = random.Random(seed)
        self._positions = [0] * slots  # key/value positions that each slot holds

    def step(self, plan: Plan) -> tuple[dict[int, int], float]:
        """The token of each slot that produces one, and the seconds that the step takes."""
        positions = self._positions
        for slot in plan.release:
            positions[slot] = 0
        tokens = dict.fromkeys(plan.decode, OUTPUT_TOKEN)
        # The token that a sequence got last is fed now, so it attends to one position more than are held.
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
        seconds = self._step_time.seconds(StepWork(prefill_tokens, prefill_pairs, len(plan.decode), attended))
        if self._sigma:
            seconds *= math.exp(self._random.gauss(-(self._sigma**2) / 2, self._sigma))
        return tokens, seconds

    def release(self, plan: Plan) -> None:
        """Take in the releases of a plan that computes nothing."""
        for slot in plan.release:
            self._positions[slot] = 0
