"""Two configurations differ when repeated runs over the same schedules say so, and seldom when they do not differ."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muai_lab.analysis import load_run
from muai_lab.analysis.change import BETTER, NO_DIFFERENCE, NOT_COMPARABLE, NOT_TESTED, WORSE, change_of
from muai_lab.analysis.comparison import Comparison, compare, difference, mean_change
from muai_lab.analysis.comparison_document import comparison_document
from muai_lab.analysis.frames import Run
from muai_lab.analysis.key_figures import FIGURES, FigureReading
from muai_lab.analysis.moderation import holm
from muai_lab.analysis.pairing import load_group
from muai_lab.analysis.statistics import Estimate
from muai_lab.errors import RunError
from muai_lab.report.comparison_sheet import comparison_sheet, verdict_text
from muai_lab.report.sweep_table import comparison_table
from muai_lab.slo import Slo
from tests.unit.synthetic_run import record, write_run

Make = Callable[..., Run]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A run of 120 requests, one each tenth of a second, with drawn latencies; `slower` stretches them all."""
    made = 0

    def run(
        *, slower: float = 1.0, spread: float = 0.2, schedule: str = "one", failed: int = 0, **written: object
    ) -> Run:
        nonlocal made
        made += 1
        rng = np.random.default_rng(made)
        rows = []
        for index in range(120):
            due = index * 0.1
            first = due + slower * rng.lognormal(-2.3, spread)
            gaps = slower * rng.lognormal(-4.6, spread / 2, size=9)
            chunks = [float(t) for t in first + np.concatenate([[0.0], np.cumsum(gaps)])]
            if index * failed % 120 < failed:
                rows.append(record(index, due=due, sent=due, status="error", error="HTTP 500"))
            else:
                rows.append(record(index, due=due, sent=due, chunks=chunks))
        manifest = {"schedule_hash": schedule, "started": f"2026-01-31T12:{made:02d}"} | dict(
            written.pop("manifest", {})  # type: ignore[call-overload]
        )
        return load_run(write_run(tmp_path / f"run-{made}", rows, measure=(0.0, 12.0), manifest=manifest, **written))

    return run


@pytest.mark.parametrize("pairs", [1, 2, 3, 5, 12])
def test_the_interval_of_equal_configurations_leaves_out_zero_about_once_in_twenty(pairs: int) -> None:
    # Given pairs whose runs differ by noise alone: between runs as much as is assumed, and within them as is known
    rng = np.random.default_rng(pairs)
    noise, within = 0.02, 0.01

    # When the mean change is judged many times
    alarms = [
        mean_change(rng.normal(0.0, np.sqrt(2 * noise**2 + within**2), size=pairs), within**2, noise)[1] <= 0.05
        for _ in range(2000)
    ]

    # Then it is called significant as often as promised, not more
    assert 0.0 < np.mean(alarms) < 0.065


def test_among_ten_equal_figures_a_false_finding_is_as_rare_as_for_one() -> None:
    rng = np.random.default_rng(1)
    found = [min(holm(list(rng.uniform(size=10)))) <= 0.05 for _ in range(2000)]

    assert 0.03 < np.mean(found) < 0.07


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=12))
def test_holms_adjustment_never_lowers_a_p_value_and_keeps_their_order(p: list[float]) -> None:
    adjusted = holm(p)

    assert all(raised >= alone for raised, alone in zip(adjusted, p, strict=True))
    assert [adjusted[i] for i in np.argsort(p)] == sorted(adjusted)
    assert max(adjusted) <= 1.0


def test_repeats_of_one_configuration_show_no_difference(make: Make) -> None:
    a, b = ([make(schedule=name) for name in ("one", "two", "three")] for _ in "ab")

    found = compare(a, b)

    assert found.verdict == NO_DIFFERENCE
    assert found.primary is found.of("p50 e2e")
    assert found.of("p50 ttft").verdict == NOT_TESTED
    assert found.of("p50 ttft").pairs == 3
    assert 0.02 < (found.of("p50 e2e").detectable or 0.0) < 0.2


def test_a_server_that_is_a_tenth_slower_is_found(make: Make) -> None:
    a = [make(schedule=name) for name in ("one", "two", "three", "four", "five")]
    b = [make(schedule=name, slower=1.1) for name in ("one", "two", "three", "four", "five")]

    found = compare(a, b)

    assert found.verdict == WORSE
    assert found.of("p50 e2e").verdict == WORSE
    change = found.of("p50 e2e").change
    assert change.low is not None
    assert change.low < 0.10 < (change.high or 0.0)
    assert found.of("success").verdict == NO_DIFFERENCE


def test_what_is_worse_one_way_is_better_the_other(make: Make) -> None:
    a, b = ([make(schedule=name, slower=slower) for name in ("one", "two")] for slower in (1.0, 2.0))

    assert compare(a, b).verdict == WORSE
    assert compare(b, a).verdict == BETTER
    gain = difference(b, a, "p50 ttft").gain
    assert gain.value == pytest.approx(0.5, abs=0.1)
    assert gain.low is not None
    assert gain.low < gain.value < (gain.high or 0.0)


def test_single_runs_are_described_with_the_repeats_that_would_decide(make: Make) -> None:
    # Given two runs that differ by a lot, and two that differ by little
    large, small = (compare([make()], [make(slower=slower, spread=0.01)]) for slower in (1.5, 1.05))

    # Then neither has a verdict or a p-value, and the smaller difference needs more repeats
    for found in (large, small):
        assert found.verdict == NOT_TESTED
        assert {one.verdict for one in found.differences if one.pairs} == {NOT_TESTED}
        assert found.of("p50 tpot").p is None
        assert not found.of("p50 tpot").between_runs
    few, many = (found.of("p50 tpot").repeats for found in (large, small))
    assert few is not None
    assert many is None or 2 <= few < many


def test_the_interval_of_single_runs_is_that_of_both_or_none() -> None:
    # Given runs whose own intervals reach 3 and 4 % on the log scale, and one without an interval
    a = FigureReading(1.0, np.ones(10), 600, alone=Estimate(1.0, float(np.exp(-0.03)), float(np.exp(0.03))))
    b = FigureReading(1.1, np.ones(10), 600, alone=Estimate(1.1, 1.1 * float(np.exp(-0.04)), 1.1 * float(np.exp(0.04))))
    short = FigureReading(1.1, np.ones(10), 600, alone=Estimate(1.1, needs_s=90.0))

    found, none = (change_of(FIGURES["tokens"], [(a, other)]) for other in (b, short))

    assert found.change.low == pytest.approx(1.1 * np.exp(-0.05) - 1.0)
    assert found.change.high == pytest.approx(1.1 * np.exp(0.05) - 1.0)
    assert not found.between_runs
    assert (none.change.value, none.change.low, none.needs_s) == (pytest.approx(0.1), None, 90.0)


def test_declared_noise_gives_single_runs_an_interval_but_no_verdict(make: Make) -> None:
    a, b = [make()], [make(slower=1.15)]

    quiet, loud = (compare(a, b, noise=noise).of("p50 tpot") for noise in (0.01, 0.1))

    assert quiet.between_runs
    assert quiet.p is not None
    assert loud.p is not None
    assert quiet.p < 0.05 < loud.p
    assert quiet.verdict == NOT_TESTED


def test_harm_behind_an_undecided_primary_figure_is_named_but_not_judged(make: Make) -> None:
    # Given configurations that are equal in the primary figure, and far apart in another
    names = ("one", "two", "three")
    a, b = ([make(schedule=name, slower=slower) for name in names] for slower in (1.0, 1.5))

    found = compare(a, b, primary="requests")

    assert found.verdict == NO_DIFFERENCE
    assert found.of("p50 ttft").verdict == NOT_TESTED
    notes = comparison_sheet(found).notes
    assert any(note.startswith("looks worse, but is not tested: ") and "TTFT p50 +" in note for note in notes), notes


def test_harm_beside_a_better_primary_figure_is_in_the_verdict(make: Make) -> None:
    names = [str(number) for number in range(5)]
    a = [make(schedule=name, slower=2.0) for name in names]
    b = [make(schedule=name, failed=40) for name in names]

    found = compare(a, b)

    assert found.verdict == BETTER
    assert found.of("success").verdict == WORSE
    assert "; but worse: " in verdict_text(found)


@pytest.mark.parametrize(
    ("load", "slo", "figure"),
    [
        ({"kind": "poisson"}, None, "p50 e2e"),
        ({"kind": "closed", "concurrency": 8}, None, "tokens"),
        ({"kind": "poisson"}, Slo(e2e_ms=190), "goodput"),
        ({"kind": "closed", "concurrency": 8}, Slo(e2e_ms=190), "goodput"),
        ({"kind": "poisson"}, Slo(e2e_ms=10_000), "p50 e2e"),
        ({"kind": "closed", "concurrency": 8}, Slo(e2e_ms=10_000), "tokens"),
    ],
)
def test_the_primary_figure_follows_slo_and_load(make: Make, load: dict, slo: Slo | None, figure: str) -> None:
    found = compare([make(manifest={"load": load})], [make(manifest={"load": load})], slo=slo)

    assert found.primary is not None
    assert found.primary.figure.name == figure


def test_a_certain_difference_that_is_too_small_to_matter_is_none(make: Make) -> None:
    names = [str(number) for number in range(4)]
    a, b = ([make(schedule=name, slower=by, spread=0.01) for name in names] for by in (1.0, 1.015))

    found = compare(a, b, primary="p50 tpot", noise=0.002).of("p50 tpot")

    assert found.p_adjusted is not None
    assert found.p_adjusted < 0.05
    assert found.verdict == NO_DIFFERENCE
    assert found.reason == "certain, but smaller than 2%"


def test_more_failures_are_worse_and_the_slo_counts_them(make: Make) -> None:
    a, b = ([make(schedule=name, failed=failed) for name in ("one", "two", "three")] for failed in (0, 20))

    found = compare(a, b, slo=Slo(e2e_ms=10_000))

    assert found.judgement.primary == "goodput"
    assert found.of("success").verdict == WORSE
    assert found.of("attainment").b == pytest.approx(100 / 120)
    assert found.of("goodput").change.value == pytest.approx(-20 / 120)
    assert found.of("goodput").verdict == WORSE


def test_a_candidate_without_any_success_is_worse_not_incomparable(make: Make) -> None:
    found = compare([make()], [make(failed=120)])

    assert found.verdict == WORSE
    assert found.of("success").change.value == -1.0
    assert found.of("p50 ttft").verdict == NOT_COMPARABLE
    assert found.of("p50 ttft").reason == "B: no successful request"


def test_the_change_of_a_rate_is_that_of_its_inverse_turned_round_and_never_below_all_of_it(make: Make) -> None:
    # Given three rounds in which B answers all, a third and two
    names = ("one", "two", "three")
    a = [make(schedule=name) for name in names]
    b = [make(schedule=name, failed=failed) for name, failed in zip(names, (0, 80, 118), strict=True)]

    there, back = difference(a, b, "requests").change, difference(b, a, "requests").change

    assert there.low is not None
    assert -1.0 < there.low < (there.value or 0.0) < 0.0 < (there.high or 0.0)
    assert 1.0 + (back.value or 0.0) == pytest.approx(1.0 / (1.0 + (there.value or 0.0)))
    assert 1.0 + (back.high or 0.0) == pytest.approx(1.0 / (1.0 + there.low), rel=0.2)


def test_from_no_goodput_at_all_there_is_no_relative_change(make: Make) -> None:
    a, b = ([make(schedule=name, slower=slower) for name in ("one", "two", "three")] for slower in (1.0, 0.01))

    found = difference(a, b, "goodput", slo=Slo(e2e_ms=50))

    assert (found.a, found.change.value) == (0.0, None)
    assert found.verdict == BETTER


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ({"manifest": {"schedule_hash": "other"}}, "other workload"),
        ({"manifest": {"model": {"name": "t5_summarizer", "content_hash": "f00"}}}, "other model"),
        ({"manifest": {"hardware": {"cpu": "Another CPU", "cores": 64}}}, "other hardware: Example CPU with 2 cores"),
        ({"manifest": {"load": {"kind": "closed", "concurrency": 8}}}, "other load"),
        ({"status": "failed", "manifest": {"error": "the server died"}}, "NOT VALID, failed: the server died"),
        ({"status": "running"}, "NOT VALID, partial"),
        ({"manifest": {"generator": {"verdict": "client_saturated", "reason": "CPU"}}}, "client_saturated"),
    ],
)
def test_what_cannot_be_compared_says_why(make: Make, written: dict, reason: str) -> None:
    found = compare([make()], [make(**written)])

    assert found.verdict == NOT_COMPARABLE
    assert any(reason in text for text in found.reasons), found.reasons
    assert {one.verdict for one in found.differences} == {NOT_COMPARABLE}


def test_a_declared_difference_is_a_note(make: Make) -> None:
    other = make(manifest={"hardware": {"cpu": "Another CPU", "cores": 64}}, slower=0.5)

    found = compare([make()], [other], across=("hardware",))

    assert found.verdict == NOT_TESTED
    assert any(note.startswith("compared across hardware: other hardware") for note in found.notes)


def on(**hardware: object) -> dict[str, dict[str, object]]:
    """A manifest of the same machine but for these facts; None: not stated."""
    machine = {
        "cpu": "AMD EPYC", "cpu_family": "AuthenticAMD family 25 model 1", "instruction_sets": ["avx", "avx2"],
        "instruction_limits": {}, "cores": 2, "memory_bytes": 8 * 2**30, "gpus": [],
    }  # fmt: skip
    return {"hardware": {name: value for name, value in {**machine, **hardware}.items() if value is not None}}


@pytest.mark.parametrize(
    ("hardware", "told"),
    [
        (
            {"instruction_sets": ["avx", "avx2", "avx512_vnni", "amx_int8"]},
            ["2 cores, without amx_int8 avx512_vnni in A", "2 cores, with amx_int8 avx512_vnni in B"],
        ),
        (
            {"cpu_family": "AuthenticAMD family 23 model 49"},
            ["(AuthenticAMD family 25 model 1) in A", "(AuthenticAMD family 23 model 49) in B"],
        ),
        (
            {"instruction_limits": {"ONEDNN_MAX_CPU_ISA": "SSE41"}},
            ["AMD EPYC with 2 cores in A", "2 cores, ONEDNN_MAX_CPU_ISA=SSE41 in B"],
        ),
        ({"memory_bytes": 16 * 2**30}, ["memory of 8 GiB, 16 GiB"]),
    ],
)
def test_processors_of_one_name_that_compute_differently_are_not_compared(
    make: Make, hardware: dict, told: list[str]
) -> None:
    runs = [make(manifest=on())], [make(manifest=on(**hardware), slower=0.5)]

    (reason,) = compare(*runs).reasons
    assert reason.startswith("other hardware: ")
    assert all(text in reason for text in told), reason
    assert any(reason in note for note in compare(*runs, across=("hardware",)).notes)


def test_a_processor_of_unknown_instruction_sets_is_compared_with_a_note(make: Make) -> None:
    old = make(manifest=on(instruction_sets=None, cpu_family=None))

    found = compare([old], [make(manifest=on())])

    assert not found.reasons
    assert any("1 run does not state the instruction sets of the AMD EPYC" in note for note in found.notes)
    assert not compare([make(manifest=on())], [make(manifest=on())]).notes


def test_a_table_of_runs_from_several_machines_says_so(make: Make) -> None:
    here, there = make(manifest=on()), make(manifest=on(instruction_sets=["avx"]))

    note = comparison_table([here, there]).notes[0]

    assert note.startswith(
        "runs of different hardware (AMD EPYC with 2 cores, with avx2; AMD EPYC with 2 cores, without"
    )
    assert "hardware" not in str(comparison_table([here, make(manifest=on())]).notes)


def test_an_invalid_repeat_is_left_out_with_its_counterpart(make: Make) -> None:
    a = [make(schedule=name) for name in ("one", "two", "three")]
    b = [make(schedule="one"), make(schedule="two", status="failed"), make(schedule="three")]

    found = compare(a, b)

    assert len(found.pairing.pairs) == 2
    assert [note for note in found.notes if note.startswith("B: left out")]
    assert "1 run without a counterpart over the same schedule left out" in found.notes


def test_a_group_holds_one_configuration(make: Make) -> None:
    first, second = make(config={"seed": 1}), make(config={"seed": 2})
    assert load_group([first.path, second.path], "A").runs[0].path == first.path

    other = make(config={"optimization": {"batcher": {"max_batch_size": 4}}})
    with pytest.raises(RunError, match=r"2 runs of several configurations.*max_batch_size"):
        load_group([first.path, other.path])


def test_the_document_holds_numbers_and_nothing_else(make: Make) -> None:
    found: Comparison = compare([make()], [make(failed=120)])

    document = comparison_document(found)

    assert document["figures"]["p50 ttft"]["a"] == pytest.approx(0.1, rel=0.1)
    assert document["figures"]["p50 ttft"]["b"] is None
    assert (document["verdict"], document["schema_version"]) == (WORSE, 2)
    assert document["figures"]["success"]["reason"] == "no request of B succeeded"


def test_runs_in_whose_window_nothing_was_due_cannot_be_compared(make: Make, tmp_path: Path) -> None:
    empty = load_run(write_run(tmp_path / "empty", [record(0, due=0.0, chunks=[0.1])], measure=(50.0, 60.0)))

    found = compare([make()], [empty])

    assert found.verdict == NOT_COMPARABLE
    assert "no request was due in the measurement window" in found.reasons[0]


def test_missing_values_never_become_numbers(make: Make, tmp_path: Path) -> None:
    # Given a server that reports no tokens and answers in one piece: no TPOT, no token throughput
    rows = [
        record(i, due=i * 0.1, sent=i * 0.1, chunks=[i * 0.1 + 0.1], chunk_tokens=[1], output_tokens=None)
        | {"output_tokens": None, "chunk_tokens": None}
        for i in range(120)
    ]
    one = load_run(write_run(tmp_path / "one", rows, measure=(0.0, 12.0), manifest={"schedule_hash": "one"}))

    found = compare([make()], [one])

    assert found.of("p50 tpot").verdict == NOT_COMPARABLE
    assert found.of("tokens").verdict == NOT_COMPARABLE
    json.dumps(comparison_document(found), allow_nan=False)
