"""The engines by name; none of their libraries is imported here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, cast

from muai_lab.engines.availability import Availability
from muai_lab.engines.base import StepEngine, StreamingEngine

if TYPE_CHECKING:
    from muai_lab.models.registry import ModelSource
    from muai_lab.settings.schema import OptimizationSettings

AnyEngine = StepEngine | StreamingEngine


@dataclass(frozen=True, slots=True)
class EngineKind:
    """An engine by name. package: it holds the modules `probe` and `engine`. type_name: the class in `engine`."""

    name: str
    package: str
    type_name: str

    def availability(self, optimization: OptimizationSettings) -> Availability:
        """Check if it can serve here, with these settings; cheap, and never raises."""
        if not self._enabled(optimization):
            return Availability(f"switched off: set optimization.{self.name}.enabled=true")
        return cast(Availability, self._probe().availability(optimization))

    def supports(self, optimization: OptimizationSettings, source: ModelSource) -> str | None:
        """Return why it cannot serve this model; None if it can."""
        return cast("str | None", self._probe().supports(optimization, source))

    def keys(self) -> Mapping[str, str]:
        """Return the settings that reach the engine: dotted path -> its name or effect there."""
        return cast("Mapping[str, str]", self._probe().KEYS)

    def make(self, optimization: OptimizationSettings, source: ModelSource, *, slots: int) -> AnyEngine:
        """Make the engine: a step engine is loaded, a streaming engine is not started yet. Raises EngineError."""
        engine_type = getattr(import_module(f"{self.package}.engine"), self.type_name)
        return cast(AnyEngine, engine_type(source, optimization, slots=slots))

    def _probe(self) -> ModuleType:
        return import_module(f"{self.package}.probe")

    def _enabled(self, optimization: OptimizationSettings) -> bool:
        return bool(getattr(getattr(optimization, self.name), "enabled", True))


ENGINES: Mapping[str, EngineKind] = {
    kind.name: kind
    for kind in (
        EngineKind("vllm", "muai_lab.engines.vllm", "VllmEngine"),
        EngineKind("deepspeed", "muai_lab.engines.deepspeed", "DeepSpeedEngine"),
        EngineKind("onnx", "muai_lab.engines.onnx", "OnnxEngine"),
        EngineKind("pytorch", "muai_lab.engines.pytorch", "PyTorchEngine"),
    )
}
