"""The result of a tuning as it grows, and the files that it leaves in the study's directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from muai_lab.settings.schema import EngineName
from muai_lab.tuning.contribution import changes
from muai_lab.tuning.export import EXPORTED, UNCONFIRMED, configuration_text, write_configuration
from muai_lab.tuning.finalists import Searched
from muai_lab.tuning.problem import TuningProblem
from muai_lab.tuning.result import TuningResult, TuningVerdict, write_result
from muai_lab.tuning.session import TuningSession
from muai_lab.tuning.trials import Standing


@dataclass(frozen=True, slots=True)
class Ruling:
    """The end of a tuning. entries: Further entries of the result."""

    verdict: TuningVerdict
    reason: str
    entries: Mapping[str, Any] = field(default_factory=dict)


class Publication:
    """Keeps the result of a tuning and writes it. result: As it is now."""

    def __init__(self, session: TuningSession) -> None:
        self.result = session.result()
        self._session = session

    def note(self, **entries: Any) -> None:
        """Change entries of the result."""
        self.result = self.result.updated(**entries)

    def note_best(self, engine: EngineName, problem: TuningProblem, best: Standing) -> None:
        """Write the best so far, where `export --unconfirmed` finds it whatever becomes of this process."""
        found = changes(problem.present, best.point)
        self.note(
            engine=engine,
            best_changes=found,
            changes=found,
            engine_preference=self._session.preference(engine),
            agreement=best.agreement,
        )
        write_result(self._session.directory, self.result)

    def end(self, ruling: Ruling, searches: Sequence[Searched]) -> TuningResult:
        """Write result, configuration and report. Raises RunError if one of them cannot be written."""
        from muai_lab.tuning.report import write_report

        directory, settings = self._session.directory, self._session.settings
        if ruling.verdict == "refused":
            self.result = self.result.refused()
        self.note(verdict=ruling.verdict, reason=ruling.reason, **ruling.entries)
        write_result(directory, self.result)
        unconfirmed = ruling.verdict == "unconfirmed"
        if not unconfirmed or self.result.changes:
            name = UNCONFIRMED if unconfirmed else EXPORTED
            write_configuration(directory / name, configuration_text(settings, self.result))
        self._session.watcher.stage("writing the report")
        write_report(directory, settings, self.result, {one.engine: one.study for one in searches})
        return self.result
