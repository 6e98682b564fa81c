"""A change of the scheduler that another thread asks for, made between two steps."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future

from muai_lab.stack.scheduler import Scheduler

Change = Callable[[Scheduler, float], None]


class PendingChange:
    """What the asker waits for (`done`) and what the scheduler's thread makes.

    A future that was cancelled before its turn (the asker waited for too long) changes nothing.
    """

    def __init__(self, change: Change) -> None:
        self.done: Future[None] = Future()
        self._change = change

    def make(self, scheduler: Scheduler, now: float) -> None:
        """Make the change; what it raises is raised where `done` is waited for."""
        if not self.done.set_running_or_notify_cancel():
            return
        try:
            self._change(scheduler, now)
        except Exception as error:  # noqa: BLE001 - whatever it is, the asker gets it
            self.done.set_exception(error)
        else:
            self.done.set_result(None)
