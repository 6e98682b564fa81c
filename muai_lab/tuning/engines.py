"""The engines that are tuned, each in a space of its own."""

from __future__ import annotations

from muai_lab.engines.catalogue import ENGINES
from muai_lab.errors import EngineError
from muai_lab.models.registry import ModelSource
from muai_lab.settings.changes import with_values
from muai_lab.settings.lab import LabSettings
from muai_lab.settings.schema import EngineName, OptimizationSettings
from muai_lab.tuning.result import EngineStudy
from muai_lab.tuning.search_space import SearchSpace
from muai_lab.tuning.space_file import read_search_space


def spaces_of(settings: LabSettings, source: ModelSource) -> tuple[dict[EngineName, SearchSpace], list[EngineStudy]]:
    """Return the space of each engine that can serve the model here, and the other engines with their reasons.

    Raises:
        EngineError: No engine can.
        MuaiError: See `read_search_space`.
    """
    optimization = settings.optimization
    spaces: dict[EngineName, SearchSpace] = {}
    refused: list[tuple[str, str]] = []
    for name in optimization.engine_preference:
        kind = ENGINES[name]
        reason = kind.availability(optimization).reason or kind.supports(optimization, source)
        if reason is None:
            spaces[name] = read_search_space(settings.tuning.search_space or name)
        else:
            refused.append((name, reason))
    if not spaces:
        if len(refused) == 1:
            raise EngineError(*refused[0])
        reasons = "".join(f"\n  - {name}: {reason}" for name, reason in refused)
        raise EngineError(", ".join(name for name, _ in refused), f"none can serve {source.name}:{reasons}")
    return spaces, [EngineStudy(name, skipped=reason) for name, reason in refused]


def on_engine(optimization: OptimizationSettings, engine: EngineName) -> OptimizationSettings:
    """Return the configuration with this engine only: a trial must not fall back to another."""
    return with_values(optimization, {"engine_preference": (engine,)})
