"""One tuning: the model, the load, the engines, and the benches on which its phases measure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from muai_lab.engines.catalogue import ENGINES
from muai_lab.errors import RunError
from muai_lab.experiment.provenance import hardware
from muai_lab.files import write_whole
from muai_lab.models.registry import ModelSource, context_tokens, resolve_model
from muai_lab.models.tokenizer import load_tokenizer
from muai_lab.settings.dump import dump_optimization_yaml
from muai_lab.settings.resolve import Resolved
from muai_lab.settings.schema import EngineName
from muai_lab.tuning.bench import Bench, Switch
from muai_lab.tuning.engines import on_engine, spaces_of
from muai_lab.tuning.facts import baseline_of, study_facts, study_identity
from muai_lab.tuning.fp32_answers import Fp32Answers
from muai_lab.tuning.load_blocks import LoadBlocks
from muai_lab.tuning.memory_model import ModelShape, capacity_of, memory_screen
from muai_lab.tuning.objective import Constraints, objectives_of
from muai_lab.tuning.problem import Screen, TuningProblem
from muai_lab.tuning.quality import may_change_outputs
from muai_lab.tuning.result import PRESENT, EngineStudy, TuningResult
from muai_lab.tuning.search_space import SearchSpace
from muai_lab.tuning.server_arena import ArenaSetup, ServerArena
from muai_lab.tuning.slo_proof import Soaks
from muai_lab.tuning.storage import shown, storage_url
from muai_lab.tuning.study import TuningStudy
from muai_lab.tuning.watcher import TuneWatcher

_SIZE = "optimization.batcher.max_batch_size"


class TuningSession:
    """The parts that the phases share.

    spaces: The search space of each engine that can serve the model. left_out: The engines that are not searched, or
    cannot be measured, with their reasons.
    """

    def __init__(self, resolved: Resolved, directory: Path, watcher: TuneWatcher, switch: Switch) -> None:
        """Prepare the model, the load and the study's directory.

        Raises MuaiError: a mistake in the space, no engine that can serve the model, a directory that is not writable.
        """
        settings = self.settings = resolved.settings
        self.directory = directory
        self.watcher = watcher
        self.switch = switch
        self.objectives = objectives_of(settings)
        self._url = storage_url(directory, settings.tuning.storage)
        self._name = settings.tuning.name or directory.resolve().name
        self._hardware = hardware()
        self._baseline = baseline_of(resolved)
        watcher.stage("preparing the model and the load")
        self._source = _model_of(resolved)
        self.spaces, self.left_out = spaces_of(settings, self._source)
        for entry in self.left_out:
            watcher.stage(f"{entry.engine} is left out: {entry.skipped}")
        if len(self.spaces) > 1:
            watcher.stage(f"one search after the other on {', '.join(self.spaces)}")
        self._make_directory()
        tokenizer = load_tokenizer(self._source)
        self.blocks = LoadBlocks(settings, tokenizer, context_tokens(self._source))
        self._setup = ArenaSetup(settings, self.blocks, directory, self._source.encoder_decoder, watcher.stage)
        self._answers = Fp32Answers(self._setup, tokenizer.eos_token_ids)

    def result(self) -> TuningResult:
        """The result before the first search."""
        objective, study = self.objectives[0], f"{self._name} in {shown(self._url)}"
        facts = study_facts(self.settings, self._source, self._hardware, self.blocks.hash(), baseline=self._baseline)
        return TuningResult(
            verdict="searching",
            reason="the search is not over",
            study=self._name,
            storage=shown(self._url),
            engine=None,
            objective=objective.name,
            unit=objective.unit,
            larger_is_better=objective.larger_is_better,
            engines=tuple(self.left_out),
            facts=facts | {"study": study},
        )

    def problem(self, engine: EngineName) -> TuningProblem:
        """The problem of one engine."""
        present = on_engine(self.settings.optimization, engine)
        space = self.spaces[engine].including(present)
        return TuningProblem(space, present, self.objectives, self._constraints(engine, space), self._screen(engine))

    def study(self, engine: EngineName, problem: TuningProblem) -> TuningStudy:
        """Open the study of one engine, or continue it. Raises RunError."""
        settings, tuning = self.settings, self.settings.tuning
        identity = study_identity(
            settings,
            self._source,
            self._hardware,
            self.blocks.hash(),
            engine=engine,
            space=problem.space,
            present=problem.present,
            soaked=self.blocks.soaked,
        )
        return TuningStudy.open(
            self._url,
            f"{self._name}/{engine}",
            identity,
            problem,
            sampler=tuning.sampler,
            startup_trials=tuning.startup_trials,
            seed=settings.seed,
        )

    @contextmanager
    def bench(self, engine: EngineName, problem: TuningProblem) -> Iterator[Bench]:
        """A bench with the load of the search, on which the batch size changes live. Its server ends with the context.

        Each run is a trial: a soak window for an SLO under open-loop load, else blocks.
        """
        slots = max(problem.space.highest(_SIZE) or 0, self.settings.optimization.batcher.max_batch_size)
        with self._arena(f"server-{engine}", problem, "search", slots=int(slots)) as arena:
            soak_s = self.blocks.trial_s if self._has_soaks(problem) else None
            yield Bench(problem, arena, self.switch, self.settings.tuning.blocks, soak_s)

    @contextmanager
    def production_bench(self, problem: TuningProblem) -> Iterator[Bench]:
        """A bench with fresh load, whose engines are opened as production opens them."""
        with self._arena("server", problem, "fresh") as arena:
            yield Bench(problem, arena, self.switch, self.settings.tuning.blocks)

    def soaks(self, study: TuningStudy, bench: Bench) -> Soaks | None:
        """The soak windows of a study; None if a block tells as much."""
        if not self._has_soaks(bench.problem):
            return None
        return Soaks(study, bench, self.settings.tuning, self.watcher.stage)

    def serving_today(self) -> str | None:
        """The engine that serves the present configuration here: the first of its preference that can."""
        refused = {entry.engine for entry in self.left_out}
        preference = self.settings.optimization.engine_preference
        return next((name for name in preference if name not in refused), None)

    def preference(self, engine: str) -> tuple[str, ...] | None:
        """The preference with this engine first; None if it serves today, so that the preference stays as it is."""
        if engine == self.serving_today():
            return None
        return (engine, *(name for name in self.settings.optimization.engine_preference if name != engine))

    def leave_out(self, engine: EngineName, reason: str) -> None:
        """Continue with the other engines."""
        self.left_out.append(EngineStudy(engine, skipped=reason))

    def _constraints(self, engine: EngineName, space: SearchSpace) -> Constraints:
        """The constraints; outputs count if a key, or another engine than that of today, may change them."""
        constraints = Constraints.of(self.settings)
        if may_change_outputs(space) or engine != self.serving_today():
            return constraints
        return Constraints(constraints.quantile, constraints.max_errors)

    def _screen(self, engine: EngineName) -> Screen:
        on_gpu = ENGINES[engine].availability(self.settings.optimization).on_gpu
        return memory_screen(
            engine,
            None if self._source.path is None else ModelShape.read(self._source.path),
            capacity_of(self._hardware, on_gpu=on_gpu),
            self.settings.tuning.memory_fraction,
            default_dtype="fp16" if on_gpu else "fp32",
        )

    def _has_soaks(self, problem: TuningProblem) -> bool:
        return self.blocks.soaked and problem.constraints.quantile is not None

    @contextmanager
    def _arena(
        self, name: str, problem: TuningProblem, prompts: str, *, slots: int | None = None
    ) -> Iterator[ServerArena]:
        reference = None if problem.constraints.min_agreement is None else partial(self._answers.of, prompts)
        arena = ServerArena(self._setup, name, slots=slots, reference=reference)
        try:
            yield arena
        finally:
            arena.close()

    def _make_directory(self) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            write_whole(self.directory / PRESENT, dump_optimization_yaml(self.settings))
        except OSError as error:
            raise RunError(
                f"the study's directory {self.directory} cannot be written ({error.strerror}): choose another with "
                "tuning.study=PATH"
            ) from error


def _model_of(resolved: Resolved) -> ModelSource:
    settings = resolved.settings
    name = settings.model.name
    return resolve_model(name, settings.model.checkpoint or settings.optimization.models.get(name))
