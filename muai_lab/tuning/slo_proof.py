"""Proof that a configuration keeps the SLO: soak windows of sufficient length, kept with the study."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from muai_lab.settings.changes import with_values
from muai_lab.settings.tuning import TuningSettings
from muai_lab.tuning.arena import ConfigurationFailed
from muai_lab.tuning.bench import Bench, Unmeasurable
from muai_lab.tuning.block_result import BlockResult, attainment
from muai_lab.tuning.load_blocks import PROBES, SOAK
from muai_lab.tuning.search_space import Point
from muai_lab.tuning.soak import LOW_TAIL, Soak
from muai_lab.tuning.trials import Standing, point_key

SHORTEST_S = 30.0
# A single window shows its relaxation time only roughly, so the next one lasts twice as long as it demands.
_SAFETY = 2.0
# Below this share of the quantile a longer window would not help.
_HOPELESS = 0.9
_LENGTH = "soak length"
# A configuration that misses its bounds by more in a trial is not soaked, unless it is the best of all.
_FINALISTS, _NEAR = 4, 0.05
_PROBES = 5
_STEP = 0.85
_LEAST = 0.1  # of the configured rate: the first probe of a configuration that completed next to nothing


class Notebook(Protocol):
    """Keeps soak windows; a study is one."""

    def note(self, name: str, value: Any) -> None:
        """Keep something under a name."""

    def noted(self, name: str) -> Any:
        """Return the value that was kept under this name; None if there is none."""


@dataclass(frozen=True, slots=True)
class HighestRate:
    """Rates that were probed on one configuration, requests per second.

    kept: Highest at which a soak window kept the SLO; None if none did. missed: Lowest at which one did not. served:
    Requests that ended per second at the configured rate. window_s: Length of the windows.
    """

    kept: float | None
    missed: float
    served: float
    window_s: float

    def __str__(self) -> str:
        if self.kept is None:
            return f"not even {self.missed:.3g} requests/s, the lowest rate that was tried, did"
        return (
            f"the highest rate that does is about {self.kept:.3g} requests/s (kept in a soak window of "
            f"{self.window_s:.0f} s there, not at {self.missed:.3g}; at the configured rate {self.served:.3g} requests "
            "ended per second)"
        )


class Soaks:
    """Soak windows of the configurations of one study.

    quantile: Share of the requests that must meet the SLO.
    """

    def __init__(
        self, notebook: Notebook, bench: Bench, tuning: TuningSettings, stage: Callable[[str], None] = lambda what: None
    ) -> None:
        """Prepare the soak windows of a study.

        Args:
            notebook: Keeps the windows; the study.
            bench: Measures them. Its problem has an SLO.
            tuning: Lengths of the windows, and the number of pairs over which the confirmation bounds the attainment.
            stage: Called with the name of slow work.
        """
        quantile = bench.problem.constraints.quantile
        assert quantile is not None, "soak windows judge an SLO"
        self._notebook = notebook
        self._bench = bench
        self._tuning = tuning
        self.quantile = quantile
        self._stage = stage

    def look(self, point: Point) -> Soak:
        """Return the soak window of a configuration, measured unless it is known; long enough if `soak_most_s` allows.

        Raises ConfigurationFailed, Unmeasurable, Interrupted.
        """
        known = self.known(point)
        if known is not None:
            return known
        seconds = self.seconds
        while True:
            self._stage(f"soak window of {seconds:.0f} s")
            _, seen = self._bench.soak(with_values(self._bench.problem.present, point), SOAK, seconds)
            wanted = self._wanted_s(seen)
            if seconds >= min(wanted, self._most_s) or self._hopeless(seen):
                break
            seconds = min(max(wanted, 1.5 * seconds), self._most_s)
        self._notebook.note(_name(point), _record(seen))
        self._notebook.note(_LENGTH, max(seen.seconds, self.seconds))
        return seen

    def prove(self, found: Sequence[Standing]) -> None:
        """Measure soak windows of the best configurations, in order, until one keeps the SLO; the first of them always.

        Raises Interrupted.
        """
        for place, standing in enumerate(found[:_FINALISTS]):
            if place and standing.violation > _NEAR:
                return
            with suppress(ConfigurationFailed, Unmeasurable):
                if self.keeps(self.look(standing.point)):
                    return

    def first_kept(self, found: Sequence[Standing]) -> Standing | None:
        """Return the best configuration of which a soak window that keeps the SLO is known."""
        for standing in found:
            seen = self.known(standing.point)
            if seen is not None and self.keeps(seen):
                return standing
        return None

    def known(self, point: Point) -> Soak | None:
        """Return the soak window of a configuration; None if it was not measured."""
        record = self._notebook.noted(_name(point))
        return None if record is None else _soak(record)

    def keeps(self, seen: Soak) -> bool:
        """True if the window was long enough, ended without a growing backlog, and met the SLO."""
        return seen.long_enough and not seen.growing and attainment(seen.slices) >= self.quantile

    def kept_by(self, point: Point) -> float:
        """Return the attainment in a configuration's soak window; 0 if it misses the SLO or cannot be measured."""
        with suppress(ConfigurationFailed, Unmeasurable):
            seen = self.look(point)
            return attainment(seen.slices) if self.keeps(seen) else 0.0
        return 0.0

    @property
    def seconds(self) -> float:
        """Length of the next window, seconds: the configured one, else the longest that was needed so far."""
        if self._tuning.soak_s is not None:
            return self._tuning.soak_s
        return max(float(self._notebook.noted(_LENGTH) or 0.0), min(SHORTEST_S, self._most_s))

    def highest_rate(self, point: Point, offered: float, seen: Soak) -> HighestRate:
        """Lower the rate until a soak window keeps the SLO, then narrow it down once.

        Args:
            point: The best configuration.
            offered: The configured rate, at which it does not keep the SLO.
            seen: Its window there. What ended per second is the first guess of what it can serve.

        Raises:
            ConfigurationFailed: It does not serve.
            Unmeasurable: The load generator is the bottleneck.
            Interrupted: A stop was requested.
        """
        optimization = with_values(self._bench.problem.present, point)
        seconds = min(max(seen.seconds, SHORTEST_S), self._most_s)
        kept, missed = None, offered
        rate = min(_STEP * offered, max(seen.completed_per_s, _LEAST * offered))
        for number in range(_PROBES):
            self._bench.switch.check()
            self._stage(f"soak window of {seconds:.0f} s at {rate:.3g} requests/s")
            self._bench.arena.apply(optimization)
            found = self._bench.offer_soak(optimization, PROBES + number, seconds, rate=rate)
            if self.keeps(found):
                if kept is not None or missed / rate < 1.1:
                    kept = max(rate, kept or 0.0)
                    break
                kept = rate
            else:
                missed = min(rate, missed)
                if kept is not None:
                    break
            rate = _STEP * missed if kept is None else math.sqrt(kept * missed)
        return HighestRate(kept, missed, seen.completed_per_s, seconds)

    @property
    def _most_s(self) -> float:
        return self._tuning.soak_most_s

    def _wanted_s(self, seen: Soak) -> float:
        if self._tuning.soak_s is not None:
            return self._tuning.soak_s
        return max(SHORTEST_S, _SAFETY * seen.needed_s, proof_s(seen, self.quantile, self._tuning.confirm_pairs))

    def _hopeless(self, seen: Soak) -> bool:
        return attainment(seen.slices) < _HOPELESS * self.quantile


def proof_s(seen: Soak, quantile: float, windows: int) -> float:
    """Return the length of each of `windows` windows without a miss for which the lower bound reaches the quantile."""
    return -math.log(LOW_TAIL) / (1.0 - quantile) * seen.relaxation_s / windows


def _name(point: Point) -> str:
    return f"soak {hashlib.sha256(point_key(point).encode()).hexdigest()}"


def _record(seen: Soak) -> dict[str, Any]:
    # A long window has many latencies, and only those of a trial's blocks are used.
    slices = [replace(part, latencies_s=()).record() for part in seen.slices]
    return {**asdict(replace(seen, slices=())), "slices": slices}


def _soak(record: Mapping[str, Any]) -> Soak:
    slices: Sequence[Mapping[str, Any]] = record["slices"]
    return Soak(**{**record, "slices": tuple(BlockResult.of_record(part) for part in slices)})
