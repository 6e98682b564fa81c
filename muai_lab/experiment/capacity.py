"""The capacity study: probes of one server at rising and falling rates, each a run, until the search is satisfied.

DIRECTORY/capacity.json, report.html    what came of it
DIRECTORY/server/                       the log and the optimization.yaml of the server that all probes share
DIRECTORY/probe-00/, probe-01/, ...     one run directory each
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from muai_lab.errors import MuaiError, RunError, SettingsError
from muai_lab.experiment.capacity_search import CapacitySearch, Outcome, SearchPlan
from muai_lab.experiment.directory import COMPLETE, PARTIAL, RunDirectory, is_finished
from muai_lab.experiment.loss_watch import LossWatch, longest_s
from muai_lab.experiment.measured import Measured, open_measured
from muai_lab.experiment.runner import RunCutShort, RunWatcher, run_experiment
from muai_lab.settings.dump import dump_config_yaml, dump_optimization_yaml

if TYPE_CHECKING:
    from collections.abc import Iterator

    from muai_lab.analysis.frames import Run
    from muai_lab.analysis.slo import Slo
    from muai_lab.settings.lab import LabSettings
    from muai_lab.settings.load import Resolved

RATED_ARRIVALS = ("constant", "poisson", "gamma")
"""Arrivals that have one rate, which the search can set."""

RESULT = "capacity.json"
_BLOCKS = 10
_TRIES = 2  # a probe that the load generator spoilt is made once more: it may have been somebody else's doing

Resolve = Callable[[Mapping[str, object]], "Resolved"]
"""Resolves the study's settings with further overrides on top."""


class CapacityWatcher(RunWatcher, Protocol):
    """Is told how a study gets on."""

    def probe(self, number: int, rate: float, window_s: float) -> None:
        """A probe begins."""

    def judged(self, probe: Probe) -> None:
        """A probe is over."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One probe.

    verdict: the run's validity. stopped: why it was ended early, None where it went to its end. saturated: the load
    generator was late, so the figures hold its own delays too; a promise that was kept all the same was kept.
    """

    number: int
    rate: float
    window_s: float
    outcome: Outcome
    verdict: str
    stopped: str | None
    directory: Path
    saturated: bool = False
    figures: Mapping[str, float | None] = field(default_factory=dict)


def find_capacity(resolve: Resolve, path: Path, watcher: CapacityWatcher) -> Mapping[str, Any]:
    """Search the capacity in directory `path`; returns what `capacity.json` says.

    Ctrl-C ends the search: what the finished probes say is written, marked as partial, and KeyboardInterrupt goes on.
    A study that did not finish goes on in its directory: its finished probes are kept.
    Raises SettingsError without an SLO or with arrivals that have no single rate, and what `run_experiment` raises.
    """
    settings = resolve({}).settings
    slo = check_settings(settings)
    study = _Study(resolve, settings, slo, path, watcher)
    with study.kept():
        study.run()
    return study.document(COMPLETE)


def check_settings(settings: LabSettings) -> Slo:
    """The SLO of the study. Raises SettingsError when a capacity search cannot be made with these settings."""
    from muai_lab.analysis.slo import slo_of

    slo = slo_of(settings.model_dump(mode="json"))
    problems = []
    if slo is None:
        problems.append(
            "slo: capacity is the highest rate that keeps a promise, and none is set: choose slo=interactive or "
            "slo=relaxed, or set slo.ttft_ms, slo.tpot_ms or slo.e2e_ms"
        )
    if settings.arrival.kind not in RATED_ARRIVALS:
        problems.append(
            f"arrival.kind: {settings.arrival.kind} has no single rate that could be searched; choose one of "
            f"{', '.join(RATED_ARRIVALS)}"
        )
    if problems or slo is None:
        raise SettingsError(problems)
    return slo


def window_s(settings: LabSettings, rate: float) -> float:
    """Length of a probe's window: `load.duration_s`, or longer where a low rate would bring too few requests."""
    wanted = max(settings.load.duration_s, settings.capacity.requests / rate)
    return min(wanted, max(settings.capacity.longest_s, settings.load.duration_s))


class _Study:
    """A capacity study under way."""

    def __init__(self, resolve: Resolve, settings: LabSettings, slo: Slo, path: Path, watcher: CapacityWatcher) -> None:
        self._resolve = resolve
        self._settings = settings
        self._slo = slo
        self._path = path
        self._watcher = watcher
        capacity = settings.capacity
        self._search = CapacitySearch(
            SearchPlan(
                quantile=slo.quantile,
                start_rate=settings.arrival.rate,
                lowest_rate=capacity.lowest_rate,
                highest_rate=capacity.highest_rate,
                growth=capacity.growth,
                resolution=capacity.resolution,
                repeats=capacity.repeats,
                max_probes=capacity.max_probes,
            )
        )
        self._probes: list[Probe] = []
        self._ended: str | None = None
        self._started = datetime.now(UTC).isoformat(timespec="milliseconds")

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Write what is known however the study ends; the error that ended it goes on."""
        self._path.mkdir(parents=True, exist_ok=True)
        if _is_complete(self._path / RESULT):
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
        """Probe until the search is over, all probes against one server."""
        server = RunDirectory(self._path / "server")
        server.write_text("optimization.yaml", dump_optimization_yaml(self._settings))
        self._watcher.stage(f"starting the {self._settings.target.kind}")
        begun = time.monotonic()
        budget_s = self._settings.capacity.budget_s
        with open_measured(self._settings, server, os.environ) as measured:
            while (rate := self._search.next_rate()) is not None:
                length_s = window_s(self._settings, rate)
                needed_s = self._settings.load.warmup_s + length_s
                if budget_s is not None and self._probes and time.monotonic() - begun + needed_s > budget_s:
                    self._ended = f"the budget of {budget_s:g} s was used up"
                    return
                self._probe(measured, rate, length_s)
                self._write(PARTIAL)

    def _probe(self, measured: Measured, rate: float, length_s: float) -> None:
        from muai_lab.analysis import load_run

        number = len(self._probes)
        resolved = self._resolve(
            {
                "arrival.rate": rate,
                "load.duration_s": length_s,
                # New prompts for every probe: with those of the one before, all would be in the prefix cache.
                "experiment.repeat": number,
            }
        )
        directory = self._path / f"probe-{number:02d}"
        self._watcher.probe(number, rate, length_s)
        stopped = None
        if is_finished(directory, dump_config_yaml(resolved)):
            self._watcher.stage(f"probe {number} was finished before, and is kept")
        else:
            stopped = self._offer(resolved, directory, measured, rate, length_s)
        probe = judge_probe(load_run(directory), self._slo, number, rate, length_s, stopped)
        self._probes.append(probe)
        if self._counts(probe):
            self._search.add(probe.outcome)
        elif sum(not self._counts(other) and other.rate == rate for other in self._probes) >= _TRIES:
            self._search.cannot_offer(rate)
            self._ended = f"the load generator could not offer {rate:.3g} requests/s, so nothing above was tried"
        self._watcher.judged(probe)

    def _offer(
        self, resolved: Resolved, directory: Path, measured: Measured, rate: float, length_s: float
    ) -> str | None:
        """Make a probe's run; returns why it was ended early, None if it was not."""
        watch = LossWatch(self._slo, rate, start_s=self._settings.load.warmup_s, length_s=length_s)
        watched = replace(measured, target=watch.over(measured.target))
        try:
            run_experiment(resolved, directory, self._watcher, measured=watched, end_early=watch.look)
        except RunCutShort as cut:
            if watch.lost is None:
                raise
            return str(cut)
        return None

    def _counts(self, probe: Probe) -> bool:
        """Whether a probe says something about the server: all do but lost ones of a load generator that was late."""
        return not probe.saturated or probe.outcome.attainment >= self._slo.quantile

    def _write(self, status: str) -> None:
        from muai_lab.analysis.capacity_report import render_capacity
        from muai_lab.analysis.page import write_page

        document = self.document(status)
        write_page(self._path / RESULT, json.dumps(document, indent=2, allow_nan=False) + "\n")
        write_page(self._path / "report.html", render_capacity(document, self._path))

    def document(self, status: str) -> Mapping[str, Any]:
        """What `capacity.json` says."""
        from muai_lab.analysis.summary import clean

        settings, slo = self._settings, self._slo
        judged = [probe for probe in self._probes if self._counts(probe)]
        capacity = self._search.capacity(settings.seed) if judged else None
        low, high = self._search.bracket if judged else (None, None)
        document: Mapping[str, Any] = clean(
            {
                "schema_version": 1,
                "status": status,
                "ended": self._ended,
                "started": self._started,
                "slo": {**slo.bounds_ms, "quantile": slo.quantile},
                "capacity_rps": None
                if capacity is None
                else {"value": capacity.rate, "low": capacity.low, "high": capacity.high},
                "bracket_rps": {"kept": low, "lost": high},
                "engine": self._engine(),
                "model": self._model(),
                "workload": settings.workload.name,
                "arrival": settings.arrival.kind,
                "target": settings.target.kind,
                "probes": [
                    {
                        "number": probe.number,
                        "rate_rps": probe.rate,
                        "window_s": probe.window_s,
                        "due": sum(probe.outcome.due),
                        "met": sum(probe.outcome.met),
                        "attainment": probe.outcome.attainment if sum(probe.outcome.due) else None,
                        "offered_rps": probe.figures.get("offered"),
                        "goodput_rps": probe.figures.get("goodput"),
                        "ttft_p50_s": probe.figures.get("ttft"),
                        "tpot_p50_s": probe.figures.get("tpot"),
                        "verdict": probe.verdict,
                        "counts": self._counts(probe),
                        "stopped": probe.stopped,
                        "directory": probe.directory.name,
                    }
                    for probe in self._probes
                ],
            }
        )
        return document

    def _model(self) -> str:
        """The model that was asked; an endpoint may know it under another name than the tokenizer."""
        from muai_lab.analysis import load_run

        load = load_run(self._probes[-1].directory).manifest.get("load") if self._probes else None
        return str((load or {}).get("asked_model") or self._settings.model.name)

    def _engine(self) -> Mapping[str, Any] | None:
        from muai_lab.analysis import load_run

        return load_run(self._probes[-1].directory).manifest.get("engine") if self._probes else None


def _is_complete(result: Path) -> bool:
    try:
        return bool(json.loads(result.read_text(encoding="utf-8"))["status"] == COMPLETE)
    except (OSError, ValueError, LookupError, TypeError):
        return False


def judge_probe(run: Run, slo: Slo, number: int, rate: float, length_s: float, stopped: str | None) -> Probe:
    """What a probe's records say. Of one that was stopped only requests count whose fate was decided by then.

    Decided are those that ended, and those that were under way for longer than the SLO allows.
    """
    from muai_lab.analysis.client_part import doubt_of
    from muai_lab.analysis.slo import met
    from muai_lab.analysis.validity import SATURATED, validity_of

    generator = run.manifest.get("generator") or {}

    measured = run.measured
    window = run.window
    assert window is not None, "a run that offered load has a window"
    if stopped is not None:
        waited_s = window.end_s - measured["due_s"]
        longest = longest_s(slo, int(measured["max_tokens"].max()) if measured["max_tokens"].notna().any() else 1)
        overdue = waited_s > (math.inf if longest is None else longest)
        if slo.ttft_ms is not None:
            overdue |= measured["first_content_s"].isna() & (waited_s > slo.ttft_ms / 1e3)
        measured = measured[(measured["status"] != "cancelled") | overdue]
    hit = met(measured, slo)
    span_s = max(window.duration_s, 1e-9)
    block = np.clip(((measured["due_s"] - window.start_s) / span_s * _BLOCKS).to_numpy(), 0, _BLOCKS - 1).astype(int)
    due, good = np.bincount(block, minlength=_BLOCKS), np.bincount(block[hit], minlength=_BLOCKS)
    ok = measured[measured["status"] == "ok"]
    first = ok["ttft_from_intended_s"]
    return Probe(
        number,
        rate,
        length_s,
        Outcome(rate, tuple(due.tolist()), tuple(good.tolist())),
        "stopped early" if stopped else str(validity_of(run)["verdict"]),
        stopped,
        run.path,
        generator.get("verdict") == SATURATED or doubt_of(generator, slo) is not None,
        {
            "offered": len(measured) / span_s if stopped is None else None,
            "goodput": float(hit.sum()) / span_s if stopped is None else None,
            "ttft": float(first.median()) if first.notna().any() else None,
            "tpot": float(ok["tpot_s"].median()) if ok["tpot_s"].notna().any() else None,
        },
    )
