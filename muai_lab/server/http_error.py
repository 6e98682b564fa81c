"""The HTTP errors of the server, in OpenAI's error shape."""

from __future__ import annotations

import math
from collections.abc import Mapping
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

RETRY_SOON_S = 1.0
LONGEST_MESSAGE = 800  # characters; a message that quotes more of a request than is good for a log is cut here
LONGEST_SHOWN = 60  # characters of a request that an error or a log line repeats


class HttpError(Exception):
    """One HTTP error response.

    Attributes:
        status: HTTP status.
        message: At most `LONGEST_MESSAGE` characters.
        kind: OpenAI's `type`.
        param: The request field at fault.
        code: The machine-readable reason.
        headers: Headers of the response besides content type and length.
    """

    def __init__(
        self,
        status: HTTPStatus,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status = status
        self.message = message if len(message) <= LONGEST_MESSAGE else message[:LONGEST_MESSAGE] + "..."
        self.kind = kind
        self.param = param
        self.code = code
        self.headers = headers or {}
        super().__init__(message)

    def document(self) -> dict[str, Any]:
        """Return the JSON document, `{"error": {...}}`."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def body(self) -> bytes:
        """Return the document as UTF-8 JSON."""
        return orjson.dumps(self.document())


def retry_after(seconds: float) -> dict[str, str]:
    """Return the header that asks the client to wait; it counts whole seconds, at least one."""
    return {"retry-after": str(max(1, math.ceil(seconds)))}


def invalid(message: str, param: str | None = None, code: str | None = None) -> HttpError:
    """Return a 400: the request itself is wrong."""
    return HttpError(HTTPStatus.BAD_REQUEST, message, param=param, code=code)


def unavailable(message: str, code: str, retry_after_s: float = RETRY_SOON_S) -> HttpError:
    """Return a 503: the server cannot take requests at present."""
    status = HTTPStatus.SERVICE_UNAVAILABLE
    return HttpError(status, message, kind="server_error", code=code, headers=retry_after(retry_after_s))


def internal_error() -> HttpError:
    """Return a 500 for a fault of the server; its details are in the log, not in the response."""
    status = HTTPStatus.INTERNAL_SERVER_ERROR
    return HttpError(status, "internal error; the server's log has the details", kind="server_error", code="internal")


def http_error_of(error: MuaiError) -> HttpError:
    """Return the HTTP error for an error of the stack; see the table in `docs/server.md`."""
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
            headers=retry_after(error.retry_after_s),
        )
    if isinstance(error, RequestTimeout):
        # 504, not 408: the request arrived in time, the response did not.
        return HttpError(HTTPStatus.GATEWAY_TIMEOUT, message, kind="server_error", code="deadline_exceeded")
    if isinstance(error, RequestCancelled):
        return unavailable(message, "cancelled")
    code = "model_unavailable" if isinstance(error, ModelError) else "engine_error"
    return HttpError(HTTPStatus.INTERNAL_SERVER_ERROR, message, kind="server_error", code=code)


def shown(value: Any) -> str:
    """Return a value of a request for an error or a log line: short, on one line, in constant time."""
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
