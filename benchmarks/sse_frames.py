"""The cost of one event of a stream: concatenated bytes against a library, and the layers of Starlette.

    python -m benchmarks.sse_frames [--events 20000] [--repeats 5] [--document docs/server-results.md]

The library is sse-starlette, with its own JSON (the standard library's) and with orjson. It is measured only if it is
installed. All ways render the same document. They alternate; times are medians of the repeats.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from benchmarks.document import replace_part
from muai_lab.server.frames import CHAT, AnswerIdentity, Frames, Usage

IDENTITY = AnswerIdentity(id="chatcmpl-0123456789abcdef0123456789abcdef", model="qwen_chat", created=1_764_000_000)
TEXT = " token"
MESSAGE = {"type": "http.response.body", "body": b"data: {}\n\n", "more_body": True}


def document() -> dict[str, Any]:
    """The event of one token as a document."""
    return {
        "id": IDENTITY.id,
        "object": "chat.completion.chunk",
        "created": IDENTITY.created,
        "model": IDENTITY.model,
        "choices": [{"index": 0, "delta": {"content": TEXT}, "logprobs": None, "finish_reason": None}],
    }


def renderers() -> dict[str, Callable[[], bytes]]:
    """The ways to render one event."""
    frames = Frames(CHAT, IDENTITY, 0, 16, Usage.NONE)
    found: dict[str, Callable[[], bytes]] = {
        "ours: concatenation": lambda: frames.text(TEXT, 1),
        "a document, orjson": lambda: b"data: " + orjson.dumps(document()) + b"\n\n",
    }
    try:
        library = import_module("sse_starlette")
    except ImportError:
        return found
    event, json_event = library.ServerSentEvent, library.JSONServerSentEvent
    found["sse-starlette, orjson"] = lambda: event(orjson.dumps(document()).decode(), sep="\n").encode()
    found["sse-starlette, json"] = lambda: json_event(document(), sep="\n").encode()
    return found


def in_starlette(app: ASGIApp) -> ASGIApp:
    """The layers of the server around a route."""
    layers = [Middleware(ExceptionMiddleware, handlers={})]
    return Starlette(routes=[Route("/", app, methods=["POST"])], middleware=layers)


class Sender:
    """An ASGI application that sends events and does nothing else."""

    def __init__(self, events: int) -> None:
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(self._events):
            await send(MESSAGE)


def sending_s(app: ASGIApp) -> float:
    """Seconds that one request to the application takes."""

    async def drop(message: object) -> None:
        pass

    async def request() -> float:
        scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": []}
        began_s = time.perf_counter()
        await app(scope, drop, drop)  # type: ignore[arg-type]
        return time.perf_counter() - began_s

    return asyncio.run(request())


def rendering_s(render: Callable[[], bytes], events: int) -> float:
    """Seconds that rendering takes."""
    began_s = time.perf_counter()
    for _ in range(events):
        render()
    return time.perf_counter() - began_s


def measure(events: int, repeats: int) -> dict[str, float]:
    """Microseconds per event, by way."""
    ways: dict[str, Callable[[], float]] = {
        name: (lambda render=render: rendering_s(render, events))  # type: ignore[misc]
        for name, render in renderers().items()
    }
    bare = Sender(events)
    layered = in_starlette(bare)
    ways["sent by a bare ASGI application"] = lambda: sending_s(bare)
    ways["sent through Starlette's layers"] = lambda: sending_s(layered)
    seen: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            seen[name].append(way() / events * 1e6)
    return {name: statistics.median(values) for name, values in seen.items()}


def main() -> None:
    """Measure, print the table, and write it into a page if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--document", type=Path, help="page to write the table into")
    options = parser.parse_args()
    rows = [f"| {name} | {value:.2f} |" for name, value in measure(options.events, options.repeats).items()]
    table = "\n".join(["| way | µs per event |", "|---|---:|", *rows])
    sys.stdout.write(f"{table}\n")
    if options.document is not None:
        replace_part(options.document, "sse frames", table)


if __name__ == "__main__":
    main()
