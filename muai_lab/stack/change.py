"""A change of a batcher that another thread requests, made between two steps."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future

from muai_lab.stack.batcher import Batcher

Change = Callable[[Batcher, float], None]


class PendingChange:
    """A change on its way from the caller, which waits for `done`, to the batcher's thread, which makes it.

    A future that is cancelled before its turn, because the caller waited for too long, changes nothing.
    """

    def __init__(self, change: Change) -> None:
        self.done: Future[None] = Future()
        self._change = change

    def make(self, batcher: Batcher, now: float) -> None:
        """Make the change. Its error is raised in the caller that waits for `done`."""
        if not self.done.set_running_or_notify_cancel():
            return
        try:
            self._change(batcher, now)
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller gets it
            self.done.set_exception(error)
        else:
            self.done.set_result(None)
