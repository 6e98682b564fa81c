"""The result of a capacity study as records: the content of `capacity.json`, field by field and in its order."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

Number = int | float


class StudySlo(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The SLO of a study: bounds in milliseconds, and the share of requests that must meet them."""

    ttft: float | None = None
    tpot: float | None = None
    e2e: float | None = None
    quantile: float


class CapacityEstimate(Struct, frozen=True):
    """The capacity in requests per second with its 95 % interval. value: None if no rate meets the SLO."""

    value: float | None
    low: float | None
    high: float | None


class LongProbes(Struct, frozen=True, kw_only=True):
    """The long probes behind an estimate.

    server_starts: Number of servers that they met. shortest_window_s: The shortest of their windows. memory_s: Seconds
    for which queue and batch persist. slope, requests_per_cluster, between_probes: Of the curve through the probes.
    """

    long_probes: int
    server_starts: int
    can_restart: bool
    shortest_window_s: Number
    memory_s: Number | None
    slope: float | None = None
    requests_per_cluster: float | None = None
    between_probes: float | None = None


class RateBracket(Struct, frozen=True, kw_only=True):
    """The highest rate of the short probes that meets the SLO, and the lowest that does not; None if none was tried."""

    kept: float | None
    lost: float | None


class ProbeSummary(Struct, frozen=True, kw_only=True):
    """One probe.

    edge: True for a long probe. server: Directory of the server that it met. due, met: Requests that were judged, and
    those that met the SLO. verdict: Of its run. counts: False if the load generator made it useless. stopped: The
    reason if it ended early.
    """

    number: int
    edge: bool
    server: str = "server"
    rate_rps: Number
    lead_in_s: Number | None = None
    window_s: Number
    memory_s: float | None = None
    due: int
    met: int
    attainment: float | None
    offered_rps: float | None = None
    goodput_rps: float | None
    ttft_p50_s: float | None
    tpot_p50_s: float | None
    verdict: str
    counts: bool
    stopped: str | None
    directory: str

    @property
    def due_rps(self) -> float:
        """Requests that were due per second: a drawn schedule has a few more or fewer than the rate asked for."""
        return float(self.rate_rps if self.offered_rps is None else self.offered_rps)


class CapacityStudy(Struct, frozen=True, kw_only=True):
    """A capacity study, finished or not.

    ended: The reason for its end if the search was not over. goes_on: True if a longer study can continue it.
    capacity_rps: None if no probe counts, or only short ones of which some miss the SLO. end_found: False if the
    highest rate that was tried meets the SLO. no_interval: The reason if there is no interval. engine: As the manifest
    of the last probe has it.
    """

    schema_version: int = 2
    status: str
    ended: str | None
    goes_on: bool = False
    started: str | None = None
    slo: StudySlo
    capacity_rps: CapacityEstimate | None
    end_found: bool
    interval: LongProbes | None
    no_interval: str | None
    bracket_rps: RateBracket
    engine: dict[str, Any] | None
    model: str
    workload: str
    arrival: str
    target: str | None = None
    probes: tuple[ProbeSummary, ...]

    @property
    def complete(self) -> bool:
        """True if the study ended by itself."""
        return self.status == "complete"

    @property
    def capacity(self) -> float | None:
        """The capacity in requests per second; None if it is not known or no rate meets the SLO."""
        return None if self.capacity_rps is None else self.capacity_rps.value

    def as_document(self) -> dict[str, Any]:
        """Return the content of `capacity.json`, of plain Python values."""
        document: dict[str, Any] = msgspec.to_builtins(self)
        return document
