"""One run, from settings to report: start the system under test, offer the load, keep what was seen, analyse it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from muai_lab.errors import RunError
from muai_lab.experiment.directory import COMPLETE, FAILED, PARTIAL, RUNNING, RunDirectory, disk_is_full
from muai_lab.experiment.load_until_death import DEATH_CHECK_S, until_death
from muai_lab.experiment.provenance import git_revision, hardware, versions
from muai_lab.experiment.server_calls import ServedBy
from muai_lab.experiment.system_under_test import SystemUnderTest, open_system
from muai_lab.load.event_loop import run_on_fast_loop
from muai_lab.load.generator import LoadProgress, LoadResult
from muai_lab.load.offer import offer
from muai_lab.load.openai_http import HttpTarget
from muai_lab.load.plan import LoadPlan
from muai_lab.load.records import records_table
from muai_lab.load.token_counting import count_tokens
from muai_lab.models.registry import ModelSource, context_tokens, resolve_model
from muai_lab.models.tokenizer import ModelTokenizer, load_tokenizer
from muai_lab.settings.dump import dump_config_yaml, dump_optimization_yaml
from muai_lab.workload.draw import arrival_rate, draw_schedule
from muai_lab.workload.parquet import write_parquet
from muai_lab.workload.salt import new_salt, repeated_share, salted
from muai_lab.workload.schedule import Schedule

if TYPE_CHECKING:
    from muai_lab.analysis.summary_schema import Summary
    from muai_lab.experiment.automatic_end import AutomaticEnd
    from muai_lab.settings.lab import LabSettings
    from muai_lab.settings.resolve import Resolved

_DEATH_NOTICE_S = 10.0
_TERMINATED = 128 + signal.SIGTERM


class RunCutShort(RunError):
    """The run ended before its time, not by its user. Its records are kept and marked as partial."""


class RunWatcher(Protocol):
    """Follows a run."""

    def stage(self, what: str) -> None:
        """A new stage began, such as `starting the server`."""

    def load(self, progress: LoadProgress) -> None:
        """Report the progress of the load."""


EndEarly = Callable[[LoadProgress, Schedule], str | None]
"""Looks at a running load. Returns the reason to end it before its time; None to continue."""


def run_experiment(
    resolved: Resolved,
    path: Path,
    watcher: RunWatcher,
    *,
    system: SystemUnderTest | None = None,
    end_early: EndEarly | None = None,
) -> Summary:
    """Make the run of the settings in directory `path`.

    Ctrl-C while the load runs ends it early: the records so far are kept and analysed, the directory is marked as
    partial, and KeyboardInterrupt is raised at the end. In any other phase the directory is marked at once.

    Args:
        resolved: The settings.
        path: Directory of the run.
        watcher: Follows it.
        system: The system under test, which runs already and continues after the run; None starts the one of the
            settings and ends it.
        end_early: Ends the load with a reason. Its records are kept and analysed, and RunCutShort is raised.

    Returns:
        The summary of the run.

    Raises:
        MuaiError: The error that made the run fail. The directory is marked as failed, or as partial on a full disk.
    """
    directory = RunDirectory(path)
    directory.update_manifest(
        status=RUNNING,
        error=None,
        started=_now(),
        finished=None,
        clock={"monotonic_ns": time.monotonic_ns(), "unix_ns": time.time_ns()},
        seed=resolved.settings.seed,
        replaced=directory.replaced,
    )
    with _marking(directory):
        return _run(resolved, directory, watcher, system, end_early)


@contextmanager
def _marking(directory: RunDirectory) -> Iterator[None]:
    """Mark the directory with the end of the run. An error that is not ours is a bug, and marks it as failed too."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as end:
        error = "interrupted" if isinstance(end, KeyboardInterrupt) else "terminated"
        directory.update_manifest(status=PARTIAL, error=error, finished=_now())
        raise
    except RunCutShort as end:
        directory.update_manifest(status=PARTIAL, error=str(end), finished=_now())
        raise
    except BaseException as error:
        full = disk_is_full(error)  # the files so far are good, only incomplete
        with suppress(RunError):  # if nothing can be written any more, the error itself matters more
            directory.update_manifest(
                status=PARTIAL if full else FAILED, error=str(error) or type(error).__name__, finished=_now()
            )
        raise


def _run(
    resolved: Resolved,
    directory: RunDirectory,
    watcher: RunWatcher,
    system: SystemUnderTest | None,
    end_early: EndEarly | None,
) -> Summary:
    settings = resolved.settings
    directory.write_text("config.yaml", dump_config_yaml(resolved))
    directory.write_text("optimization.yaml", dump_optimization_yaml(settings))
    directory.update_manifest(
        versions=versions(), git=git_revision(Path(__file__).parent), hardware=hardware(), skipped_engines=[]
    )
    watcher.stage("preparing the model and the schedule")
    # An endpoint has its own model. Ours only lends its tokenizer, so that prompts have a known length.
    source = _model_source(settings)
    tokenizer = load_tokenizer(source)
    schedule = draw_schedule(settings, tokenizer, context_tokens=context_tokens(source))
    schedule.write(directory.path / "schedule.parquet")
    offered, prompts = _prompts_to_send(settings, schedule, tokenizer)
    directory.update_manifest(
        schedule_hash=schedule.hash,
        load=_described(settings, schedule) | {"prompts": prompts},
        model={
            "name": settings.model.name,
            "kind": source.kind,
            "content_hash": source.content_hash,
            "checkpoint": settings.model.checkpoint,
        },
    )
    with ExitStack() as resources:
        if system is None:
            watcher.stage(f"starting the {settings.target.kind}")
            system = resources.enter_context(open_system(settings, directory, os.environ))
        elif system.scraper is not None:
            system.scraper.forget()
        before = system.serving()
        directory.update_manifest(engine=before.engine, skipped_engines=before.skipped)
        watcher.stage("offering load")
        if isinstance(system.target, HttpTarget):
            system.target.waiting = lambda reason: watcher.stage(f"waiting for the endpoint ({reason})")
        offering = _Offer(offered, system, settings, watcher, end_early)
        result = run_on_fast_loop(offering.run())
        if offering.ending is not None:
            directory.update_manifest(load={**directory.manifest["load"], "automatic": offering.ending.facts()})
        count_tokens(result.records, tokenizer)
        death = system.failure()
        _note_asked_model(directory, system, before)
        _keep(directory, schedule, result, system)
        if death is None:
            _note_takeover(directory, before, _serving_after(system))
    if death is not None:
        raise RunError(death)
    watcher.stage("analysing")
    return _conclude(directory, result, offering)


def _described(settings: LabSettings, schedule: Schedule) -> dict[str, Any]:
    """The load, for the manifest."""
    return {
        "kind": settings.arrival.kind,
        "rate": arrival_rate(settings, schedule),
        "concurrency": settings.arrival.concurrency if settings.arrival.kind == "closed" else None,
        "target": settings.target.kind,
        "workload": settings.workload.name,
        "workload_kind": settings.workload.kind,
        "sessions": len(schedule.starts) < len(schedule),
    }


def _conclude(directory: RunDirectory, result: LoadResult, offering: _Offer) -> Summary:
    """Analyse the records, and raise the reason why the load ended before its time, if it did."""
    if result.lost:
        _analyse(directory, PARTIAL, error="; ".join(result.lost))
        raise RunCutShort(
            f"{'; '.join(result.lost)}: its requests are missing, and {directory.path} is marked as partial"
        )
    if result.exhausted is not None:
        _analyse(directory, PARTIAL, error=result.exhausted)
        raise RunCutShort(f"{result.exhausted} ({directory.path} is marked as partial)")
    if offering.cut_short is not None:
        _analyse(directory, PARTIAL, error=offering.cut_short)
        raise RunCutShort(offering.cut_short)
    if result.interrupted:
        _analyse(directory, PARTIAL, error="interrupted")
        raise SystemExit(_TERMINATED) if offering.terminated else KeyboardInterrupt
    return _analyse(directory, COMPLETE)


def _model_source(settings: LabSettings) -> ModelSource:
    """The model whose tokenizer makes the prompts, and counts tokens if the server does not."""
    name = settings.model.name
    checkpoint = settings.model.checkpoint or settings.optimization.models.get(name)
    return resolve_model(name, settings.target.tokenizer or checkpoint)


def _prompts_to_send(
    settings: LabSettings, schedule: Schedule, tokenizer: ModelTokenizer
) -> tuple[Schedule, Mapping[str, Any]]:
    """The schedule whose prompts are sent, and facts about their reuse for the manifest.

    The cache of a server that the run starts is empty. That of an endpoint may hold the prompts of earlier runs, unless
    they are salted.
    """
    facts: dict[str, Any] = {"repeated_share": repeated_share(schedule), "salt": None}
    if settings.target.kind != "endpoint" or settings.load.reuse_prompts:
        return schedule, facts | {"reused": settings.load.reuse_prompts}
    salt = new_salt()
    sent = salted(schedule, salt, tokenizer)
    return sent.schedule, facts | {
        "salt": salt, "reused": False, "unsalted": sent.unsalted, "other_length": sent.other_length,
    }  # fmt: skip


class _Offer:
    """The load of a run. It ends early if the system under test dies, on a signal, and by `end_early`.

    terminated: True if SIGTERM came; as after Ctrl-C, the records are kept. cut_short: The reason of `end_early`; None
    if it did not end the load. ending: Of a window that ends as soon as it is long enough.
    """

    def __init__(
        self,
        schedule: Schedule,
        system: SystemUnderTest,
        settings: LabSettings,
        watcher: RunWatcher,
        end_early: EndEarly | None,
    ) -> None:
        self.terminated = False
        self.cut_short: str | None = None
        self.ending = _automatic_end(settings, schedule)
        self._system = system
        self._load: asyncio.Future[LoadResult] | None = None

        def seen(progress: LoadProgress) -> None:
            watcher.load(progress)
            if end_early is not None and self.cut_short is None and self._load is not None:
                self.cut_short = end_early(progress, schedule)
                if self.cut_short is not None:
                    self._load.cancel()

        self._work = offer(
            schedule,
            system.target,
            system.recipe,
            LoadPlan.of(settings),
            settings.load,
            progress=seen,
            ending=self.ending,
        )

    async def run(self) -> LoadResult:
        """Return the result of the load. Raises RunError if the other side died before there was any."""
        load = self._load = asyncio.ensure_future(self._work)
        beside = [] if self._system.scraper is None else [self._system.scraper.run()]
        result, ended = await until_death(load, self._system.failure, signals=[signal.SIGTERM], beside=beside)
        self.terminated = ended is not None
        return result


def _automatic_end(settings: LabSettings, schedule: Schedule) -> AutomaticEnd | None:
    if not settings.load.automatic:
        return None
    from muai_lab.experiment.automatic_end import AutomaticEnd

    return AutomaticEnd(settings.load, open_loop=schedule.open_loop)


def _keep(directory: RunDirectory, schedule: Schedule, result: LoadResult, system: SystemUnderTest) -> None:
    """Write the records before the analysis, so that no later failure loses them."""
    write_parquet(records_table(result.records, result.window), directory.path / "requests.parquet")
    if system.scraper is not None:
        write_parquet(system.scraper.table(), directory.path / "server_metrics.parquet")
    directory.update_manifest(
        window=asdict(result.window),
        generator=asdict(result.generator),
        notes=[*schedule.notes, *result.notes, *system.notes()],
    )


def _note_asked_model(directory: RunDirectory, system: SystemUnderTest, before: ServedBy) -> None:
    """Name the model that an endpoint was asked for; it may be known only after the target was opened."""
    if (asked := getattr(system.target, "model", None)) is not None and before.engine is None:
        directory.update_manifest(load={**directory.manifest["load"], "asked_model": asked})


def _serving_after(system: SystemUnderTest) -> ServedBy:
    """The engine that serves after the load. Raises RunError, with the server's end if that is the reason."""
    try:
        return system.serving()
    except RunError:
        # A killed process closes its connections some time before its end is visible.
        give_up_at = time.monotonic() + _DEATH_NOTICE_S
        while (death := system.failure()) is None and time.monotonic() < give_up_at:
            time.sleep(DEATH_CHECK_S)
        if death is None:
            raise
        raise RunError(death) from None


def _note_takeover(directory: RunDirectory, before: ServedBy, after: ServedBy) -> None:
    """Name the engine that serves now, and record if it took over during the run."""
    if before.engine == after.engine or before.engine is None or after.engine is None:
        return
    gone = [entry for entry in after.skipped if entry not in before.skipped]
    why = "; ".join(f"{name}: {reason}" for name, reason in gone)
    change = f"{after.engine['name']} took over from {before.engine['name']} during the run, which mixes both ({why})"
    directory.update_manifest(engine=after.engine, skipped_engines=after.skipped, engine_change=change)


def _analyse(directory: RunDirectory, status: str, *, error: str | None = None) -> Summary:
    from muai_lab.analysis import load_run, summarise
    from muai_lab.report import write_report

    # The analysis needs the status of the finished run. The directory gets it only when summary and report are there.
    run = load_run(directory.path, ended=status)
    summary = summarise(run)
    directory.write_json("summary.json", summary.as_document())
    write_report(run, summary)
    directory.update_manifest(status=status, error=error, finished=_now())
    return summary


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
