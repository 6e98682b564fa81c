"""The metrics endpoint: an ASGI application that answers on exactly one path."""

from __future__ import annotations

import asyncio

from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Receive, Scope, Send

NOT_FOUND = b"404: metrics are served at another path\n"
NOT_ALLOWED = b"405: use GET\n"


def metrics_app(registry: Collector, path: str) -> ASGIApp:
    """Serve `registry` at `path` in the format that the scraper accepts (OpenMetrics or text); 404 elsewhere.

    Samples are rendered in a thread, one scrape at a time. So neither many scrapers nor a slow driver call block the
    event loop. A scraper that reads slowly delays no other.
    """
    rendering = asyncio.Lock()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if scope["path"] != path:
            await _answer(send, 404, NOT_FOUND)
            return
        if scope["method"] not in ("GET", "HEAD"):
            await _answer(send, 405, NOT_ALLOWED)
            return
        accept = ",".join(value.decode("latin-1") for name, value in scope["headers"] if name == b"accept")
        encode, content_type = choose_encoder(accept)
        async with rendering:
            body = await asyncio.to_thread(encode, registry)
        await _answer(send, 200, body, content_type)

    return app


async def _answer(send: Send, status: int, body: bytes, content_type: str = "text/plain; charset=utf-8") -> None:
    headers = [(b"content-type", content_type.encode()), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
