"""Turns of the schedule that were not sent, and the note on a schedule that ran out."""

from __future__ import annotations

from dataclasses import dataclass

from muai_lab.window import Window


@dataclass(slots=True)
class Unsent:
    """Counts of turns.

    Attributes:
        after_failure: Turns of sessions in which an earlier turn failed.
        without_text: Turns of sessions in which an earlier answer had no text.
        at_end: Turns that were not due before the load ended.
    """

    after_failure: int = 0
    without_text: int = 0
    at_end: int = 0

    def notes(self) -> tuple[str, ...]:
        """Return the counts as notes for a reader of the results."""
        because = (
            (self.after_failure, "an earlier turn of theirs failed"),
            (self.without_text, "the answer before them had no text (reasoning or a tool call only)"),
            (self.at_end, "they were due after the end of the load"),
        )
        return tuple(f"turns not sent because {reason}: {count:,}" for count, reason in because if count)

    def ran_out(self, window: Window, scheduled: int) -> str:
        """Return the note on a schedule of `scheduled` requests that ended before the window."""
        after_s = (window.measure_end_ns - window.load_start_ns) / 1e9
        any_left = self.after_failure + self.without_text + self.at_end
        all_sent = f"all {scheduled} requests of the schedule were sent"
        after = f"{'no session of the schedule was left' if any_left else all_sent} after {after_s:.1f} s"
        if window.duration_s <= 0:
            return f"{after}, during the warm-up: nothing was measured; lower load.warmup_s or raise load.requests"
        return f"{after}: the window ends there, {window.duration_s:.1f} s long"
