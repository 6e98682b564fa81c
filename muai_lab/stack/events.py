"""The events that the stack shows to its observers.

Metrics, spans, anomaly windows and the tuner's window are observers. Times are monotonic seconds. Observers are called
from the engine's thread, must return fast and must not raise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Queued:
    """A request was accepted and waits for admission."""

    request_id: str
    at: float
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Rejected:
    """A request was refused before it was queued (queue full, draining, too long)."""

    at: float
    reason: str


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request got a slot."""

    request_id: str
    at: float
    queued_at: float
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class CacheLookup:
    """A prompt was looked up in a prefix cache, once. cached_tokens: prompt tokens that the cache served."""

    request_id: str
    at: float
    prompt_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class CacheState:
    """The contents of the prefix cache changed. evicted_blocks: since the last such event."""

    at: float
    stored_bytes: int
    blocks: int
    evicted_blocks: int
    budget_bytes: int


@dataclass(frozen=True, slots=True)
class Step:
    """One engine step ran from `began` to `at`.

    batch: sequences that were computed. prefill_tokens: prompt tokens computed. running, waiting: after the step.
    limit: most sequences that might run, None if that is not known.
    """

    at: float
    began: float
    batch: int
    prefill_tokens: int
    decode_tokens: int
    running: int
    waiting: int
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class StepFailed:
    """An engine step raised, and the engine continues: its culprit fails, the others are computed again.

    batch: sequences that it computed. culprit: the request that causes the failure, None while it is not known.
    """

    at: float
    began: float
    batch: int
    message: str
    culprit: str | None = None


@dataclass(frozen=True, slots=True)
class LimitMoved:
    """The running limit moved from `before` to `after`, by adaptive batching or a change of settings."""

    at: float
    before: int
    after: int
    reason: str


@dataclass(slots=True)
class Token:
    """One output token was produced. index: 0 for the first.

    Not frozen like the others, because there is one for every token: creating it takes a third of the time.
    """

    request_id: str
    at: float
    token: int
    index: int


@dataclass(frozen=True, slots=True)
class Finished:
    """A request ended with a result. reason: `stop` or `length`."""

    request_id: str
    at: float
    reason: str
    prompt_tokens: int
    output_tokens: int
    queued_at: float
    admitted_at: float
    first_token_at: float


@dataclass(frozen=True, slots=True)
class Failed:
    """A request ended without a result. status: `error`, `cancelled` or `timeout`."""

    request_id: str
    at: float
    status: str
    message: str
    queued_at: float


@dataclass(frozen=True, slots=True)
class Lost:
    """The engine died under a request; the stack runs it again on the next engine, or ends it (`Failed` follows).

    suspect: the engine was computing it, so it may be the cause.
    """

    request_id: str
    at: float
    message: str
    queued_at: float
    suspect: bool = False


@dataclass(frozen=True, slots=True)
class Tuned:
    """The online tuner decided. knob: the setting that moved from `before` to `after`.

    outcome: `began` (its value when the tuner begins), `restored` (moved to the value that was good before a restart),
    `tried` (moved for a trial), `kept` (the trial helped), `reverted` (moved back: it did not).
    """

    at: float
    knob: str
    before: int
    after: int
    outcome: str
    reason: str


@dataclass(frozen=True, slots=True)
class TunerNoted:
    """The online tuner changed its search without moving a setting.

    kind: `shift` (another workload: the search starts over) or `rest` (nothing helped: the tuner pauses).
    """

    at: float
    kind: str
    reason: str


Event = (
    Queued
    | Rejected
    | Admitted
    | CacheLookup
    | CacheState
    | Step
    | StepFailed
    | LimitMoved
    | Token
    | Finished
    | Failed
    | Lost
    | Tuned
    | TunerNoted
)


class Observer(Protocol):
    """Receives every event of one stack, in order, in batches."""

    def observe(self, events: Sequence[Event]) -> None:
        """Take in the events; called from the engine's thread."""
