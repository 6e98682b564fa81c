"""The tuner's observation window: the stack's events, summed block by block."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from threading import Lock

from muai_lab.slo import keeps, meets, pace_s
from muai_lab.stack.events import (
    Admitted,
    CacheLookup,
    Event,
    Failed,
    Finished,
    Lost,
    Queued,
    Rejected,
    Step,
    Token,
)


@dataclass(frozen=True, slots=True)
class Targets:
    """The latencies of a good request; None for no target. Definitions as in the lab's metrics.

    ttft_s: seconds from queued to the first token. tpot_s: seconds per output token after the first.
    """

    ttft_s: float | None = None
    tpot_s: float | None = None

    @property
    def bounds_s(self) -> dict[str, float]:
        """The targets that are set, by metric name."""
        named = {"ttft": self.ttft_s, "tpot": self.tpot_s}
        return {name: bound_s for name, bound_s in named.items() if bound_s is not None}

    @property
    def set(self) -> bool:
        """True if there is a target for a latency; if not, only throughput counts."""
        return bool(self.bounds_s)


@dataclass(slots=True)
class Block:
    """Sums over one period; the sums of several are added field by field.

    A request is settled once it is decided if it meets the targets: `good` or `missed_pace` at its end, `late` as soon
    as its first token is too late (it may still wait), `rejected` at once, `failed` at its end. `ready` counts requests
    that ended and would have been good without waiting for a slot: the capacity of the engine without a queue. Squares
    accompany the sums whose deviation is needed. Times are seconds.
    """

    seconds: float = 0.0
    queued: int = 0
    rejected: int = 0
    failed: int = 0
    late: int = 0
    missed_pace: int = 0
    good: int = 0
    ready: int = 0
    ended: int = 0
    prompt_tokens: int = 0
    prompt_squares: int = 0
    ended_tokens: int = 0
    ended_squares: int = 0
    output_tokens: int = 0
    service_s: float = 0.0
    admitted: int = 0
    looked_up: int = 0
    cached: int = 0
    busy_s: float = 0.0
    short_s: float = 0.0
    """seconds of steps while requests waited"""
    short_running: float = 0.0
    """sequences that ran in these steps, times seconds"""

    @property
    def arrived(self) -> int:
        """Requests that arrived, including the refused ones."""
        return self.queued + self.rejected

    @property
    def settled(self) -> int:
        """Requests that are known to be good or not."""
        return self.good + self.missed_pace + self.late + self.rejected + self.failed

    @property
    def attainment(self) -> float:
        """Share of the settled requests that were good; 1 if there were none."""
        return self.good / self.settled if self.settled else 1.0

    @property
    def saturated(self) -> bool:
        """True if requests waited for almost the whole period."""
        return self.busy_s > 0.9 * self.seconds and self.short_s > 0.8 * self.busy_s

    @property
    def running_when_short(self) -> float:
        """Mean number of sequences that ran while others waited; 0 if none ever waited."""
        return self.short_running / self.short_s if self.short_s else 0.0

    @property
    def mean_service_s(self) -> float:
        """Mean seconds from admission to the end."""
        return self.service_s / self.ended if self.ended else 0.0

    @property
    def hit_rate(self) -> float:
        """Share of the prompt tokens that the prefix cache served; 0 without one."""
        return self.cached / self.looked_up if self.looked_up else 0.0


_SUMS = tuple(field.name for field in fields(Block))


def total(blocks: Iterable[Block]) -> Block:
    """Add the blocks up."""
    result = Block()
    for block in blocks:
        for name in _SUMS:
            setattr(result, name, getattr(result, name) + getattr(block, name))
    return result


class TunerWindow:
    """An observer that keeps the last `window_s` seconds in blocks of `block_s`, from `began` on.

    Events come on the engine's thread and are read on another, so one lock is taken for each batch of them.
    """

    def __init__(self, targets: Targets, *, block_s: float, window_s: float, began: float) -> None:
        self._targets = targets
        self._block_s = block_s
        self._lock = Lock()
        self._ended: deque[tuple[float, Block]] = deque(maxlen=max(1, round(window_s / block_s)))  # with their ends
        self._open = Block(seconds=block_s)
        self._open_began = began
        # Requests without a first token yet, in the order of arrival, with the time by which they must have one.
        self._unanswered: dict[str, float] = {}
        self._late: set[str] = set()  # settled as late, and still in flight

    def observe(self, events: Sequence[Event]) -> None:
        """Take in the events; see `muai_lab.stack.events.Observer`."""
        with self._lock:
            for event in events:
                kind = type(event)
                if kind is Token:  # by far the most frequent, so first
                    self._open.output_tokens += 1
                    if event.index == 0:  # type: ignore[union-attr]
                        self._first_token(event.request_id, event.at)  # type: ignore[union-attr]
                elif isinstance(event, Step):
                    self._advance(event.at)
                    self._step(event)
                elif isinstance(event, Queued):
                    self._advance(event.at)
                    self._queued(event)
                elif isinstance(event, Admitted):
                    self._open.admitted += 1
                elif isinstance(event, Finished):
                    self._finished(event)
                elif isinstance(event, CacheLookup):
                    self._open.looked_up += event.prompt_tokens
                    self._open.cached += event.cached_tokens
                elif isinstance(event, Rejected):
                    self._advance(event.at)
                    self._open.rejected += 1
                elif isinstance(event, Failed):
                    self._failed(event)
                elif isinstance(event, Lost):
                    self._forget(event.request_id)

    def blocks(self, now: float, since: float) -> list[Block]:
        """Return the complete blocks that began at `since` or later, oldest first, up to `now`."""
        with self._lock:
            self._advance(now)
            return [block for end, block in self._ended if end - self._block_s >= since - 1e-9]

    def _advance(self, now: float) -> None:
        """Close the blocks that ended before `now`."""
        while now >= self._open_began + self._block_s:
            self._open_began += self._block_s
            self._settle_late(self._open_began)
            self._ended.append((self._open_began, self._open))
            self._open = Block(seconds=self._block_s)

    def _settle_late(self, now: float) -> None:
        """Settle requests as late whose first token can no longer come in time, long before they end."""
        for name, due in self._unanswered.items():
            if due >= now:
                break  # the others arrived later
            self._open.late += 1
            self._late.add(name)
        for name in self._late:
            self._unanswered.pop(name, None)

    def _queued(self, event: Queued) -> None:
        block = self._open
        block.queued += 1
        block.prompt_tokens += event.prompt_tokens
        block.prompt_squares += event.prompt_tokens**2
        if self._targets.ttft_s is not None:
            self._unanswered[event.request_id] = event.at + self._targets.ttft_s

    def _first_token(self, name: str, at: float) -> None:
        due = self._unanswered.pop(name, None)
        if due is not None and at > due:
            self._open.late += 1
            self._late.add(name)

    def _finished(self, event: Finished) -> None:
        block, targets = self._open, self._targets
        self._unanswered.pop(event.request_id, None)
        late = event.request_id in self._late
        self._late.discard(event.request_id)
        block.ended += 1
        block.ended_tokens += event.output_tokens
        block.ended_squares += event.output_tokens**2
        block.service_s += event.at - event.admitted_at
        pace = pace_s(event.at - event.first_token_at, event.output_tokens)
        in_pace = targets.tpot_s is None or keeps("tpot", pace, event.output_tokens, targets.tpot_s)
        without_wait = {"ttft": event.first_token_at - event.admitted_at, "tpot": pace}
        block.ready += meets(targets.bounds_s, without_wait, event.output_tokens)
        if not late:
            block.good += in_pace
            block.missed_pace += not in_pace

    def _failed(self, event: Failed) -> None:
        late = event.request_id in self._late
        self._forget(event.request_id)
        if event.status != "cancelled" and not late:  # a client that cancels says nothing about the service
            self._open.failed += 1

    def _forget(self, name: str) -> None:
        self._unanswered.pop(name, None)
        self._late.discard(name)

    def _step(self, step: Step) -> None:
        block, took = self._open, step.at - step.began
        block.busy_s += took
        if step.waiting:
            block.short_s += took
            block.short_running += took * max(step.batch, step.running)
