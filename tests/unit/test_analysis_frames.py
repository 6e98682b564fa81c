"""Loading run directories: whole, partial, broken, many."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from muai_lab.analysis import find_runs, load_run, load_runs, server_series
from muai_lab.analysis.frames import in_order
from muai_lab.errors import RunError
from tests.unit.synthetic_run import START_NS, at, record, simulated, write_run


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there is no such directory"):
        load_run(tmp_path / "nowhere")


def test_a_directory_that_is_no_run_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is no run: it has no manifest\.json"):
        load_run(tmp_path)


@pytest.mark.parametrize("content", ["{", "[1]", "\udcff"])
def test_a_broken_manifest_is_a_clear_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_bytes(content.encode("utf-8", "surrogateescape"))

    with pytest.raises(RunError, match=r"cannot read .*manifest\.json"):
        load_run(tmp_path)


def test_a_complete_run_without_records_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path, [record(chunks=[1.0, 1.1])])
    (tmp_path / "requests.parquet").unlink()

    with pytest.raises(RunError, match="the run says that it is complete"):
        load_run(tmp_path)


@pytest.mark.parametrize("status", ["partial", "running"])
def test_a_partial_run_loads_and_is_marked(tmp_path: Path, status: str) -> None:
    run = load_run(write_run(tmp_path, [record(chunks=[1.0, 1.1])], status=status))

    assert run.status == "partial"
    assert run.requests.attrs["status"] == "partial"
    assert len(run.requests) == 1


def test_a_killed_run_without_readable_records_still_loads(tmp_path: Path) -> None:
    write_run(tmp_path, [record(chunks=[1.0, 1.1])], status="running")
    (tmp_path / "requests.parquet").write_bytes(b"PAR1 cut off")

    run = load_run(tmp_path)

    assert run.requests.empty
    assert "the request records cannot be read" in run.notes
    assert run.tokens().empty


def test_a_partial_run_is_measured_only_as_far_as_it_was_seen(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path, [record(due=1.0, sent=1.0, chunks=[2.0, 4.0])], status="partial"))

    assert run.window is not None
    assert run.window.duration_s == pytest.approx(4.0)  # of 10 s that were planned


def test_a_manifest_without_a_window_falls_back_on_the_records(tmp_path: Path) -> None:
    write_run(tmp_path, [record(due=1.0, sent=1.0, chunks=[2.0, 4.0])], manifest={"window": None}, status="partial")

    run = load_run(tmp_path)

    assert run.window is not None
    assert (run.window.load_start_ns, run.window.end_s) == (at(1.0), pytest.approx(3.0))


def test_requests_due_in_the_window_count_also_when_they_finish_later(tmp_path: Path) -> None:
    rows = [
        record(0, due=1.9, sent=1.9, chunks=[2.5, 3.0], phase="warmup"),
        record(1, due=2.0, sent=2.0, chunks=[2.5, 3.0]),
        record(2, due=7.9, sent=7.9, chunks=[9.0, 12.0]),
        record(3, due=8.0, sent=8.0, chunks=[8.5, 9.0], phase="drain"),
        record(4, due=5.0, sent=None, status="rejected"),
    ]

    run = load_run(write_run(tmp_path, rows, measure=(2.0, 8.0), drain_end=12.0))

    assert run.measured["index"].tolist() == [1, 2, 4]


def test_server_metrics_are_aligned_with_the_start_of_the_load(tmp_path: Path) -> None:
    scraped = [
        (-1.0, "muai_waiting_requests", {"model": "a"}, 9.0),
        (1.0, "muai_waiting_requests", {"model": "a"}, 2.0),
        (1.0, "muai_waiting_requests", {"model": "b"}, 3.0),
        (2.0, "muai_waiting_requests", {"model": "a"}, float("nan")),
    ]
    run = load_run(write_run(tmp_path, [record(chunks=[1.0, 1.1])], server_metrics=scraped))

    waiting = server_series.series(run.server_metrics, "muai_waiting_requests")

    assert waiting is not None
    assert waiting.to_dict() == {-1.0: 9.0, 1.0: 5.0}
    assert server_series.series(run.server_metrics, "nothing") is None


def test_a_gauge_is_averaged_over_time_not_over_samples() -> None:
    gauge = pd.Series([10.0, 0.0, 4.0], index=[-5.0, 1.0, 9.0])

    # 10 holds for 1 s, 0 for 8 s, 4 for 1 s
    assert server_series.time_mean(gauge, 0.0, 10.0) == pytest.approx(1.4)
    assert server_series.time_mean(gauge, 20.0, 30.0) is None
    assert server_series.time_mean(None, 0.0, 10.0) is None


def test_the_mean_of_a_histogram_is_that_of_the_window(tmp_path: Path) -> None:
    scraped = []
    for t, total, count in ((0.0, 100.0, 50.0), (5.0, 300.0, 75.0), (20.0, 999.0, 80.0)):
        scraped += [(t, "batch_size_sum", {}, total), (t, "batch_size_count", {}, count)]
    run = load_run(write_run(tmp_path, [record(chunks=[1.0, 1.1])], server_metrics=scraped))

    assert server_series.histogram_mean(run.server_metrics, "batch_size", 0.0, 10.0) == pytest.approx(200 / 25)


def test_a_counter_that_went_back_gives_nothing() -> None:
    assert server_series.increase(pd.Series([5.0, 2.0], index=[0.0, 1.0]), 0.0, 2.0) is None


def test_load_runs_gives_a_row_per_run_with_result_and_settings(tmp_path: Path) -> None:
    for name, size in (("0", 8), ("1", 16)):
        rows = [record(i, due=i * 0.1, sent=i * 0.1, chunks=[i * 0.1 + 0.2, i * 0.1 + 0.3]) for i in range(60)]
        write_run(tmp_path / name, rows, config={"optimization": {"batcher": {"max_batch_size": size}}})

    frame = load_runs(tmp_path)

    assert frame["config.optimization.batcher.max_batch_size"].tolist() == [8, 16]
    assert frame["latency.ttft_s.p50.value"].tolist() == pytest.approx([0.2, 0.2])
    assert frame["status"].tolist() == ["complete", "complete"]
    assert len(load_runs([tmp_path / "1"])) == 1


def test_load_runs_takes_the_summary_that_was_written(tmp_path: Path) -> None:
    from muai_lab.analysis import summarise

    run = load_run(write_run(tmp_path / "a", [record(chunks=[1.0, 1.1])]))
    document = summarise(run).as_document() | {"generator": {"cpu_share": 0.123}}
    (tmp_path / "a" / "summary.json").write_text(json.dumps(document))

    assert load_runs(tmp_path)["generator.cpu_share"].tolist() == [0.123]


def test_a_place_without_runs_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run found in"):
        find_runs(tmp_path)


def test_origins_of_settings_are_read_from_the_comments_behind_them(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path, [record(chunks=[1.0, 1.1])], origins={"arrival.rate": "override"}))

    assert run.origins["arrival.rate"] == "override"
    assert run.origins["optimization.batcher.max_batch_size"] == "default"
    assert run.config["arrival"]["rate"] == 20.0


def test_times_count_from_the_start_of_the_load(tmp_path: Path) -> None:
    requests = load_run(write_run(tmp_path, [record(due=1.0, sent=1.5, chunks=[2.0, 3.0])])).requests

    assert requests["sent_ns"].tolist() == [START_NS + 1_500_000_000]
    assert requests[["due_s", "sent_s", "first_content_s", "last_token_s", "over_s"]].iloc[0].tolist() == pytest.approx(
        [1.0, 1.5, 2.0, 3.0, 3.0]
    )


def test_importing_the_package_imports_no_pandas() -> None:
    program = "import sys, muai_lab.analysis; print('pandas' in sys.modules, 'matplotlib' in sys.modules)"

    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert answer.stdout.split() == ["False", "False"]


def test_chunks_of_a_simulated_run_agree_with_the_usage(tmp_path: Path) -> None:
    run = load_run(simulated(tmp_path, rate=10.0, duration=5.0, burst=3))

    per_request = pd.Series(run.chunks.tokens).groupby(run.chunks.row).sum()

    assert per_request.tolist() == run.requests["tokens"].tolist()


@pytest.mark.parametrize(
    ("started", "ordered"),
    [
        ({"0-a": "2", "1-b": "9", "2-c": "3", "10-d": "4"}, ["0-a", "1-b", "2-c", "10-d"]),
        ({"0": "9", "1": "3"}, ["0", "1"]),
        ({"b": "2", "a": "3"}, ["b", "a"]),
        ({"16.15.01": "2", "17.00.00": "1"}, ["17.00.00", "16.15.01"]),
    ],
)
def test_the_runs_of_a_sweep_come_as_they_are_numbered_even_if_one_was_made_again(
    tmp_path: Path, started: dict[str, str], ordered: list[str]
) -> None:
    runs = [load_run(write_run(tmp_path / name, [record()], manifest={"started": at})) for name, at in started.items()]

    assert [run.path.name for run in in_order(runs)] == ordered
