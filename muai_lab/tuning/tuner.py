"""`tune` from settings to `optimization.yaml`: search each engine, keep what earns its place, confirm, report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from muai_lab.engines.catalogue import ENGINES
from muai_lab.errors import RunError
from muai_lab.experiment.provenance import hardware
from muai_lab.files import write_whole
from muai_lab.models.registry import ModelSource, context_tokens, resolve_model
from muai_lab.models.tokenizer import load_tokenizer
from muai_lab.settings.dump import dump_optimization_yaml
from muai_lab.settings.resolve import Resolved
from muai_lab.settings.schema import EngineName, OptimizationSettings
from muai_lab.tuning.arena import ConfigurationFailed
from muai_lab.tuning.blocks import LoadBlocks
from muai_lab.tuning.confirmation import confirm
from muai_lab.tuning.contribution import Contribution, changes, earn
from muai_lab.tuning.engines import on_engine, spaces_of
from muai_lab.tuning.export import EXPORTED, UNCONFIRMED, configuration_text, with_changes, write_configuration
from muai_lab.tuning.facts import baseline_of, study_facts, study_identity
from muai_lab.tuning.finalists import Searched, best_of, claimed_by_another, hoped_gain, what_keeps_the_slo
from muai_lab.tuning.importance import importance_of
from muai_lab.tuning.measure import Interrupted, Switch, Unmeasurable, runs_on
from muai_lab.tuning.memory_model import ModelShape, capacity_of, memory_screen
from muai_lab.tuning.objective import Constraints, objectives_of
from muai_lab.tuning.quality import may_change_outputs
from muai_lab.tuning.reference import References
from muai_lab.tuning.result import PRESENT, EngineStudy, TuningResult, write_result
from muai_lab.tuning.rounds import RunNoise
from muai_lab.tuning.search import EngineUnmeasurable, Search, SearchBudget
from muai_lab.tuning.search_space import Point, SearchSpace
from muai_lab.tuning.server_arena import ArenaSetup, ServerArena
from muai_lab.tuning.soaking import Soaks
from muai_lab.tuning.storage import shown, storage_url
from muai_lab.tuning.study import TuningStudy
from muai_lab.tuning.trials import Standing, missed_bounds, noise_of, standings
from muai_lab.tuning.watcher import Noting, TuneWatcher
from muai_lab.wording import plural

_SIZE = "optimization.batcher.max_batch_size"


def tune(resolved: Resolved, directory: Path, watcher: TuneWatcher, switch: Switch) -> TuningResult:
    """Run the whole tuning in `directory`, going on with what is there; returns the result that it also writes.

    When `switch` is asked, it stops after the block under way and writes the best so far as unconfirmed.
    Raises MuaiError: a mistake in the space, a database that cannot be used, a study of something else, an engine that
    does not serve.
    """
    return _Tuner(resolved, directory, watcher, switch).run()


class _Tuner:
    def __init__(self, resolved: Resolved, directory: Path, watcher: TuneWatcher, switch: Switch) -> None:
        settings = resolved.settings
        self._settings = settings
        self._directory = directory
        self._watcher = watcher
        self._switch = switch
        self._baseline = baseline_of(resolved)
        self._objectives = objectives_of(settings)
        self._url = storage_url(directory, settings.tuning.storage)
        self._name = settings.tuning.name or directory.resolve().name
        self._hardware = hardware()
        self._searched: list[Searched] = []
        self._engines: list[EngineStudy] = []

    def run(self) -> TuningResult:
        settings = self._settings
        watcher, objective = self._watcher, self._objectives[0]
        watcher.stage("preparing the model and the load")
        source = resolve_model(
            settings.model.name, settings.model.checkpoint or settings.optimization.models.get(settings.model.name)
        )
        spaces, self._engines = spaces_of(settings, source)
        for entry in self._engines:
            watcher.stage(f"{entry.engine} is left out: {entry.skipped}")
        if len(spaces) > 1:
            watcher.stage(f"one search after the other on {', '.join(spaces)}")
        self._make_directory()
        tokenizer = load_tokenizer(source)
        self._blocks = LoadBlocks(settings, tokenizer, context_tokens(source))
        self._setup = ArenaSetup(settings, self._blocks, self._directory, source.encoder_decoder, watcher.stage)
        self._references = References(self._setup, tokenizer.eos_token_ids)
        self._result = TuningResult(
            verdict="searching",
            reason="the search is not over",
            study=self._name,
            storage=shown(self._url),
            engine=None,
            objective=objective.name,
            unit=objective.unit,
            larger_is_better=objective.larger_is_better,
            engines=tuple(self._engines),
            facts=study_facts(settings, source, self._hardware, self._blocks.hash(), baseline=self._baseline)
            | {"study": f"{self._name} in {shown(self._url)}"},
        )
        try:
            for engine, space in spaces.items():
                try:
                    self._search(engine, space, source)
                except EngineUnmeasurable as error:
                    self._leave_out(engine, error, last=not self._searched and engine == list(spaces)[-1])
            return self._conclude()
        except Interrupted:
            return self._stop_early()

    def _make_directory(self) -> None:
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            write_whole(self._directory / PRESENT, dump_optimization_yaml(self._settings))
        except OSError as error:
            raise RunError(
                f"the study's directory {self._directory} cannot be written ({error.strerror}): choose another with "
                "tuning.study=PATH"
            ) from error

    def _search(self, engine: EngineName, space: SearchSpace, source: ModelSource) -> None:
        settings, tuning = self._settings, self._settings.tuning
        watcher = self._watcher
        present = on_engine(settings.optimization, engine)
        space = space.including(present)
        bounds = self._bounds(engine, space)
        study = TuningStudy.open(
            self._url,
            f"{self._name}/{engine}",
            study_identity(
                settings,
                source,
                self._hardware,
                self._blocks.hash(),
                engine=engine,
                space=space,
                present=present,
                soaked=self._blocks.soaked,
            ),
            space,
            present,
            self._objectives,
            sampler=tuning.sampler,
            startup_trials=tuning.startup_trials,
            seed=settings.seed,
        )
        on_gpu = ENGINES[engine].availability(settings.optimization).on_gpu
        screen = memory_screen(
            engine,
            None if source.path is None else ModelShape.read(source.path),
            capacity_of(self._hardware, on_gpu=on_gpu),
            tuning.memory_fraction,
            default_dtype="fp16" if on_gpu else "fp32",
        )
        watcher.stage(f"searching on {engine}: {len(space.parameters)} keys, study {study.name}")
        with self._arena(engine, space, bounds) as arena:
            soaks = self._soaks(study, arena, present, bounds)
            search = Search(
                study,
                arena,
                present,
                self._objectives,
                bounds,
                SearchBudget.of(tuning),
                Noting(watcher, partial(self._note_best, engine, space, present)),
                self._switch,
                screen=screen,
                fixed_load=self._blocks.fixed,
                soaks=soaks,
                trial_s=self._blocks.trial_s,
            )
            self._searched.append(Searched(engine, study, space, present, "interrupted", soaks))
            try:
                stopped = search.run()
                if soaks is not None:
                    watcher.stage("soak windows of what is best")
                    soaks.prove(standings(study.records(), self._objectives[0]))
            except EngineUnmeasurable:
                self._searched.pop()
                raise
        self._searched[-1] = Searched(engine, study, space, present, stopped, soaks)
        watcher.stage(f"the search on {engine} is over: {stopped}")

    def _leave_out(self, engine: EngineName, error: EngineUnmeasurable, *, last: bool) -> None:
        """Go on with the other engines, unless there is none."""
        if last:
            raise error
        self._engines.append(EngineStudy(engine, skipped=str(error)))
        self._watcher.stage(f"going on without {engine}: {error}")

    def _conclude(self) -> TuningResult:
        """From the searches to the file."""
        best = self._best_of_all()
        if not self._settings.tuning.confirm:
            return self._end("unconfirmed", "tuning.confirm is off: only searched")
        if (other := claimed_by_another(self._searched[-1].study)) is not None:
            return self._end("unconfirmed", other)
        if best is None:
            return self._end("nothing better", "no configuration was measured to its end")
        searched, standing = best
        objective, bounds = self._objectives[0], self._bounds(searched.engine, searched.space)
        noise = noise_of(searched.study.records(), objective)
        missed = missed_bounds(standing, searched.bounds_of_trials(bounds))
        moves_engine = searched.engine != self._serving_today()
        found = changes(searched.space, searched.present, standing.point)
        if searched.soak_missed(standing):
            return self._nothing_keeps_the_slo(searched, standing, bounds)
        if not found and not moves_engine:
            reason = f"the present configuration is the best that was found ({searched.stopped})"
            return self._end("nothing better", reason, missed=missed)
        hopeless = standing.violation > 2.0 * noise.run or standing.runs[0].violations.get("agreement", 0.0) > 0.0
        if missed is not None and hopeless:
            reason = "nothing keeps every bound, so that nothing could be confirmed; lower the load or relax the slo"
            return self._refuse(reason, missed=missed)
        soak_s = searched.soak_s(standing)
        kept, contributions, reduction = found, tuple[Contribution, ...](), None
        if found:
            self._watcher.stage(f"what each of {plural(len(found), 'change')} is worth by itself")
            with self._arena(searched.engine, searched.space, bounds) as arena:
                earned = earn(
                    runs_on(arena, self._switch, self._settings.tuning.blocks, soak_s),
                    searched.space,
                    searched.present,
                    standing.point,
                    objective,
                    bounds,
                    noise=RunNoise(noise.run**2, noise.samples),
                    order=list(reversed(importance_of(searched.study.records(), searched.space, objective))),
                    after_key=self._watcher.tried,
                )
            kept, contributions, reduction = earned.kept, earned.contributions, earned.reduction
        preference = self._preference(searched.engine) if moves_engine else None
        self._result = self._result.updated(
            contributions=contributions, reduction=reduction, changes=kept, engine_preference=preference, missed=missed
        )
        if not kept and not moves_engine:
            return self._end("nothing better", "no change was worth more than the noise by itself", changes={})
        today = next((one for one in self._searched if one.engine == self._serving_today()), None)
        return self._confirm(kept, preference, bounds, noise.run, hoped_gain(today, standing, objective), soak_s)

    def _confirm(
        self,
        kept: Point,
        preference: tuple[str, ...] | None,
        bounds: Constraints,
        noise: float,
        hoped: float | None,
        soak_s: float | None,
    ) -> TuningResult:
        tuning = self._settings.tuning
        present = self._settings.optimization
        winner = with_changes(self._settings, kept, preference).optimization
        self._watcher.stage(f"confirming the winner: {tuning.confirm_pairs} pairs of runs or more, on fresh load")
        arena = self._opened("server", "fresh", bounds)
        try:
            confirmation = confirm(
                arena,
                present,
                winner,
                self._objectives[0],
                bounds,
                self._switch,
                pairs=tuning.confirm_pairs,
                blocks=tuning.blocks,
                noise=noise,
                hoped=hoped,
                most_pairs=tuning.most_pairs,
                soak_s=soak_s,
                after_pair=self._watcher.compared,
                after_agreement=self._watcher.agreed,
            )
        except (ConfigurationFailed, Unmeasurable) as error:
            return self._refuse(f"the confirmation failed: {error}")
        finally:
            arena.close()
        if confirmation.accepted:
            return self._end("confirmed", confirmation.reason, confirmation=confirmation)
        return self._refuse(f"the winner was not confirmed: {confirmation.reason}", confirmation=confirmation)

    def _refuse(self, reason: str, **entries: Any) -> TuningResult:
        self._result = self._result.refused()
        return self._end("refused", reason, **entries)

    def _stop_early(self) -> TuningResult:
        """What can be said when somebody asked to stop."""
        what = "it was confirmed" if self._best_of_all() else "a configuration was measured to its end"
        return self._end("unconfirmed", f"stopped before {what}")

    def _end(self, verdict: Any, reason: str, **entries: Any) -> TuningResult:
        """Write result, file and report."""
        from muai_lab.tuning.report import write_report

        self._result = self._result.updated(verdict=verdict, reason=reason, **entries)
        write_result(self._directory, self._result)
        if verdict != "unconfirmed" or self._result.changes:
            write_configuration(
                self._directory / (UNCONFIRMED if verdict == "unconfirmed" else EXPORTED),
                configuration_text(self._settings, self._result),
            )
        self._watcher.stage("writing the report")
        studies: dict[str, tuple[TuningStudy, SearchSpace, OptimizationSettings]] = {
            one.engine: (one.study, one.space, one.present) for one in self._searched
        }
        write_report(self._directory, self._settings, self._result, studies, self._objectives)
        return self._result

    def _note_best(self, engine: EngineName, space: SearchSpace, present: OptimizationSettings, best: Standing) -> None:
        """Keep the best so far on disk, where `export --unconfirmed` finds it whatever becomes of this process."""
        preference = self._preference(engine) if engine != self._serving_today() else None
        self._result = self._result.updated(
            engine=engine,
            best_changes=changes(space, present, best.point),
            changes=changes(space, present, best.point),
            engine_preference=preference,
            agreement=best.agreement,
        )
        write_result(self._directory, self._result)

    def _best_of_all(self) -> tuple[Searched, Standing] | None:
        """The best configuration of all engines, and the summary of each search in the result."""
        objective = self._objectives[0]
        entries = [entry for entry in self._engines if entry.skipped is not None]
        entries += [searched.summary(objective) for searched in self._searched]
        self._result = self._result.updated(engines=tuple(entries))
        best = best_of(self._searched, objective)
        if best is None:
            return None
        searched, standing = best
        noise = noise_of(searched.study.records(), objective)
        self._result = self._result.updated(noise=noise.run, noise_samples=noise.samples, drift=noise.drift)
        self._note_best(searched.engine, searched.space, searched.present, standing)
        return best

    def _soaks(
        self, study: TuningStudy, arena: ServerArena, present: OptimizationSettings, bounds: Constraints
    ) -> Soaks | None:
        """The soak windows of a study; None where a block tells as much."""
        if not self._blocks.soaked or bounds.quantile is None:
            return None
        tuning = self._settings.tuning
        return Soaks(study, arena, present, tuning, bounds.quantile, self._switch, self._watcher.stage)

    def _nothing_keeps_the_slo(self, searched: Searched, standing: Standing, bounds: Constraints) -> TuningResult:
        with self._arena(searched.engine, searched.space, bounds) as arena:
            soaks = self._soaks(searched.study, arena, searched.present, bounds)
            assert soaks is not None, "there was a soak window"
            rate = self._settings.arrival.rate if self._blocks.stationary else None
            reason, missed = what_keeps_the_slo(soaks, standing, rate)
        return self._refuse(reason, missed=missed)

    def _bounds(self, engine: EngineName, space: SearchSpace) -> Constraints:
        """The bounds of a search; outputs count where a key, or another engine than that of today, may change them."""
        bounds = Constraints.of(self._settings)
        may_differ = may_change_outputs(space) or engine != self._serving_today()
        return bounds if may_differ else Constraints(bounds.quantile, bounds.max_errors)

    @contextmanager
    def _arena(self, engine: EngineName, space: SearchSpace, bounds: Constraints) -> Iterator[ServerArena]:
        slots = max(space.highest(_SIZE) or 0, self._settings.optimization.batcher.max_batch_size)
        arena = self._opened(f"server-{engine}", "search", bounds, slots=int(slots))
        try:
            yield arena
        finally:
            arena.close()

    def _opened(self, name: str, prompts: str, bounds: Constraints, *, slots: int | None = None) -> ServerArena:
        reference = None if bounds.min_agreement is None else partial(self._references.of, prompts)
        return ServerArena(self._setup, name, slots=slots, reference=reference)

    def _serving_today(self) -> str | None:
        """The engine that serves the present configuration here: the first of its preference that can."""
        refused = {entry.engine for entry in self._engines if entry.skipped is not None}
        preference = self._settings.optimization.engine_preference
        return next((name for name in preference if name not in refused), None)

    def _preference(self, engine: str) -> tuple[str, ...]:
        others = [name for name in self._settings.optimization.engine_preference if name != engine]
        return (engine, *others)
