"""Every event of a simulation as one line of text, to compare two runs byte by byte."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from muai_lab.stack.events import Event


class EventLog:
    """An observer that keeps what it sees, as text (floats in full precision), in order."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def observe(self, events: Sequence[Event]) -> None:
        """Take in the events; see `muai_lab.stack.events.Observer`."""
        self.lines.extend(map(repr, events))

    def digest(self) -> str:
        """SHA-256 of the whole log."""
        return hashlib.sha256("\n".join(self.lines).encode()).hexdigest()
