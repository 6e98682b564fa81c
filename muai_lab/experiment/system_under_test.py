"""The system that a run measures, behind one interface: our own server, the stack in this process, or an endpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from muai_lab.errors import RunError
from muai_lab.experiment.scrape import MetricsScraper, find_metrics
from muai_lab.experiment.server_calls import ServedBy
from muai_lab.experiment.server_under_test import ServerUnderTest
from muai_lab.load.crew import HttpRecipe
from muai_lab.load.openai_http import HttpTarget
from muai_lab.load.target import Target

if TYPE_CHECKING:
    from muai_lab.experiment.directory import RunDirectory
    from muai_lab.settings.lab import LabSettings


@dataclass(frozen=True, slots=True)
class SystemUnderTest:
    """The other side of a load.

    serving: Returns the engine that serves at this moment. It is asked before and after the load, since an engine may
    take over from another. recipe: The way by which further load generators reach the target; None if only this process
    can. failure: Returns the reason why the other side is gone; None while it lives. notes: Returns remarks for readers
    of the results.
    """

    target: Target
    serving: Callable[[], ServedBy]
    scraper: MetricsScraper | None = None
    recipe: HttpRecipe | None = None
    failure: Callable[[], str | None] = lambda: None
    notes: Callable[[], list[str]] = list


@contextmanager
def open_system(
    settings: LabSettings, directory: RunDirectory, environ: Mapping[str, str]
) -> Iterator[SystemUnderTest]:
    """Start the system that `settings.target` names; it ends with the context.

    Raises:
        RunError: The server does not become ready, or the endpoint cannot be measured.
        EngineError, ModelError: The stack in this process does not open.
    """
    match settings.target.kind:
        case "server":
            yield from _server(settings, directory, environ)
        case "inprocess":
            yield from _inprocess(settings)
        case "endpoint":
            yield _endpoint(settings, environ)


def _server(settings: LabSettings, directory: RunDirectory, environ: Mapping[str, str]) -> Iterator[SystemUnderTest]:
    with ServerUnderTest(settings, directory.path, environ) as server:
        metrics_url = server.ready.metrics_url
        scraper = None if metrics_url is None else MetricsScraper(metrics_url)
        yield SystemUnderTest(
            target=server.target(),
            serving=server.serving,
            scraper=scraper,
            recipe=HttpRecipe(settings, server.ready.url),
            failure=server.failure,
            notes=lambda: _scrape_notes(scraper),
        )
        gone = server.failure() is not None
    if not gone and not server.stopped_cleanly:
        note = f"the server did not stop in order; see {directory.path / 'server.log'}"
        directory.update_manifest(notes=[*directory.manifest.get("notes", []), note])


def _inprocess(settings: LabSettings) -> Iterator[SystemUnderTest]:
    from muai_lab.load.inprocess import InProcessTarget
    from muai_lab.stack.stack import InferenceStack

    stack = InferenceStack.open(
        settings.optimization, settings.model.name, checkpoint=settings.model.checkpoint, queue_capacity=None
    )
    try:
        yield SystemUnderTest(
            target=InProcessTarget.of(settings, stack),
            serving=lambda: ServedBy(asdict(stack.info.engine), stack.info.skipped),
            failure=lambda: None if stack.healthy() else "the engine failed during the run",
        )
    finally:
        asyncio.run(stack.close())


def _endpoint(settings: LabSettings, environ: Mapping[str, str]) -> SystemUnderTest:
    target = HttpTarget.of(settings, environ=environ)
    scraper, note = _endpoint_metrics(settings.target.metrics_url, str(target.url.with_path("/metrics")))
    return SystemUnderTest(
        target=target,
        serving=lambda: ServedBy(None),
        scraper=scraper,
        recipe=HttpRecipe(settings, None),
        notes=lambda: [note, *(_scrape_notes(scraper) if scraper is not None else [])],
    )


def _endpoint_metrics(named: str | None, guessed: str) -> tuple[MetricsScraper | None, str]:
    """A scraper if the endpoint has metrics, and what to say. Raises RunError if an address that was named has none."""
    url = named or guessed
    found = find_metrics(url)
    if (missing := found.missing) is not None:
        if named is not None:
            raise RunError(f"target.metrics_url={named} has no metrics: {missing}; mend it, or set it to null")
        return None, f"the endpoint has no metrics at {guessed} ({missing}): there is no server side in this result"
    scraper = MetricsScraper(found.url)
    if found.dialect is None:
        return scraper, f"the server side is from {url}"
    return scraper, f"the server side is from {url}, in the terms of {found.dialect.server}, given our names"


def _scrape_notes(scraper: MetricsScraper | None) -> list[str]:
    if scraper is None:
        return ["the server's metrics are switched off: there is no server side in this result"]
    return [f"{scraper.failures} scrapes of the server's metrics failed"] if scraper.failures else []
