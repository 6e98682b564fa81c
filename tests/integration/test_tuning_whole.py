"""A tuning from settings to file and report, on arenas whose answer is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from muai_lab.settings.compose import compose
from muai_lab.settings.resolve import load_settings
from muai_lab.settings.schema import OptimizationSettings
from muai_lab.tuning import session, tuner
from muai_lab.tuning.bench import Switch
from muai_lab.tuning.export import EXPORTED
from muai_lab.tuning.load_blocks import FRESH, SOAK
from muai_lab.tuning.report import REPORT
from muai_lab.tuning.result import EngineStudy, TuningResult, read_result
from muai_lab.tuning.search import EngineUnmeasurable
from muai_lab.tuning.soak import Soak
from muai_lab.tuning.space_file import space_of
from tests.unit.tuning_fakes import FakeArena, SilentWatcher

SIZE, HOLD = "optimization.batcher.max_batch_size", "optimization.batcher.batch_timeout_ms"
SPACE = space_of({SIZE: {"choices": [4, 8, 16, 32]}, HOLD: {"low": 0, "high": 50, "step": 25}})
BUDGET = ("tuning.n_trials=8", "tuning.startup_trials=4", "tuning.blocks=4", "tuning.block_s=0.2", "tuning.lead_in_s=0")


class Telling(SilentWatcher):
    """Keeps the stages too."""

    def __init__(self) -> None:
        super().__init__()
        self.stages: list[str] = []

    def stage(self, what: str) -> None:
        self.stages.append(what)

    def tried(self, contribution: Any) -> None:
        pass

    def agreed(self, agreement: Any) -> None:
        pass

    def compared(self, number: int, of: int, pair: Any) -> None:
        pass


def eight_is_best(optimization: OptimizationSettings) -> float:
    return 0.9 if optimization.batcher.max_batch_size == 8 else 0.6


@pytest.fixture
def tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[TuningResult, Telling]]:
    """Tune with an arena in the server's place; the search spaces and the engines that serve are given too."""

    def run(
        arena: Callable[[], FakeArena], *overrides: str, engines: tuple[str, ...] = ("onnx",)
    ) -> tuple[TuningResult, Telling]:
        watcher = Telling()
        monkeypatch.setattr(session, "ServerArena", lambda *args, **kwargs: arena())
        skipped = [EngineStudy(name, skipped="no GPU") for name in ("vllm", "deepspeed")]
        monkeypatch.setattr(session, "spaces_of", lambda settings, source: (dict.fromkeys(engines, SPACE), skipped))
        resolved = compose(["engine=auto", "workload=chat", "slo=interactive", *BUDGET, *overrides])
        return tuner.tune(resolved, tmp_path / "study", watcher, Switch()), watcher

    return run


def test_a_winner_is_confirmed_and_only_what_earned_it_is_in_the_file(tuned, tmp_path: Path) -> None:
    result, _ = tuned(lambda: FakeArena(eight_is_best, noise=0.002), "slo.quantile=0.5")

    assert result.verdict == "confirmed", result.reason
    assert result.changes == {SIZE: 8}
    batcher = load_settings(tmp_path / "study" / EXPORTED, environ={}).settings.optimization.batcher
    assert (batcher.max_batch_size, batcher.batch_timeout_ms) == (8, 50)
    assert (tmp_path / "study" / REPORT).is_file()
    assert read_result(tmp_path / "study") == result


def test_an_slo_that_no_configuration_keeps_is_reported_without_looking_further(tuned) -> None:
    result, watcher = tuned(lambda: FakeArena(eight_is_best, noise=0.002))

    assert result.verdict == "refused"
    assert result.missed is not None
    assert "99.0% are asked for" in result.missed
    assert "nothing keeps the SLO at this rate; the highest rate that does is about 15 requests/s" in result.reason
    assert not result.changes
    assert not any("confirming" in stage for stage in watcher.stages)


def test_an_slo_under_open_loop_load_is_judged_by_soak_windows_only(tuned) -> None:
    arenas: list[FakeArena] = []

    def arena() -> FakeArena:
        arenas.append(FakeArena(eight_is_best, noise=0.002))
        return arenas[-1]

    result, _ = tuned(arena, "slo.quantile=0.5", "tuning.soak_s=40")

    assert result.confirmation is not None
    assert result.confirmation.kept is not None
    assert (result.confirmation.kept.windows, result.confirmation.kept.seconds) == (6, 40.0)
    assert result.confirmation.kept.low > 0.5
    lengths = [seconds for one in arenas for _, seconds, _ in one.soaked]
    assert set(lengths) == {0.8, 40.0}  # trials of four blocks of 0.2 s, and everything that a verdict rests on


class LongMemory(FakeArena):
    """Its queue remembers 2 s, which only the windows of the confirmation show."""

    def soak(self, number: int, seconds: float, *, rate: float | None = None) -> Soak:
        found = super().soak(number, seconds, rate=rate)
        return replace(found, relaxation_s=2.0) if FRESH <= number < SOAK else found


def test_a_confirmation_whose_windows_turn_out_too_short_is_repeated_with_longer_ones(tuned, tmp_path: Path) -> None:
    result, watcher = tuned(lambda: LongMemory(eight_is_best, noise=0.002), "slo.quantile=0.5")

    assert result.verdict == "confirmed", result.reason
    assert result.confirmation is not None
    assert result.confirmation.kept is not None
    assert result.confirmation.kept.seconds == 60.0  # 1.5 times the 20 relaxation times that it takes
    assert any(
        "soak windows of 60 s: its queue remembers too long for soak windows of 30 s" in one for one in watcher.stages
    )
    assert read_result(tmp_path / "study") == result


def test_an_engine_that_dies_in_every_trial_is_left_out_and_the_others_go_on(tuned) -> None:
    def arena() -> FakeArena:
        return FakeArena(eight_is_best, noise=0.002, failing=lambda found: found.engine_preference[0] == "onnx")

    result, watcher = tuned(arena, "slo.quantile=0.5", "tuning.confirm=false", engines=("onnx", "pytorch"))

    skipped = {entry.engine: entry.skipped for entry in result.engines}
    assert "out of memory" in (skipped["onnx"] or "")
    assert skipped["pytorch"] is None
    assert any("going on without onnx" in stage for stage in watcher.stages)


def test_the_better_engine_comes_first_in_the_file_and_one_report_holds_all_searches(tuned, tmp_path: Path) -> None:
    def faster_on_pytorch(optimization: OptimizationSettings) -> float:
        return 0.9 if optimization.engine_preference[0] == "pytorch" else 0.6

    result, _ = tuned(
        lambda: FakeArena(faster_on_pytorch, noise=0.002), "slo.quantile=0.5", engines=("onnx", "pytorch")
    )

    assert result.verdict == "confirmed", result.reason
    exported = load_settings(tmp_path / "study" / EXPORTED, environ={}).settings.optimization
    assert exported.engine_preference[0] == "pytorch"
    assert {"onnx", "vllm", "deepspeed"} <= set(exported.engine_preference)
    page = (tmp_path / "study" / REPORT).read_text(encoding="utf-8")
    assert "Search on onnx" in page
    assert "Search on pytorch" in page
    assert "not searched: no GPU" in page


def test_when_no_engine_can_be_measured_the_last_one_says_why(tuned) -> None:
    with pytest.raises(EngineUnmeasurable, match="out of memory"):
        tuned(lambda: FakeArena(eight_is_best, failing=lambda found: True), engines=("onnx", "pytorch"))
