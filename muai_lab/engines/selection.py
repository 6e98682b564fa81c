"""Which engine serves: the first of the preference that is available, supports the model and loads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from muai_lab.engines.base import StepEngine
from muai_lab.errors import EngineError

if TYPE_CHECKING:
    from muai_lab.models.registry import ModelSource
    from muai_lab.settings.schema import OptimizationSettings


def open_engine(
    optimization: OptimizationSettings, source: ModelSource, *, slots: int
) -> tuple[StepEngine, tuple[tuple[str, str], ...]]:
    """Load the model on the first engine of `engine_preference` that can serve it.

    Returns the engine and what was skipped: (engine, reason). With `fallback_on_error: false` the first failure is the
    caller's; with `optimization.enabled: false` only plain PyTorch is asked. Raises EngineError if none can serve.
    """
    preference = optimization.engine_preference if optimization.enabled else ("pytorch",)
    skipped: list[tuple[str, str]] = []
    for name in preference:
        try:
            return _open(name, optimization, source, slots), tuple(skipped)
        except EngineError as error:
            if not optimization.fallback_on_error:
                raise
            skipped.append((name, error.reason))
    reasons = "".join(f"\n  - {name}: {reason}" for name, reason in skipped)
    raise EngineError(preference[0], f"no engine can serve {source.name}:{reasons}")


def _open(name: str, optimization: OptimizationSettings, source: ModelSource, slots: int) -> StepEngine:
    if name == "pytorch":
        from muai_lab.engines.pytorch.engine import PyTorchEngine

        return PyTorchEngine(source, optimization.pytorch, slots=slots)
    raise EngineError(name, "not part of this version of muai_lab")
