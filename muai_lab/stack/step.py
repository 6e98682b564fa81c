"""One step: planned, carried out, and completed. An engine's thread and virtual time share it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from muai_lab.engines.base import KVBlock
from muai_lab.stack.plan import Plan
from muai_lab.stack.prefix_reuse import CopyOut
from muai_lab.stack.scheduler import Scheduler

CopiedOut = Callable[[CopyOut, Sequence[KVBlock]], None]
"""Takes in the blocks of one copy out of a slot; called before anything is copied into a slot."""

StepOutcome = tuple[Mapping[int, int], float, float]
"""The token of each slot that produced one; when the step began and ended, in seconds."""

CarryOut = Callable[[Plan, CopiedOut], StepOutcome]
"""Copies, releases, decodes and prefills as a plan says, and times it. What it raises leaves the step uncompleted."""


def run_step(scheduler: Scheduler, now: float, carry_out: CarryOut, show_events: Callable[[], None]) -> Plan:
    """Make the scheduler's next step.

    Args:
        scheduler: Plans the step and takes in its outcome.
        now: Seconds, on the clock of `carry_out`.
        carry_out: The engine's part of the step. Also gets a plan without anything to compute.
        show_events: Takes the scheduler's events; called before the plan is carried out, and after the step.

    Returns:
        The plan, which says until when to wait if there was nothing to compute.
    """
    plan = scheduler.plan(now)
    show_events()
    tokens, began, ended = carry_out(plan, scheduler.copied_out)
    if not plan.empty:
        scheduler.complete(tokens, began=began, now=ended)
    show_events()
    return plan
