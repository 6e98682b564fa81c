"""The requests of a stack that have not ended."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from muai_lab.errors import InvalidRequest, RequestCancelled, RequestError, RequestTimeout
from muai_lab.stack.events import Admitted, CacheLookup, Event, Failed, Finished, Lost, Token
from muai_lab.stack.generation import Generation

_FAILURES: dict[str, type[RequestError]] = {
    kind.status: kind for kind in (RequestCancelled, RequestTimeout, InvalidRequest)
}


class OpenRequests:
    """The output of each request whose last event has not come yet. Belongs to one event loop.

    outputs: by request id. waiting: ids of the requests without a slot.
    """

    def __init__(self) -> None:
        self.outputs: dict[str, Generation] = {}
        self.waiting: set[str] = set()
        self._idle: asyncio.Event | None = None

    def __len__(self) -> int:
        return len(self.outputs)

    def add(self, generation: Generation) -> None:
        """Take in a request that waits for a slot."""
        self.outputs[generation.request_id] = generation
        self.waiting.add(generation.request_id)

    def remove(self, request_id: str) -> Generation | None:
        """Take a request out. Returns its output, None if it has ended before."""
        self.waiting.discard(request_id)
        generation = self.outputs.pop(request_id, None)
        if not self.outputs and self._idle is not None:
            self._idle.set()
        return generation

    def clear(self) -> None:
        """Take all requests out."""
        self.outputs.clear()
        self.waiting.clear()

    async def all_ended(self) -> None:
        """Return once no request is open."""
        if not self.outputs:
            return
        if self._idle is None:  # a second caller waits for the same moment
            self._idle = asyncio.Event()
        await self._idle.wait()

    def take(self, events: Sequence[Event]) -> list[Lost]:
        """Pass events on to the outputs of their requests. Returns those of requests that an engine lost."""
        lost = []
        for event in events:
            match event:
                case Token(request_id=name, token=token):
                    if (generation := self.outputs.get(name)) is not None:
                        if event.index == 0:
                            generation.first_token(event.at)
                        generation.push(token)
                case Admitted(request_id=name):
                    self.waiting.discard(name)
                    if (generation := self.outputs.get(name)) is not None:
                        generation.admitted(event.queued_at, event.at)
                case CacheLookup(request_id=name, cached_tokens=cached):
                    if (generation := self.outputs.get(name)) is not None:
                        generation.cached_tokens = cached
                case Finished(request_id=name):
                    if (generation := self.remove(name)) is not None:
                        generation.finish(event.reason)
                case Failed(request_id=name):
                    if (generation := self.remove(name)) is not None:
                        kind = _FAILURES.get(event.status, RequestError)
                        generation.fail(kind(event.message))
                case Lost():
                    lost.append(event)
        return lost
