"""Reading files of others: every line that makes no sense is named by its number, or left out and counted."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from muai_lab.errors import RunError
from muai_lab.settings.workload import FileWorkload, OnError

_SHOWN = 60


class Reading:
    """One file that is being read; `bad` stops at an unreadable line or counts it, as `workload.on_error` says."""

    def __init__(self, path: Path, on_error: OnError = "fail") -> None:
        self.path = path
        self._on_error = on_error
        self._left_out = 0
        self._first: str | None = None

    @classmethod
    def of(cls, workload: FileWorkload) -> Reading:
        """The file of the workload."""
        if workload.path is None:
            raise RunError(f"workload {workload.name} needs a file: set workload.path=FILE")
        return cls(Path(workload.path).expanduser(), workload.on_error)

    def bad(self, line: int, problem: str) -> None:
        """A line (from 1) cannot be read: raises RunError, or counts it."""
        if self._on_error == "fail":
            raise RunError(
                f"{self.path}:{line}: {problem}; mend it, or leave such lines out with workload.on_error=skip"
            )
        self._left_out += 1
        self._first = self._first or f"line {line}: {problem}"

    def notes(self) -> tuple[str, ...]:
        """What was left out."""
        if not self._left_out:
            return ()
        lines = counted(self._left_out, "line")
        return (f"left out of {self.path.name}, since they cannot be read: {lines}, first {self._first}",)

    def lines(self) -> Iterator[tuple[int, str]]:
        """Number and text of every line, without its end; what is no UTF-8 is bad. Raises RunError without the file."""
        try:
            with self.path.open("rb") as file:
                for number, raw in enumerate(file, 1):
                    if number == 1:
                        raw = raw.removeprefix(b"\xef\xbb\xbf")
                    try:
                        yield number, raw.decode("utf-8").rstrip("\r\n")
                    except UnicodeDecodeError as error:
                        self.bad(number, f"no UTF-8 text (byte {error.start + 1})")
        except OSError as error:
            raise self.unreadable(error) from error

    def unreadable(self, error: OSError) -> RunError:
        """The error for a file that cannot be opened."""
        return RunError(f"cannot read {self.path}: {error.strerror or error}; check workload.path")

    def wrong_columns(self, missing: Sequence[str], there: Sequence[str]) -> RunError:
        """The error for a table without the columns that are needed."""
        return RunError(
            f"{self.path} has no column {' and no column '.join(missing)}, but {', '.join(there)}: check workload.path "
            "and workload.kind, or name the columns"
        )

    def nothing(self, what: str) -> RunError:
        """The error for a file without anything to use."""
        left_out = "; ".join(self.notes())
        return RunError(f"{self.path} holds no {what}{f' ({left_out})' if left_out else ''}: check workload.path")


def tokens(value: Any, name: str) -> int:
    """A count of tokens from a field; raises ValueError saying what is wrong with it."""
    try:
        number = value if isinstance(value, int) and not isinstance(value, bool) else int(str(value).strip())
    except ValueError:
        raise ValueError(f"{name} is {shown(value)}, expected a whole number of tokens") from None
    if number < 0:
        raise ValueError(f"{name} is {number}, expected a number of tokens from 0")
    return number


def number(value: Any, name: str) -> float:
    """A finite number from a field; raises ValueError saying what is wrong with it."""
    try:
        parsed = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} is {shown(value)}, expected a number") from None
    if isinstance(value, bool) or not math.isfinite(parsed):
        raise ValueError(f"{name} is {shown(value)}, expected a finite number")
    return parsed


def shown(value: Any) -> str:
    """A value as an error message quotes it."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def counted(count: int, noun: str) -> str:
    """`1 line`, `2 lines`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
