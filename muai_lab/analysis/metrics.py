"""One metric, one definition: what each latency figure is computed from, and in which unit.

The formulas take the frame of raw records (one row per request, `*_ns` columns of dtype `Int64`, monotonic nanoseconds)
and return seconds. Where a stamp that a formula needs is absent, the result is NaN: a metric that does not apply is
missing, never 0. `METRICS` is the table of them all: name, unit, prerequisites and definition as data, which the
report, the terminal table and `docs/metrics.md` read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from muai_lab.visible import TOGETHER_S_PER_TOKEN

NS_PER_S = 1_000_000_000


def seconds_between(later: pd.Series, earlier: pd.Series) -> pd.Series:
    """`later - earlier` in seconds (float64, NaN where one of them is missing).

    The difference is taken on integers: a monotonic clock in nanoseconds can exceed what a float64 holds exactly.
    """
    difference = (later.astype("Int64") - earlier.astype("Int64")).to_numpy(dtype="float64", na_value=np.nan)
    return pd.Series(difference / NS_PER_S, index=later.index, dtype="float64")


def due_ns(records: pd.DataFrame) -> pd.Series:
    """When the request was to be sent: `intended_ns` in an open loop, `released_ns` (slot free) in a closed one."""
    return records["intended_ns"].fillna(records["released_ns"])


def output_tokens(records: pd.DataFrame) -> pd.Series:
    """Output tokens by the server's count (`usage`), or by the client's tokenizer where the server gave none."""
    return records["output_tokens"].fillna(records["client_output_tokens"])


def send_lag(records: pd.DataFrame) -> pd.Series:
    """`sent - intended`: how late the generator wrote the request. Missing in a closed loop."""
    return seconds_between(records["sent_ns"], records["intended_ns"])


def ttft(records: pd.DataFrame) -> pd.Series:
    """Time to first token: first chunk with content - `sent`. An empty role chunk is not a first token."""
    return seconds_between(records["first_content_ns"], records["sent_ns"])


def ttft_from_intended(records: pd.DataFrame) -> pd.Series:
    """First chunk with content - `intended`: includes the client's own lateness. Missing in a closed loop."""
    return seconds_between(records["first_content_ns"], records["intended_ns"])


def e2e(records: pd.DataFrame) -> pd.Series:
    """End to end: last token - `sent`. A trailing usage event counts only if it reveals tokens without a chunk."""
    return seconds_between(records["last_token_ns"], records["sent_ns"])


def e2e_from_intended(records: pd.DataFrame) -> pd.Series:
    """Last token - `intended`. Missing in a closed loop."""
    return seconds_between(records["last_token_ns"], records["intended_ns"])


def tpot(records: pd.DataFrame) -> pd.Series:
    """Time per output token: (last chunk - first chunk) / (tokens of all chunks - tokens of the first chunk).

    Only tokens whose arrival the client saw count. Missing for an answer of one chunk, for unknown token counts, and
    for chunks that arrived together: 0 would be a lie.
    """
    decode_s = seconds_between(records["last_content_ns"], records["first_content_ns"]).to_numpy()
    tokens = records["decode_tokens"].to_numpy(dtype="float64", na_value=np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        per_token = decode_s / tokens
    seen = (tokens >= 1.0) & (per_token > TOGETHER_S_PER_TOKEN)
    return pd.Series(np.where(seen, per_token, np.nan), index=records.index)


def arrived_together(records: pd.DataFrame) -> pd.Series:
    """True for answers of several tokens whose chunks arrived too close together to be the pace of any server."""
    decode_s = seconds_between(records["last_content_ns"], records["first_content_ns"]).to_numpy()
    tokens = output_tokens(records).to_numpy(dtype="float64", na_value=np.nan)
    return pd.Series((tokens >= 2.0) & (decode_s <= TOGETHER_S_PER_TOKEN * (tokens - 1.0)), index=records.index)


def itl(chunk_rows: NDArray[np.int64], chunk_t_ns: NDArray[np.int64]) -> NDArray[np.float64]:
    """Inter-token latency: gaps between successive content chunks of the same request, in seconds.

    chunk_rows, chunk_t_ns: one entry per chunk, ordered by request, then time. A chunk of k tokens gives its gap once;
    the first chunk of a request has no gap. Length of the result: chunks - requests that have chunks.
    """
    same_request = chunk_rows[1:] == chunk_rows[:-1]
    gaps = np.diff(chunk_t_ns)[same_request]
    return np.asarray(gaps / NS_PER_S, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Metric:
    """What a figure is.

    column: the column that holds it in `Run.requests` (`itl_s`: in `Run.tokens()`). requires: record fields without
    which it is missing. sample: what one value belongs to. successes_only: distributions are over requests with status
    ok (what describes the generator is over all). open_loop_only: it has no meaning without a schedule of times.
    compute: the formula over the raw records (None where it is not one value per request).
    """

    name: str
    column: str
    title: str
    definition: str
    requires: tuple[str, ...]
    unit: str = "s"
    sample: str = "request"
    successes_only: bool = True
    open_loop_only: bool = False
    compute: Callable[[pd.DataFrame], pd.Series] | None = None


METRICS: tuple[Metric, ...] = (
    Metric(
        "ttft",
        "ttft_s",
        "Time to first token (TTFT)",
        "first chunk with content - sent",
        ("sent_ns", "first_content_ns"),
        compute=ttft,
    ),
    Metric(
        "ttft_from_intended",
        "ttft_from_intended_s",
        "TTFT from the intended time",
        "first chunk with content - intended",
        ("intended_ns", "first_content_ns"),
        open_loop_only=True,
        compute=ttft_from_intended,
    ),
    Metric(
        "tpot",
        "tpot_s",
        "Time per output token (TPOT)",
        "(last chunk - first chunk) ÷ (tokens - tokens of the first chunk), over tokens that were seen to arrive",
        ("first_content_ns", "last_content_ns", "decode_tokens"),
        compute=tpot,
    ),
    Metric(
        "itl",
        "itl_s",
        "Inter-token latency (ITL)",
        "gap between successive content chunks; a chunk of k tokens gives its gap once",
        ("chunk_t_ns",),
        sample="gap",
    ),
    Metric(
        "e2e",
        "e2e_s",
        "End-to-end latency (E2E)",
        "last token - sent",
        ("sent_ns", "last_token_ns"),
        compute=e2e,
    ),
    Metric(
        "e2e_from_intended",
        "e2e_from_intended_s",
        "E2E from the intended time",
        "last token - intended",
        ("intended_ns", "last_token_ns"),
        open_loop_only=True,
        compute=e2e_from_intended,
    ),
    Metric(
        "send_lag",
        "send_lag_s",
        "Send lag of the generator",
        "sent - intended",
        ("intended_ns", "sent_ns"),
        successes_only=False,
        open_loop_only=True,
        compute=send_lag,
    ),
)
"""Every latency figure, in the order in which people read them."""

METRIC_BY_NAME: dict[str, Metric] = {metric.name: metric for metric in METRICS}

SHORT_NAMES = {
    "ttft_s": "TTFT",
    "ttft_from_intended_s": "TTFT from intended",
    "tpot_s": "TPOT",
    "itl_s": "ITL",
    "e2e_s": "E2E",
    "e2e_from_intended_s": "E2E from intended",
    "send_lag_s": "send lag",
}
