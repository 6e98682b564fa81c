"""A scheduler in the hands of a test: requests for it, and steps that it sees completed."""

from __future__ import annotations

from muai_lab.engines.base import PromptCompute
from muai_lab.stack.events import Step
from muai_lab.stack.limits import BatchLimits
from muai_lab.stack.plan import Plan
from muai_lab.stack.request import GenerationRequest
from muai_lab.stack.scheduler import Scheduler

END = 0


def request(name: str, prompt_tokens: int = 3, max_tokens: int = 4, **more: object) -> GenerationRequest:
    return GenerationRequest(name, list(range(1, prompt_tokens + 1)), max_tokens, **more)  # type: ignore[arg-type]


def scheduler(slots: int = 4, prompts: PromptCompute = PromptCompute.PIECES, **limits: float) -> Scheduler:
    limits.setdefault("max_batch_size", slots)
    limited = BatchLimits(**limits)  # type: ignore[arg-type]
    return Scheduler(limited, slots=slots, eos_token_ids=frozenset({END}), prompts=prompts)


def complete(scheduler: Scheduler, plan: Plan, now: float, token: int = 7) -> None:
    slots = [chunk.slot for chunk in plan.prefill] + list(plan.decode)
    scheduler.complete(dict.fromkeys(slots, token), began=now, now=now)


def kinds(scheduler: Scheduler) -> list[tuple[type, str]]:
    return [(type(event), event.request_id) for event in scheduler.take_events() if not isinstance(event, Step)]
