"""The result on the terminal: the plain form word for word, the drawn form in outline, and runs side by side."""

from __future__ import annotations

import io
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from muai_lab.analysis import find_runs, load_run, summarise
from muai_lab.report import comparison_table, result_table
from muai_lab.wording import duration, number, percent, size
from tests.unit.synthetic_run import record, write_run

# By hand: requests 0..96 end before 10 s and one of them failed, 96 / 10 s; they and the two tokens of request 97 that
# came in time are 290 tokens.
GOLDEN = """\
valid: run complete, load generator ok, steady, 1 of 100 requests failed; next: for an interval of the median \
TTFT set load.duration_s=auto, or load.duration_s=15
engine    pytorch 2.13.0 (cpu, fp32)
skipped   vllm: the package vllm is not installed (pip install 'muai-lab[vllm]')
model     qwen_chat
load      open loop, poisson arrivals at 20.0 requests/s
window    10.0 s, from 0 s after the start
requests  100 due in the window: 99 ok, 1 timeout

throughput
                     value  unit        95 % interval
  offered             10.0  requests/s
  of these answered   9.90  requests/s
  completed           9.60  requests/s
  output              29.0  tokens/s
  prompt              96.0  tokens/s

latency in ms
                      mean   p50   p90   p95  p99  p50 95 % interval  p99 95 % interval
  TTFT                 200   200   200     -    -                  -                  -
  TTFT from intended   202   202   202     -    -                  -                  -
  TPOT                50.0  50.0  50.0     -    -                  -                  -
  ITL                 50.0  50.0  50.0     -    -                  -                  -
  E2E                  300   300   300     -    -                  -                  -
  E2E from intended    302   302   302     -    -                  -                  -
  send lag            2.00  2.00  2.00  2.00    -                  -                  -

SLO: TTFT <= 250 ms for 99 % of the requests
                  value  unit        95 % interval
  attainment       99 %  met
  goodput          9.90  requests/s
  missed: failed      1  requests
  missed: ttft        0  requests

note: no server metrics were recorded
note: the window was cut short: 10.0 s of 26.0 s
note: 1 of 100 requests in the window failed; latencies are those of the successful ones
note: too few successful requests in the window (99) for p95, p99; needed at least p95: 100, p99: 500
note: too short for some 95 % intervals: at least 15 s for p50, throughput, goodput, at least 41 s for mean, \
p90, attainment; the state of queue and batch persists for about 204 ms"""


def example(path: Path, *, delay: float = 0.0, **written: object) -> Path:
    rows = []
    for index in range(100):
        due = index * 0.1
        sent = due + 0.002
        rows.append(record(index, due=due, sent=sent, chunks=[sent + delay + after for after in (0.2, 0.25, 0.3)]))
    rows[50] |= record(50, due=5.0, sent=5.002, status="timeout", error="no answer within 60 s")
    return write_run(path, rows, **written)  # type: ignore[arg-type]


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_plain_table_word_for_word(tmp_path: Path) -> None:
    summary = summarise(load_run(example(tmp_path, config={"slo": {"ttft_ms": 250}})))

    assert result_table(summary).plain() == GOLDEN


def test_without_a_terminal_there_is_no_drawing(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=20)

    result_table(summarise(load_run(example(tmp_path)))).show(console)

    lines = printed(console).splitlines()
    assert "1 of 100 requests failed; next: for an interval" in lines[0]  # not wrapped at 20 columns
    assert not {"\x1b", "─", "│"} & set(printed(console))


def test_on_a_terminal_the_same_figures_are_drawn(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=True)

    result_table(summarise(load_run(example(tmp_path)))).show(console)

    assert "\x1b[1;32mvalid" in printed(console)
    assert "─" in printed(console)
    assert "TTFT from intended" in printed(console)


@pytest.mark.parametrize("status", ["partial", "failed"])
def test_a_run_that_did_not_end_says_so_first(tmp_path: Path, status: str) -> None:
    run = load_run(example(tmp_path, status=status, manifest={"error": "interrupted by Ctrl-C"}))

    first = result_table(summarise(run)).plain().splitlines()[0]

    assert first.startswith(f"NOT VALID, {status}: interrupted by Ctrl-C; next: ")


def test_a_saturated_client_says_so_first(tmp_path: Path) -> None:
    generator = {"verdict": "client_saturated", "reason": "send lag p99 is 80 ms", "cpu_share": 0.99}
    run = load_run(example(tmp_path, manifest={"generator": generator}))

    first = result_table(summarise(run)).plain().splitlines()[0]

    assert first.startswith("NOT VALID, client_saturated: send lag p99 is 80 ms; next: ")


def test_markup_in_a_reason_is_shown_as_it_is(tmp_path: Path) -> None:
    run = load_run(example(tmp_path, manifest={"skipped_engines": [["onnx", "[bold]not[/bold] there"]]}))
    console = Console(file=io.StringIO(), width=120, force_terminal=True)

    result_table(summarise(run)).show(console)

    assert "[bold]not[/bold] there" in printed(console)


def test_runs_side_by_side_name_what_differs(tmp_path: Path) -> None:
    sizes = {"0": 8, "1": 16}
    for name, limit in sizes.items():
        example(tmp_path / name, config={"optimization": {"batcher": {"max_batch_size": limit}}})
    example(tmp_path / "2", status="partial", config={"optimization": {"batcher": {"max_batch_size": 32}}})

    sheet = comparison_table([load_run(tmp_path / name) for name in ("0", "1", "2")])

    assert sheet.verdict == "3 runs, 2 valid"
    assert sheet.grids[0].columns[:4] == ("run", "max_batch_size", "engine", "verdict")
    assert [row[:4] for row in sheet.grids[0].rows] == [
        ("0", "8", "pytorch fp32", "valid"),
        ("1", "16", "pytorch fp32", "valid"),
        ("2", "32", "pytorch fp32", "partial"),
    ]
    assert "2: NOT VALID, partial" in sheet.plain()


def test_repeats_make_one_row_with_their_noise_and_a_comparison(tmp_path: Path) -> None:
    for limit, delay in ((8, 0.0), (16, 0.1)):
        for repeat in range(3):
            example(
                tmp_path / f"max_batch_size={limit}" / f"repeat-{repeat}",
                delay=delay + repeat * 0.001,
                manifest={"schedule_hash": f"schedule {repeat}"},
                config={"optimization": {"batcher": {"max_batch_size": limit}}, "experiment": {"repeat": repeat}},
            )

    sheet = comparison_table([load_run(path) for path in find_runs(tmp_path)])

    assert sheet.verdict == "2 configurations, 6 runs, 6 valid"
    assert sheet.facts[0][0] == "A/A noise"
    assert "TTFT p50 ±" in sheet.facts[0][1]
    (first, second) = sheet.grids[0].rows
    assert first[:4] == ("max_batch_size=8", "8", "pytorch fp32", "3/3")
    assert first[-1] == "baseline"
    assert second[-1].startswith("worse: E2E p50 +")


def test_secrets_that_differ_are_not_shown(tmp_path: Path) -> None:
    for name in ("0", "1"):
        url = f"https://hooks.example.org/very-secret-{name}"
        example(tmp_path / name, config={"monitoring": {"anomaly": {"webhook_url": url}}})

    assert "very-secret" not in comparison_table([load_run(tmp_path / name) for name in ("0", "1")]).plain()


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (None, "-"),
        (float("nan"), "-"),
        (0.0, "0"),
        (0.0123, "0.012"),
        (0.00004, "4e-05"),
        (1.234, "1.23"),
        (9.999, "10.0"),
        (28.64, "28.6"),
        (99.96, "100"),
        (1234.5, "1,234"),
        (-3.0, "-3.00"),
    ],
)
def test_numbers_have_sensible_digits(value: float | None, written: str) -> None:
    assert number(value) == written


def test_units_suit_the_size() -> None:
    assert [duration(v) for v in (0.0002, 0.0286, 3.4, None)] == ["200 µs", "28.6 ms", "3.40 s", "-"]
    assert [size(v) for v in (512.0, 4e8, 2.0**40)] == ["512 bytes", "381 MiB", "1,024 GiB"]


def test_a_share_is_never_rounded_to_all_or_nothing() -> None:
    assert [percent(v) for v in (1.0, 0.99999, 0.987, 0.00001, 0.0)] == ["100 %", ">99.9 %", "98.7 %", "<0.1 %", "0 %"]


def test_a_quantised_engine_tells_how_far_it_agrees_with_fp32(tmp_path: Path) -> None:
    summary = summarise(load_run(write_run(tmp_path, [record(0)])))
    assert "agreement" not in dict(result_table(summary).facts)

    def agreement(share: float | None) -> str:
        details = {"int8_greedy_agreement_with_fp32": share, "int8_agreement_positions": 288}
        identity = msgspec.structs.replace(summary.identity, engine_details=details)
        return dict(result_table(msgspec.structs.replace(summary, identity=identity)).facts)["agreement"]

    assert agreement(0.934) == "93.4 % of greedy tokens are those of fp32 (int8, 288 positions)"
    assert agreement(None).startswith("not measured")
