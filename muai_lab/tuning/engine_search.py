"""The first phase of a tuning: search one engine after the other."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from muai_lab.settings.schema import EngineName
from muai_lab.tuning.finalists import Searched
from muai_lab.tuning.publication import Publication
from muai_lab.tuning.search import EngineUnmeasurable, Search, SearchBudget
from muai_lab.tuning.session import TuningSession
from muai_lab.tuning.trials import standings
from muai_lab.tuning.watcher import Noting


def search_engines(session: TuningSession, publication: Publication, searches: list[Searched]) -> None:
    """Search every engine of the session.

    Args:
        session: The tuning.
        publication: Keeps the best of each search as it goes.
        searches: Gets each search when it begins, and again when it is over.

    Raises:
        EngineUnmeasurable: No engine can be measured.
        Interrupted: A stop was requested.
        RunError: A study cannot be used.
    """
    engines = list(session.spaces)
    for engine in engines:
        try:
            _search(session, engine, publication, searches)
        except EngineUnmeasurable as error:
            if not searches and engine == engines[-1]:
                raise
            session.leave_out(engine, str(error))
            session.watcher.stage(f"going on without {engine}: {error}")


def _search(session: TuningSession, engine: EngineName, publication: Publication, searches: list[Searched]) -> None:
    watcher = session.watcher
    problem = session.problem(engine)
    study = session.study(engine, problem)
    watcher.stage(f"searching on {engine}: {len(problem.space.parameters)} keys, study {study.name}")
    with session.bench(engine, problem) as bench:
        soaks = session.soaks(study, bench)
        noting = Noting(watcher, partial(publication.note_best, engine, problem))
        budget = SearchBudget.of(session.settings.tuning)
        search = Search(study, bench, budget, noting, soaks=soaks, fixed_load=session.blocks.fixed)
        searches.append(Searched(engine, study, "interrupted", soaks))
        try:
            stopped = search.run()
            if soaks is not None:
                watcher.stage("soak windows of what is best")
                soaks.prove(standings(study.records(), problem.objective))
        except EngineUnmeasurable:
            searches.pop()
            raise
    searches[-1] = replace(searches[-1], stopped=stopped)
    watcher.stage(f"the search on {engine} is over: {stopped}")
