"""Errors that a user can cause or must act on.

One family, caught once at the command line (exit status 2, no traceback) and once at the HTTP edge.
Every message says what is wrong, where, and how to mend it.
"""

from __future__ import annotations

from muai_lab.request_status import RequestStatus


class MuaiError(Exception):
    """Base of every error that is the user's to mend; `str(error)` is what the user reads."""

    exit_status = 2

    def __reduce__(self) -> tuple[object, ...]:
        """Errors cross process borders (sweeps in worker processes), whatever their constructors take."""
        return _restore, (type(self), self.args, self.__dict__)


def _restore(kind: type[MuaiError], args: tuple[object, ...], state: dict[str, object]) -> MuaiError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


class SettingsError(MuaiError):
    """One or more settings are invalid; all problems of one load are reported together."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        lines = "\n".join(f"  - {problem}" for problem in self.problems)
        super().__init__(f"{count} invalid setting{'s' if count != 1 else ''}:\n{lines}")


class ModelError(MuaiError):
    """A model is unknown, cannot be found, or its files are missing or corrupt."""


class EngineError(MuaiError):
    """An engine cannot serve: unavailable, failed to load, or failed while running."""

    def __init__(self, engine: str, reason: str) -> None:
        self.engine = engine
        self.reason = reason
        super().__init__(f"engine {engine}: {reason}")


class RunError(MuaiError):
    """A run cannot start or cannot go on: empty schedule, unwritable directory, port in use, server died."""


class RequestsFailed(RunError):
    """A run ended, and its requests failed: the result is there and not valid."""

    exit_status = 1


class RequestError(MuaiError):
    """One request to the stack ends without a result; `status` is the metric label."""

    status: RequestStatus = "error"


class InvalidRequest(RequestError):
    """The request itself is wrong (HTTP 400): too long for the context, bad parameter.

    param: name of the offending request field, as in OpenAI's error object.
    code: machine-readable reason, e.g. `context_length_exceeded`.
    """

    status = "rejected"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        self.param = param
        self.code = code
        super().__init__(message)


class Overloaded(RequestError):
    """The bounded queue is full (HTTP 429) or the stack is draining (HTTP 503)."""

    status = "rejected"

    def __init__(self, message: str, *, retry_after_s: float, draining: bool = False) -> None:
        self.retry_after_s = retry_after_s
        self.draining = draining
        super().__init__(message)


class RequestTimeout(RequestError):
    """The request's deadline passed before it was finished."""

    status = "timeout"


class RequestCancelled(RequestError):
    """The request was cancelled by its client or by shutdown."""

    status = "cancelled"
