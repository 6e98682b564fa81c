"""The frozen blocks of load that all trials replay (common random numbers), drawn from the study's seed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property

from muai_lab.errors import RunError
from muai_lab.load.plan import LoadPlan
from muai_lab.settings.lab import LabSettings
from muai_lab.settings.section import with_value
from muai_lab.tuning.objective import has_slo
from muai_lab.tuning.quality import Ids, prompts_of
from muai_lab.tuning.soak import LEAD_IN
from muai_lab.workload.draw import (
    CLOSED_LOOP_ANSWERS_PER_SLOT_S,
    CLOSED_LOOP_MINIMUM,
    EmptySchedule,
    draw_schedule,
)
from muai_lab.workload.prompts import PromptTokenizer
from muai_lab.workload.schedule import Schedule

# A run whose requests run out ends early and is kept; a block that ends early measures the load instead of the server.
_CLOSED_LOOP_MARGIN = 5.0
# Blocks are numbered from here in the confirmation, so that it never sees a block of the search.
FRESH = 1_000_000
_WARMUP = 2_000_000
# Soak windows of the search, and of the rates that are probed; a trial under open-loop load replays the first.
SOAK, PROBES = 3_000_000, 4_000_000
_SLOWEST_ANSWER_S = 5.0
_MOST_BLOCKS_OF_PROMPTS = 100
_MOST_DRAWS, _NEXT_DRAW = 100, 1_000_000_007


def is_soaked(settings: LabSettings) -> bool:
    """True if trials are soak windows: an SLO under open-loop load, where a backlog outlasts a block."""
    return settings.arrival.kind != "closed" and has_slo(settings.slo)


class LoadBlocks:
    """Schedules by number: the same number is always the same load. context_tokens: Of the model."""

    def __init__(self, settings: LabSettings, tokenizer: PromptTokenizer, context_tokens: int | None) -> None:
        self._settings = settings
        self._tokenizer = tokenizer
        self._context_tokens = context_tokens
        self._drawn: dict[int, Schedule] = {}
        self._soak: tuple[tuple[int, float], Schedule, LoadPlan] | None = None
        tuning = settings.tuning
        self.plan = self._plan(tuning.lead_in_s, tuning.block_s)
        self.warmup_plan = self._plan(0.0, max(tuning.warmup_s, 0.1))

    def block(self, number: int) -> Schedule:
        """Return the load of one block, which is drawn when it is first needed."""
        if number not in self._drawn:
            self._drawn[number] = self._draw(number, self.plan)
        return self._drawn[number]

    @cached_property
    def warmup(self) -> Schedule:
        """The load after each start of a server."""
        return self._draw(_WARMUP, self.warmup_plan)

    @cached_property
    def prompts(self) -> Mapping[str, list[Ids]]:
        """Prompts for the comparison of greedy tokens, as token ids: of `search` blocks, and of `fresh` ones."""
        return {name: self._prompts(first) for name, first in (("search", 0), ("fresh", FRESH))}

    @cached_property
    def fixed(self) -> bool:
        """True if every request has a time of its own, so that all configurations are offered the same load."""
        return int(self.block(0).table["intended_s"].null_count) == 0

    @property
    def soaked(self) -> bool:
        """See `is_soaked`."""
        return is_soaked(self._settings)

    @property
    def trial_s(self) -> float:
        """Length of the window of a trial that is one soak window."""
        return self._settings.tuning.blocks * self._settings.tuning.block_s

    @property
    def stationary(self) -> bool:
        """True if the offered rate does not change by itself."""
        return self._settings.arrival.stationary

    def soak(self, number: int, seconds: float) -> tuple[Schedule, LoadPlan]:
        """Return the load of one soak window with its lead-in, and its plan. The last one drawn is kept."""
        if self._soak is None or self._soak[0] != (number, seconds):
            plan = self._plan(LEAD_IN * seconds, seconds)
            self._soak = ((number, seconds), self._draw(number, plan), plan)
        return self._soak[1:]

    def at_rate(self, rate: float) -> LoadBlocks:
        """Return the same kind of load at another rate, in requests per second."""
        return LoadBlocks(with_value(self._settings, "arrival.rate", rate), self._tokenizer, self._context_tokens)

    def hash(self) -> str:
        """Return the hash of the load that trials replay: equal hashes are equal loads."""
        if self.soaked:
            return self.soak(SOAK, self.trial_s)[0].hash
        numbers = range(self._settings.tuning.blocks)
        return hashlib.sha256("".join(self.block(number).hash for number in numbers).encode()).hexdigest()

    def _prompts(self, first: int) -> list[Ids]:
        blocks = range(first, first + max(self._settings.tuning.blocks, _MOST_BLOCKS_OF_PROMPTS))
        chat = self._settings.workload.api == "chat"
        return prompts_of(map(self.block, blocks), self._tokenizer, self._context_tokens, chat=chat)

    def _plan(self, lead_in_s: float, seconds: float) -> LoadPlan:
        load = self._settings.load
        # A server with twice the load that it can carry has sent its answers by then; there is no wait for a worse one.
        drain_s = min(load.drain_s, lead_in_s + seconds + _SLOWEST_ANSWER_S)
        return LoadPlan(
            lead_in_s, seconds, drain_s, load.request_timeout_s, concurrency=self._settings.arrival.concurrency
        )

    def _draw(self, number: int, plan: LoadPlan) -> Schedule:
        settings = self._settings
        seconds = plan.warmup_s + plan.duration_s
        requests = None
        if settings.arrival.kind == "closed":
            enough = settings.arrival.concurrency * seconds * _CLOSED_LOOP_MARGIN * CLOSED_LOOP_ANSWERS_PER_SLOT_S
            requests = max(CLOSED_LOOP_MINIMUM, round(enough))
        load = settings.load.model_copy(
            update={"warmup_s": plan.warmup_s, "duration_s": plan.duration_s, "requests": requests}
        )
        # Far apart, so that blocks of one study are not those of another with the next seed.
        seed = settings.seed * 10_000_019 + number + 1
        # At a low rate a short block may happen to be empty, which measures nothing: then the next draw that is not.
        for attempt in range(_MOST_DRAWS):
            drawn = settings.model_copy(update={"load": load, "seed": seed + attempt * _NEXT_DRAW})
            with suppress(EmptySchedule):
                return draw_schedule(drawn, self._tokenizer, self._context_tokens)
        raise RunError(
            f"no request falls into a block of {seconds:g} s at this rate: raise arrival.rate, tuning.block_s or "
            "tuning.warmup_s"
        )
