"""The serving metrics, fed by the events of the stack and read by a Prometheus registry.

An observer adds to plain numbers, and the samples are made when somebody scrapes: serving pays well under a
microsecond per event, whatever the scraper does. Nothing lives at module level; the registry is the caller's.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from threading import Lock

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from muai_lab.monitoring.histogram import (
    BATCH_BUCKETS,
    FIRST_TOKEN_BUCKETS_S,
    LATENCY_BUCKETS_S,
    STEP_BUCKETS_S,
    Histogram,
)
from muai_lab.request_status import STATUSES
from muai_lab.stack.events import (
    Admitted,
    CacheLookup,
    CacheState,
    Event,
    Failed,
    Finished,
    Lost,
    Queued,
    Rejected,
    Step,
    StepFailed,
    Token,
    Tuned,
    TunerNoted,
)

THROUGHPUT_WINDOW_S = 10.0


class PrometheusObserver:
    """Counts what one model on one engine does; `ServingMetrics` turns the counts into samples.

    The events of one stack come in order but from two threads (the engine's, and the event loop's for requests that
    are refused or cancelled while they wait), so one lock is taken per batch of events, never per event.
    """

    def __init__(self, model: str, engine: str) -> None:
        self.model = model
        self.engine = engine
        self.lock = Lock()
        self.latency_s = Histogram(LATENCY_BUCKETS_S)
        self.first_token_s = Histogram(FIRST_TOKEN_BUCKETS_S)
        self.step_s = Histogram(STEP_BUCKETS_S)
        self.batch = Histogram(BATCH_BUCKETS)
        self.requests: dict[str, int] = dict.fromkeys(STATUSES, 0)
        self.prompt_tokens = 0
        self.output_tokens = 0
        self.looked_up_tokens = 0
        self.cached_tokens = 0
        self.cache: CacheState | None = None  # the last one told
        self.evicted_blocks = 0
        self.failed_steps = 0
        # Sets, not counters: a request that is run again on the next engine is admitted twice but counts once.
        self.waiting: set[str] = set()
        self.running: set[str] = set()
        self.limit: int | None = None
        self.finish_times: deque[float] = deque()
        self.tuner_decisions: Counter[tuple[str, str]] = Counter()  # by knob and outcome
        self.tuner_values: dict[str, int] = {}  # by knob
        self.tuner_notes: Counter[str] = Counter()  # by kind

    def observe(self, events: Sequence[Event]) -> None:
        """Take in the events; see `muai_lab.stack.events.Observer`."""
        with self.lock:
            for event in events:
                kind = type(event)
                if kind is Token:  # by far the most frequent, so first
                    self.output_tokens += 1
                elif isinstance(event, Step):
                    self.step_s.observe(event.at - event.began)
                    self.batch.observe(event.batch)
                    self.limit = event.limit
                elif isinstance(event, Queued):
                    self.waiting.add(event.request_id)
                elif isinstance(event, Admitted):
                    self._admitted(event)
                elif isinstance(event, Finished):
                    self._finished(event)
                elif isinstance(event, Failed):
                    self._left(event.request_id)
                    self.requests[event.status] += 1
                elif isinstance(event, CacheLookup):
                    self.looked_up_tokens += event.prompt_tokens
                    self.cached_tokens += event.cached_tokens
                elif isinstance(event, CacheState):
                    self.cache = event
                    self.evicted_blocks += event.evicted_blocks
                elif isinstance(event, Lost):
                    self._left(event.request_id)  # not an end yet: it is run again, or `Failed` follows
                elif isinstance(event, Rejected):
                    self.requests["rejected"] += 1
                elif isinstance(event, StepFailed):
                    self.failed_steps += 1
                elif isinstance(event, Tuned):
                    self._tuned(event)
                elif isinstance(event, TunerNoted):
                    self.tuner_notes[event.kind] += 1

    def _admitted(self, event: Admitted) -> None:
        self.waiting.discard(event.request_id)
        self.running.add(event.request_id)
        self.prompt_tokens += event.prompt_tokens

    def _finished(self, event: Finished) -> None:
        self._left(event.request_id)
        self.requests["ok"] += 1
        self.latency_s.observe(event.at - event.queued_at)
        self.first_token_s.observe(event.first_token_at - event.queued_at)
        self.finish_times.append(event.at)
        self._forget_before(event.at - THROUGHPUT_WINDOW_S)

    def _tuned(self, event: Tuned) -> None:
        self.tuner_values[event.knob] = event.after
        if event.outcome != "began":
            self.tuner_decisions[event.knob, event.outcome] += 1

    def _left(self, request_id: str) -> None:
        self.waiting.discard(request_id)
        self.running.discard(request_id)

    def _forget_before(self, at: float) -> None:
        while self.finish_times and self.finish_times[0] < at:
            self.finish_times.popleft()

    def throughput_rps(self, now: float) -> float:
        """Requests per second that ended well within the last `THROUGHPUT_WINDOW_S` seconds (the lock is held)."""
        self._forget_before(now - THROUGHPUT_WINDOW_S)
        return len(self.finish_times) / THROUGHPUT_WINDOW_S


class _ModelTotals:
    """What is reported per model, over all engines that have served it (more than one after a fallback)."""

    def __init__(self) -> None:
        self.throughput_rps = 0.0
        self.batch = Histogram(BATCH_BUCKETS)
        self.waiting = 0
        self.looked_up_tokens = 0
        self.cached_tokens = 0

    def add(self, observer: PrometheusObserver, now: float) -> None:
        self.throughput_rps += observer.throughput_rps(now)
        self.batch.add(observer.batch)
        self.waiting += len(observer.waiting)
        self.looked_up_tokens += observer.looked_up_tokens
        self.cached_tokens += observer.cached_tokens


class ServingMetrics(Collector):
    """The specification's metrics of all models that one process serves, and ours beside them.

    Register it in a `CollectorRegistry`; `observer()` gives each stack its own child. clock: monotonic seconds, the
    same clock as the events'.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._observers: dict[tuple[str, str], PrometheusObserver] = {}

    def observer(self, model: str, engine: str) -> PrometheusObserver:
        """The observer of one model on one engine; the same one when a model is loaded again, so counters go on."""
        return self._observers.setdefault((model, engine), PrometheusObserver(model, engine))

    def collect(self) -> Iterable[Metric]:
        """All samples of this moment, family by family."""
        by_engine = ["model", "engine"]
        latency = HistogramMetricFamily("inference_latency_seconds", "Inference latency histogram", labels=by_engine)
        requests = CounterMetricFamily("inference_requests", "Request counter", labels=[*by_engine, "status"])
        throughput = GaugeMetricFamily("throughput_requests_per_second", "Current throughput gauge", labels=["model"])
        hit_rate = GaugeMetricFamily("kv_cache_hit_rate", "Cache hit rate", labels=["model"])
        batch = HistogramMetricFamily("batch_size", "Batch size histogram", labels=["model"])
        running = GaugeMetricFamily("muai_running_sequences", "Sequences in the running batch", labels=by_engine)
        waiting = GaugeMetricFamily("muai_waiting_requests", "Requests that wait for admission", labels=["model"])
        limit = GaugeMetricFamily("muai_batch_limit", "Most sequences that may run at this moment", labels=by_engine)
        prompt = CounterMetricFamily("muai_prompt_tokens", "Prompt tokens of admitted requests", labels=by_engine)
        output = CounterMetricFamily("muai_output_tokens", "Output tokens produced", labels=by_engine)
        step = HistogramMetricFamily("muai_step_seconds", "Duration of one engine step", labels=by_engine)
        first = HistogramMetricFamily(
            "muai_time_to_first_token_seconds", "From queued to the first token, of finished requests", labels=by_engine
        )
        value = GaugeMetricFamily(
            "muai_tuner_value", "Setting that the online tuner moves, as it stands", labels=[*by_engine, "knob"]
        )
        decisions = CounterMetricFamily(
            "muai_tuner_decisions", "Decisions of the online tuner", labels=[*by_engine, "knob", "outcome"]
        )
        notes = CounterMetricFamily(
            "muai_tuner_notes", "Shifts of the workload and rests of the online tuner", labels=[*by_engine, "kind"]
        )
        cache_bytes = GaugeMetricFamily(
            "muai_prefix_cache_bytes", "Bytes of keys and values that the prefix cache holds", labels=by_engine
        )
        cache_budget = GaugeMetricFamily(
            "muai_prefix_cache_budget_bytes", "Most bytes that the prefix cache may hold", labels=by_engine
        )
        looked_up = CounterMetricFamily(
            "muai_prefix_lookup_tokens", "Prompt tokens that were looked up in the prefix cache", labels=by_engine
        )
        found = CounterMetricFamily(
            "muai_prefix_hit_tokens", "Prompt tokens that the prefix cache held", labels=by_engine
        )
        failed_steps = CounterMetricFamily(
            "muai_failed_steps", "Engine steps that raised and were made again", labels=by_engine
        )
        evictions = CounterMetricFamily(
            "muai_prefix_cache_evictions", "Blocks that the prefix cache gave up for others", labels=by_engine
        )
        now = self._clock()
        models: dict[str, _ModelTotals] = {}
        for observer in list(self._observers.values()):
            totals = models.setdefault(observer.model, _ModelTotals())
            both = [observer.model, observer.engine]
            with observer.lock:
                totals.add(observer, now)
                latency.add_metric(both, *observer.latency_s.snapshot())
                for status, count in observer.requests.items():
                    requests.add_metric([*both, status], count)
                running.add_metric(both, len(observer.running))
                if observer.limit is not None:
                    limit.add_metric(both, observer.limit)
                prompt.add_metric(both, observer.prompt_tokens)
                output.add_metric(both, observer.output_tokens)
                step.add_metric(both, *observer.step_s.snapshot())
                first.add_metric(both, *observer.first_token_s.snapshot())
                if observer.looked_up_tokens:
                    looked_up.add_metric(both, observer.looked_up_tokens)
                    found.add_metric(both, observer.cached_tokens)
                if observer.cache is not None:
                    cache_bytes.add_metric(both, observer.cache.stored_bytes)
                    cache_budget.add_metric(both, observer.cache.budget_bytes)
                    evictions.add_metric(both, observer.evicted_blocks)
                for knob, setting in observer.tuner_values.items():
                    value.add_metric([*both, knob], setting)
                for labels, count in observer.tuner_decisions.items():
                    decisions.add_metric([*both, *labels], count)
                for kind, count in observer.tuner_notes.items():
                    notes.add_metric([*both, kind], count)
        for model, totals in models.items():
            throughput.add_metric([model], totals.throughput_rps)
            batch.add_metric([model], *totals.batch.snapshot())
            waiting.add_metric([model], totals.waiting)
            if totals.looked_up_tokens:  # no cache, no rate: missing, never 0
                hit_rate.add_metric([model], totals.cached_tokens / totals.looked_up_tokens)
        return [
            latency,
            requests,
            throughput,
            hit_rate,
            batch,
            running,
            limit,
            waiting,
            prompt,
            output,
            step,
            first,
            cache_bytes,
            cache_budget,
            evictions,
            looked_up,
            found,
            failed_steps,
            value,
            decisions,
            notes,
        ]

    def describe(self) -> Iterable[Metric]:
        """Names for the registry's check for duplicates."""
        return self.collect()
