"""The counts behind the serving metrics, fed by the events of the stack.

An observer adds to plain numbers, and the samples are made at each scrape. An event therefore costs well under a
microsecond, whatever the scraper does.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from threading import Lock

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
    """The counts of one model on one engine; `ServingMetrics` turns them into samples.

    The events of one stack come in order but from two threads: the engine's, and the event loop's for requests that are
    refused, or cancelled while they wait. So one lock is taken per batch of events.
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
        self.cache: CacheState | None = None  # the last one
        self.evicted_blocks = 0
        self.failed_steps = 0
        # Sets, not counters: a request that is run again on the next engine is admitted twice but counts once.
        self.waiting: set[str] = set()
        self.running: set[str] = set()
        self.limit: int | None = None
        self.finish_times: deque[float] = deque()
        self.tuner_decisions: Counter[tuple[str, ...]] = Counter()  # by knob and outcome
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
        """Requests per second that finished in the last `THROUGHPUT_WINDOW_S` seconds. The caller holds the lock."""
        self._forget_before(now - THROUGHPUT_WINDOW_S)
        return len(self.finish_times) / THROUGHPUT_WINDOW_S
