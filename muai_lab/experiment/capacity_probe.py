"""One probe of a capacity study, by its run's records."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from muai_lab.experiment.capacity_curve import ProbeOutcome
from muai_lab.experiment.capacity_search import NextProbe
from muai_lab.slo import longest_s

if TYPE_CHECKING:
    import pandas as pd

    from muai_lab.analysis.frames import Run
    from muai_lab.slo import Slo
    from muai_lab.window import Window

_BLOCKS = 5
# Share of the misses that the load generator may explain: log-odds that are off by 0.1 move a crossing whose slope over
# the log rate is 10 by 1 %.
_EXPLAINED = 0.1


@dataclass(frozen=True, slots=True)
class Probe:
    """One probe.

    verdict: The run's validity. stopped: The reason why it was ended early; None if it was not. doubt: The reason if
    the load generator's own delays can have decided the attainment, else None. server: Directory of the server's start.
    """

    number: int
    ask: NextProbe
    outcome: ProbeOutcome
    verdict: str
    stopped: str | None
    directory: Path
    doubt: str | None = None
    server: str = "server"
    figures: Mapping[str, float | None] = field(default_factory=dict)

    def counts(self, quantile: float) -> bool:
        """True if the probe counts as a measurement of the server.

        A late load generator makes latencies longer. If a probe of the search keeps the SLO all the same, it counts.
        The estimate takes no probe whose misses may be the generator's.
        """
        return self.doubt is None or (not self.ask.edge and self.outcome.attainment >= quantile)

    def document(self, quantile: float) -> Mapping[str, Any]:
        """Return the probe as `capacity.json` has it."""
        due = sum(self.outcome.due)
        return {
            "number": self.number,
            "edge": self.ask.edge,
            "server": self.server,
            "rate_rps": self.ask.rate,
            "lead_in_s": self.ask.lead_s,
            "window_s": self.ask.seconds,
            "memory_s": self.outcome.memory_s,
            "due": due,
            "met": sum(self.outcome.met),
            "attainment": self.outcome.attainment if due else None,
            "offered_rps": self.figures.get("offered"),
            "goodput_rps": self.figures.get("goodput"),
            "ttft_p50_s": self.figures.get("ttft"),
            "tpot_p50_s": self.figures.get("tpot"),
            "verdict": self.verdict,
            "counts": self.counts(quantile),
            "stopped": self.stopped,
            "directory": self.directory.name,
        }


def judge_probe(
    run: Run, slo: Slo, number: int, ask: NextProbe, *, stopped: str | None = None, server: str = "server"
) -> Probe:
    """Judge a probe by its records.

    In a probe that was stopped, only the requests count whose outcome was decided by then: those that ended, and those
    that were in flight for longer than the SLO allows.
    """
    from muai_lab.analysis.attainment import met
    from muai_lab.analysis.memory import run_span
    from muai_lab.analysis.validity import validity_of

    window = run.window
    assert window is not None, "a run that offered load has a window"
    measured = run.measured if stopped is None else _decided(run.measured, slo, window)
    hit = met(measured, slo)
    span_s = max(window.duration_s, 1e-9)
    block = np.clip(((measured["due_s"] - window.start_s) / span_s * _BLOCKS).to_numpy(), 0, _BLOCKS - 1).astype(int)
    due, good = np.bincount(block, minlength=_BLOCKS), np.bincount(block[hit], minlength=_BLOCKS)
    span = None if stopped else run_span(run)
    ok = measured[measured["status"] == "ok"]
    first = ok["ttft_from_intended_s"]
    return Probe(
        number,
        ask,
        ProbeOutcome(
            ask.rate, tuple(due.tolist()), tuple(good.tolist()), window.duration_s,
            None if span is None else span.memory_s, ask.edge,
        ),
        "stopped early" if stopped else validity_of(run).verdict,
        stopped,
        run.path,
        _doubt(run.manifest.get("generator") or {}, measured, int(hit.sum()), slo, ask.rate),
        server,
        {
            "offered": len(measured) / span_s if stopped is None else None,
            "goodput": float(hit.sum()) / span_s if stopped is None else None,
            "ttft": float(first.median()) if first.notna().any() else None,
            "tpot": float(ok["tpot_s"].median()) if ok["tpot_s"].notna().any() else None,
        },
    )  # fmt: skip


def _doubt(generator: Mapping[str, Any], measured: pd.DataFrame, hit: int, slo: Slo, rate: float) -> str | None:
    """The reason if the load generator's own delays can have decided which share met the SLO.

    They can only turn a request that met it into a miss. So the share with bounds that are wider by the longest delay
    is the most that the server can have attained.
    """
    from muai_lab.analysis.attainment import met
    from muai_lab.analysis.client_part import allowing, doubt_of
    from muai_lab.analysis.validity import SATURATED

    if generator.get("verdict") == SATURATED:
        return f"the load generator could not offer {rate:.3g} requests/s"
    reason = doubt_of(generator, slo)
    if reason is None:
        return None
    explained = int(met(measured, allowing(generator, slo)).sum()) - hit
    return reason if explained > _EXPLAINED * (len(measured) - hit) else None


def _decided(measured: pd.DataFrame, slo: Slo, window: Window) -> pd.DataFrame:
    waited_s = window.end_s - measured["due_s"]
    longest = longest_s(slo, int(measured["max_tokens"].max()) if measured["max_tokens"].notna().any() else 1)
    overdue = waited_s > (math.inf if longest is None else longest)
    if slo.ttft_ms is not None:
        overdue |= measured["first_content_s"].isna() & (waited_s > slo.ttft_ms / 1e3)
    return measured[(measured["status"] != "cancelled") | overdue]
