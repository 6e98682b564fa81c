"""The features of the workload, and the check if they have changed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from muai_lab.stack.online.window import Block, total

_DEVIATIONS = 4.0  # standard errors; checked at every interval, so a false alarm must be rare
_LEAST = {"arrivals": 0.3, "prompt tokens": 0.3, "output tokens": 0.3, "prefix hits": 0.15}
_FEW = 10  # requests; below this number lengths say nothing


@dataclass(frozen=True, slots=True)
class Feature:
    """One property of the workload with its standard error; value: None if there are too few requests."""

    value: float | None
    error: float = 0.0


@dataclass(frozen=True, slots=True)
class WorkloadFeatures:
    """Arrivals per second, mean lengths in tokens, and the share of prompt tokens that the prefix cache serves."""

    arrivals: Feature
    prompt_tokens: Feature
    output_tokens: Feature
    prefix_hits: Feature

    @property
    def demand(self) -> float:
        """Requested tokens per second, prompt and output."""
        lengths = (self.prompt_tokens.value or 0.0) + (self.output_tokens.value or 0.0)
        return (self.arrivals.value or 0.0) * lengths


def workload(blocks: Sequence[Block]) -> WorkloadFeatures:
    """Return the features of the requests in these blocks."""
    whole = total(blocks)
    return WorkloadFeatures(
        arrivals=_rate(blocks, whole),
        prompt_tokens=_mean(whole.queued, whole.prompt_tokens, whole.prompt_squares),
        output_tokens=_mean(whole.ended, whole.ended_tokens, whole.ended_squares),
        prefix_hits=_hits(blocks, whole),
    )


def shifts(before: WorkloadFeatures, after: WorkloadFeatures, *, ignore: frozenset[str] = frozenset()) -> list[str]:
    """Return the features that changed by more than their noise and by enough to matter, in words.

    ignore: names of features that are not compared.
    """
    pairs = {
        "arrivals": (before.arrivals, after.arrivals),
        "prompt tokens": (before.prompt_tokens, after.prompt_tokens),
        "output tokens": (before.output_tokens, after.output_tokens),
        "prefix hits": (before.prefix_hits, after.prefix_hits),
    }
    return [
        f"{name} {first.value:.3g} -> {second.value:.3g}"
        for name, (first, second) in pairs.items()
        if name not in ignore and _differ(first, second, least=_LEAST[name], relative=name != "prefix hits")
    ]


def _differ(before: Feature, after: Feature, *, least: float, relative: bool) -> bool:
    if before.value is None or after.value is None:
        return False
    difference = abs(after.value - before.value)
    scale = max(before.value, after.value) if relative else 1.0
    return difference > max(_DEVIATIONS * math.hypot(before.error, after.error), least * scale)


def _rate(blocks: Sequence[Block], whole: Block) -> Feature:
    if not whole.seconds:
        return Feature(None)
    rates = [block.arrived / block.seconds for block in blocks]
    mean = whole.arrived / whole.seconds
    poisson = math.sqrt(whole.arrived + 1) / whole.seconds
    if len(rates) < 2:
        return Feature(mean, poisson)
    # Arrivals may come in bursts, and then vary more than a Poisson process does.
    variance = sum((rate - mean) ** 2 for rate in rates) / (len(rates) - 1)
    return Feature(mean, max(poisson, math.sqrt(variance / len(rates))))


def _mean(count: int, tokens: int, squares: int) -> Feature:
    if count < _FEW:
        return Feature(None)
    mean = tokens / count
    return Feature(mean, math.sqrt(max(squares / count - mean**2, 0.0) / count))


def _hits(blocks: Sequence[Block], whole: Block) -> Feature:
    if whole.admitted < _FEW or not whole.looked_up:
        return Feature(None)
    rates = [block.hit_rate for block in blocks if block.looked_up]
    variance = sum((rate - whole.hit_rate) ** 2 for rate in rates) / max(len(rates) - 1, 1)
    return Feature(whole.hit_rate, math.sqrt(variance / len(rates)))
