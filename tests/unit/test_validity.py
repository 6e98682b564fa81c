"""The verdict of a run: what makes it invalid, and the next step that each verdict names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from muai_lab.analysis import load_run, summarise
from muai_lab.analysis.summary_schema import Summary
from muai_lab.report.wording import headline, verdict_line
from tests.unit.synthetic_run import record, write_run


def answered(count: int, *, takes_s: float = 0.3, first: int = 0, **fields: Any) -> list[dict[str, Any]]:
    rows = []
    for i in range(first, first + count):
        due = i * 0.1
        rows.append(record(i, due=due, sent=due, chunks=[due + takes_s / 2, due + takes_s], **fields))
    return rows


def refused(count: int, status: str, *, first: int, error: str = "HTTP 503: queue full") -> list[dict[str, Any]]:
    return [record(i, due=i * 0.1, sent=i * 0.1, status=status, error=error) for i in range(first, first + count)]


def summary_of(path: Path, rows: list[dict[str, Any]], *, measured_s: float = 10.0, **written: Any) -> Summary:
    config = {"load": {"duration_s": measured_s}} | dict(written.pop("config", {}))
    return summarise(load_run(write_run(path, rows, measure=(0.0, measured_s), config=config, **written)))


def test_a_few_failures_stand_in_the_verdict_of_a_valid_run(tmp_path: Path) -> None:
    summary = summary_of(tmp_path, answered(149) + refused(1, "error", first=149), measured_s=15.0)

    assert summary.validity.verdict == "valid"
    assert verdict_line(summary).endswith("1 of 150 requests failed")
    assert "1 of 150 requests failed" in headline(summary)


def test_failures_of_more_than_one_in_a_hundred_are_no_valid_run(tmp_path: Path) -> None:
    summary = summary_of(tmp_path, answered(45) + refused(19, "error", first=45, error="HTTP 500: boom"))

    assert summary.validity.verdict == "requests failed"
    assert "19 of 64 requests failed (29.7 %), most often: HTTP 500: boom; next: " in verdict_line(summary)


def test_a_bounded_queue_that_refuses_most_requests_is_overload_and_the_few_answers_are_no_headline(
    tmp_path: Path,
) -> None:
    summary = summary_of(tmp_path, answered(16) + refused(84, "rejected", first=16))

    assert summary.validity.verdict == "overloaded"
    assert "lower arrival.rate below 1.60 requests/s" in verdict_line(summary)
    assert headline(summary).startswith("Only 16 of 100 requests")
    assert "1.60" not in headline(summary)


def test_a_window_shorter_than_an_answer_says_how_long_one_takes_and_what_to_set(tmp_path: Path) -> None:
    summary = summary_of(tmp_path, answered(20, takes_s=5.0), measured_s=2.0, drain_end=10.0)

    assert summary.validity.verdict == "window too short"
    assert verdict_line(summary).endswith("shorter than an answer (5.00 s, median): few requests begin and end in it; "
                                          "next: set load.duration_s=100")  # fmt: skip


def test_a_window_that_holds_few_answers_warns(tmp_path: Path) -> None:
    rows = [*answered(30, takes_s=2.0, first=-30, phase="warmup"), *answered(95, takes_s=2.0)]

    warnings = summary_of(tmp_path, rows, measured_s=9.5, drain_end=12.0).validity.warnings

    assert any("set load.duration_s=40" in warning for warning in warnings)


def test_a_window_without_a_due_request_says_how_long_an_answer_takes(tmp_path: Path) -> None:
    summary = summary_of(tmp_path, [record(0, due=-5.0, sent=-5.0, chunks=[4.0, 7.0], phase="warmup")])

    assert verdict_line(summary).endswith("next: an answer takes 12.0 s: set load.duration_s=240")


def test_a_window_that_was_cut_short_says_so(tmp_path: Path) -> None:
    path = write_run(tmp_path, answered(60), measure=(0.0, 6.0), config={"load": {"duration_s": 30.0}})

    summary = summarise(load_run(path))

    assert "The window was cut short: 6.00 s of 30.0 s." in headline(summary)


def test_the_headline_names_the_model_that_was_asked(tmp_path: Path) -> None:
    load = {"kind": "closed", "concurrency": 2, "target": "endpoint", "asked_model": "their-model"}
    summary = summary_of(tmp_path, answered(60), manifest={"engine": None, "load": load})

    assert headline(summary).startswith("The server, asked for their-model, served")
    assert summary.identity.model == "their-model"


@pytest.mark.parametrize(
    ("fields", "warning"),
    [
        ({"output_tokens": None, "decode_tokens": None}, "the server counts no tokens in 60 of 60 answers"),
        ({"max_tokens": 16}, "16 output tokens (median) were asked, and 2 came, in 60 of 60 answers fewer than asked"),
        ({"max_tokens": 1}, "in 60 of 60 answers more than asked: max_tokens is not honoured"),
        ({"asked_prompt_tokens": 400}, "prompts of 400 tokens (median) were asked, and the server counts 10"),
        ({"note": "the stream has a field that is not known: delta.x"}, "delta.x (60 of 60 answers)"),
        ({"unseen_tokens": 3}, "the final usage reveals tokens that no chunk carried in 60 of 60 answers (180 tokens)"),
    ],
)
def test_what_the_client_did_not_see_or_get_is_said_with_its_share(
    tmp_path: Path, fields: dict[str, Any], warning: str
) -> None:
    rows = [row | fields for row in answered(60)]

    warnings = summary_of(tmp_path, rows).validity.warnings

    assert any(warning in found for found in warnings), warnings


def test_tokens_that_came_together_are_a_warning(tmp_path: Path) -> None:
    rows = [record(i, due=i * 0.1, sent=i * 0.1, chunks=[i * 0.1 + 0.2], chunk_tokens=[16]) for i in range(60)]

    summary = summary_of(tmp_path, rows)

    assert any("all chunks arrive together in 60 of 60" in found for found in summary.validity.warnings)
    assert summary.latency["itl_s"] is None
    assert summary.latency["tpot_s"] is None


def test_a_server_that_ends_answers_early_is_not_comparable_with_one_that_does_not(tmp_path: Path) -> None:
    early = summary_of(tmp_path, [row | {"max_tokens": 16} for row in answered(60)])

    assert early.asked.output_tokens.deviation == pytest.approx(-14 / 16)
    assert not early.asked.comparable


def test_the_hit_rate_of_the_cache_is_that_of_the_window_and_not_since_the_servers_start(tmp_path: Path) -> None:
    counters = [(0.0, 10_000.0, 0.0), (2.0, 12_000.0, 0.0), (7.0, 14_000.0, 1_000.0), (9.0, 20_000.0, 1_000.0)]
    scraped = [(t, "muai_prefix_lookup_tokens_total", {}, looked_up) for t, looked_up, _ in counters]
    scraped += [(t, "muai_prefix_hit_tokens_total", {}, found) for t, _, found in counters]
    path = write_run(tmp_path, answered(60), measure=(2.0, 8.0), server_metrics=scraped)

    assert summarise(load_run(path)).server.kv_cache_hit_rate == pytest.approx(0.5)


def warnings_of(path: Path, slo: dict[str, float], added_s: float, **fields: Any) -> list[str]:
    """The warnings of 100 requests whose first token takes 150 ms, beside a load generator that may have added some."""
    figures = dict.fromkeys(("mean", "p50", "p90", "p95", "p99"), added_s)
    added = {column: {"figures_s": figures, "marked": []} for column in ("ttft_s", "ttft_from_intended_s")}
    generator = {"verdict": "ok", "reason": None, "cpu_share": 0.1, "send_lag_p99_s": 0.0, "added": added}
    summary = summary_of(path, answered(100, **fields), config={"slo": slo}, manifest={"generator": generator})
    return list(summary.validity.warnings)


@pytest.mark.parametrize(("bound_ms", "decisive"), [(0.001, False), (100.0, False), (140.0, True), (160.0, False)])
def test_own_delays_are_named_only_where_they_can_have_decided_about_the_slo(
    tmp_path: Path, bound_ms: float, *, decisive: bool
) -> None:
    warnings = warnings_of(tmp_path, {"ttft_ms": bound_ms, "quantile": 0.99}, added_s=0.02)

    assert any("may have been missed for that alone" in warning for warning in warnings) == decisive


@pytest.mark.parametrize(("tokens", "noted"), [(1, True), (2, False)])
def test_a_bound_that_applies_to_no_request_is_noted(tmp_path: Path, tokens: int, *, noted: bool) -> None:
    warnings = warnings_of(tmp_path, {"tpot_ms": 1000.0, "quantile": 0.99}, 0.0, output_tokens=tokens)

    assert any("TPOT bound applies to no request" in warning for warning in warnings) == noted


def test_a_closed_loop_that_ran_out_of_requests_says_how_many_fill_the_window(tmp_path: Path) -> None:
    config = {"load": {"duration_s": 30.0}}
    path = write_run(tmp_path, answered(60), measure=(0.0, 6.0), config=config, manifest={"load": {"kind": "closed"}})

    assert "6.00 s of 30.0 s; load.requests=360 fills it." in headline(summarise(load_run(path)))


def test_a_warm_up_that_takes_all_requests_is_not_mended_by_a_longer_window(tmp_path: Path) -> None:
    rows = [record(0, due=-5.0, sent=-5.0, chunks=[-4.0, -3.0], phase="warmup")]
    path = write_run(tmp_path, rows, measure=(0.0, 0.0), config={"load": {"duration_s": 30.0}})

    assert "next: lower load.warmup_s, or raise load.requests" in verdict_line(summarise(load_run(path)))
