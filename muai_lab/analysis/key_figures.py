"""Key figures: the numbers by which one run is compared with another, each with its spread within the run.

A figure has a name that people type (`p50 ttft`, `goodput`), a direction that is better, and the smallest difference
that counts. A smaller one may come from the client's own clock and event loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from muai_lab.analysis.attainment import met
from muai_lab.analysis.dependence import MeasuredSpan
from muai_lab.analysis.frames import Run
from muai_lab.analysis.memory import run_span
from muai_lab.analysis.metrics import METRIC_BY_NAME, Metric, judged_metric, shown_in
from muai_lab.analysis.samples import completed_requests, delivered_tokens, samples_of
from muai_lab.analysis.statistics import (
    Blocks,
    Estimate,
    bootstrap_quantiles,
    describe,
    min_samples,
    quantile_name,
    rate,
    share,
)
from muai_lab.arrays import Floats
from muai_lab.slo import Slo

Better = Literal["lower", "higher"]
Scale = Literal["ratio", "share"]

QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True, slots=True)
class KeyFigure:
    """One number of a run.

    Attributes:
        name: Name that people type.
        better: Direction of an improvement.
        unit: Unit of the value.
        scale: `ratio` if compared by its relative change, `share` (0 to 1) if by percentage points.
        floor: Smallest absolute difference that counts, in the unit.
        metric: Name of the metric; None if the figure is no latency.
        quantile: Quantile of the metric; None for its mean.
    """

    name: str
    better: Better
    unit: str
    scale: Scale = "ratio"
    floor: float = 0.0
    metric: str | None = None
    quantile: float | None = None

    @property
    def title(self) -> str:
        """Name in tables: `TTFT p50`."""
        if self.metric is None:
            return self.name
        return f"{METRIC_BY_NAME[self.metric].short} {self.name.split()[0]}"


def _latency_figure(figure: str, metric: Metric) -> KeyFigure:
    return KeyFigure(
        f"{figure} {metric.name}",
        better="lower",
        unit=metric.unit,
        floor=metric.floor,
        metric=metric.name,
        quantile=QUANTILES.get(figure),
    )


FIGURES: dict[str, KeyFigure] = {
    figure.name: figure
    for figure in (
        *(_latency_figure(figure, metric) for metric in shown_in("comparison") for figure in (*QUANTILES, "mean")),
        KeyFigure("requests", better="higher", unit="requests/s"),
        KeyFigure("tokens", better="higher", unit="tokens/s"),
        KeyFigure("success", better="higher", unit="share", scale="share", floor=0.005),
        KeyFigure("goodput", better="higher", unit="requests/s"),
        KeyFigure("attainment", better="higher", unit="share", scale="share", floor=0.005),
    )
}
"""Every figure that runs can be compared by."""

NEEDS_SLO = ("goodput", "attainment")
COMPARED = (
    "p50 ttft", "p99 ttft", "p50 tpot", "p50 e2e", "p99 e2e", "requests", "tokens", "success", "goodput", "attainment",
)  # fmt: skip
"""Figures of a comparison by default."""


@dataclass(frozen=True, slots=True)
class FigureReading:
    """A figure of one run.

    Attributes:
        value: The figure; None if missing.
        replicates: The figure of each bootstrap replicate.
        samples: Number of values behind it.
        missing: Reason for a missing value.
        alone: The value with the interval of this run alone, if requested.
    """

    value: float | None
    replicates: Floats | None = None
    samples: int = 0
    missing: str | None = None
    alone: Estimate | None = None


def with_intervals(
    run: Run, readings: Mapping[str, FigureReading], figures: Sequence[KeyFigure], slo: Slo | None
) -> dict[str, FigureReading]:
    """Return the readings, each with the interval of the run alone, which allows for the memory of queues."""
    span = run_span(run)
    if span is None:
        return dict(readings)
    found = {
        figure.name: replace(readings[figure.name], alone=_alone(run, figure, span, slo))
        for figure in figures
        if readings[figure.name].value is not None
    }
    return {**readings, **found}


def _alone(run: Run, figure: KeyFigure, span: MeasuredSpan, slo: Slo | None) -> Estimate:
    if figure.metric is not None:
        samples = samples_of(run, judged_metric(run.requests, figure.metric))
        quantiles = [] if figure.quantile is None else [figure.quantile]
        found = describe(
            samples.values, samples.t_s, span, quantiles=quantiles or [0.5], independent=samples.independent
        )
        return found.quantiles[quantile_name(figure.quantile)] if figure.quantile is not None else found.mean
    measured = run.measured
    t_s = measured["due_s"].to_numpy(dtype=np.float64)
    match figure.name:
        case "requests" | "tokens":
            arrived = completed_requests(run) if figure.name == "requests" else delivered_tokens(run)
            return rate(arrived.amounts, arrived.t_s, span)
        case "success":
            return share((measured["status"] == "ok").to_numpy(dtype=np.bool_), t_s, span)
    assert slo is not None, "figures that need an SLO are asked for with one"
    hit = met(measured, slo)
    return share(hit, t_s, span) if figure.name == "attainment" else rate(np.ones(int(hit.sum())), t_s[hit], span)


def read_figures(run: Run, figures: Sequence[KeyFigure], blocks: Blocks, slo: Slo | None) -> dict[str, FigureReading]:
    """Read the figures of a run.

    Args:
        run: The run.
        figures: The figures.
        blocks: Blocks of the run's window. Equal draws for two runs over the same schedule make their replicates pairs.
        slo: SLO for goodput and attainment.

    Returns:
        The readings by the name of the figure.
    """
    readings = _latencies(run, [figure for figure in figures if figure.metric is not None], blocks)
    for figure in figures:
        if figure.metric is None:
            readings[figure.name] = _missing_slo(figure, slo) or _counted(run, figure, blocks, slo)
    return readings


def _missing_slo(figure: KeyFigure, slo: Slo | None) -> FigureReading | None:
    return FigureReading(None, missing="no SLO was set") if figure.name in NEEDS_SLO and slo is None else None


def _latencies(run: Run, figures: Sequence[KeyFigure], blocks: Blocks) -> dict[str, FigureReading]:
    """Return readings of latency figures; all quantiles of a metric share one pass over its samples."""
    readings: dict[str, FigureReading] = {}
    for name in dict.fromkeys(figure.metric for figure in figures):
        wanted = [figure for figure in figures if figure.metric == name]
        assert name is not None
        samples = samples_of(run, judged_metric(run.requests, name))
        present = np.isfinite(samples.values)
        values, block_of = samples.values[present], blocks.of(samples.t_s[present])
        count = values.size if samples.independent is None else min(values.size, samples.independent)
        quantiles = [figure.quantile for figure in wanted if figure.quantile is not None]
        drawn = bootstrap_quantiles(values, block_of, blocks, quantiles) if values.size and quantiles else None
        for figure in wanted:
            needed = min_samples(0.5 if figure.quantile is None else figure.quantile)
            if count < needed:
                why = f"{count} successful requests, at least {needed} needed" if count else "no successful request"
                readings[figure.name] = FigureReading(None, missing=why)
            elif figure.quantile is None:
                readings[figure.name] = FigureReading(
                    float(values.mean()), _mean_replicates(values, block_of, blocks), count
                )
            else:
                assert drawn is not None
                value = float(np.quantile(values, figure.quantile))
                readings[figure.name] = FigureReading(value, drawn[quantiles.index(figure.quantile)], count)
    return readings


def _mean_replicates(values: Floats, block_of: np.ndarray[tuple[int], np.dtype[np.int64]], blocks: Blocks) -> Floats:
    sums = blocks.weights @ np.bincount(block_of, weights=values, minlength=blocks.count)
    counts = blocks.weights @ np.bincount(block_of, minlength=blocks.count)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(counts > 0, sums / counts, np.nan)


def _counted(run: Run, figure: KeyFigure, blocks: Blocks, slo: Slo | None) -> FigureReading:
    """Read a rate, or a share of the requests that were due in the window."""
    measured = run.measured
    if measured.empty:
        return FigureReading(None, missing="no request was due in the window")
    t_s = measured["due_s"].to_numpy(dtype=np.float64)
    match figure.name:
        case "requests":
            arrived = completed_requests(run)
            return _rate(arrived.amounts, arrived.t_s, blocks)
        case "tokens":
            ok = run.requests[run.requests["status"] == "ok"]
            if len(ok) and ok["tokens"].isna().all():
                return FigureReading(None, missing="the server did not report token counts")
            arrived = delivered_tokens(run)
            return _rate(arrived.amounts, arrived.t_s, blocks)
        case "success":
            return _share((measured["status"] == "ok").to_numpy(dtype=np.bool_), t_s, blocks)
    assert slo is not None, "figures that need an SLO are asked for with one"
    hit = met(measured, slo)
    if figure.name == "attainment":
        return _share(hit, t_s, blocks)
    return _rate(np.ones(int(hit.sum())), t_s[hit], blocks)


def _rate(amounts: Floats, t_s: Floats, blocks: Blocks) -> FigureReading:
    per_block = np.bincount(blocks.of(t_s), weights=amounts, minlength=blocks.count)
    window_s = blocks.count * blocks.length_s
    return FigureReading(float(per_block.sum() / window_s), blocks.weights @ per_block / window_s, amounts.size)


def _share(hits: np.ndarray[tuple[int], np.dtype[np.bool_]], t_s: Floats, blocks: Blocks) -> FigureReading:
    replicates = _mean_replicates(hits.astype(np.float64), blocks.of(t_s), blocks)
    return FigureReading(float(hits.mean()), replicates, hits.size)
