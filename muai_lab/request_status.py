"""The ways in which a request ends. Records, the server's metrics and reports use these names."""

from __future__ import annotations

from typing import Literal, get_args

RequestStatus = Literal["ok", "error", "rejected", "cancelled", "timeout"]

STATUSES: tuple[RequestStatus, ...] = get_args(RequestStatus)

FAILURES = tuple(status for status in STATUSES if status != "ok")
