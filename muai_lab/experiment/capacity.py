"""The capacity study: short probes that search, then long ones at the edge, each a run of its own.

DIRECTORY/capacity.json, report.html    the result
DIRECTORY/server/                       the log and the optimization.yaml of the server of the search
DIRECTORY/server-07/, ...               the same of the server that was started for probe 7, a long one
DIRECTORY/probe-00/, probe-01/, ...     one run directory each
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from muai_lab.errors import MuaiError, RunError, SettingsError
from muai_lab.experiment.capacity_advice import Limits, ending, without_interval
from muai_lab.experiment.capacity_probe import Probe, judge_probe
from muai_lab.experiment.capacity_search import CapacitySearch, NextProbe, SearchPlan
from muai_lab.experiment.capacity_servers import Servers
from muai_lab.experiment.directory import COMPLETE, PARTIAL, has_configuration, status_in
from muai_lab.experiment.loss_watch import CLEARLY, HOPELESSLY, LossWatch
from muai_lab.experiment.runner import RunCutShort, RunWatcher, run_experiment
from muai_lab.settings.dump import dump_config_yaml

if TYPE_CHECKING:
    from collections.abc import Iterator

    from muai_lab.analysis.capacity_schema import CapacityStudy
    from muai_lab.settings.lab import LabSettings
    from muai_lab.settings.resolve import Resolved
    from muai_lab.slo import Slo

RATED_ARRIVALS = ("constant", "poisson", "gamma")
"""Kinds of arrivals that have one rate, which the search can set."""

RESULT = "capacity.json"
SECTION = "capacity"  # of the settings; no probe's run depends on it
_TRIES = 2  # a probe that the load generator made invalid is repeated once: another process may have disturbed it

Resolve = Callable[[Mapping[str, object]], "Resolved"]
"""Resolves the study's settings with further overrides on top."""


class CapacityWatcher(RunWatcher, Protocol):
    """Follows a study."""

    def probe(self, number: int, ask: NextProbe) -> None:
        """A probe begins."""

    def judged(self, probe: Probe) -> None:
        """A probe is over."""


def find_capacity(resolve: Resolve, path: Path, watcher: CapacityWatcher) -> CapacityStudy:
    """Search the capacity in directory `path`.

    Ctrl-C ends the search: the result of the finished probes is written, marked as partial, and KeyboardInterrupt is
    raised again. A study that did not finish continues in its directory: its finished probes are kept.

    Args:
        resolve: Resolves the study's settings with overrides.
        path: Directory of the study.
        watcher: Follows it.

    Returns:
        The content of `capacity.json`.

    Raises:
        SettingsError: There is no SLO, or the arrivals have no single rate.
        RunError: The directory holds a finished study, or see `run_experiment`.
    """
    settings = resolve({}).settings
    slo = check_settings(settings)
    study = _Study(resolve, settings, slo, path, watcher)
    with study.kept():
        study.run()
    return study.result(COMPLETE)


def check_settings(settings: LabSettings) -> Slo:
    """Return the SLO of the study. Raises SettingsError if a capacity search cannot be made with these settings."""
    from muai_lab.slo import slo_of

    slo = slo_of(settings.model_dump(mode="json"))
    problems = []
    if slo is None:
        problems.append(
            "slo: capacity is the highest rate that keeps an SLO, and none is set: choose slo=interactive or "
            "slo=relaxed, or set slo.ttft_ms, slo.tpot_ms or slo.e2e_ms"
        )
    if settings.arrival.kind not in RATED_ARRIVALS:
        problems.append(
            f"arrival.kind: {settings.arrival.kind} has no single rate that could be searched; choose one of "
            f"{', '.join(RATED_ARRIVALS)}"
        )
    if settings.load.automatic:
        problems.append(
            "load.duration_s: a probe needs a window of a given length, and auto has none: give it in seconds"
        )
    if problems or slo is None:
        raise SettingsError(problems)
    return slo


def plan_of(settings: LabSettings, quantile: float) -> SearchPlan:
    """Return the plan of a search with these settings."""
    capacity, load = settings.capacity, settings.load
    return SearchPlan(
        quantile=quantile,
        start_rate=settings.arrival.rate,
        lowest_rate=capacity.lowest_rate,
        highest_rate=capacity.highest_rate,
        growth=capacity.growth,
        resolution=capacity.resolution,
        repeats=capacity.repeats,
        max_probes=capacity.max_probes,
        requests=capacity.requests,
        duration_s=load.window_s,
        warmup_s=load.warmup_s,
        longest_s=capacity.longest_s,
        edge_longest_s=capacity.edge_longest_s,
    )


class _Study:
    """A capacity study in progress."""

    def __init__(self, resolve: Resolve, settings: LabSettings, slo: Slo, path: Path, watcher: CapacityWatcher) -> None:
        self._resolve = resolve
        self._settings = settings
        self._slo = slo
        self._path = path
        self._watcher = watcher
        self._search = CapacitySearch(plan_of(settings, slo.quantile))
        self._servers = Servers(settings, path, watcher)
        self._probes: list[Probe] = []
        self._limit: Limits | None = None
        self._ended: str | None = None
        self._started = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._begun = time.monotonic()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Write the result so far however the study ends; an error that ends it is raised again."""
        self._path.mkdir(parents=True, exist_ok=True)
        if _is_over(self._path / RESULT):
            raise RunError(
                f"{self._path} already holds a finished capacity study, which is not written over: choose another "
                "directory with --dir, or delete this one"
            )
        status = PARTIAL
        try:
            yield
            status = COMPLETE
        except KeyboardInterrupt:
            self._ended = "interrupted"
            raise
        except SystemExit:
            self._ended = "terminated"
            raise
        except MuaiError as error:
            self._ended = str(error)
            raise
        finally:
            if self._probes:
                self._write(status)

    def run(self) -> None:
        """Probe until the search is over, or a limit is reached."""
        with self._servers:
            while (ask := self._search.next_probe()) is not None:
                if self._is_beyond_budget(ask):
                    self._limit = Limits.BUDGET
                    return
                self._probe(ask)
                self._write(PARTIAL)
        if len(self._search.outcomes) >= self._search.plan.max_probes:
            self._limit = Limits.PROBES

    def _is_beyond_budget(self, ask: NextProbe) -> bool:
        budget_s = self._settings.capacity.budget_s
        fresh_s = self._servers.start_s if ask.edge and self._servers.restarts else 0.0
        return (
            budget_s is not None
            and bool(self._probes)
            and time.monotonic() - self._begun + ask.lead_s + ask.seconds + fresh_s > budget_s
        )

    def _probe(self, ask: NextProbe) -> None:
        from muai_lab.analysis import load_run

        number = len(self._probes)
        resolved = self._resolve(
            {
                "arrival.rate": ask.rate,
                "load.duration_s": ask.seconds,
                "load.warmup_s": ask.lead_s,
                # New prompts for every probe: with those of the one before, all would be in the prefix cache.
                "experiment.repeat": number,
            }
        )
        server = self._servers.name_of(number, edge=ask.edge)
        directory, finished = _directory_for(self._path, number, dump_config_yaml(resolved))
        self._watcher.probe(number, ask)
        stopped = None
        if finished:
            self._watcher.stage(f"probe {number} was finished before, and is kept")
        else:
            stopped = self._offer(resolved, directory, ask, server)
        probe = judge_probe(load_run(directory), self._slo, number, ask, stopped=stopped, server=server)
        self._probes.append(probe)
        if probe.counts(self._slo.quantile):
            self._search.add(probe.outcome)
        elif sum(not one.counts(self._slo.quantile) and one.ask.rate == ask.rate for one in self._probes) >= _TRIES:
            self._search.cannot_offer(ask.rate)
            self._ended = (
                f"{probe.doubt}, so nothing above {ask.rate:.3g} requests/s was tried (more cores, load.processes or "
                "load.backend=ray offer more)"
            )
        self._watcher.judged(probe)

    def _offer(self, resolved: Resolved, directory: Path, ask: NextProbe, server: str) -> str | None:
        """Make a probe's run; return why it was ended early, None if it was not."""
        system = self._servers.serving(server)
        margin = HOPELESSLY if ask.edge else CLEARLY
        watch = LossWatch(self._slo, ask.rate, start_s=ask.lead_s, length_s=ask.seconds, margin=margin)
        watched = replace(system, target=watch.over(system.target))
        try:
            run_experiment(resolved, directory, self._watcher, system=watched, end_early=watch.look)
        except RunCutShort as cut:
            if watch.lost is None:
                raise
            return str(cut)
        return None

    def _write(self, status: str) -> None:
        from muai_lab.report.capacity_page import render_capacity
        from muai_lab.report.page import write_page

        study = self.result(status)
        write_page(self._path / RESULT, json.dumps(study.as_document(), indent=2, allow_nan=False) + "\n")
        write_page(self._path / "report.html", render_capacity(study, self._path))

    def result(self, status: str) -> CapacityStudy:
        """Return the study as far as it is known, with a status of the run directory."""
        import msgspec

        from muai_lab.analysis.capacity_schema import CapacityStudy
        from muai_lab.analysis.documents import clean

        settings, slo, search = self._settings, self._slo, self._search
        capacity = search.capacity() if search.outcomes else None
        answered = capacity is not None and (capacity.rate is None or capacity.open or capacity.edge is not None)
        low, high = search.bracket if search.outcomes else (None, None)
        spent_s = time.monotonic() - self._begun
        document = clean(
            {
                "schema_version": 2,
                "status": status,
                "ended": self._ended or ending(search, self._limit, settings.capacity),
                "goes_on": self._limit is not None,
                "started": self._started,
                "slo": {**slo.bounds_ms, "quantile": slo.quantile},
                # Short probes flatter a server: by themselves they show where to look, and no capacity.
                "capacity_rps": None
                if capacity is None or not answered
                else {"value": capacity.rate, "low": capacity.low, "high": capacity.high},
                "end_found": capacity is not None and not capacity.open,
                "interval": self._interval(),
                "no_interval": None
                if capacity is None or capacity.low is not None
                else without_interval(search, self._limit, settings.capacity, spent_s, self._servers.start_s),
                "bracket_rps": {"kept": low, "lost": high},
                "engine": self._engine(),
                "model": self._model(),
                "workload": settings.workload.name,
                "arrival": settings.arrival.kind,
                "target": settings.target.kind,
                "probes": [probe.document(slo.quantile) for probe in self._probes],
            }
        )
        return msgspec.convert(document, CapacityStudy)

    def _interval(self) -> Mapping[str, Any] | None:
        """The long probes that made the estimate; None without any."""
        capacity = self._search.capacity() if self._search.outcomes else None
        if capacity is None or capacity.edge is None:
            return None
        near, edge = self._search.near(), capacity.edge
        return {
            "long_probes": len(near),
            "server_starts": len({probe.server for probe in self._probes if probe.outcome in near}),
            "can_restart": self._settings.target.kind != "endpoint",
            "shortest_window_s": min(one.seconds for one in near),
            "memory_s": self._search.memory_s(),
            "slope": edge.slope,
            "requests_per_cluster": edge.cluster,
            "between_probes": edge.between,
        }

    def _model(self) -> str:
        """The model that was asked; an endpoint may know it under another name than the tokenizer."""
        from muai_lab.analysis import load_run

        load = load_run(self._probes[-1].directory).manifest.get("load") if self._probes else None
        return str((load or {}).get("asked_model") or self._settings.model.name)

    def _engine(self) -> Mapping[str, Any] | None:
        from muai_lab.analysis import load_run

        return load_run(self._probes[-1].directory).manifest.get("engine") if self._probes else None


def _directory_for(path: Path, number: int, config_yaml: str) -> tuple[Path, bool]:
    """The directory of a probe's run, and whether this run was finished in it before.

    A finished run of another rate or window, such as one of an earlier version's search, stays where it is.
    """
    candidate, others = path / f"probe-{number:02d}", 0
    while status_in(candidate)[0] == COMPLETE:
        if has_configuration(candidate, config_yaml, besides=SECTION):
            return candidate, True
        others += 1
        candidate = path / f"probe-{number:02d}-{others}"
    return candidate, False


def _is_over(result: Path) -> bool:
    """True if the study in the directory ended by itself, not by a limit that a longer study may raise."""
    try:
        document = json.loads(result.read_text(encoding="utf-8"))
        return bool(document["status"] == COMPLETE and not document.get("goes_on", False))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False
