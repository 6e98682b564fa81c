"""The server as a process of its own: signals, and an end without remains."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import psutil
import uvloop

from muai_lab.garbage import collect_briefly
from muai_lab.scratch import remove_scratch
from muai_lab.server.admin_call import TOKEN_VARIABLE
from muai_lab.server.service import InferenceService
from muai_lab.settings.lab import LabSettings

log = logging.getLogger(__name__)

KILL_WAIT_S = 2.0
EXIT_STATUS = {signal.SIGTERM: 0, signal.SIGINT: 130}


def serve(settings: LabSettings, announce: Callable[[dict[str, Any]], None]) -> int:
    """Serve until SIGTERM or SIGINT and return the exit status: 0 for SIGTERM, 130 for SIGINT.

    The first signal drains, and a second one ends the process at once. So does the first while models are being loaded:
    a load cannot be interrupted. The environment variable MUAI_ADMIN_TOKEN enables the admin call.

    Args:
        settings: All settings.
        announce: Called once with `InferenceService.describe()`, when the server accepts requests.

    Raises:
        MuaiError: A port is in use, or a model cannot be loaded.
    """
    service = InferenceService(settings, admin_token=os.environ.get(TOKEN_VARIABLE) or None)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(service, announce))


async def _serve(service: InferenceService, announce: Callable[[dict[str, Any]], None]) -> int:
    stop = _StopSignals()
    starting = asyncio.create_task(service.start())
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        log.info("stopped while loading")
        leave_at_once(EXIT_STATUS[await stopping])
    try:
        await starting
        collect_briefly()
        announce(service.describe())
        log.info("ready")
        signum = await stopping
        log.info("%s: finishing running requests, refusing new ones", signum.name)
    finally:
        stopping.cancel()
        await service.stop()
    if service.host.loading:
        leave_at_once(EXIT_STATUS[signum])
    log.info("stopped")
    return EXIT_STATUS[signum]


class _StopSignals:
    """Reports the first SIGTERM or SIGINT; the second ends the process."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._first: asyncio.Future[signal.Signals] = loop.create_future()
        for signum in EXIT_STATUS:
            loop.add_signal_handler(signum, self._take, signum)

    async def wait(self) -> signal.Signals:
        return await self._first

    def _take(self, signum: signal.Signals) -> None:
        if not self._first.done():
            self._first.set_result(signum)
        else:
            log.warning("second signal: ending at once")
            leave_at_once(128 + signum)


def leave_at_once(status: int) -> NoReturn:
    """End the process without waiting for threads, together with its children and its temporary folders."""
    children = psutil.Process().children(recursive=True)
    for child in children:
        child.kill()
    psutil.wait_procs(children, timeout=KILL_WAIT_S)  # else they may write into the folders that are removed now
    remove_scratch()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
