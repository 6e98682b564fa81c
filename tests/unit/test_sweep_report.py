"""The page of a sweep: every configuration drawn and listed, its runs linked, nothing taken for a difference."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muai_lab.analysis import find_runs, load_run
from muai_lab.analysis.configurations import compared_rounds, configurations
from muai_lab.errors import RunError
from muai_lab.report import comparison_table, save_sweep_picture, write_report, write_sweep_report
from muai_lab.report.labels import label_points
from muai_lab.report.svg import new_figure
from muai_lab.report.sweep_table import against_baseline
from tests.unit.synthetic_run import record, write_run
from tests.unit.test_report import Page


def measured(
    path: Path,
    limit: int,
    *,
    repeat: int = 0,
    first: float = 0.1,
    tokens: int = 5,
    engine: str = "pytorch",
    saturated: bool = False,
    **written: object,
) -> None:
    rows = []
    for index in range(60):
        due = index * 0.1
        rows.append(record(index, due=due, sent=due, chunks=[due + first + 0.01 * k for k in range(tokens)]))
    config = {
        "optimization": {"engine_preference": [engine], "batcher": {"max_batch_size": limit}},
        "experiment": {"repeat": repeat},
    }
    generator = {"verdict": "client_saturated", "reason": "late"} if saturated else {"verdict": "ok"}
    manifest = {"schedule_hash": f"schedule {repeat}", "generator": generator}
    write_run(path, rows, measure=(0.0, 6.0), config=config, manifest=manifest, **written)  # type: ignore[arg-type]


def page_of(sweep: Path) -> Page:
    page = write_sweep_report([load_run(path) for path in find_runs(sweep)], sweep)
    return Page(page.read_text(encoding="utf-8"))


def test_a_swept_number_is_drawn_as_a_line_for_each_of_the_other_settings(tmp_path: Path) -> None:
    for engine in ("pytorch", "onnx"):
        for limit in (4, 8, 16):
            measured(tmp_path / f"{engine}-{limit}", limit, engine=engine)

    page = page_of(tmp_path)

    assert "series-title" in page.values("id")
    assert "frontier-title" not in page.values("id")
    assert "engine_preference=onnx, max_batch_size 16:" in page.text


def test_what_a_prefix_cache_served_is_drawn_over_its_size_and_listed(tmp_path: Path) -> None:
    for policy in ("lru", "fifo"):
        for size in (1, 16, 64):
            cached = {"prompt_tokens": 100, "cached_prompt_tokens": size}
            rows = [
                record(at, due=at * 0.1, sent=at * 0.1, chunks=[at * 0.1 + 0.1, at * 0.1 + 0.2], **cached)
                for at in range(60)
            ]
            cache = {"max_memory_mb": size, "eviction_policy": policy}
            config = {"optimization": {"engine_preference": ["onnx"], "cache": cache}}
            write_run(tmp_path / f"{policy}-{size}", rows, measure=(0.0, 6.0), config=config)

    page = page_of(tmp_path)

    assert "Prompt tokens from the prefix cache, %" in page.text
    assert "cached" in page.text
    assert save_sweep_picture(tmp_path, tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_a_sweep_over_no_number_has_no_picture(tmp_path: Path) -> None:
    measured(tmp_path / "0", 8)

    with pytest.raises(RunError, match="nothing to draw"):
        save_sweep_picture(tmp_path, tmp_path / "sweep.png")


def test_runs_are_listed_as_people_count(tmp_path: Path) -> None:
    for number in (0, 2, 10):
        measured(tmp_path / f"{number}-x", 8)

    assert [path.name for path in find_runs(tmp_path)] == ["0-x", "2-x", "10-x"]


def test_it_draws_the_frontier_and_links_the_reports(tmp_path: Path) -> None:
    measured(tmp_path / "a", 8, tokens=3, first=0.05)
    measured(tmp_path / "b", 16, tokens=9)
    write_report(load_run(tmp_path / "a"))

    page = page_of(tmp_path)

    assert "Sweep over batcher.max_batch_size" in page.text
    assert "Most throughput: max_batch_size=16" in page.text
    assert "Quickest first token: max_batch_size=8" in page.text
    assert "a/report.html" in page.values("href")
    assert "b/report.html" not in page.values("href")
    assert "frontier-title" in page.values("id")
    assert "One run each shows no difference" in page.text


def test_repeats_show_their_noise(tmp_path: Path) -> None:
    for limit in (8, 16):
        for repeat in range(3):
            measured(tmp_path / str(limit) / f"repeat-{repeat}", limit, repeat=repeat, first=0.1 + repeat * 0.001)

    page = page_of(tmp_path)

    assert "2 configurations, 6 runs, 6 valid" in page.text
    assert "A/A noise: two runs of one configuration differ by less than this in 19 of 20 cases" in page.text
    assert "no difference shown" in page.text


def test_configurations_are_compared_over_the_same_rounds_only(tmp_path: Path) -> None:
    # Given a machine that gets slower from round to round, and rounds that are missing or not usable here and there
    unusable = {(8, 2), (16, 0)}
    for limit, quicker in ((8, 0.0), (16, 0.01)):
        for repeat in range(3):
            path = tmp_path / f"size={limit}" / f"repeat-{repeat}"
            first = 0.1 * (1 + repeat) - quicker
            measured(path, limit, repeat=repeat, first=first, saturated=(limit, repeat) in unusable)

    # When they are grouped
    eight, sixteen = configurations([load_run(path) for path in find_runs(tmp_path)])

    # Then the means are those of the one round in which both have a usable run
    assert (eight.compared, sixteen.compared) == ((1,), (1,))
    assert eight.mean("TTFT p50") == pytest.approx(0.2)
    assert sixteen.mean("TTFT p50") == pytest.approx(0.19)
    page = page_of(tmp_path)
    assert "Quickest first token: max_batch_size=16" in page.text or "Most throughput: max_batch_size=16" in page.text
    assert "Means over 1 of 3 repeats: the rounds in which every configuration is usable" in page.text


def test_without_a_common_round_nothing_is_ranked(tmp_path: Path) -> None:
    for limit, bad in ((8, 0), (16, 1)):
        for repeat in range(2):
            measured(tmp_path / str(limit) / f"repeat-{repeat}", limit, repeat=repeat, saturated=repeat == bad)

    page = page_of(tmp_path)

    assert "No configuration is preferred" in page.text
    assert "Most throughput" not in page.text


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=5))
def test_the_rounds_that_are_compared_are_usable_and_the_same_or_none_are(usable: list[list[bool]]) -> None:
    found = compared_rounds(usable)

    for row, places in zip(usable, found, strict=True):
        assert all(row[place] for place in places)
        assert bool(places) == any(row)
    shared = [place for place in range(3) if all(row[place] for row in usable if any(row))]
    assert all(list(places) == shared for places in found if places) or not shared


def test_a_missing_run_does_not_move_later_repeats_into_its_round(tmp_path: Path) -> None:
    for repeat in (0, 2):
        measured(tmp_path / "8" / f"repeat-{repeat}", 8, repeat=repeat)
    for repeat in range(3):
        measured(tmp_path / "16" / f"repeat-{repeat}", 16, repeat=repeat)

    eight, sixteen = sorted(
        configurations([load_run(path) for path in find_runs(tmp_path)]), key=lambda one: one.number
    )

    assert [value is None for value in eight.figures["TTFT p50"]] == [False, True, False]
    assert eight.compared == sixteen.compared == (0, 2)
    assert eight.rounds == 3


def test_points_bear_the_numbers_of_the_runs(tmp_path: Path) -> None:
    for number, limit in ((0, 8), (1, 16)):
        measured(tmp_path / f"{number}-max_batch_size={limit}", limit, tokens=3 + number)

    found = configurations([load_run(path) for path in find_runs(tmp_path)])

    assert [one.number for one in found] == [0, 1]
    assert "0, max_batch_size=8:" in page_of(tmp_path).text


def test_repeats_of_a_swept_seed_have_a_name_of_their_own(tmp_path: Path) -> None:
    for number, (limit, seed) in enumerate([(8, 1), (8, 2), (16, 1), (16, 2)]):
        measured(tmp_path / str(number), limit, repeat=seed)

    found = configurations([load_run(path) for path in find_runs(tmp_path)])

    assert [one.group.name for one in found] == ["max_batch_size=8", "max_batch_size=16"]


def test_what_is_not_valid_is_not_drawn_is_named_and_is_shown_apart(tmp_path: Path) -> None:
    for number, limit in enumerate((4, 8, 16)):
        measured(tmp_path / f"{number}-x", limit, tokens=3 + number, saturated=limit == 8)
    runs = [load_run(path) for path in find_runs(tmp_path)]

    page = page_of(tmp_path)
    assert "Not drawn, without a usable run with output tokens: 1." in page.text
    assert "NOT VALID: figures to look at, no part of any mean" in page.text
    assert "orange" not in page.text

    plain, asked = comparison_table(runs), comparison_table(runs, include_invalid=True)
    assert [grid.title for grid in plain.grids] == ["runs"]
    assert any("--include-invalid" in note for note in plain.notes)
    assert asked.grids[0] == plain.grids[0]
    assert asked.grids[1].rows[0][:2] == ("1-x", "client_saturated")
    assert asked.grids[1].rows[0][3] not in ("-", "")


def test_a_note_that_runs_share_is_given_once(tmp_path: Path) -> None:
    for number in range(6):
        measured(tmp_path / f"{number}-x", 8 + number, saturated=number > 1)

    notes = comparison_table([load_run(path) for path in find_runs(tmp_path)]).notes

    assert [note.partition(":")[0] for note in notes[:2]] == ["all 6 runs", "2-x, 3-x, 4-x and 1 more run"]


def test_the_baseline_is_the_first_that_has_a_usable_run(tmp_path: Path) -> None:
    for limit in (4, 8, 16):
        for repeat in range(2):
            measured(tmp_path / f"size={limit}" / f"repeat-{repeat}", limit, repeat=repeat, saturated=limit == 4)
    found = sorted(configurations([load_run(path) for path in find_runs(tmp_path)]), key=lambda one: one.number)

    told = {one.settings["optimization.batcher.max_batch_size"]: against_baseline(found)[one.number] for one in found}

    assert told[4] == "not comparable: no valid run"
    other, baseline = sorted([told[8], told[16]], key=lambda text: text == "baseline")
    assert baseline == "baseline"
    assert re.fullmatch(r".+ p50: no difference shown \(detectable: .+ %\)", other)


def test_a_choice_of_workload_is_one_column(tmp_path: Path) -> None:
    for number, (name, low) in enumerate([("chat", 16), ("fixed", None), ("chat", 16)]):
        workload = {"name": name, "prompt_tokens": {"low": low}, "turns": number}
        rows = [record(at, due=at * 0.1, sent=at * 0.1, chunks=[at * 0.1 + 0.1]) for at in range(20)]
        write_run(tmp_path / str(number), rows, measure=(0.0, 2.0), config={"workload": workload})

    found = configurations([load_run(path) for path in find_runs(tmp_path)])

    assert [one.name for one in found] == [
        "workload=chat, turns=0",
        "workload=fixed, turns=1",
        "workload=chat, turns=2",
    ]


@settings(max_examples=25)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=40))
def test_labels_neither_overlap_nor_leave_the_plot(points: list[tuple[float, float]]) -> None:
    axes = new_figure(4.0, 3.0).subplots()
    axes.set_xlim(0.0, 1.0)
    axes.set_ylim(0.0, 1.0)

    left_out = label_points(axes, [(f"no {number}", x, y) for number, (x, y) in enumerate(points)])

    drawn = [text.get_window_extent() for text in axes.texts]
    assert len(drawn) + len(left_out) == len(points)
    assert len(drawn) >= 1
    assert not any(one.overlaps(other) for one, other in combinations(drawn, 2))
    frame = axes.get_window_extent()
    assert all(box.x0 >= frame.x0 - 1 and box.x1 <= frame.x1 + 1 for box in drawn)


@pytest.mark.parametrize("status", ["failed", "running"])
def test_runs_that_did_not_end_are_named_and_not_drawn(tmp_path: Path, status: str) -> None:
    measured(tmp_path / "a", 8)
    measured(tmp_path / "b", 16, status=status)

    page = page_of(tmp_path)

    assert "2 runs, 1 valid" in page.text
    assert "b: NOT VALID" in page.text
    assert "frontier-title" not in page.values("id")
