"""A load that ends when the other side dies: whatever follows would only be refused connections."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from muai_lab.errors import RunError
from muai_lab.load.event_loop import signals_end
from muai_lab.load.generator import LoadResult

DEATH_CHECK_S = 0.25
SIGNALS = (signal.SIGINT, signal.SIGTERM)


async def until_death(
    load: asyncio.Future[LoadResult],
    failure: Callable[[], str | None],
    *,
    signals: Sequence[signal.Signals] = SIGNALS,
    beside: Sequence[Coroutine[Any, Any, None]] = (),
) -> tuple[LoadResult, BaseException | None]:
    """Wait for a load, which is cancelled when the other side dies or a signal comes; its records are kept.

    Args:
        load: The running load.
        failure: Returns the reason why the other side is gone; None while it lives.
        signals: Signals whose handlers may end the load, besides Ctrl-C in the event loop's own way.
        beside: Run meanwhile, and are cancelled at the end.

    Returns:
        The result of the load, and the exception that the handler of a signal raised meanwhile.

    Raises:
        RunError: The other side died before there was any record.
        KeyboardInterrupt: The same for Ctrl-C; for a signal, the exception of its handler.
    """
    tasks = [asyncio.ensure_future(work) for work in (_cancel_on_death(load, failure), *beside)]
    try:
        with signals_end(load, signals) as raised:
            while not load.done():
                try:
                    await asyncio.shield(load)
                except asyncio.CancelledError:
                    # Ctrl-C cancelled this task: pass it on, and wait for the records that the generator keeps.
                    load.cancel()
        ended = raised[0] if raised else None
        if load.cancelled():
            if (death := failure()) is not None:
                raise RunError(death)
            raise KeyboardInterrupt() if ended is None else ended
        return load.result(), ended
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _cancel_on_death(load: asyncio.Future[LoadResult], failure: Callable[[], str | None]) -> None:
    while failure() is None:  # noqa: ASYNC110 (another process has no event to wait for)
        await asyncio.sleep(DEATH_CHECK_S)
    load.cancel()
