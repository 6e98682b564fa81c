"""The progress of a run: a live line on a terminal, one line per stage in a log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from muai_lab.commands.terminal import say
from muai_lab.load.generator import LoadProgress


class PlainWatcher:
    """One line per stage and phase, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._phase: str | None = None

    def stage(self, what: str) -> None:
        """See `RunWatcher.stage`."""
        say(self._console, f"{what} …")

    def load(self, progress: LoadProgress) -> None:
        """Report each phase once."""
        if progress.phase != self._phase:
            self._phase = progress.phase
            say(self._console, f"{_PHASES[progress.phase]}: {_counts(progress)}")


class LiveWatcher:
    """A spinner with the stage, and a bar while load is offered."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID = progress.add_task("starting", total=None, detail="")

    def stage(self, what: str) -> None:
        """See `RunWatcher.stage`."""
        self._progress.update(self._task, description=what, total=None, completed=0, detail="")

    def load(self, progress: LoadProgress) -> None:
        """Move the bar."""
        self._progress.update(
            self._task,
            description=_PHASES[progress.phase],
            total=progress.total_s,
            completed=min(progress.elapsed_s, progress.total_s),
            detail=_counts(progress),
        )


_PHASES = {"warmup": "warming up", "measure": "measuring", "drain": "waiting for the last answers"}


def _counts(progress: LoadProgress) -> str:
    failed = f", {progress.failed} failed" if progress.failed else ""
    return f"{progress.sent} sent, {progress.ok} done{failed}, {progress.outstanding} in flight"


@contextmanager
def watching(console: Console) -> Iterator[PlainWatcher | LiveWatcher]:
    """Yield the watcher that suits the console, for the time of one run."""
    if not console.is_terminal:
        yield PlainWatcher(console)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[detail]}", style="dim"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield LiveWatcher(progress)
