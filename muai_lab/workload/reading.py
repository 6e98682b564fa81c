"""Reading users' files: a bad line is reported by its number, and rows and fields left out are counted."""

from __future__ import annotations

import gzip
import math
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import IO, Any, cast

from muai_lab.errors import RunError
from muai_lab.settings.workload import FileWorkload, OnError

_SHOWN = 60
_FIELDS_SHOWN = 12
_GZIP = b"\x1f\x8b"
_UTF8_MARK = b"\xef\xbb\xbf"
_UNREAD = {
    b"\xff\xfe": "UTF-16 text: convert it to UTF-8",
    b"\xfe\xff": "UTF-16 text: convert it to UTF-8",
    b"BZh": "compressed with bzip2: unpack it, or compress it with gzip",
    b"\xfd7zXZ\0": "compressed with xz: unpack it, or compress it with gzip",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: unpack it, or compress it with gzip",
    b"PK\x03\x04": "a ZIP archive: unpack it",
}
"""First bytes of files that cannot be read, with the remedy."""
_LONGEST_MARK = max(map(len, _UNREAD))

_BEYOND_INTEGERS = 2.0**63

MOST_TOKENS = 100_000_000
"""No prompt and no answer is longer: a larger count has another unit, such as bytes, or is damaged."""


class FileReading:
    """One file that is being read; `bad` stops at an unreadable line or counts it, depending on `workload.on_error`.

    skippable: the file belongs to a workload, so the setting applies.
    """

    def __init__(self, path: Path, on_error: OnError = "fail", *, skippable: bool = True) -> None:
        self.path = path
        self._remedy = "mend it, or leave such lines out with workload.on_error=skip" if skippable else "mend it"
        self._on_error = on_error
        self._bad = 0
        self._first: str | None = None
        self._left_out: Counter[str] = Counter()
        self._remarks: Counter[str] = Counter()
        self._ignored: Counter[str] = Counter()

    @classmethod
    def of(cls, workload: FileWorkload) -> FileReading:
        """Open the file of the workload for reading; raises RunError if it has none."""
        if workload.path is None:
            raise RunError(f"workload {workload.name} needs a file: set workload.path=FILE")
        return cls(Path(workload.path).expanduser(), workload.on_error)

    def bad(self, line: int, problem: str) -> None:
        """Raise RunError for a line (from 1) that cannot be read, or count it."""
        if self._on_error == "fail":
            raise RunError(f"{self.path}:{line}: {problem}; {self._remedy}")
        self._bad += 1
        self._first = self._first or f"line {line}: {problem}"

    def leave_out(self, reason: str) -> None:
        """Count a valid row that cannot be sent; reason: completes "left out of FILE: 3 rows …"."""
        self._left_out[reason] += 1

    def remark(self, remark: str) -> None:
        """Count a row that is not used as recorded; remark: completes "FILE: 3 rows …"."""
        self._remarks[remark] += 1

    def ignore(self, field: str) -> None:
        """Count a field of a row that is not used."""
        self._ignored[field] += 1

    def notes(self) -> tuple[str, ...]:
        """Return notes on all that was left out, changed or ignored; without content."""
        name = self.path.name
        notes = []
        if self._bad:
            lines = counted(self._bad, "line")
            notes.append(f"left out of {name}, since they cannot be read: {lines}, first {self._first}")
        notes += [f"left out of {name}: {counted(count, 'row')} {reason}" for reason, count in self._left_out.items()]
        notes += [f"{name}: {counted(count, 'row')} {remark}" for remark, count in self._remarks.items()]
        if self._ignored:
            notes.append(f"fields of {name} without a use here, ignored: {_listed(self._ignored)}")
        return tuple(notes)

    def head(self, size: int) -> bytes:
        """Return the first bytes of the content, decompressed; raises RunError if the file cannot be read."""
        try:
            with self._open() as file:
                return file.read(size)
        except (OSError, EOFError, zlib.error) as error:
            raise self.unreadable(error) from error

    def lines(self) -> Iterator[tuple[int, str]]:
        """Yield number and text of every line, without its end; raises RunError if the file cannot be read."""
        number = 0
        try:
            with self._open() as file:
                for number, raw in enumerate(file, 1):
                    if number == 1:
                        raw = raw.removeprefix(_UTF8_MARK)
                    try:
                        yield number, raw.decode("utf-8").rstrip("\r\n")
                    except UnicodeDecodeError as error:
                        self.bad(number, f"no UTF-8 text (byte {error.start + 1})")
        except (EOFError, zlib.error) as error:
            self.bad(number + 1, f"the compressed file breaks off or is damaged ({error})")
        except OSError as error:
            raise self.unreadable(error) from error

    def unreadable(self, error: Exception) -> RunError:
        """Return the error of a file that cannot be opened."""
        reason = getattr(error, "strerror", None) or error
        return RunError(f"cannot read {self.path}: {reason}; check workload.path")

    def wrong_columns(self, missing: Sequence[str], there: Sequence[str]) -> RunError:
        """Return the error of a table that lacks columns."""
        return RunError(
            f"{self.path} has no column {' and no column '.join(missing)}, but {', '.join(there)}: check workload.path "
            "and workload.kind, or name the columns"
        )

    def nothing(self, what: str) -> RunError:
        """Return the error of a file without a usable row; what: the missing content."""
        left_out = "; ".join(self.notes())
        return RunError(f"{self.path} holds no {what}{f' ({left_out})' if left_out else ''}: check workload.path")

    def _open(self) -> IO[bytes]:
        file = self.path.open("rb")
        try:
            begun = file.read(_LONGEST_MARK)
            packed = begun.startswith(_GZIP)
            if (known := next((what for mark, what in _UNREAD.items() if begun.startswith(mark)), None)) is not None:
                raise RunError(f"{self.path} is {known}")
            file.seek(0)
        except BaseException:
            file.close()
            raise
        return cast("IO[bytes]", _Gunzipped(file)) if packed else file


class _Gunzipped(gzip.GzipFile):
    """The content of a compressed file; closing it closes the file."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(fileobj=file, mode="rb")
        self._file = file

    def close(self) -> None:
        super().close()
        self._file.close()


def tokens(value: Any, name: str) -> int:
    """Return a count of tokens from a field; 472.0 is 472. Raises ValueError with the reason for other values."""
    try:
        count = _whole(value)
    except (ValueError, OverflowError):
        raise ValueError(f"{name} is {shown(value)}, expected a whole number of tokens") from None
    if count < 0:
        raise ValueError(f"{name} is {count}, expected a number of tokens from 0")
    if count > MOST_TOKENS:
        raise ValueError(f"{name} is {shown(count)}, expected at most {MOST_TOKENS:,} tokens")
    return count


def _whole(value: Any) -> int:
    if isinstance(value, str) and value.isdecimal() and len(value) < _SHOWN:
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        raise ValueError(value)
    if isinstance(value, int):
        return value
    parsed = float(value)
    if not parsed.is_integer():
        raise ValueError(value)
    return int(parsed)


def number(value: Any, name: str) -> float:
    """Return a finite number from a field; raises ValueError with the reason for other values."""
    try:
        parsed = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} is {shown(value)}, expected a number") from None
    if isinstance(value, bool) or not math.isfinite(parsed):
        raise ValueError(f"{name} is {shown(value)}, expected a finite number")
    return parsed


def shown(value: Any) -> str:
    """Return a value for an error message."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python writes
        text = "a number of thousands of digits"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def exact(value: Any, name: str) -> Any:
    """Return the value, which must be exact in JSON.

    Raises ValueError for NaN, infinity, and integers of more than 64 bits, which JSON readers round to a float.
    """
    if isinstance(value, float) and not abs(value) < _BEYOND_INTEGERS:
        raise ValueError(f"{name} is {shown(value)}, expected a finite number of at most 64 bits")
    return value


def counted(count: int, noun: str) -> str:
    """Return the count with its noun, such as `1 line` and `2 lines`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _listed(counts: Counter[str]) -> str:
    counts = Counter({" ".join(name.split()): count for name, count in counts.items()})
    named = [f"{name if len(name) <= _SHOWN else f'{name[:_SHOWN]}…'} ({count:,})" for name, count in counts.items()]
    more = [f"and {len(named) - _FIELDS_SHOWN} more"] if len(named) > _FIELDS_SHOWN else []
    return ", ".join(named[:_FIELDS_SHOWN] + more)
