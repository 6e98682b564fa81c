"""The batcher of an engine that schedules its own steps."""

from __future__ import annotations

from collections.abc import Sequence

from muai_lab.stack.adaptive import StepSeen
from muai_lab.stack.batcher import Batcher
from muai_lab.stack.events import CacheLookup
from muai_lab.stack.plan import Plan
from muai_lab.stack.suspects import UNEXPLAINED


class StreamBatcher(Batcher):
    """Admits requests, and takes in the tokens that the engine reports."""

    def admit(self, now: float) -> Plan:
        """Admit the requests that may join now. Their tokens come through `take`.

        The plan holds one chunk for each request that joins and nothing to decode, and needs no completion.
        """
        self._expire(now)
        for name in self._suspects.advance(pausing=False):
            self.fail(name, now, status="error", message=UNEXPLAINED)
        prefill = []
        if self._may_admit(now):
            while (sequence := self._next()) is not None:
                self._admit(sequence, now)
                prefill.append(sequence.chunk(len(sequence.prompt)))
                self._decoding[prefill[-1].slot] = self._prefilling.pop(prefill[-1].slot)
        self._kept_out = bool(self._waiting) and self._room() <= 0
        self._places.released.clear()  # the engine has no slots of ours to release
        return Plan(prefill=tuple(prefill), wait_until=self._next_time())

    def take(self, request_id: str, tokens: Sequence[int], now: float) -> None:
        """Append tokens that the engine produced; those of an ended request are ignored.

        `end_turn` follows once the tokens of one step are complete.
        """
        for token in tokens:
            sequence = self._running.get(request_id)
            if sequence is None:
                return
            self._append(sequence, token, now)

    def end_turn(self, tokens: int, *, began: float, now: float) -> None:
        """Treat the `tokens` tokens that the engine reported between `began` and `now` as those of one step."""
        self._events += self._limit.observe(StepSeen(began, now, tokens, len(self._running), self._kept_out))

    def note_cached(self, request_id: str, cached_tokens: int, now: float) -> None:
        """Record how many prompt tokens of a running request the engine's prefix cache served; once per request."""
        sequence = self._running.get(request_id)
        if sequence is not None:
            self._events.append(CacheLookup(request_id, now, len(sequence.request.prompt), cached_tokens))

    def output_tokens(self, request_id: str) -> int | None:
        """Return the number of tokens that a running request has produced so far; None if it does not run."""
        sequence = self._running.get(request_id)
        return None if sequence is None else len(sequence.output)
