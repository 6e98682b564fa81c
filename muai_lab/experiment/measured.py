"""What a run measures, behind one face: our own server, the stack in this process, or somebody's endpoint."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from muai_lab.errors import RunError
from muai_lab.experiment.scrape import MetricsScraper, find_metrics
from muai_lab.experiment.server_process import ServerProcess
from muai_lab.load.crew import HttpRecipe
from muai_lab.load.target import Target
from muai_lab.settings.overrides import quoted

if TYPE_CHECKING:
    from muai_lab.experiment.directory import RunDirectory
    from muai_lab.settings.lab import LabSettings

# Loading a large checkpoint, exporting it, compiling: minutes, but not for ever.
READY_TIMEOUT_S = 900.0
_ASK_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class ServedBy:
    """engine: as in the manifest, None where it cannot be known. skipped: (engine, reason) of those that do not."""

    engine: Mapping[str, Any] | None
    skipped: Sequence[Sequence[str]] = ()


@dataclass(frozen=True, slots=True)
class Measured:
    """The other side of the load.

    serving: who really serves at this moment, asked before and after the load, since an engine may take over from
    another. recipe: how further load generators reach the target; None where only this process can. failure: why the
    other side is gone, None while it lives. notes: what a reader of the results must know.
    """

    target: Target
    serving: Callable[[], ServedBy]
    scraper: MetricsScraper | None = None
    recipe: HttpRecipe | None = None
    failure: Callable[[], str | None] = lambda: None
    notes: Callable[[], list[str]] = list


@contextmanager
def open_measured(settings: LabSettings, directory: RunDirectory, environ: Mapping[str, str]) -> Iterator[Measured]:
    """Start what `settings.target` names; behind the context it is gone. Raises RunError, EngineError, ModelError."""
    match settings.target.kind:
        case "server":
            yield from _server(settings, directory, environ)
        case "inprocess":
            yield from _inprocess(settings)
        case "endpoint":
            yield _endpoint(settings, environ)


def server_arguments(settings: LabSettings, config: Path) -> list[str]:
    """What `serve` is told for a measurement. config: the very file that production would run, an absolute path."""
    arguments = [
        f"config_file={quoted(str(config))}",
        f"model.name={quoted(settings.model.name)}",
        # The file stays what production runs; only where it listens is the run's own affair.
        "monitoring.server.host=127.0.0.1",
        "monitoring.server.port=0",
        "monitoring.prometheus.host=127.0.0.1",
        "monitoring.prometheus.port=0",
        f"monitoring.server.preload_models=[{quoted(settings.model.name)}]",
    ]
    if settings.model.checkpoint is not None:
        arguments.append(f"model.checkpoint={quoted(settings.model.checkpoint)}")
    return arguments


def _server(settings: LabSettings, directory: RunDirectory, environ: Mapping[str, str]) -> Iterator[Measured]:
    from muai_lab.load.openai_http import HttpTarget
    from muai_lab.settings.dump import child_environment

    config = directory.path.resolve() / "optimization.yaml"
    process = ServerProcess(
        server_arguments(settings, config),
        environment=child_environment(settings, environ),
        log=directory.path / "server.log",
    )
    with process:
        ready = process.wait_ready(READY_TIMEOUT_S)
        scraper = None if ready.metrics_url is None else MetricsScraper(ready.metrics_url)
        yield Measured(
            target=HttpTarget.of(settings, ready.url),
            serving=lambda: who_serves(ready.url, settings.model.name),
            scraper=scraper,
            recipe=HttpRecipe(settings, ready.url),
            failure=process.failure,
            notes=lambda: _scrape_notes(scraper),
        )
        gone = process.failure() is not None
    if not gone and not process.stopped_cleanly:
        note = f"the server did not stop in order; see {directory.path / 'server.log'}"
        directory.update_manifest(notes=[*directory.manifest.get("notes", []), note])


def _inprocess(settings: LabSettings) -> Iterator[Measured]:
    from muai_lab.load.inprocess import InProcessTarget
    from muai_lab.stack.stack import InferenceStack

    stack = InferenceStack.open(
        settings.optimization, settings.model.name, checkpoint=settings.model.checkpoint, queue_capacity=None
    )
    try:
        yield Measured(
            target=InProcessTarget.of(settings, stack),
            serving=lambda: ServedBy(asdict(stack.info.engine), stack.info.skipped),
            failure=lambda: None if stack.healthy() else "the engine failed during the run",
        )
    finally:
        asyncio.run(stack.close())


def _endpoint(settings: LabSettings, environ: Mapping[str, str]) -> Measured:
    from muai_lab.load.openai_http import HttpTarget

    target = HttpTarget.of(settings, environ=environ)
    scraper, note = _endpoint_metrics(settings.target.metrics_url, str(target.url.with_path("/metrics")))
    return Measured(
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


def who_serves(url: str, model: str) -> ServedBy:
    """Who serves the model on a server of ours. Raises RunError when it does not say."""
    try:
        with urllib.request.urlopen(f"{url}/v1/models/{quote(model)}", timeout=_ASK_TIMEOUT_S) as answer:
            serving = json.load(answer)["serving"]
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"the server does not say who serves {model}: {error}") from error
    return ServedBy(serving["engine"], serving["skipped"])


def _scrape_notes(scraper: MetricsScraper | None) -> list[str]:
    if scraper is None:
        return ["the server's metrics are switched off: there is no server side in this result"]
    return [f"{scraper.failures} scrapes of the server's metrics failed"] if scraper.failures else []
