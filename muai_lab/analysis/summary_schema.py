"""The summary of a run as records: the content of `summary.json`, field by field and in its order.

Units are in the field names. A figure that does not apply, or that cannot be derived from this run, is None. Defaults
are for fields that earlier versions did not write.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from muai_lab.analysis.documents import clean
from muai_lab.analysis.metrics import judged_columns
from muai_lab.request_status import STATUSES

SCHEMA_VERSION = 1


class ReportedEstimate(Struct, frozen=True, omit_defaults=True):
    """A figure and the ends of its 95 % interval.

    low, high: None if the window is too short for an interval. needs_s: The length of a window that would do.
    """

    value: float
    low: float | None
    high: float | None
    needs_s: float | None = None


def value_of(estimate: ReportedEstimate | None) -> float | None:
    """Return the figure of an estimate; None without an estimate."""
    return None if estimate is None else estimate.value


class ReportedTrend(Struct, frozen=True, kw_only=True):
    """The relative change of a signal over the window with its 95 % interval; None for a signal that stayed at 0.

    smallest_found: The smallest rise that four of five such runs would have shown.
    """

    signal: str
    change: float | None
    low: float | None
    high: float | None
    smallest_found: float | None


class Validity(Struct, frozen=True, kw_only=True):
    """The verdict on a run.

    verdict: The worst problem, `valid` without one. failed, due: Requests of the window. generator: The load
    generator's own verdict.
    """

    verdict: str
    valid: bool
    reason: str | None = None
    next_step: str | None = None
    status: str
    failed: int = 0
    due: int = 0
    generator: str | None = None
    steadiness: str
    trends: tuple[ReportedTrend, ...] = ()
    warnings: tuple[str, ...] = ()


class PromptFacts(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The facts that decide which prompts a server's prefix cache can have known.

    repeated_share: Share of the prompt text that repeats within the run. salt: Text that made the prompts new, None if
    they were sent unchanged. unsalted, other_length: Prompts too short for it, and those whose length it changed.
    """

    repeated_share: float
    salt: str | None
    reused: bool
    unsalted: int | None = None
    other_length: int | None = None


class RunIdentity(Struct, frozen=True, kw_only=True):
    """The system that served and the load that it was offered.

    skipped_engines: (engine, reason). sessions: True if the load consists of conversations. concurrency: Requests in
    flight in a closed loop.
    """

    engine: str | None = None
    engine_version: str | None = None
    device: str | None = None
    dtype: str | None = None
    engine_details: dict[str, Any] = {}
    skipped_engines: tuple[tuple[str, str], ...] = ()
    model: str | None = None
    asked_model: str | None = None
    prompts: PromptFacts | None = None
    model_hash: str | None = None
    workload: str | None = None
    workload_kind: str | None = None
    arrival: str | None = None
    rate_rps: int | float | None = None
    sessions: bool | None = None
    concurrency: int | None = None
    target: str | None = None
    schedule_hash: str | None = None
    seed: int | None = None

    @property
    def closed_loop(self) -> bool:
        """True if each client waits for its answer before it sends the next request."""
        return self.arrival == "closed"


class WindowLook(Struct, frozen=True, kw_only=True):
    """The headline after `length_s` seconds. half_width: Of its interval, relative; None without one."""

    length_s: float
    half_width: float | None
    needs_s: float | None


class WindowEnd(Struct, frozen=True, kw_only=True):
    """The end of a window with `load.duration_s=auto`.

    precision: The half-width to reach, relative. longest_s: The longest window that was allowed. precise: True if the
    interval became narrow enough.
    """

    precision: float
    longest_s: float
    precise: bool
    looks: tuple[WindowLook, ...] = ()


class MeasuredWindow(Struct, frozen=True, kw_only=True):
    """The measurement window in seconds from the start of the load.

    cut_short: A sentence if it is shorter than configured. automatic: Only with `load.duration_s=auto`.
    """

    start_s: float | None
    end_s: float | None
    duration_s: float | None
    drain_end_s: float | None
    cut_short: str | None = None
    automatic: WindowEnd | None = None


class RequestCounts(Struct, frozen=True, kw_only=True):
    """Requests that were due in the window, by status. outside_window: All others of the run."""

    due: int
    ok: int
    error: int
    rejected: int
    cancelled: int
    timeout: int
    outside_window: int

    @property
    def by_status(self) -> dict[str, int]:
        """Requests of the window by status."""
        return {status: getattr(self, status) for status in STATUSES}

    @property
    def failed(self) -> int:
        """Requests of the window without a successful answer."""
        return self.due - self.ok


class Visibility(Struct, frozen=True, kw_only=True):
    """Successful answers of the window whose tokens or times the client could not see.

    together: All chunks arrived at once. unseen: The final usage reveals tokens that no chunk carried (`unseen_tokens`
    in all). read_together: Chunks that one read delivered. burst_share: Share of chunks that came at once after the one
    before. notes: Number of answers by what the client inferred from them.
    """

    answers: int
    without_tokens: int
    without_tpot: int
    together: int
    unseen: int
    unseen_tokens: int
    read_together: int
    burst_share: float | None
    notes: dict[str, int]


class AskedTotals(Struct, frozen=True, kw_only=True):
    """Tokens asked for and received, over the requests that state both.

    less, more: Requests that differ by more than a tokenizer's special tokens. deviation: Of the sums, relative.
    """

    requests: int
    less: int
    more: int
    asked_median: float
    got_median: float
    deviation: float


class AskedAndGot(Struct, frozen=True, kw_only=True):
    """Prompt and output tokens, asked for and received. comparable: True if the sums are about equal."""

    prompt_tokens: AskedTotals | None
    output_tokens: AskedTotals | None
    comparable: bool


class ThroughputSummary(Struct, frozen=True, kw_only=True):
    """Rates over the window; the terms are defined in `docs/metrics.md`."""

    offered_rps: float | None = None
    answered_rps: float | None = None
    requests_per_s: ReportedEstimate | None = None
    output_tokens_per_s: ReportedEstimate | None = None
    prompt_tokens_per_s: ReportedEstimate | None = None


class ClientPart(Struct, frozen=True, kw_only=True):
    """The load generator's own part of a latency metric.

    may_add_s: Seconds that it can have added at most, by statistic (`mean`, `p50`, ...). marked: Statistics for which
    that is more than tolerated.
    """

    may_add_s: dict[str, float]
    marked: tuple[str, ...]


class LatencySummary(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The distribution of one latency metric in seconds. A quantile with too few samples is None.

    merged_share: Share of token gaps that are those of several tokens in one chunk; None if that is not known.
    """

    samples: int
    mean: ReportedEstimate | None
    p50: ReportedEstimate | None
    p90: ReportedEstimate | None
    p95: ReportedEstimate | None
    p99: ReportedEstimate | None
    min: float | None
    max: float | None
    merged_share: float | None = None
    client: ClientPart | None = None

    @property
    def quantiles(self) -> dict[str, ReportedEstimate | None]:
        """Quantiles by name, in ascending order."""
        return {"p50": self.p50, "p90": self.p90, "p95": self.p95, "p99": self.p99}

    @property
    def estimates(self) -> dict[str, ReportedEstimate | None]:
        """Mean and quantiles by name."""
        return {"mean": self.mean, **self.quantiles}


class BreakdownRow(Struct, frozen=True, kw_only=True):
    """Figures of one group of requests. due, ok: Counts. The others are over the successful requests."""

    name: str
    due: int
    ok: int
    prompt_tokens_p50: float | None
    cached_share: float | None
    ttft_p50_s: float | None
    tpot_p50_s: float | None
    e2e_p50_s: float | None


class Breakdown(Struct, frozen=True, kw_only=True):
    """The requests of the window in groups. by: `part` (of a mix) or `turn` (of a conversation, from 1)."""

    by: str
    rows: tuple[BreakdownRow, ...]


class SloSummary(Struct, frozen=True, kw_only=True):
    """The SLO and how it was met.

    met: True if `attainment` is at least `quantile`. missed: Requests by the reason of their miss.
    """

    ttft_ms: float | None
    tpot_ms: float | None
    e2e_ms: float | None
    quantile: float
    attainment: ReportedEstimate | None = None
    goodput_rps: ReportedEstimate | None = None
    met: bool | None = None
    missed: dict[str, int] | None = None


class ServerSummary(Struct, frozen=True, kw_only=True):
    """The server's own metrics over the window."""

    running_mean: float | None = None
    waiting_mean: float | None = None
    waiting_max: float | None = None
    batch_mean: float | None = None
    step_mean_s: float | None = None
    cpu_mean_percent: float | None = None
    resident_max_bytes: float | None = None
    gpu_memory_max_bytes: float | None = None
    kv_cache_hit_rate: float | None = None


class GeneratorSummary(Struct, frozen=True, kw_only=True):
    """The load generator's report on itself."""

    verdict: str | None = None
    reason: str | None = None
    cpu_share: float | None = None
    send_lag_p99_s: float | None = None
    wait_share: float | None = None
    lateness_p99_s: float | None = None
    cycle_share: float | None = None


class PrecisionSummary(Struct, frozen=True, kw_only=True):
    """The memory of a run: seconds for which queue and batch persist, and how many of them the window spans.

    needs_s: By figure without an interval, the length of a window in which it would have one.
    """

    memory_s: float
    memories: float
    needs_s: dict[str, float]


class Summary(Struct, frozen=True, kw_only=True):
    """The result of one run. latency: By the column of the metric, None for one that does not apply."""

    schema_version: int = SCHEMA_VERSION
    validity: Validity
    identity: RunIdentity
    window: MeasuredWindow
    requests: RequestCounts
    visibility: Visibility | None = None
    asked: AskedAndGot | None = None
    throughput: ThroughputSummary
    latency: dict[str, LatencySummary | None]
    cached_share: float | None = None
    breakdown: Breakdown | None = None
    slo: SloSummary | None = None
    server: ServerSummary | None = None
    generator: GeneratorSummary
    precision: PrecisionSummary | None = None

    def judged(self, metric: str) -> str:
        """Return the column of a metric that counts: from the intended time in an open loop."""
        columns = judged_columns(metric)
        return next((column for column in columns if self.latency.get(column)), columns[-1])

    def estimate(self, column: str, statistic: str) -> ReportedEstimate | None:
        """Return the `mean`, `p50`, ... of a latency metric; None if it is not known."""
        latency = self.latency.get(column)
        return None if latency is None else latency.estimates.get(statistic)

    def client_part_s(self, column: str, statistic: str) -> float | None:
        """Return the seconds that the load generator can have added; None if they are few enough to be ignored."""
        latency = self.latency.get(column)
        client = None if latency is None else latency.client
        return client.may_add_s[statistic] if client is not None and statistic in client.marked else None

    def as_document(self) -> dict[str, Any]:
        """Return the content of `summary.json`, of plain Python values."""
        document: dict[str, Any] = msgspec.to_builtins(self)
        return document


def checked(draft: Summary) -> Summary:
    """Return the summary with plain Python values, and None instead of NaN and infinity.

    Raises:
        msgspec.ValidationError: A value has another type than its field.
    """
    return msgspec.convert(clean(msgspec.to_builtins(draft, enc_hook=clean)), Summary)


def read_summary(document: Mapping[str, Any]) -> Summary | None:
    """Return a summary from the content of `summary.json`; None if this version does not understand it."""
    if document.get("schema_version") != SCHEMA_VERSION:
        return None
    try:
        return msgspec.convert(document, Summary)
    except msgspec.ValidationError:
        return None
