"""What the HTTP edge answers when a request cannot be served, in OpenAI's error shape."""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import Any

import orjson

from muai_lab.errors import (
    InvalidRequest,
    ModelError,
    MuaiError,
    Overloaded,
    RequestCancelled,
    RequestTimeout,
)

Headers = list[tuple[bytes, bytes]]

RETRY_SOON_S = 1.0
LONGEST_MESSAGE = 800  # characters; a message that quotes more of a request than is good for a log is cut here
LONGEST_SHOWN = 60  # characters of a request that an error or a log line repeats


class HttpError(Exception):
    """One HTTP error answer.

    status: HTTP status. kind: OpenAI's `type`. param: the request field at fault. code: machine-readable reason.
    retry_after_s: when it makes sense to try again, sent as `Retry-After` in whole seconds. allow: methods that the
    resource knows. close: the connection cannot be used further.
    """

    def __init__(
        self,
        status: HTTPStatus,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
        allow: str | None = None,
        close: bool = False,
    ) -> None:
        self.status = status
        self.message = message if len(message) <= LONGEST_MESSAGE else message[:LONGEST_MESSAGE] + "..."
        self.kind = kind
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s
        self.allow = allow
        self.close = close
        super().__init__(message)

    def document(self) -> dict[str, Any]:
        """The JSON document, `{"error": {...}}`."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def body(self) -> bytes:
        """The document as UTF-8 JSON."""
        return orjson.dumps(self.document())

    def headers(self) -> Headers:
        """Headers that belong to this answer beside its content type and length."""
        headers: Headers = []
        if self.retry_after_s is not None:
            headers.append((b"retry-after", b"%d" % max(1, math.ceil(self.retry_after_s))))
        if self.allow is not None:
            headers.append((b"allow", self.allow.encode()))
        if self.close:
            headers.append((b"connection", b"close"))
        return headers


def invalid(message: str, param: str | None = None, code: str | None = None) -> HttpError:
    """A 400: the request itself is wrong."""
    return HttpError(HTTPStatus.BAD_REQUEST, message, param=param, code=code)


def unavailable(message: str, code: str, retry_after_s: float = RETRY_SOON_S) -> HttpError:
    """A 503: the server cannot take requests at present."""
    return HttpError(
        HTTPStatus.SERVICE_UNAVAILABLE, message, kind="server_error", code=code, retry_after_s=retry_after_s
    )


def internal_error() -> HttpError:
    """A 500 for a fault of ours; its details are in the log, not in the answer."""
    status = HTTPStatus.INTERNAL_SERVER_ERROR
    return HttpError(status, "internal error; the server's log has the details", kind="server_error", code="internal")


def http_error_of(error: MuaiError) -> HttpError:
    """The HTTP answer to an error of the stack; see the table in `docs/server.md`."""
    message = str(error)
    if isinstance(error, InvalidRequest):
        return invalid(message, error.param, error.code)
    if isinstance(error, Overloaded):
        if error.draining:
            return unavailable(message, "draining", error.retry_after_s)
        return HttpError(
            HTTPStatus.TOO_MANY_REQUESTS,
            message,
            kind="rate_limit_error",
            code="queue_full",
            retry_after_s=error.retry_after_s,
        )
    if isinstance(error, RequestTimeout):
        # 504, not 408: the request arrived in time, it was this side that did not finish.
        return HttpError(HTTPStatus.GATEWAY_TIMEOUT, message, kind="server_error", code="deadline_exceeded")
    if isinstance(error, RequestCancelled):
        return unavailable(message, "cancelled")
    code = "model_unavailable" if isinstance(error, ModelError) else "engine_error"
    return HttpError(HTTPStatus.INTERNAL_SERVER_ERROR, message, kind="server_error", code=code)


def shown(value: Any) -> str:
    """A value of a request as an error or a log line repeats it: short, on one line, in time that is constant."""
    if isinstance(value, str):
        text = repr(value[:LONGEST_SHOWN])
        return text if len(value) <= LONGEST_SHOWN else f"{text[:-1]}...{text[-1]}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, int) and value.bit_length() > 64:
        return f"a number of {value.bit_length()} bits"
    return repr(value)
