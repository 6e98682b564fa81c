"""`tune` from settings to `optimization.yaml`: search each engine, decide, publish."""

from __future__ import annotations

from pathlib import Path

from muai_lab.settings.resolve import Resolved
from muai_lab.tuning.bench import Interrupted, Switch
from muai_lab.tuning.decision import best_of_all, decide
from muai_lab.tuning.engine_search import search_engines
from muai_lab.tuning.finalists import Searched
from muai_lab.tuning.publication import Publication, Ruling
from muai_lab.tuning.result import TuningResult
from muai_lab.tuning.session import TuningSession
from muai_lab.tuning.watcher import TuneWatcher


def tune(resolved: Resolved, directory: Path, watcher: TuneWatcher, switch: Switch) -> TuningResult:
    """Run the whole tuning in `directory`, continuing with what is there; returns the result that it also writes.

    If `switch` is asked, it stops after the block that runs and writes the best so far as unconfirmed.

    Raises:
        MuaiError: A mistake in the space, a database that cannot be used, a study of something else, or no engine that
            serves.
    """
    session = TuningSession(resolved, directory, watcher, switch)
    publication = Publication(session)
    searches: list[Searched] = []
    try:
        search_engines(session, publication, searches)
        ruling = decide(session, searches, publication)
    except Interrupted:
        best = best_of_all(session, searches, publication)
        step = "it was confirmed" if best is not None else "a configuration was measured to its end"
        ruling = Ruling("unconfirmed", f"stopped before {step}")
    return publication.end(ruling, searches)
