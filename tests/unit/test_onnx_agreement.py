"""int8's agreement with fp32: measured once per kind of processor, never taken from another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from muai_lab.engines.onnx.agreement import Int8Agreement, SessionKind, agreement_here
from muai_lab.engines.onnx.recipe import Recipe
from muai_lab.errors import EngineError
from muai_lab.models.registry import ModelSource
from muai_lab.processor import Processor

RECIPE = Recipe("decoder", "fp32", "cpu", int8="u8s8")
SESSION = SessionKind(("CPUExecutionProvider",), "all")
ZEN3 = Processor("AMD EPYC", "AuthenticAMD family 25 model 1", ("avx", "avx2"))
SOURCE = ModelSource("small", Path(), None, "local", "c" * 64, False, "qwen2")


class Measuring:
    """Gives the next of the shares, and counts how often it was asked to."""

    def __init__(self, *shares: float, then: Callable[[], None] = lambda: None) -> None:
        self.asked = 0
        self._shares = shares
        self._then = then

    def __call__(self, source: ModelSource, recipe: Recipe, quantized: Path, session: SessionKind) -> Int8Agreement:
        self.asked += 1
        self._then()
        return Int8Agreement(self._shares[self.asked - 1], 288)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MUAI_CACHE_DIR", str(tmp_path))
    return tmp_path / "onnx_agreement"


def here(measure: Measuring, **changed: object) -> Int8Agreement | None:
    given = {"quantized": Path("graph"), "session": SESSION, "processor": ZEN3, **changed}
    return agreement_here(SOURCE, RECIPE, measure=measure, **given)  # type: ignore[arg-type]


def test_it_is_measured_once(cache: Path) -> None:
    measure = Measuring(0.93)

    assert here(measure) == here(measure) == Int8Agreement(0.93, 288)
    assert measure.asked == 1


@pytest.mark.parametrize(
    "changed",
    [
        {"processor": replace(ZEN3, instruction_sets=("avx", "avx2", "avx512_vnni"))},
        {"processor": replace(ZEN3, family="AuthenticAMD family 23 model 49")},
        {"processor": replace(ZEN3, instruction_sets=None)},
        {"quantized": Path("graph of other weights")},
        {"session": replace(SESSION, optimization_level="none")},
        {"session": replace(SESSION, providers=("OpenVINOExecutionProvider", "CPUExecutionProvider"))},
    ],
)
def test_the_figure_of_another_machine_session_or_graph_is_not_taken(cache: Path, changed: dict[str, object]) -> None:
    measure = Measuring(0.93, 0.44)

    assert here(measure) == Int8Agreement(0.93, 288)
    assert here(measure, **changed) == Int8Agreement(0.44, 288)
    assert here(measure, **changed) == Int8Agreement(0.44, 288)
    assert here(measure) == Int8Agreement(0.93, 288)
    assert measure.asked == 2


def test_another_version_of_the_runtime_is_measured_anew(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = Measuring(0.93, 0.92)
    here(measure)
    monkeypatch.setattr("onnxruntime.__version__", "99.0")

    assert here(measure) == Int8Agreement(0.92, 288)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"share": 1.7, "positions": 288}',
        '{"share": NaN, "positions": 288}',
        '{"share": 0.9, "positions": 0}',
        '{"share": "many", "positions": 1}',
        '{"share": 0.9, "positions": Infinity}',
    ],
)
def test_a_damaged_figure_is_measured_again(cache: Path, text: str) -> None:
    measure = Measuring(0.93, 0.93)
    here(measure)
    (file,) = cache.glob("*.json")
    file.write_text(text)

    assert here(measure) == Int8Agreement(0.93, 288)
    assert measure.asked == 2
    assert here(Measuring()) == Int8Agreement(0.93, 288)


def test_a_figure_that_cannot_be_measured_is_missing(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise EngineError("onnx", "its process ended with status -9")

    assert here(Measuring(0.9, then=fail)) is None
    assert "its process ended with status -9" in caplog.text
    assert here(Measuring(0.9)) == Int8Agreement(0.9, 288)


def test_a_cache_that_cannot_be_written_costs_a_measurement_not_the_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("not a directory")
    monkeypatch.setenv("MUAI_CACHE_DIR", str(tmp_path / "file"))

    assert here(Measuring(0.93)) == Int8Agreement(0.93, 288)
    assert "measured at each start" in caplog.text
