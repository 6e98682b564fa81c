"""The limits of the batcher, as configured."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from muai_lab.settings.schema import OptimizationSettings


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """The limits of the batcher.

    max_batch_size: most sequences that run at once (<= the engine's slots). min_batch_size: a batch starts once this
    many wait. timeout_s: or once the oldest has waited this long. max_prefill_tokens: prompt tokens computed in one
    step, which bounds how long running sequences are stalled. adaptive: move the running limit between min_batch_size
    and max_batch_size. latency_target_s: inter-token latency that `adaptive` keeps to; None: it keeps the best measured
    throughput.
    """

    max_batch_size: int
    min_batch_size: int = 1
    timeout_s: float = 0.0
    max_prefill_tokens: int = 512
    adaptive: bool = False
    latency_target_s: float | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.min_batch_size <= self.max_batch_size:
            raise ValueError(f"min_batch_size {self.min_batch_size} must lie in 1..{self.max_batch_size}")
        if self.max_prefill_tokens < 1:
            raise ValueError(f"max_prefill_tokens must be at least 1, not {self.max_prefill_tokens}")

    def checked(self, slots: int) -> BatchLimits:
        """Return these limits. Raises ValueError if the engine has fewer slots."""
        if self.max_batch_size > slots:
            raise ValueError(f"max_batch_size {self.max_batch_size} is more than the engine's {slots} slots")
        return self

    def within(self, slots: int) -> BatchLimits:
        """Return the limits for an engine with `slots` slots."""
        return replace(
            self,
            max_batch_size=min(self.max_batch_size, slots),
            min_batch_size=min(self.min_batch_size, slots),
        )


def batch_limits(optimization: OptimizationSettings) -> BatchLimits:
    """Return the configured limits. Without batching one request runs at a time, and none is held."""
    batcher = optimization.batcher
    if not (optimization.enabled and batcher.enabled):
        return BatchLimits(1, max_prefill_tokens=batcher.max_prefill_tokens)
    return BatchLimits(
        max_batch_size=batcher.max_batch_size,
        min_batch_size=batcher.min_batch_size,
        timeout_s=batcher.batch_timeout_ms / 1000,
        max_prefill_tokens=batcher.max_prefill_tokens,
        adaptive=batcher.adaptive_batching,
        latency_target_s=None if batcher.latency_target_ms is None else batcher.latency_target_ms / 1000,
    )


def engine_slots(optimization: OptimizationSettings) -> int:
    """Return the slots to open an engine with: room for the largest batch that live changes may configure."""
    batcher = optimization.batcher
    if not (optimization.enabled and batcher.enabled):
        return 1
    return batcher.max_slots or batcher.max_batch_size
