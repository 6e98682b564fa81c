"""The search, on an arena whose answer is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from muai_lab.errors import RunError
from muai_lab.settings.lab import LabSettings
from muai_lab.settings.schema import OptimizationSettings
from muai_lab.tuning import storage
from muai_lab.tuning.bench import Bench, Interrupted, Switch
from muai_lab.tuning.objective import Constraints, objectives_of
from muai_lab.tuning.problem import Rejection, TuningProblem
from muai_lab.tuning.search import EngineUnmeasurable, Search, SearchBudget
from muai_lab.tuning.space_file import space_of
from muai_lab.tuning.storage import IN_MEMORY, storage_url
from muai_lab.tuning.study import TuningStudy
from tests.unit.tuning_fakes import FakeArena, SilentWatcher, agreeing

SIZE, HOLD = "optimization.batcher.max_batch_size", "optimization.batcher.batch_timeout_ms"
KEYS: dict[str, Any] = {SIZE: {"choices": [1, 2, 4, 8, 16, 32]}, HOLD: {"low": 0, "high": 50, "step": 10}}
SPACE = space_of(KEYS)
PRESENT = OptimizationSettings()
SLO = LabSettings.model_validate({"slo": {"ttft_ms": 500.0}})


def peak_at_eight(optimization: OptimizationSettings) -> float:
    """Best at 8 sequences and no hold: 0.9 there, less in both directions."""
    size = optimization.batcher.max_batch_size
    return 0.9 - 0.1 * abs(size.bit_length() - 4) - 0.002 * optimization.batcher.batch_timeout_ms


class Searching:
    """A search over `SPACE`."""

    def __init__(self, arena: FakeArena, url: str = IN_MEMORY, **plan: Any) -> None:
        self.arena, self.watcher, self.switch = arena, SilentWatcher(), Switch()
        problem = TuningProblem(
            space_of({**KEYS, **plan.pop("space", {})}).including(PRESENT),
            PRESENT,
            objectives_of(SLO),
            plan.pop("bounds", Constraints()),
            plan.pop("screen", lambda optimization: None),
        )
        seed, sampler = plan.pop("seed", 0), plan.pop("sampler", "tpe")
        fixed_load = plan.pop("fixed_load", False)
        defaults = SearchBudget(
            n_trials=30, timeout_s=None, patience=30, startup_trials=6, incumbent_every=8, pruning=True
        )
        self.plan = SearchBudget(**{name: plan.get(name, getattr(defaults, name)) for name in SearchBudget.__slots__})
        self.study = TuningStudy.open(
            url, "study", {"workload": "chat"}, problem, sampler=sampler, seed=seed,
            startup_trials=self.plan.startup_trials,
        )  # fmt: skip
        self.search = Search(
            self.study, Bench(problem, arena, self.switch, plan.get("blocks", 4)), self.plan, self.watcher,
            fixed_load=fixed_load,
        )  # fmt: skip

    @property
    def best(self) -> dict[str, Any]:
        best = self.search.best()
        assert best is not None
        return dict(best.point)


def test_it_finds_the_best_of_a_small_space_and_measures_the_present_configuration_first() -> None:
    searching = Searching(FakeArena(peak_at_eight))

    reason = searching.search.run()

    assert "tuning.n_trials" in reason
    assert searching.best == {SIZE: 8, HOLD: 0}
    first = searching.study.records()[0]
    assert (first.kind, first.point) == ("present", {SIZE: 32, HOLD: 50})


@pytest.mark.parametrize("sampler", ["gp", "cmaes", "random"])
def test_every_sampler_comes_to_a_good_point(sampler: str) -> None:
    searching = Searching(FakeArena(peak_at_eight), sampler=sampler, n_trials=14)

    searching.search.run()

    found = searching.search.best()
    present = searching.study.records()[0]
    assert found is not None
    assert present.values is not None
    assert found.value > 1.2 * present.values[0]


def test_a_load_that_meets_the_slo_ends_the_search_at_once() -> None:
    searching = Searching(FakeArena(lambda optimization: 2.0), bounds=Constraints(quantile=0.99), fixed_load=True)

    reason = searching.search.run()

    assert "raise arrival.rate" in reason
    assert [record.kind for record in searching.study.records()] == ["present", "again"]


def test_in_a_closed_loop_the_search_goes_on_for_more() -> None:
    searching = Searching(
        FakeArena(lambda optimization: 2.0), bounds=Constraints(quantile=0.99), n_trials=6, startup_trials=2
    )

    assert "tuning.n_trials" in searching.search.run()


def test_a_limit_of_time_ends_the_search() -> None:
    searching = Searching(FakeArena(peak_at_eight), timeout_s=0.0)

    assert "tuning.timeout_s" in searching.search.run()


def test_every_trial_sees_the_same_blocks_in_the_same_order() -> None:
    searching = Searching(FakeArena(peak_at_eight), pruning=False, n_trials=5, startup_trials=2)

    searching.search.run()

    assert searching.arena.replayed == [0, 1, 2, 3] * (len(searching.arena.replayed) // 4)


def test_clearly_worse_trials_are_given_up_early_and_say_why() -> None:
    searching = Searching(FakeArena(peak_at_eight))

    searching.search.run()

    pruned = [record for record in searching.study.records() if record.outcome == "pruned"]
    assert pruned
    assert all(len(record.blocks) < 4 for record in pruned)
    assert all("behind the best so far" in (record.reason or "") for record in pruned)
    assert searching.best == {SIZE: 8, HOLD: 0}


def test_a_point_is_measured_once_unless_it_is_the_best() -> None:
    searching = Searching(FakeArena(peak_at_eight))

    searching.search.run()

    searched = [record for record in searching.study.records() if record.kind in ("random", "search")]
    measured = [record.key for record in searched if record.outcome in ("measured", "pruned")]
    assert len(set(measured)) == len(measured)


def test_a_space_that_is_measured_through_ends_the_search() -> None:
    searching = Searching(FakeArena(peak_at_eight), n_trials=500, patience=500)

    assert "every point" in searching.search.run()
    assert searching.best == {SIZE: 8, HOLD: 0}


def test_the_best_is_measured_again_and_gives_the_noise() -> None:
    searching = Searching(FakeArena(peak_at_eight, noise=0.01), incumbent_every=4)

    searching.search.run()

    noise = searching.search.noise()
    assert noise.samples >= 3
    assert 0.001 < noise.run < 0.03
    assert noise.block > noise.run


def test_it_stops_when_nothing_gains_more_than_twice_the_noise() -> None:
    searching = Searching(FakeArena(lambda optimization: 0.8, noise=0.01), n_trials=200, patience=10)

    assert "twice the noise" in searching.search.run()
    assert len(searching.watcher.records) < 40


def test_crashes_are_finite_violations_that_the_sampler_learns_from() -> None:
    searching = Searching(
        FakeArena(peak_at_eight, failing=lambda optimization: optimization.batcher.max_batch_size == 8)
    )

    searching.search.run()

    crashed = [record for record in searching.study.records() if record.outcome == "crashed"]
    assert crashed
    assert all(record.values == (0.0,) and not record.feasible for record in crashed)
    assert searching.best[SIZE] in (4, 16)
    assert all(
        trial.state.name == "COMPLETE"
        for trial in searching.study.study.trials
        if trial.number in {record.number for record in crashed}
    )


def test_what_cannot_fit_is_refused_without_being_measured() -> None:
    def screen(optimization: OptimizationSettings) -> Rejection | None:
        size = optimization.batcher.max_batch_size
        return Rejection("memory", size / 4 - 1, "needs 9 GB of 8 GB") if size > 4 else None

    searching = Searching(FakeArena(peak_at_eight), screen=screen)

    searching.search.run()

    assert searching.best == {SIZE: 4, HOLD: 0}
    rejected = [record for record in searching.study.records() if record.outcome == "rejected"]
    assert rejected
    assert all(record.reason == "needs 9 GB of 8 GB" and record.load_s == 0 for record in rejected)


def test_a_configuration_that_loses_quality_is_never_the_best() -> None:
    int8 = "optimization.onnx.enable_quantization"
    arena = FakeArena(
        lambda found: 0.9 if found.onnx.enable_quantization else 0.5,
        agreement=lambda found: agreeing(0.8 if found.onnx.enable_quantization else 0.99),
    )
    searching = Searching(
        arena, bounds=Constraints(min_agreement=0.95), space={int8: {"choices": [True, False]}}, n_trials=8
    )

    searching.search.run()

    assert any(record.point[int8] and record.outcome == "measured" for record in searching.study.records())
    assert searching.best[int8] is False


def test_what_quantisation_does_to_the_tokens_is_looked_at_once() -> None:
    int8 = "optimization.onnx.enable_quantization"
    arena = FakeArena(peak_at_eight, agreement=lambda found: agreeing(0.93 if found.onnx.enable_quantization else 0.99))
    searching = Searching(
        arena,
        bounds=Constraints(min_agreement=0.95),
        space={int8: {"choices": [True, False]}},
        n_trials=20,
        patience=20,
    )

    searching.search.run()

    with_int8 = [record for record in searching.study.records() if record.point[int8]]
    assert [record.outcome for record in with_int8].count("measured") == 1
    assert all("at least 93.0%" in (record.reason or "") for record in with_int8 if record.outcome == "rejected")
    assert searching.best == {SIZE: 8, HOLD: 0, int8: False}
    assert arena.compared == 2
    assert all(record.agreement for record in searching.study.records() if record.outcome == "measured")


def test_runs_that_measure_the_load_generator_are_no_samples() -> None:
    searching = Searching(
        FakeArena(peak_at_eight, spoilt=lambda optimization: optimization.batcher.max_batch_size == 8)
    )

    searching.search.run()

    assert searching.best[SIZE] != 8
    spoilt = [record for record in searching.study.records() if record.outcome == "unmeasurable"]
    assert spoilt
    assert all("the load generator was the bottleneck" in (record.reason or "") for record in spoilt)


def test_a_present_configuration_that_does_not_serve_ends_the_search_at_once() -> None:
    searching = Searching(FakeArena(peak_at_eight, failing=lambda optimization: True))

    with pytest.raises(EngineUnmeasurable, match="present configuration cannot be measured: out of memory"):
        searching.search.run()


def test_the_slo_once_lost_ends_a_trial_when_the_best_keeps_it() -> None:
    def share(optimization: OptimizationSettings) -> float:
        return 2.0 if optimization.batcher.max_batch_size >= 16 else 0.9

    searching = Searching(FakeArena(share), bounds=Constraints(quantile=0.99))

    searching.search.run()

    lost = [record for record in searching.study.records() if record.outcome == "pruned"]
    assert lost
    assert all(len(record.blocks) == 1 for record in lost)
    assert all("can no longer be reached" in (record.reason or "") for record in lost)


def test_after_an_interruption_the_study_goes_on_where_it_was(tmp_path: Path) -> None:
    url = storage_url(tmp_path, None)
    arena = FakeArena(peak_at_eight)
    searching = Searching(arena, url, n_trials=5)
    arena.after_block = lambda: searching.switch.ask() if len(arena.replayed) == 14 else None

    with pytest.raises(Interrupted):
        searching.search.run()
    before = [record for record in searching.study.records() if record.outcome in ("measured", "pruned")]
    again = Searching(FakeArena(peak_at_eight), url, n_trials=5)
    again.search.run()

    after = again.study.records()
    assert [record for record in after if record.number in {one.number for one in before}] == before
    assert sum(record.outcome in ("measured", "pruned") for record in after) >= 5


def test_a_study_of_something_else_is_refused_with_the_difference(tmp_path: Path) -> None:
    url = storage_url(tmp_path, None)
    objectives = objectives_of(SLO)

    def open_study(workload: str) -> TuningStudy:
        return TuningStudy.open(
            url, "study", {"workload": {"name": workload}}, TuningProblem(SPACE, PRESENT, objectives)
        )

    open_study("chat")
    open_study("chat")

    with pytest.raises(RunError, match=r'workload\.name: "chat" in the study, "ragged" now'):
        open_study("ragged")


def test_a_study_that_another_process_does_not_finish_opening_is_refused_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "_PATIENCE_S", 0.05)
    url = storage_url(tmp_path, None)

    with storage.alone(url), pytest.raises(RunError, match=r"study\.db cannot be locked .* end the process"):
        TuningStudy.open(url, "study", {}, TuningProblem(SPACE, PRESENT, objectives_of(SLO)))

    TuningStudy.open(url, "study", {}, TuningProblem(SPACE, PRESENT, objectives_of(SLO)))


def test_goodput_without_an_slo_is_refused() -> None:
    with pytest.raises(RunError, match="slo=interactive"):
        objectives_of(LabSettings())
