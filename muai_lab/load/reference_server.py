"""An OpenAI-compatible streaming server of known latency, for measuring load generators.

It computes nothing. The first token is due `ttft_ms` after the request was read, each further token `itl_ms` later,
always in absolute time, so that one late timer does not move the next. The real times are stamped just before the
bytes are written (`CLOCK_MONOTONIC`, the clock of the load generator on the same machine). `GET /stamps` returns the
stamps, so that a client's error is known request by request:

    [{"request_id": "7", "received_ns": ..., "first_token_ns": ..., "last_token_ns": ..., "tokens": 16}, ...]

`request_id` is the client's `X-Request-Id` header. Each stamp is returned once.

Run it with `python -m muai_lab reference-server --ttft-ms 50 --itl-ms 10`.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import orjson

from muai_lab.load.dialect import UsageSupport
from muai_lab.load.reference_answers import MODEL, WORDS, ResponseShape, token_chunks, usage_of, whole_stream

_STAMPS_KEPT = 4_000_000


@dataclass(frozen=True, slots=True)
class ReferenceOptions:
    """The behaviour of the server.

    Attributes:
        ttft_ms: From the request read to the first token written.
        itl_ms: Between tokens; 0 writes all tokens at once.
        tokens: Length of an answer whose request has no limit.
        usage: `continuous` supports vLLM's `continuous_usage_stats`, `final` only OpenAI's `include_usage`, `none`
            neither; unsupported options are answered with 400, as by strict servers.
    """

    ttft_ms: float = 0.0
    itl_ms: float = 0.0
    tokens: int = 16
    usage: UsageSupport = "continuous"


@dataclass(frozen=True, slots=True)
class Stamp:
    """The real times of one request; monotonic nanoseconds."""

    request_id: str
    received_ns: int
    first_token_ns: int
    last_token_ns: int
    tokens: int


class _BadRequestError(Exception):
    """The request body cannot be served; the message is sent in OpenAI's error shape."""


class ReferenceServer:
    """The server's state: options, stamps, open connections. Not thread-safe; belongs to one event loop."""

    def __init__(self, options: ReferenceOptions) -> None:
        self.options = options
        self.stamps: deque[Stamp] = deque(maxlen=_STAMPS_KEPT)
        self.connections: set[_Connection] = set()
        self._server: asyncio.AbstractServer | None = None

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> str:
        """Listen and return the base address, such as `http://127.0.0.1:43211`; port 0 takes any free port."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self, loop), host, port, backlog=4096)
        bound = self._server.sockets[0].getsockname()[1]
        return f"http://{host}:{bound}"

    async def stop(self) -> None:
        """Stop listening and drop open connections."""
        if self._server is None:
            return
        self._server.close()
        for connection in tuple(self.connections):
            connection.abort()
        await self._server.wait_closed()
        self._server = None

    def take_stamps(self) -> list[Stamp]:
        """Return the stamps since the last call, oldest first."""
        taken = list(self.stamps)
        self.stamps.clear()
        return taken

    def shape_of(self, body: bytes, *, chat: bool) -> tuple[ResponseShape, bool]:
        """Return the shape of the response to an OpenAI request, and True if it is streamed."""
        try:
            request = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise _BadRequestError(f"the body is not JSON: {error}") from error
        if not isinstance(request, dict):
            raise _BadRequestError("the body is not a JSON object")
        tokens = request.get("max_tokens", request.get("max_completion_tokens", self.options.tokens))
        if not isinstance(tokens, int) or tokens < 1:
            raise _BadRequestError("max_tokens must be an integer >= 1")
        stream_options = request.get("stream_options") or {}
        if stream_options and self.options.usage == "none":
            raise _BadRequestError("unknown field stream_options")
        if "continuous_usage_stats" in stream_options and self.options.usage != "continuous":
            raise _BadRequestError("unknown field stream_options.continuous_usage_stats")
        prompt: Any = request.get("messages" if chat else "prompt") or ""
        if chat:
            prompt = " ".join(str(message["content"]) for message in prompt)
        shape = ResponseShape(
            chat=chat,
            tokens=tokens,
            prompt_tokens=len(prompt) if isinstance(prompt, list) else len(prompt.split()),
            include_usage=bool(stream_options.get("include_usage")),
            continuous_usage=bool(stream_options.get("continuous_usage_stats")),
        )
        return shape, bool(request.get("stream"))


class _Connection(asyncio.Protocol):
    """One keep-alive HTTP/1.1 connection; requests on it are served one after another."""

    def __init__(self, server: ReferenceServer, loop: asyncio.AbstractEventLoop) -> None:
        self._server = server
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._timer: asyncio.TimerHandle | None = None
        self._chunks: tuple[bytes, ...] = ()
        self._next = 0
        self._request_id = ""
        self._received_ns = 0
        self._first_ns = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's transports do not inherit from asyncio's
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        self._serve_next()

    def _serve_next(self) -> None:
        """Serve the next complete request in the buffer, unless one is being answered."""
        while self._timer is None and self._buffer:
            head_end = self._buffer.find(b"\r\n\r\n")
            if head_end < 0:
                return
            head = self._buffer[:head_end]
            length = _content_length(head)
            end = head_end + 4 + length
            if len(self._buffer) < end:
                return
            body, self._buffer = self._buffer[head_end + 4 : end], self._buffer[end:]
            self._received_ns = time.monotonic_ns()
            self._answer(head, body)

    def _answer(self, head: bytes, body: bytes) -> None:
        method, path, _ = head.split(b"\r\n", 1)[0].split(b" ", 2)
        match method, path:
            case b"POST", b"/v1/completions" | b"/v1/chat/completions":
                self._request_id = _header(head, b"x-request-id")
                self._complete(body, chat=path == b"/v1/chat/completions")
            case b"GET", b"/v1/models":
                self._write_json(200, {"object": "list", "data": [{"id": MODEL, "object": "model"}]})
            case b"GET", b"/health":
                self._write_json(200, {"status": "ok"})
            case b"GET", b"/stamps":
                self._write_json(200, self._server.take_stamps())
            case _:
                self._write_json(404, _error(f"no such path: {path.decode('latin-1')}"))

    def _complete(self, body: bytes, *, chat: bool) -> None:
        try:
            shape, stream = self._server.shape_of(body, chat=chat)
        except _BadRequestError as error:
            self._write_json(400, _error(str(error)))
            return
        options = self._server.options
        if not stream:
            duration_ms = options.ttft_ms + options.itl_ms * (shape.tokens - 1)
            self._at(self._received_ns + int(duration_ms * 1e6), lambda: self._write_whole(shape))
        elif options.itl_ms <= 0:
            self._at(self._received_ns + int(options.ttft_ms * 1e6), lambda: self._write_at_once(shape))
        else:
            self._chunks, self._next = token_chunks(shape), 0
            self._at(self._due_ns(), self._write_due_tokens)

    def _at(self, due_ns: int, call: Callable[[], None]) -> None:
        """Call at a monotonic time, at once if it has passed."""

        def fire() -> None:
            self._timer = None
            call()
            self._serve_next()

        delay_s = (due_ns - time.monotonic_ns()) * 1e-9
        if delay_s <= 0:
            call()
        else:
            self._timer = self._loop.call_later(delay_s, fire)

    def _due_ns(self) -> int:
        options = self._server.options
        return self._received_ns + int((options.ttft_ms + options.itl_ms * self._next) * 1e6)

    def _write_at_once(self, shape: ResponseShape) -> None:
        now = time.monotonic_ns()
        self._write(whole_stream(shape))
        self._stamp(now, now, shape.tokens)

    def _write_due_tokens(self) -> None:
        """Write every token that is due; a timer that fired late finds several."""
        now = time.monotonic_ns()
        first = self._next
        self._next += 1
        while self._next < len(self._chunks) and self._due_ns() <= now:
            self._next += 1
        self._write(b"".join(self._chunks[first : self._next]))
        if first == 0:
            self._first_ns = now
        if self._next < len(self._chunks):
            self._at(self._due_ns(), self._write_due_tokens)
        else:
            self._stamp(self._first_ns, now, len(self._chunks))

    def _write_whole(self, shape: ResponseShape) -> None:
        now = time.monotonic_ns()
        text = "".join(WORDS[k % len(WORDS)] for k in range(shape.tokens))
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": "length"}
        if shape.chat:
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        kind = "chat.completion" if shape.chat else "text_completion"
        head = {"id": "reference", "object": kind, "created": 0, "model": MODEL}
        self._write_json(200, head | {"choices": [choice], "usage": usage_of(shape, shape.tokens)})
        self._stamp(now, now, shape.tokens)

    def _stamp(self, first_ns: int, last_ns: int, tokens: int) -> None:
        self._server.stamps.append(Stamp(self._request_id, self._received_ns, first_ns, last_ns, tokens))

    def _write_json(self, status: int, value: object) -> None:
        body = orjson.dumps(value)
        head = b"HTTP/1.1 %d %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        self._write(head % (status, b"OK" if status == 200 else b"Error", len(body)) + body)

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}


def _header(head: bytes, name: bytes) -> str:
    """Return the value of a header in a raw request head, `""` if it is absent; name in lower case."""
    start = head.lower().find(b"\r\n" + name + b":")
    if start < 0:
        return ""
    start += len(name) + 3
    end = head.find(b"\r\n", start)
    return head[start : end if end >= 0 else len(head)].strip().decode("latin-1")


def _content_length(head: bytes) -> int:
    return int(_header(head, b"content-length") or 0)


async def serve(options: ReferenceOptions, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT."""
    server = ReferenceServer(options)
    url = await server.start(host, port)
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    sys.stdout.write(orjson.dumps({"event": "ready", "url": url}).decode() + "\n")
    sys.stdout.flush()
    await stopped.wait()
    await server.stop()
