"""The observers of one stack, which see every event; a faulty one is isolated."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from muai_lab.stack.events import Event, Observer

log = logging.getLogger(__name__)


class ObserverList:
    """Shows events to observers, in order. One that raises is logged and gets no more events."""

    def __init__(self, observers: Sequence[Observer] = ()) -> None:
        self._observers = list(observers)

    def show(self, events: Sequence[Event]) -> None:
        """Pass the events on."""
        for observer in tuple(self._observers):
            try:
                observer.observe(events)
            except Exception:  # a fault of an observer must not end the requests
                log.exception("observer %r failed; it gets no more events", observer)
                self._observers.remove(observer)
