"""The merged result of several generators, on one clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from muai_lab.load.clock_offset import SAME_CLOCK, ClockOffset
from muai_lab.load.generator import LoadResult
from muai_lab.load.self_report import WorkerReport, report_on_generators
from muai_lab.window import Window


@dataclass(frozen=True, slots=True)
class Part:
    """The result of one generator, with its times on its own clock."""

    name: str
    result: LoadResult
    clock: ClockOffset = SAME_CLOCK


def merge(parts: Sequence[Part], lost: Sequence[str] = ()) -> LoadResult:
    """Return one result of at least one part, on the local clock.

    The window ends at the first end of a part: from then on less than the whole load was offered.

    Args:
        parts: The results of the generators.
        lost: Reasons why others have none.
    """
    for part in parts:
        if part.clock != SAME_CLOCK:
            for record in part.result.records:
                record.move_stamps(part.clock.ours)
    windows = [_put_back_window(part.result.window, part.clock) for part in parts]
    window = Window(
        load_start_ns=min(window.load_start_ns for window in windows),
        measure_start_ns=min(window.measure_start_ns for window in windows),
        measure_end_ns=min(window.measure_end_ns for window in windows),
        drain_end_ns=max(window.drain_end_ns for window in windows),
    )
    records = [record for part in parts for record in part.result.records]
    records.sort(key=lambda record: (record.due_ns, record.index))
    notes = list(dict.fromkeys(note for part in parts for note in part.result.notes))
    notes += [f"{reason}: its requests are missing" for reason in lost]
    return LoadResult(
        records=tuple(records),
        window=window,
        generator=report_on_generators(records, window, [(_of(part), part.result.generator) for part in parts]),
        interrupted=any(part.result.interrupted for part in parts),
        notes=tuple(notes),
        lost=tuple(lost),
        exhausted=next((part.result.exhausted for part in parts if part.result.exhausted), None),
    )


def _of(part: Part) -> WorkerReport:
    own = part.result.generator
    return WorkerReport(
        name=part.name,
        requests=len(part.result.records),
        cpu_share=own.cpu_share,
        send_lag_p99_s=own.send_lag_p99_s,
        verdict=own.verdict,
        reason=own.reason,
        wait_share=own.wait_share,
        lateness_p99_s=own.lateness_p99_s,
        clock_offset_s=part.clock.offset_ns / 1e9,
        clock_error_s=part.clock.error_ns / 1e9,
    )


def _put_back_window(window: Window, clock: ClockOffset) -> Window:
    return Window(
        clock.ours(window.load_start_ns),
        clock.ours(window.measure_start_ns),
        clock.ours(window.measure_end_ns),
        clock.ours(window.drain_end_ns),
    )
