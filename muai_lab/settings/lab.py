"""The lab's own settings (model, arrivals, load, SLO, repeats), and the tree that holds all settings.

These come from the configuration groups and the command line, not from the server's configuration file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from muai_lab.settings.capacity import CapacitySettings
from muai_lab.settings.monitoring import MonitoringSettings
from muai_lab.settings.schema import OptimizationSettings
from muai_lab.settings.section import (
    AnySequence,
    Conflict,
    GivesWay,
    Name,
    Order,
    Section,
    WasSet,
    setting,
    value_at,
    was_set,
)
from muai_lab.settings.target import TargetSettings
from muai_lab.settings.tuning import TuningSettings
from muai_lab.settings.workload import TIMED_KINDS, SyntheticWorkload, WorkloadSettings


def _check_rates(rates: tuple[float, ...]) -> tuple[float, ...]:
    if rates and not any(rates):
        raise ValueError("every rate is 0: nothing would ever be sent")
    return rates


class ModelSettings(Section):
    """The model under test."""

    name: Name = setting(
        "qwen_chat", "Name that the model is served under; an embedded model if no other checkpoint is named."
    )
    checkpoint: Name | None = setting(
        None, "Hub id or local directory; null takes optimization.models[name], else the embedded model of that name."
    )


_CHANGING = ("ramp", "steps", "diurnal", "trace")
"""Kinds of arrivals whose load changes over time, so that its figures depend on the length of the window."""


class ArrivalSettings(Section):
    """The times at which requests are sent; in a workload with sessions, the times of their first turns.

    In the closed loop, `concurrency` requests are always in flight. All other kinds are open loops: requests are due at
    their times, even if earlier ones have not finished.
    """

    kind: Literal["closed", "constant", "poisson", "gamma", "ramp", "steps", "diurnal", "trace"] = setting(
        "poisson",
        "closed: `concurrency` requests are always in flight; constant, poisson: `rate` per second, evenly or at"
        " random; gamma: in bursts, set by `cv`; ramp: from `rate` to `end_rate` within `ramp_s`; steps: each of"
        " `step_rates` for `step_s`; diurnal: `rate` on average, up and down with `period_s`; trace: at the times of"
        " the workload's trace or schedule, `speed` times as fast.",
    )
    rate: float = setting(
        20.0, "Offered rate of the open loop; for ramp at its start, for diurnal the mean.", unit="requests/s", gt=0
    )
    concurrency: int = setting(8, "Requests in flight in the closed loop.", unit="requests", ge=1)
    cv: float = setting(
        2.0,
        "gamma: coefficient of variation of the gaps. 1 is poisson, more is burstier, less is more even; "
        "other tools use 1 / cv^2, called burstiness.",
        gt=0,
        le=100,
    )
    end_rate: float = setting(40.0, "ramp: rate at its end and afterwards.", unit="requests/s", ge=0)
    ramp_s: float = setting(30.0, "ramp: duration of the increase.", unit="s", gt=0)
    step_rates: Annotated[tuple[Annotated[float, Field(ge=0)], ...], AnySequence, AfterValidator(_check_rates)] = (
        setting(
            (5.0, 10.0, 20.0),
            "steps: the rates in order; the last one continues.",
            unit="requests/s",
            min_length=1,
        )
    )
    step_s: float = setting(10.0, "steps: duration of each rate.", unit="s", gt=0)
    period_s: float = setting(60.0, "diurnal: length of one period.", unit="s", gt=0)
    amplitude: float = setting(
        0.5, "diurnal: largest deviation of the rate from its mean, as a share of it.", ge=0, le=1
    )
    speed: float = setting(1.0, "trace: factor by which the replay is faster than the recording.", gt=0)
    trace_rate: float | None = setting(
        None,
        "trace: mean rate of the replay; null uses `speed` instead.",
        unit="requests/s",
        gt=0,
    )

    @property
    def stationary(self) -> bool:
        """True if the offered load does not change by itself."""
        return self.kind not in _CHANGING

    def conflicts(self) -> Iterator[Conflict]:
        if self.trace_rate is not None and self.speed != 1.0:
            yield Conflict(("trace_rate", "speed"), "both say how fast a trace is replayed: set one of them")


_OF_AUTO = ("precision", "longest_s")


class LoadSettings(Section):
    """Duration and conditions of the offered load."""

    warmup_s: float = setting(4.0, "Warm-up: load before the measurement window, not counted.", unit="s", ge=0)
    duration_s: Annotated[float, Field(gt=0)] | Literal["auto"] = setting(
        30.0,
        "Length of the measurement window. auto: until the interval of the headline metric is narrow enough "
        "(`precision`), at most `longest_s`.",
        unit="s",
    )
    precision: float = setting(
        0.05,
        "duration_s=auto: half-width of the headline's 95 % interval at which the run stops, relative to its value. "
        "The headline is the median TTFT in an open loop, output tokens per second in the closed loop.",
        gt=0,
        le=0.5,
    )
    longest_s: float = setting(600.0, "duration_s=auto: longest measurement window.", unit="s", gt=0)
    drain_s: float = setting(
        30.0, "Longest wait for the requests that are still in flight after the window.", unit="s", ge=0
    )
    request_timeout_s: float = setting(
        60.0, "Timeout of a request: the client aborts it after this time.", unit="s", gt=0
    )
    processes: int | None = setting(
        None,
        "Load generator processes that share the load; null takes as many as the offered rate needs, at most half of "
        "the cores. With backend=ray: the number in the whole cluster.",
        ge=1,
        le=1024,
    )
    backend: Literal["processes", "ray"] = setting(
        "processes",
        "Place of the load generators: processes on this machine, or a Ray cluster (extra `ray`), whose machines must "
        "reach the endpoint.",
    )
    max_in_flight: int | None = setting(
        None,
        "Most requests in flight in an open loop. Above it, a due request waits, and its latencies still count from "
        "its due time. null sets no bound.",
        unit="requests",
        ge=1,
    )
    reuse_prompts: bool = setting(
        False,
        "Send an endpoint the unchanged prompts of the schedule, which its cache may hold from an earlier run. "
        "Otherwise each run changes the first words of its prompts and keeps the number of tokens.",
    )
    requests: int | None = setting(
        None, "Stop after this many requests (closed loop only); null continues for the whole duration.", ge=1
    )

    @property
    def window_s(self) -> float:
        """Length of the measurement window, in seconds; with duration_s=auto the longest."""
        return self.longest_s if self.duration_s == "auto" else self.duration_s

    @property
    def automatic(self) -> bool:
        """True if the precision reached decides the length of the window while the load runs."""
        return self.duration_s == "auto"

    def giving_way(self, was_set: WasSet) -> Iterator[GivesWay]:
        asked = next((key for key in _OF_AUTO if was_set(key)), None)
        if asked is not None and not was_set("duration_s"):
            yield GivesWay("duration_s", "auto", asked)
        yield from super().giving_way(was_set)

    def conflicts(self) -> Iterator[Conflict]:
        yield from super().conflicts()
        for key in _OF_AUTO:
            if was_set(self, key) and not self.automatic:
                yield Conflict((key, "duration_s"), f"{key} needs duration_s=auto: leave out one of them")
        if self.automatic and self.requests is not None:
            yield Conflict(
                ("duration_s", "requests"),
                "duration_s=auto decides when to stop, and so does requests: leave out one of them",
            )


class SloSettings(Section):
    """The latency SLO: limits of each request, null for no limit, and the share that must meet all of them."""

    ttft_ms: float | None = setting(None, "Longest time to first token (TTFT).", unit="ms", gt=0)
    tpot_ms: float | None = setting(None, "Longest time per output token after the first (TPOT).", unit="ms", gt=0)
    e2e_ms: float | None = setting(None, "Longest duration of the whole request.", unit="ms", gt=0)
    quantile: float = setting(0.99, "Share of the requests that must meet the SLO.", gt=0.0, lt=1.0)


class ExperimentSettings(Section):
    """Repeats of each configuration."""

    repeats: int = setting(
        1,
        "Runs of each configuration, each over a new schedule. The configurations of a multirun alternate, and all run "
        "the same schedules.",
        ge=1,
        le=1000,
    )
    repeat: int | None = setting(None, "Run only this repeat (the first is 0); null runs all.", ge=0, lt=1000)


_ARRIVAL_OF: Mapping[str, str] = MappingProxyType(
    {
        "arrival.concurrency": "closed",
        "load.requests": "closed",
        "arrival.cv": "gamma",
        "arrival.end_rate": "ramp",
        "arrival.ramp_s": "ramp",
        "arrival.step_rates": "steps",
        "arrival.step_s": "steps",
        "arrival.period_s": "diurnal",
        "arrival.amplitude": "diurnal",
        "arrival.speed": "trace",
        "arrival.trace_rate": "trace",
    }
)
"""Keys that have a meaning under one kind of arrivals only: set without a kind, they choose it."""
_RATED = ("gamma", "ramp", "diurnal")
"""The kinds among these under which `arrival.rate` also has a meaning."""


class LabSettings(Section):
    """All settings of one run or one server."""

    config_file: Name | None = setting(
        None,
        "Configuration file of the optimization and monitoring sections; null looks for config/optimization.yaml, then "
        "config/system.yaml.",
    )
    seed: int = setting(0, "Seed of all random draws: lengths, prompts, arrivals.", ge=0)
    model: ModelSettings = ModelSettings()
    workload: WorkloadSettings = SyntheticWorkload()
    arrival: ArrivalSettings = ArrivalSettings()
    load: LoadSettings = LoadSettings()
    slo: SloSettings = SloSettings()
    target: TargetSettings = TargetSettings()
    tuning: TuningSettings = TuningSettings()
    experiment: ExperimentSettings = ExperimentSettings()
    capacity: CapacitySettings = CapacitySettings()
    optimization: OptimizationSettings = OptimizationSettings()
    monitoring: MonitoringSettings = MonitoringSettings()

    # A closed loop with fewer requests than its concurrency would never reach it.
    orders = (Order("arrival.concurrency", "load.requests"),)

    def giving_way(self, was_set: WasSet) -> Iterator[GivesWay]:
        meant = self._arrivals_meant(was_set)
        if len(set(meant.values())) == 1:
            yield from (GivesWay("arrival.kind", kind, key) for key, kind in list(meant.items())[:1])
        yield from super().giving_way(was_set)

    def conflicts(self) -> Iterator[Conflict]:
        yield from super().conflicts()
        meant = self._arrivals_meant(lambda path: was_set(self, path))
        if len(set(meant.values())) > 1:
            told = ", ".join(f"{key} means something with arrival={kind}" for key, kind in meant.items())
            yield Conflict((*meant, "arrival.kind"), f"{told}: choose one of these")
        if self.arrival.kind == "trace" and self.workload.kind not in TIMED_KINDS:
            yield Conflict(
                ("arrival.kind", "workload.kind"),
                f"arrival=trace takes its times from the workload, but {self.workload.kind} has none: choose one of "
                f"{', '.join(TIMED_KINDS)}, or another arrival",
            )
        if self.load.backend == "ray" and self.target.kind != "endpoint":
            yield Conflict(
                ("load.backend", "target.kind"),
                f"load.backend=ray needs an endpoint that all machines reach, but the target is {self.target.kind}: "
                "set target=endpoint and target.url",
            )
        if self.load.automatic and not self.arrival.stationary:
            yield Conflict(
                ("load.duration_s", "arrival.kind"),
                f"load.duration_s=auto needs a load that stays alike, but arrival.kind is {self.arrival.kind}: give "
                "the window in seconds, or choose arrival=poisson, constant, gamma or closed",
            )
        if self.load.requests is not None and self.arrival.kind != "closed" and not meant:
            yield Conflict(
                ("load.requests", "arrival.kind"),
                f"load.requests needs the closed loop, but arrival.kind is {self.arrival.kind}: bound an open loop by "
                "load.duration_s",
            )

    def _arrivals_meant(self, was_set: WasSet) -> dict[str, str]:
        """For each key that was set, the kind of arrivals under which it has a meaning; empty if the kind was set."""
        if was_set("arrival.kind"):
            return {}
        meant = {key: kind for key, kind in _ARRIVAL_OF.items() if was_set(key) and value_at(self, key) is not None}
        if self.workload.kind not in TIMED_KINDS:  # it has no times that could be replayed
            meant = {key: kind for key, kind in meant.items() if kind != "trace"}
        if was_set("arrival.rate") and not set(_RATED).issuperset(meant.values()):
            meant["arrival.rate"] = type(self.arrival).model_fields["kind"].default
        return meant
