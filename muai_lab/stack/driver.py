"""The contract of drivers: each runs one engine in a thread of its own, which owns the engine and its batcher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Protocol

from muai_lab.stack.change import Change
from muai_lab.stack.events import Event
from muai_lab.stack.request import GenerationRequest

CLOSED = "the stack was closed"
"""Message of the requests that a driver cancels when it is closed."""

Deliver = Callable[[Sequence[Event]], None]
"""Gets every batch of events, in order, on the engine's thread; must only pass them on."""


class EngineDriver(Protocol):
    """One engine thread. All methods may be called from other threads.

    Whatever engine, batcher or observers do, every request ends with an event (`Lost` if the engine died under it).

    failure: why the engine can no longer run; None while it can.
    """

    failure: str | None

    @property
    def alive(self) -> bool:
        """True while the engine's thread runs and its engine has not failed."""

    def add(self, request: GenerationRequest, *, suspect: bool = False) -> None:
        """Queue a request; its events follow. suspect: see `Batcher.add`."""

    def finish(self, request_id: str) -> None:
        """End a request with success: its text met a stop string."""

    def fail(self, request_id: str, *, status: str, message: str) -> None:
        """End a request without a result (see `Batcher.fail`) and free its slot before the next step."""

    def show(self, events: Sequence[Event]) -> None:
        """Show observers events from outside the batcher; on the engine's thread, like all events."""

    def apply(self, change: Change) -> Future[None]:
        """Change the batcher between two steps. The future ends with what `change` raised, if it raised."""

    def stalled_s(self) -> float:
        """Return the seconds that the present step has run for; 0 between steps."""

    def computing(self) -> frozenset[str]:
        """Return the ids of the requests that the present step computes; for a step that does not return."""

    def abandon(self, reason: str) -> None:
        """Treat the engine as dead, although its step has not returned; `reason` becomes its failure."""

    def close(self) -> None:
        """End what still runs as cancelled, close the engine, end the thread. Blocks until the present step is over."""
