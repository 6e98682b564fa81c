"""The selection of the engine: the first of the preference that is available, supports the model and loads."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from muai_lab.engines.catalogue import ENGINES, AnyEngine
from muai_lab.errors import EngineError

if TYPE_CHECKING:
    from muai_lab.models.registry import ModelSource
    from muai_lab.settings.schema import OptimizationSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Candidate:
    """An engine that may be tried. refuse: returns why it cannot serve, None if it may; cheap. make: builds it."""

    name: str
    refuse: Callable[[], str | None]
    make: Callable[[], AnyEngine]


class EngineCandidates:
    """The engines of a preference, tried one after the other; each is tried once.

    skipped: (engine, reason) of those that cannot serve, in order. If `fall_back` is off, the first failure is raised
    and no other engine is tried.
    """

    def __init__(self, candidates: Iterable[Candidate], *, model: str, fall_back: bool = True) -> None:
        self._queue = deque(candidates)
        self._model = model
        self.fall_back = fall_back
        self.skipped: list[tuple[str, str]] = []

    @classmethod
    def of(cls, optimization: OptimizationSettings, source: ModelSource, *, slots: int) -> EngineCandidates:
        """Return those that the settings prefer; only plain PyTorch with `optimization.enabled: false`."""
        names = optimization.engine_preference if optimization.enabled else ("pytorch",)
        candidates = [_candidate(name, optimization, source, slots) for name in names]
        return cls(candidates, model=source.name, fall_back=optimization.fallback_on_error)

    @property
    def left(self) -> bool:
        """True if another engine may be tried when the present one fails."""
        return self.fall_back and bool(self._queue)

    def next(self) -> AnyEngine:
        """Return the next engine that can serve; a streaming engine is not started yet.

        Raises EngineError if none is left.
        """
        while self._queue:
            candidate = self._queue.popleft()
            reason = candidate.refuse()
            if reason is None:
                try:
                    return candidate.make()
                except EngineError as error:
                    reason = error.reason
            self.skip(candidate.name, reason)
        if len(self.skipped) == 1:
            raise EngineError(*self.skipped[0])
        reasons = "".join(f"\n  - {name}: {reason}" for name, reason in self.skipped)
        raise EngineError(", ".join(name for name, _ in self.skipped), f"none can serve {self._model}:{reasons}")

    def skip(self, name: str, reason: str) -> None:
        """Record that an engine cannot serve, or no longer can. Raises EngineError if `fall_back` is off."""
        self.skipped.append((name, reason))
        log.info("%s: engine %s skipped: %s", self._model, name, reason)
        if not self.fall_back:
            raise EngineError(name, reason)


def _candidate(name: str, optimization: OptimizationSettings, source: ModelSource, slots: int) -> Candidate:
    kind = ENGINES[name]
    return Candidate(
        name,
        refuse=lambda: kind.availability(optimization).reason or kind.supports(optimization, source),
        make=lambda: kind.make(optimization, source, slots=slots),
    )
