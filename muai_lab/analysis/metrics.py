"""One definition per metric: its formula, and its entry in `METRICS` with name, unit, label and places.

The formulas take the frame of raw records (one row per request, `*_ns` columns of dtype `Int64`, monotonic nanoseconds)
and return one value per request, in seconds: NaN if a stamp that the formula needs is absent. A metric that does not
apply is missing, never 0. A new metric is a formula and an entry here, and nothing elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from muai_lab.visible import TOGETHER_S_PER_TOKEN

NS_PER_S = 1_000_000_000


def seconds_between(later: pd.Series, earlier: pd.Series) -> pd.Series:
    """Return `later - earlier` in seconds: float64, NaN if one of them is missing.

    The difference is one of integers: a monotonic clock in nanoseconds can exceed what a float64 holds exactly.
    """
    difference = (later.astype("Int64") - earlier.astype("Int64")).to_numpy(dtype="float64", na_value=np.nan)
    return pd.Series(difference / NS_PER_S, index=later.index, dtype="float64")


def due_ns(records: pd.DataFrame) -> pd.Series:
    """Return the due time of each request: `intended_ns` in an open loop, `released_ns` (slot free) in a closed one."""
    return records["intended_ns"].fillna(records["released_ns"])


def output_tokens(records: pd.DataFrame) -> pd.Series:
    """Return output tokens by the server's count (`usage`), or by the client's tokenizer if the server gave none."""
    return records["output_tokens"].fillna(records["client_output_tokens"])


def send_lag(records: pd.DataFrame) -> pd.Series:
    """Return sent - intended: the lateness of the generator. Missing in a closed loop."""
    return seconds_between(records["sent_ns"], records["intended_ns"])


def ttft(records: pd.DataFrame) -> pd.Series:
    """Return first chunk with content - sent. An empty role chunk is not a first token."""
    return seconds_between(records["first_content_ns"], records["sent_ns"])


def ttft_from_intended(records: pd.DataFrame) -> pd.Series:
    """Return first chunk with content - intended: includes the client's own lateness. Missing in a closed loop."""
    return seconds_between(records["first_content_ns"], records["intended_ns"])


def e2e(records: pd.DataFrame) -> pd.Series:
    """Return last token - sent. A trailing usage event counts only if it reveals tokens without a chunk."""
    return seconds_between(records["last_token_ns"], records["sent_ns"])


def e2e_from_intended(records: pd.DataFrame) -> pd.Series:
    """Return last token - intended. Missing in a closed loop."""
    return seconds_between(records["last_token_ns"], records["intended_ns"])


def tpot(records: pd.DataFrame) -> pd.Series:
    """Return (last chunk - first chunk) / (tokens of all chunks - tokens of the first chunk).

    Only tokens count that the client saw arrive. Missing for an answer of one chunk, for unknown token counts, and for
    chunks that arrived together.
    """
    decode_s = seconds_between(records["last_content_ns"], records["first_content_ns"]).to_numpy()
    tokens = records["decode_tokens"].to_numpy(dtype="float64", na_value=np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        per_token = decode_s / tokens
    seen = (tokens >= 1.0) & (per_token > TOGETHER_S_PER_TOKEN)
    return pd.Series(np.where(seen, per_token, np.nan), index=records.index)


def arrived_together(records: pd.DataFrame) -> pd.Series:
    """True for an answer of several tokens whose chunks arrived closer together than any server decodes."""
    decode_s = seconds_between(records["last_content_ns"], records["first_content_ns"]).to_numpy()
    tokens = output_tokens(records).to_numpy(dtype="float64", na_value=np.nan)
    return pd.Series((tokens >= 2.0) & (decode_s <= TOGETHER_S_PER_TOKEN * (tokens - 1.0)), index=records.index)


def itl(chunk_rows: NDArray[np.int64], chunk_t_ns: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the gaps between successive content chunks of the same request, in seconds.

    A chunk of k tokens gives its gap once; the first chunk of a request has no gap.

    Args:
        chunk_rows: Row of the request of each chunk, ordered by request, then time. [chunks]
        chunk_t_ns: Arrival of each chunk. [chunks]

    Returns:
        Seconds. [chunks - requests that have chunks]
    """
    same_request = chunk_rows[1:] == chunk_rows[:-1]
    gaps = np.diff(chunk_t_ns)[same_request]
    return np.asarray(gaps / NS_PER_S, dtype=np.float64)


Place = Literal["comparison", "plot"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric of a request, or of the gaps between its chunks.

    Frames, summary, terminal table and the definitions in the report contain every entry of `METRICS`.

    Attributes:
        name: Name that people type; the column of `Run.requests` is `<name>_<unit>` (of `Run.tokens()` for gaps).
        short: Label in tables.
        title: Heading in reports.
        definition: Formula in words.
        requires: Columns of the record without which the metric is missing.
        missing_when: The same in words.
        compute: Formula over the frame of raw records; None for gaps, which are several per request.
        unit: Unit of the values; tables show seconds as milliseconds.
        from_intended: Name of the metric that counts from the intended time instead, and replaces it in an open loop.
        floor: Smallest difference between two runs that counts: what the load generator may be off by against a server
            of known latency.
        shown: Further places: `comparison` for key figures (needs a floor), `plot` for a distribution in the report.
        sample: Noun for one value.
        successes_only: True if only successful requests count; False for what describes the generator.
        open_loop_only: True if the metric needs a schedule of times.
    """

    name: str
    short: str
    title: str
    definition: str
    requires: tuple[str, ...]
    missing_when: str
    compute: Callable[[pd.DataFrame], pd.Series] | None = None
    unit: str = "s"
    from_intended: str | None = None
    floor: float = 0.0
    shown: tuple[Place, ...] = ()
    sample: str = "request"
    successes_only: bool = True
    open_loop_only: bool = False

    @property
    def column(self) -> str:
        """Column in the frames, and key in the summary."""
        return f"{self.name}_{self.unit}"


METRICS: tuple[Metric, ...] = (
    Metric(
        "ttft",
        "TTFT",
        "Time to first token (TTFT)",
        "first chunk with content - sent",
        ("sent_ns", "first_content_ns"),
        "no content came",
        ttft,
        from_intended="ttft_from_intended",
        floor=0.0005,
        shown=("comparison", "plot"),
    ),
    Metric(
        "ttft_from_intended",
        "TTFT from intended",
        "TTFT from the intended time",
        "first chunk with content - intended",
        ("intended_ns", "first_content_ns"),
        "closed loop",
        ttft_from_intended,
        open_loop_only=True,
    ),
    Metric(
        "tpot",
        "TPOT",
        "Time per output token (TPOT)",
        "(last chunk - first chunk) ÷ (tokens - tokens of the first chunk), over tokens that were seen to arrive",
        ("first_content_ns", "last_content_ns", "decode_tokens"),
        "one chunk, chunks that arrived together, unknown counts",
        tpot,
        floor=0.0001,
        shown=("comparison", "plot"),
    ),
    Metric(
        "itl",
        "ITL",
        "Inter-token latency (ITL)",
        "gap between successive content chunks; a chunk of k tokens gives its gap once",
        ("chunk_t_ns",),
        "one chunk",
        floor=0.0001,
        shown=("comparison", "plot"),
        sample="gap",
    ),
    Metric(
        "e2e",
        "E2E",
        "End-to-end latency (E2E)",
        "last token - sent",
        ("sent_ns", "last_token_ns"),
        "no token came",
        e2e,
        from_intended="e2e_from_intended",
        floor=0.0005,
        shown=("comparison", "plot"),
    ),
    Metric(
        "e2e_from_intended",
        "E2E from intended",
        "E2E from the intended time",
        "last token - intended",
        ("intended_ns", "last_token_ns"),
        "closed loop",
        e2e_from_intended,
        open_loop_only=True,
    ),
    Metric(
        "send_lag",
        "send lag",
        "Send lag of the generator",
        "sent - intended",
        ("intended_ns", "sent_ns"),
        "closed loop",
        send_lag,
        successes_only=False,
        open_loop_only=True,
    ),
)
"""Every metric, in the order in which people read them."""

METRIC_BY_NAME: dict[str, Metric] = {metric.name: metric for metric in METRICS}


def shown_in(place: Place) -> tuple[Metric, ...]:
    """Return the metrics that a place shows, in reading order."""
    return tuple(metric for metric in METRICS if place in metric.shown)


def judged_columns(name: str) -> tuple[str, ...]:
    """Return the columns that judge a metric, in order of preference: from the intended time, then from sending."""
    metric = METRIC_BY_NAME[name]
    preferred = () if metric.from_intended is None else (METRIC_BY_NAME[metric.from_intended].column,)
    return (*preferred, metric.column)


def judged_metric(requests: pd.DataFrame, name: str) -> Metric:
    """Return the metric that an SLO or a comparison judges: from the intended time in an open loop.

    Args:
        requests: Rows of `Run.requests`.
        name: `ttft`, `tpot`, ...
    """
    metric = METRIC_BY_NAME[name]
    if metric.from_intended is None or requests["intended_s"].isna().all():
        return metric
    return METRIC_BY_NAME[metric.from_intended]
