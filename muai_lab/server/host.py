"""The models that one server offers: their names, the loaded ones, and the state of the server."""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING

from muai_lab.errors import MuaiError
from muai_lab.server.http_error import HttpError, shown, unavailable

if TYPE_CHECKING:
    from muai_lab.stack.stack import InferenceStack

log = logging.getLogger(__name__)

LOADING_RETRY_S = 2.0
DRAINING_RETRY_S = 5.0


class State(enum.Enum):
    """The phase of the server's life."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"


class ModelHost:
    """Stacks by model name, opened at start or at their first request.

    `open_stack` blocks for seconds, so it is called in a thread, once per model for all requests that wait for it. A
    failed load is an error for the waiting requests; the next request tries again. All methods belong to one event
    loop.
    """

    def __init__(self, names: Iterable[str], open_stack: Callable[[str], InferenceStack]) -> None:
        self.names = tuple(dict.fromkeys(names))
        self.state = State.LOADING
        self._open_stack = open_stack
        self._stacks: dict[str, InferenceStack] = {}
        self._loading: dict[str, asyncio.Task[InferenceStack]] = {}

    @property
    def stacks(self) -> Mapping[str, InferenceStack]:
        """The loaded stacks by model name."""
        return self._stacks

    @property
    def loading(self) -> bool:
        """True while a model is being loaded; the loading thread cannot be interrupted."""
        return bool(self._loading)

    async def preload(self, names: Sequence[str]) -> None:
        """Load these models one after the other, then accept requests.

        Raises:
            MuaiError: A model cannot be loaded; the message names it.
        """
        for name in names:
            await self._load(name)
        if self.state is State.LOADING:
            self.state = State.READY

    async def stack(self, name: str) -> InferenceStack:
        """Return the stack that serves `name`, loaded now if necessary.

        Raises:
            HttpError: The model is unknown (404), or the server does not accept requests (503).
            MuaiError: The model cannot be loaded.
        """
        self.check_welcome()
        self.check_known(name)
        stack = self._stacks.get(name)
        return stack if stack is not None else await self._load(name)

    def check_welcome(self) -> None:
        """Raise a 503 with `Retry-After` unless the server is ready."""
        if self.state is State.LOADING:
            raise unavailable("the server is still loading its models", "loading", LOADING_RETRY_S)
        if self.state is State.DRAINING:
            raise unavailable("the server is shutting down", "draining", DRAINING_RETRY_S)

    def check_known(self, name: str) -> None:
        """Raise a 404 unless the server offers `name`."""
        if name not in self.names:
            offered = ", ".join(f"'{known}'" for known in self.names)
            raise HttpError(
                HTTPStatus.NOT_FOUND,
                f"the model {shown(name)} does not exist here; this server offers {offered}",
                param="model",
                code="model_not_found",
            )

    def unhealthy(self) -> list[str]:
        """Return the names of the loaded models whose engine has failed."""
        return [name for name, stack in self._stacks.items() if not stack.healthy()]

    async def drain(self, timeout_s: float) -> None:
        """Refuse new requests, wait for the running ones for at most `timeout_s` seconds, then cancel the rest."""
        self.state = State.DRAINING
        await asyncio.gather(*(stack.drain(timeout_s) for stack in self._stacks.values()))

    async def close(self) -> None:
        """Close every engine, also if closing one of them fails."""
        self.state = State.DRAINING
        results = await asyncio.gather(*(stack.close() for stack in self._stacks.values()), return_exceptions=True)
        for name, result in zip(self._stacks, results, strict=True):
            if isinstance(result, BaseException):
                log.error("closing %s failed", name, exc_info=result)
        self._stacks.clear()

    async def _load(self, name: str) -> InferenceStack:
        task = self._loading.get(name)
        if task is None:
            task = asyncio.create_task(asyncio.to_thread(self._open_stack, name), name=f"load {name}")
            self._loading[name] = task
            task.add_done_callback(lambda done: self._loaded(name, done))
        # Others wait for the same load: a client that goes away must not end it.
        return await asyncio.shield(task)

    def _loaded(self, name: str, task: asyncio.Task[InferenceStack]) -> None:
        del self._loading[name]
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            self._stacks[name] = task.result()
        elif isinstance(error, MuaiError):
            log.error("cannot load %s: %s", name, error)
        else:
            log.error("cannot load %s", name, exc_info=error)
