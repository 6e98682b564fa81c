"""The event loop of the load generator: uvloop if it exists, else asyncio's own."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


def run_on_fast_loop(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end on a new loop; Ctrl-C cancels it once, as in `asyncio.Runner`."""
    try:
        import uvloop
    except ImportError:  # uvloop does not exist on Windows; asyncio's loop does the same, more slowly
        factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    else:
        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)


@contextmanager
def signals_end(
    load: asyncio.Future[Any], numbers: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM)
) -> Iterator[list[BaseException]]:
    """Cancel a load when the process's handler of a signal raises; yields the list that receives the exception.

    Inside the block the loop calls the handlers, between its callbacks. A handler that raises within a callback ends
    only that callback: uvloop logs it as a fault of the connection, and the load continues.
    """
    raised: list[BaseException] = []
    if threading.current_thread() is not threading.main_thread():
        yield raised  # only the main thread may have signal handlers
        return
    loop = asyncio.get_running_loop()
    handlers = {number: signal.getsignal(number) for number in numbers}

    def call(number: signal.Signals) -> None:
        handler = handlers[number]
        signal.signal(number, handler)  # the handler may replace itself by its successor
        try:
            if callable(handler):
                handler(number, None)
        except (KeyboardInterrupt, SystemExit) as end:
            raised.append(end)
            load.cancel()
        handlers[number] = signal.getsignal(number)
        loop.add_signal_handler(number, call, number)

    for number in numbers:
        loop.add_signal_handler(number, call, number)
    try:
        yield raised
    finally:
        for number, handler in handlers.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)
