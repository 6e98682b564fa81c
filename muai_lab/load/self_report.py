"""The load generator's report on itself: its own part of each metric, the reason, and the verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from muai_lab.load.added_delay import AddedDelay, added_delays, share_of_cycles
from muai_lab.load.heartbeat import NO_TIMING, LoopTiming
from muai_lab.load.machine_load import MachineLoad, described
from muai_lab.request_record import RequestRecord
from muai_lab.visible import TOLERATED_SHARE
from muai_lab.window import Window

ClientVerdict = Literal["ok", "machine_busy", "client_saturated"]

# The loop has one thread: near one full core it has no reserve, and queues form in the client.
CPU_SHARE_LIMIT = 0.9
_MOSTLY = 0.5
_MORE_PROCESSES = "raise load.processes, or lower the load"
_OWN_CORES = "run the load generator on cores or a machine of its own"
# Of a core: below it, delays do not come from the generator's work, and more processes would not shorten them.
_LITTLE_WORK = 0.25
_BUSY_SHARE = 0.5  # of the cores, used by others
_LATE_WAKE_UPS = "run the load generator on a machine of its own; it has little work, and more processes would not help"
_WORST: dict[ClientVerdict, int] = {"ok": 0, "machine_busy": 1, "client_saturated": 2}


@dataclass(frozen=True, slots=True)
class GeneratorReport:
    """The generator in the measurement window.

    Attributes:
        cpu_share: CPU time of the loop's thread divided by wall time, None if there was no window.
        send_lag_p50_s, send_lag_p99_s, send_lag_max_s: `sent` minus due time over the requests due in the window, None
            if none was sent.
        verdict: `ok` if the generator was fast enough for the headline.
        reason: The facts behind another verdict than `ok`.
        longest_stall_s: The longest time for which the event loop did not run a task that was due.
        workers: One report for each, if several processes or machines shared the load; the values and the verdict above
            are then those of the worst.
        wait_share: Time for which the thread waited for a processor, divided by wall time.
        lateness_p50_s, lateness_p99_s: Of the beat of the event loop.
        garbage_s: The longest garbage collection.
        added: By metric column, the most that the generator's delays can have added to each statistic.
        cycle_share: The most of a closed loop's throughput that they can have cost.
        machine: The programs that used the processors; read only if the generator was late.
        advice: The next step for the user unless the verdict is `ok`.
    """

    cpu_share: float | None
    send_lag_p50_s: float | None
    send_lag_p99_s: float | None
    send_lag_max_s: float | None
    verdict: ClientVerdict
    reason: str | None
    longest_stall_s: float | None = None
    workers: tuple[WorkerReport, ...] = ()
    wait_share: float | None = None
    lateness_p50_s: float | None = None
    lateness_p99_s: float | None = None
    garbage_s: float | None = None
    added: Mapping[str, AddedDelay] = field(default_factory=dict)
    cycle_share: float | None = None
    machine: MachineLoad | None = None
    advice: str | None = None


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """One of several generators; the values are those of its own `GeneratorReport`.

    clock_offset_s: its monotonic clock minus the local one, subtracted from its times; clock_error_s: largest error of
    that. Both are 0 on one machine, whose processes share a clock.
    """

    name: str
    requests: int
    cpu_share: float | None
    send_lag_p99_s: float | None
    verdict: ClientVerdict
    reason: str | None
    clock_offset_s: float = 0.0
    clock_error_s: float = 0.0
    wait_share: float | None = None
    lateness_p99_s: float | None = None


def report_on_generator(
    records: Sequence[RequestRecord],
    window: Window,
    timing: LoopTiming = NO_TIMING,
    *,
    open_loop: bool,
    stall_s: float | None = None,
    garbage_s: float | None = None,
    machine: Callable[[], MachineLoad] | None = None,
) -> GeneratorReport:
    """Return the judgement of a generator by its records and the beat of its loop.

    The verdict is not `ok` if the generator's own delays can explain more than the tolerated part of the headline: the
    median time to first token, or the throughput of a closed loop. `machine_busy`: most of the delays were waits for a
    processor that others used. `client_saturated`: most were its own work, or its thread used more than
    `CPU_SHARE_LIMIT` of a core. A generator with little work on a machine that others keep busy is `machine_busy` too:
    its thread can be woken late without waiting for a processor.

    Args:
        records: All requests of the load.
        window: Its phases.
        timing: The beat of the loop.
        open_loop: True for an open loop.
        stall_s: The longest stall of the loop.
        garbage_s: The longest garbage collection.
        machine: Reads the use of the processors; called only if there is a delay to explain.
    """
    due = [record for record in records if window.phase(record.due_ns) == "measure" and record.sent_ns is not None]
    answered = [record for record in due if record.status == "ok" and record.chunk_t_ns]
    lags_s = np.array([(record.sent_ns or 0) - record.sendable_ns for record in due], dtype=np.float64) / 1e9
    lag = np.quantile(lags_s, [0.5, 0.99, 1.0]).tolist() if len(lags_s) else (None, None, None)
    late = np.quantile(timing.lateness_s, [0.5, 0.99]).tolist() if len(timing.lateness_s) else (None, None)
    added = added_delays(answered, timing.lateness_s, open_loop=open_loop)
    cycles = None if open_loop else share_of_cycles(answered, timing.lateness_s)
    report = GeneratorReport(
        cpu_share=timing.cpu_share,
        send_lag_p50_s=lag[0],
        send_lag_p99_s=lag[1],
        send_lag_max_s=lag[2],
        verdict="ok",
        reason=None,
        longest_stall_s=stall_s,
        wait_share=timing.wait_share,
        lateness_p50_s=late[0],
        lateness_p99_s=late[1],
        garbage_s=garbage_s,
        added=added,
        cycle_share=cycles,
    )
    if machine is not None and any(one.marked for one in added.values()):
        report = replace(report, machine=machine())
    return _judged(report, timing, _connecting(answered), open_loop=open_loop)


def _judged(
    report: GeneratorReport, timing: LoopTiming, connecting: tuple[str, str] | None, *, open_loop: bool
) -> GeneratorReport:
    explained = _headline(report, open_loop=open_loop)
    reason = f"the load generator's own delays can be {' and '.join(explained)}" if explained else None
    if report.cpu_share is not None and report.cpu_share > CPU_SHARE_LIMIT:
        busy = f"the load generator used {report.cpu_share:.0%} of a core, more than {CPU_SHARE_LIMIT:.0%}"
        return replace(
            report, verdict="client_saturated", reason="; ".join(filter(None, (busy, reason))), advice=_MORE_PROCESSES
        )
    if reason is None:
        return report
    if connecting is not None:
        return replace(report, verdict="client_saturated", reason=f"{reason}; {connecting[0]}", advice=connecting[1])
    if timing.waited_share is not None and timing.waited_share >= _MOSTLY:
        waited = f"{reason}; its thread waited for a processor {timing.wait_share:.0%} of the time"
        who, remedy = (None, _OWN_CORES) if report.machine is None else described(report.machine)
        reason = waited if who is None else f"{waited}: {who}"
        return replace(report, verdict="machine_busy", reason=reason, advice=remedy)
    if report.cpu_share is None:
        return replace(report, verdict="client_saturated", reason=reason, advice=_MORE_PROCESSES)
    reason += f"; it used {report.cpu_share:.0%} of a core"
    machine = report.machine
    if report.cpu_share < _LITTLE_WORK and machine is not None:
        who, remedy = described(machine)
        if who is not None and machine.others + machine.run >= _BUSY_SHARE * machine.cores:
            return replace(report, verdict="machine_busy", reason=f"{reason}: {who}", advice=remedy)
    advice = _LATE_WAKE_UPS if report.cpu_share < _LITTLE_WORK else _MORE_PROCESSES
    return replace(report, verdict="client_saturated", reason=reason, advice=advice)


def _headline(report: GeneratorReport, *, open_loop: bool) -> list[str]:
    """Return the metrics of the headline of which the generator can explain more than the tolerated part."""
    found = []
    added = report.added.get("ttft_from_intended_s" if open_loop else "ttft_s")
    if added is not None and "p50" in added.marked:
        found.append(f"up to {added.figures_s['p50'] * 1e3:.1f} ms of the median TTFT")
    if report.cycle_share is not None and report.cycle_share > TOLERATED_SHARE:
        found.append(f"up to {report.cycle_share:.0%} of the time of each request, which the throughput lacks")
    return found


def _connecting(answered: Sequence[RequestRecord]) -> tuple[str, str] | None:
    """Return the fact and the remedy if most of the time from due to sent went into making connections."""
    took_ns = [record.connect_ns for record in answered if record.connect_ns is not None]
    lag_ns = sum((record.sent_ns or 0) - record.sendable_ns for record in answered)
    if 2 * len(took_ns) < len(answered) or 2 * sum(took_ns) < lag_ns or not took_ns:
        return None
    median_ms = float(np.median(took_ns)) / 1e6
    made = f"{len(took_ns):,} of {len(answered):,} requests made a new connection first, which took {median_ms:.1f} ms"
    return made, "let the server keep connections alive, or judge by the times from `sent`"


def report_on_generators(
    records: Sequence[RequestRecord], window: Window, workers: Sequence[tuple[WorkerReport, GeneratorReport]]
) -> GeneratorReport:
    """Return the report on several generators: the lag over all records, other values of the worst of them."""
    reports = [own for _, own in workers]
    lags = report_on_generator(records, window, open_loop=True)
    worst = max(reports, key=lambda own: _WORST[own.verdict])
    reasons = [f"{worker.name}: {own.reason}" for worker, own in workers if own.verdict != "ok"]
    return replace(
        lags,
        verdict=worst.verdict,
        reason="; ".join(reasons) or None,
        cpu_share=_most([own.cpu_share for own in reports]),
        longest_stall_s=_most([own.longest_stall_s for own in reports]),
        workers=tuple(worker for worker, _ in workers),
        wait_share=_most([own.wait_share for own in reports]),
        lateness_p50_s=_most([own.lateness_p50_s for own in reports]),
        lateness_p99_s=_most([own.lateness_p99_s for own in reports]),
        garbage_s=_most([own.garbage_s for own in reports]),
        added=_worst_added(reports),
        cycle_share=_most([own.cycle_share for own in reports]),
        machine=worst.machine,
        advice=worst.advice,
    )


def _most(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _worst_added(reports: Sequence[GeneratorReport]) -> dict[str, AddedDelay]:
    found: dict[str, AddedDelay] = {}
    for column, added in ((column, added) for own in reports for column, added in own.added.items()):
        other = found.get(column, added)
        found[column] = AddedDelay(
            {name: max(added_s, other.figures_s[name]) for name, added_s in added.figures_s.items()},
            tuple(name for name in added.figures_s if name in added.marked or name in other.marked),
        )
    return found
