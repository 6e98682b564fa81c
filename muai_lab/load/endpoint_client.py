"""HTTP requests to one server of the OpenAI API, over kept-alive connections."""

from __future__ import annotations

from collections.abc import Callable

import orjson
from yarl import URL

from muai_lab import __version__
from muai_lab.errors import RunError
from muai_lab.load.completion_stream import error_message
from muai_lab.load.connection_pool import ConnectionPool
from muai_lab.load.endpoint_access import EndpointAccess
from muai_lab.load.endpoint_address import EndpointAddress, host_header, redirected
from muai_lab.load.http_connection import ConnectionProblem, ResponseSink
from muai_lab.load.streamed_answer import StreamedAnswer, WholeAnswer
from muai_lab.settings.workload import Api


class EndpointClient:
    """Sends requests with the server's access. url: the address of completions."""

    def __init__(self, address: EndpointAddress, api: Api, access: EndpointAccess, clock: Callable[[], int]) -> None:
        self.url = address.completions(api)
        self._address = address
        self._access = access
        self._clock = clock
        self._post_head = self._head("POST", self.url)
        self._tls = access.tls() if self.url.scheme == "https" else None
        self._pool: ConnectionPool | None = None
        self._pool_notes: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """See `ConnectionPool.notes`; also after `close`."""
        return self._pool_notes if self._pool is None else self._pool.notes

    async def open(self) -> None:
        """Look up the server; raises RunError if it has no address."""
        self._pool = ConnectionPool(self.url, self._clock, self._tls)
        try:
            await self._pool.open()
        except ConnectionProblem as error:
            raise RunError(f"{self.url} cannot be measured: {error}; check target.url") from error

    async def close(self) -> None:
        """Close all connections; harmless if called twice or before `open`."""
        pool, self._pool = self._pool, None
        if pool is not None:
            self._pool_notes = pool.notes
            await pool.close()

    def address(self, path: str) -> URL:
        """Return the address of a path of the API."""
        return self._address.path(path)

    async def get(self, url: URL, answer: ResponseSink) -> None:
        """Send a GET; raises as `ConnectionPool.exchange`."""
        assert self._pool is not None, "open() comes first"
        await self._pool.exchange(self._head("GET", url) + b"\r\n", answer)

    async def post(self, request_id: int, body: bytes, answer: ResponseSink) -> None:
        """Send a request for a completion; raises as `ConnectionPool.exchange`."""
        assert self._pool is not None, "open() comes first"
        head = b"%bX-Request-Id: %d\r\nContent-Length: %d\r\n\r\n" % (self._post_head, request_id, len(body))
        await self._pool.exchange(head + body, answer)

    def refusal(self, status: int, answer: StreamedAnswer | WholeAnswer) -> str:
        """Return the reason of a response other than 200, in one line without secrets."""
        body = answer.content
        if answer.location and 300 <= status < 400:
            there = redirected(self.url, answer.location)
            return self.without_secrets(f"HTTP {status}: redirects to {there}; set target.url to that")
        try:
            detail = error_message(orjson.loads(body))
        except orjson.JSONDecodeError:
            kind = answer.content_type or "no content type"
            detail = f"{kind}: {body[:120].decode('utf-8', 'replace')}" if body else "empty answer"
        return self.without_secrets(f"HTTP {status}: {detail}")

    def without_secrets(self, text: str) -> str:
        """Return the text without the secrets of the access."""
        return self._access.without_secrets(text)

    def _head(self, method: str, url: URL) -> bytes:
        """Return the request line and the headers of all requests, without the empty line after them."""
        lines = [
            f"{method} {url.raw_path_qs} HTTP/1.1",
            f"Host: {host_header(url)}",
            f"User-Agent: muai-lab/{__version__}",
            "Accept: text/event-stream, application/json",
            "Accept-Encoding: identity",  # otherwise a proxy may compress, and so delay tokens
        ]
        if method == "POST":
            lines.append("Content-Type: application/json")
        lines += self._access.lines()
        return "".join(f"{line}\r\n" for line in lines).encode("latin-1")
