"""The watch over an engine's steps while requests are open: no engine thread ends requests while its step hangs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from muai_lab.errors import RequestTimeout
from muai_lab.stack.events import Failed
from muai_lab.stack.generation import Generation

if TYPE_CHECKING:
    from muai_lab.stack.serving import Serving

WATCH_S = 0.5  # between two looks at the engine

_LATE = "the request was not finished before its deadline: the engine hangs in a step"


class HangWatch:
    """Ends requests at their deadlines while a step hangs, and abandons the engine when the step takes too long.

    requests: the open ones. serving: the present engine, None while another one takes over. limit_s: longest that a
    step may take, None for no limit. end: ends one request. abandon: ends the engine, with a reason and with the ends
    of requests that observers have not seen yet.
    """

    def __init__(
        self,
        requests: Mapping[str, Generation],
        serving: Callable[[], Serving | None],
        *,
        limit_s: Callable[[], float | None],
        end: Callable[[Generation, RequestTimeout], None],
        abandon: Callable[[str, Sequence[Failed]], None],
    ) -> None:
        self._requests = requests
        self._serving = serving
        self._limit_s = limit_s
        self._end = end
        self._abandon = abandon
        self._overdue: list[Failed] = []

    async def run(self) -> None:
        """Watch until no request is open."""
        while self._requests:
            await asyncio.sleep(WATCH_S)
            self._look()

    def _look(self) -> None:
        serving, limit_s = self._serving(), self._limit_s()
        stalled_s = 0.0 if serving is None else serving.driver.stalled_s()
        if stalled_s < WATCH_S:
            self._overdue.clear()  # the engine's thread reports them itself
        elif limit_s is not None and stalled_s > limit_s:
            overdue, self._overdue = self._overdue, []
            self._abandon(f"a step has not returned for {stalled_s:.0f} s", overdue)
        else:
            self._end_overdue(time.monotonic())

    def _end_overdue(self, now: float) -> None:
        for generation in list(self._requests.values()):
            if generation.deadline is not None and now > generation.deadline + WATCH_S:
                error = RequestTimeout(_LATE)
                self._overdue.append(Failed(generation.request_id, now, error.status, str(error), now))
                self._end(generation, error)
