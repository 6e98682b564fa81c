"""The metrics of serving: a table of families, one entry each, read by a Prometheus registry.

The registry is the caller's; nothing is registered at import.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from muai_lab.monitoring.histogram import BATCH_BUCKETS, Histogram
from muai_lab.monitoring.prometheus import PrometheusObserver

Reading = float | Histogram | Mapping[tuple[str, ...], float] | None
"""A number, a histogram, one number for each combination of further labels, or None for no sample."""


class ModelTotals:
    """The counts of one model over all engines that have served it (more than one after a failover)."""

    def __init__(self) -> None:
        self.throughput_rps = 0.0
        self.batch = Histogram(BATCH_BUCKETS)
        self.waiting = 0
        self.looked_up_tokens = 0
        self.cached_tokens = 0

    def add(self, observer: PrometheusObserver, now: float) -> None:
        """Add the counts of one engine. The caller holds the observer's lock."""
        self.throughput_rps += observer.throughput_rps(now)
        self.batch.add(observer.batch)
        self.waiting += len(observer.waiting)
        self.looked_up_tokens += observer.looked_up_tokens
        self.cached_tokens += observer.cached_tokens

    @property
    def hit_rate(self) -> float | None:
        """Share of the prompt tokens that the prefix cache served; None without a cache."""
        return self.cached_tokens / self.looked_up_tokens if self.looked_up_tokens else None


@dataclass(frozen=True, slots=True)
class EngineFamily:
    """A metric family with samples for each model and engine. more_labels: its labels beside these two."""

    kind: Callable[..., Any]  # one of prometheus_client's metric families
    name: str
    description: str
    read: Callable[[PrometheusObserver], Reading]
    more_labels: tuple[str, ...] = ()

    def empty(self) -> Any:
        """Return the family without samples."""
        return self.kind(self.name, self.description, labels=("model", "engine", *self.more_labels))


@dataclass(frozen=True, slots=True)
class ModelFamily:
    """A metric family with one sample for each model."""

    kind: Callable[..., Any]
    name: str
    description: str
    read: Callable[[ModelTotals], Reading]

    def empty(self) -> Any:
        """Return the family without samples."""
        return self.kind(self.name, self.description, labels=("model",))


_COUNTER, _GAUGE, _HISTOGRAM = CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

FAMILIES: tuple[EngineFamily | ModelFamily, ...] = (
    EngineFamily(_HISTOGRAM, "inference_latency_seconds", "Inference latency histogram", lambda it: it.latency_s),
    EngineFamily(
        _COUNTER,
        "inference_requests",
        "Request counter",
        lambda it: {(status,): count for status, count in it.requests.items()},
        ("status",),
    ),
    ModelFamily(
        _GAUGE, "throughput_requests_per_second", "Current throughput gauge", lambda model: model.throughput_rps
    ),
    ModelFamily(_GAUGE, "kv_cache_hit_rate", "Cache hit rate", lambda model: model.hit_rate),
    ModelFamily(_HISTOGRAM, "batch_size", "Batch size histogram", lambda model: model.batch),
    EngineFamily(_GAUGE, "muai_running_sequences", "Sequences in the running batch", lambda it: len(it.running)),
    EngineFamily(_GAUGE, "muai_batch_limit", "Most sequences that may run at this moment", lambda it: it.limit),
    ModelFamily(_GAUGE, "muai_waiting_requests", "Requests that wait for admission", lambda model: model.waiting),
    EngineFamily(_COUNTER, "muai_prompt_tokens", "Prompt tokens of admitted requests", lambda it: it.prompt_tokens),
    EngineFamily(_COUNTER, "muai_output_tokens", "Output tokens produced", lambda it: it.output_tokens),
    EngineFamily(_HISTOGRAM, "muai_step_seconds", "Duration of one engine step", lambda it: it.step_s),
    EngineFamily(
        _HISTOGRAM,
        "muai_time_to_first_token_seconds",
        "From queued to the first token, of finished requests",
        lambda it: it.first_token_s,
    ),
    EngineFamily(
        _GAUGE,
        "muai_prefix_cache_bytes",
        "Bytes of keys and values that the prefix cache holds",
        lambda it: None if it.cache is None else it.cache.stored_bytes,
    ),
    EngineFamily(
        _GAUGE,
        "muai_prefix_cache_budget_bytes",
        "Most bytes that the prefix cache may hold",
        lambda it: None if it.cache is None else it.cache.budget_bytes,
    ),
    EngineFamily(
        _COUNTER,
        "muai_prefix_cache_evictions",
        "Blocks that the prefix cache gave up for others",
        lambda it: None if it.cache is None else it.evicted_blocks,
    ),
    EngineFamily(
        _COUNTER,
        "muai_prefix_lookup_tokens",
        "Prompt tokens that were looked up in the prefix cache",
        lambda it: it.looked_up_tokens or None,
    ),
    EngineFamily(
        _COUNTER,
        "muai_prefix_hit_tokens",
        "Prompt tokens that the prefix cache held",
        lambda it: it.cached_tokens if it.looked_up_tokens else None,
    ),
    EngineFamily(
        _COUNTER, "muai_failed_steps", "Engine steps that raised and were made again", lambda it: it.failed_steps
    ),
    EngineFamily(
        _GAUGE,
        "muai_tuner_value",
        "Setting that the online tuner moves, as it stands",
        lambda it: {(knob,): value for knob, value in it.tuner_values.items()},
        ("knob",),
    ),
    EngineFamily(
        _COUNTER,
        "muai_tuner_decisions",
        "Decisions of the online tuner",
        lambda it: it.tuner_decisions,
        ("knob", "outcome"),
    ),
    EngineFamily(
        _COUNTER,
        "muai_tuner_notes",
        "Shifts of the workload and rests of the online tuner",
        lambda it: {(kind,): count for kind, count in it.tuner_notes.items()},
        ("kind",),
    ),
)
"""In the order of the exposition. A sample that does not apply is missing, never 0."""


class ServingMetrics(Collector):
    """The specification's metrics of all models that one process serves, and ours beside them.

    Register it in a `CollectorRegistry`; `observer()` gives each stack its own child. clock: monotonic seconds, the
    same clock as the events'.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._observers: dict[tuple[str, str], PrometheusObserver] = {}

    def observer(self, model: str, engine: str) -> PrometheusObserver:
        """Return the observer of one model on one engine; the same when a model is loaded again, so counts go on."""
        return self._observers.setdefault((model, engine), PrometheusObserver(model, engine))

    def collect(self) -> Iterable[Metric]:
        """Return all samples of this moment, family by family."""
        now = self._clock()
        metrics = [family.empty() for family in FAMILIES]
        models: dict[str, ModelTotals] = {}
        for observer in list(self._observers.values()):
            with observer.lock:
                models.setdefault(observer.model, ModelTotals()).add(observer, now)
                for family, metric in zip(FAMILIES, metrics, strict=True):
                    if isinstance(family, EngineFamily):
                        _add_samples(metric, (observer.model, observer.engine), family.read(observer))
        for model, totals in models.items():
            for family, metric in zip(FAMILIES, metrics, strict=True):
                if not isinstance(family, EngineFamily):
                    _add_samples(metric, (model,), family.read(totals))
        return metrics

    def describe(self) -> Iterable[Metric]:
        """Return the names for the registry's check for duplicates."""
        return [family.empty() for family in FAMILIES]


def _add_samples(family: Any, labels: tuple[str, ...], value: Reading) -> None:
    """Add the samples of one model, or of one model on one engine, to a family of prometheus_client."""
    if isinstance(value, Histogram):
        family.add_metric(labels, *value.snapshot())
    elif isinstance(value, Mapping):
        for more, number in value.items():
            family.add_metric((*labels, *more), number)
    elif value is not None:
        family.add_metric(labels, value)
