"""The page of a sweep: every configuration drawn and listed, its runs linked, nothing taken for a difference."""

from __future__ import annotations

from pathlib import Path

import pytest
from synthetic_run import record, write_run
from test_report import Page

from muai_lab.analysis import find_runs, load_run, save_sweep_picture, write_report, write_sweep_report
from muai_lab.errors import RunError


def measured(
    path: Path,
    limit: int,
    *,
    repeat: int = 0,
    first: float = 0.1,
    tokens: int = 5,
    engine: str = "pytorch",
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
    manifest = {"schedule_hash": f"schedule {repeat}"}
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


@pytest.mark.parametrize("status", ["failed", "running"])
def test_runs_that_did_not_end_are_named_and_not_drawn(tmp_path: Path, status: str) -> None:
    measured(tmp_path / "a", 8)
    measured(tmp_path / "b", 16, status=status)

    page = page_of(tmp_path)

    assert "2 runs, 1 valid" in page.text
    assert "b: NOT VALID" in page.text
    assert "frontier-title" not in page.values("id")
