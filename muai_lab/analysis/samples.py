"""The samples of a metric: the values of the requests (or gaps) that count, and their due times."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from muai_lab.analysis.frames import Run
from muai_lab.analysis.metrics import NS_PER_S, Metric, itl
from muai_lab.arrays import Floats


@dataclass(frozen=True, slots=True)
class Samples:
    """Values of one metric over the measurement window.

    Attributes:
        values: Seconds.
        t_s: Due time of the request of each value, seconds from the start of the load.
        independent: Number of requests, if one request has several values; None if each has one.
        merged_share: Share of the token gaps that stand for several tokens; None if unknown or not applicable.
    """

    values: Floats
    t_s: Floats
    independent: int | None = None
    merged_share: float | None = None


def samples_of(run: Run, metric: Metric) -> Samples:
    """Return the samples of a metric: of successful requests, or of all if the metric describes the generator."""
    if metric.sample == "gap":
        return _gaps(run)
    measured = run.measured
    population = measured[measured["status"] == "ok"] if metric.successes_only else measured
    return Samples(population[metric.column].to_numpy(dtype=np.float64), population["due_s"].to_numpy(dtype=np.float64))


def _gaps(run: Run) -> Samples:
    chunks = run.chunks
    requests = run.requests
    counts = (requests["in_window"] & (requests["status"] == "ok") & ~requests["together"]).to_numpy(dtype=np.bool_)
    later = np.flatnonzero(chunks.row[1:] == chunks.row[:-1]) + 1
    row = chunks.row[later]
    chosen = counts[row]
    row = row[chosen]
    tokens = chunks.tokens[later][chosen]
    merged = float((tokens > 1.0).mean()) if row.size and chunks.counted[later][chosen].all() else None
    return Samples(
        values=itl(chunks.row, chunks.t_ns)[chosen],
        t_s=requests["due_s"].to_numpy(dtype=np.float64)[row],
        independent=int(np.count_nonzero(np.bincount(row))),
        merged_share=merged,
    )


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Amounts (requests or tokens) that arrived in the measurement window.

    Attributes:
        amounts: One per arrival.
        t_s: Seconds from the start of the load.
    """

    amounts: Floats
    t_s: Floats


_NOTHING = Arrivals(np.empty(0), np.empty(0))


def completed_requests(run: Run) -> Arrivals:
    """Return the successful requests whose last token arrived in the window, each of amount 1."""
    requests = run.requests
    ok = requests[requests["status"] == "ok"]
    finished_s = ok["last_token_s"].fillna(ok["stream_end_s"]).to_numpy()
    return _within_window(run, np.ones(finished_s.size), finished_s)


def delivered_prompts(run: Run) -> Arrivals:
    """Return the prompt tokens of the requests of `completed_requests`, as far as the server counted them."""
    requests = run.requests
    ok = requests[requests["status"] == "ok"]
    finished_s = ok["last_token_s"].fillna(ok["stream_end_s"]).to_numpy()
    return _within_window(run, ok["prompt_tokens"].to_numpy(dtype="float64", na_value=np.nan), finished_s)


def delivered_tokens(run: Run) -> Arrivals:
    """Return the output tokens of successful requests that arrived in the window, one entry per chunk.

    Tokens without a chunk count at the time at which they were revealed. Tokens of failed requests do not count.
    """
    window = run.window
    if window is None:
        return _NOTHING
    requests = run.requests
    chunks = run.chunks
    ok = (requests["status"] == "ok").to_numpy(dtype=np.bool_)
    inside = (chunks.t_ns >= window.measure_start_ns) & (chunks.t_ns < window.measure_end_ns) & ok[chunks.row]
    t_s, tokens = (chunks.t_ns[inside] - window.load_start_ns) / NS_PER_S, chunks.tokens[inside]
    whole = ok.copy()
    whole[chunks.row] = False
    late = np.where(whole, requests["tokens"].to_numpy("float64", na_value=np.nan), np.nan)
    late = np.where(ok & ~whole, requests["unseen_tokens"].to_numpy("float64", na_value=np.nan), late)
    if np.isfinite(late).any():
        at_end = requests["last_token_s"].fillna(requests["stream_end_s"]).to_numpy()
        t_s, tokens = np.concatenate([t_s, at_end]), np.concatenate([tokens, late])
    return _within_window(run, tokens, t_s)


def _within_window(run: Run, amounts: Floats, t_s: Floats) -> Arrivals:
    if run.window is None:
        return _NOTHING
    inside = (t_s >= run.window.start_s) & (t_s < run.window.end_s) & np.isfinite(amounts)
    return Arrivals(amounts[inside], t_s[inside])
