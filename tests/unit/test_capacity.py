"""Around the search for capacity: what it needs, when a probe is lost for sure, and what is shown."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from muai_lab.analysis import load_run
from muai_lab.analysis.attainment import met
from muai_lab.analysis.capacity_schema import CapacityStudy
from muai_lab.errors import SettingsError
from muai_lab.experiment.capacity import check_settings, plan_of
from muai_lab.experiment.capacity_advice import Limits, ending, without_interval
from muai_lab.experiment.capacity_probe import judge_probe
from muai_lab.experiment.capacity_search import CapacitySearch, NextProbe, ProbeOutcome, SearchPlan
from muai_lab.experiment.loss_watch import LossWatch, may_meet
from muai_lab.load.generator import LoadProgress
from muai_lab.load.target import Target
from muai_lab.report.capacity_page import capacity_sheet, render_capacity
from muai_lab.request_record import RequestRecord
from muai_lab.settings.capacity import CapacitySettings
from muai_lab.settings.lab import LabSettings
from muai_lab.slo import Slo, longest_s
from muai_lab.workload.schedule import Schedule, ScheduledRequest
from tests.unit.capacity_document import capacity_document
from tests.unit.synthetic_run import record, write_run
from tests.unit.test_report import Page


def settings(**sections: dict[str, Any]) -> LabSettings:
    return LabSettings.model_validate({"slo": {"ttft_ms": 500}, **sections})


def schedule(count: int, gap_s: float = 0.1, tokens: int = 11) -> Schedule:
    return Schedule.of([ScheduledRequest(i, i * gap_s, "x", None, 1, tokens) for i in range(count)])


def progress(elapsed_s: float, ok: int, failed: int = 0, outstanding: int = 0, phase: str = "measure") -> LoadProgress:
    return LoadProgress(elapsed_s, 100.0, phase, ok + failed + outstanding, ok, failed, outstanding)  # type: ignore[arg-type]


def test_without_an_slo_there_is_no_capacity() -> None:
    assert check_settings(settings()) == Slo(ttft_ms=500)

    with pytest.raises(SettingsError, match=r"slo: .* none is set: choose slo=interactive"):
        check_settings(LabSettings())


@pytest.mark.parametrize("kind", ["closed", "ramp", "steps", "diurnal"])
def test_arrivals_need_one_rate_that_can_be_searched(kind: str) -> None:
    with pytest.raises(SettingsError, match=f"arrival.kind: {kind} has no single rate"):
        check_settings(settings(arrival={"kind": kind}))


@pytest.mark.parametrize(("rate", "seconds"), [(100.0, 30.0), (5.0, 40.0), (0.1, 120.0)])
def test_a_low_rate_gets_a_longer_window_within_reason(rate: float, seconds: float) -> None:
    assert CapacitySearch(plan_of(settings(), 0.99)).search_seconds(rate) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("slo", "tokens", "seconds"),
    [
        (Slo(e2e_ms=900), 11, 0.9),
        (Slo(ttft_ms=500, tpot_ms=50), 11, 1.0),
        (Slo(ttft_ms=500, tpot_ms=50, e2e_ms=700), 11, 0.7),
        (Slo(ttft_ms=500), 1, 0.5),
        (Slo(ttft_ms=500), 11, None),
        (Slo(tpot_ms=50), 11, None),
    ],
)
def test_the_longest_that_a_request_may_take(slo: Slo, tokens: int, seconds: float | None) -> None:
    assert longest_s(slo, tokens) == (None if seconds is None else pytest.approx(seconds))


def test_a_watched_endpoint_is_still_known_by_its_model() -> None:
    class Endpoint:
        model = "theirs"

    def watched(target: object) -> object:
        watch = LossWatch(Slo(ttft_ms=500), 1.0, start_s=0.0, length_s=1.0)
        return getattr(watch.over(cast("Target", target)), "model", "not found")

    assert (watched(Endpoint()), watched(object())) == ("theirs", None)


class TestAProbeIsLost:
    SLO = Slo(ttft_ms=500, tpot_ms=50, quantile=0.9)

    def test_when_more_requests_are_late_than_may_be(self) -> None:
        # Given a window of 100 requests, 10 of which may miss, that take a second at most
        look, plan = LossWatch(self.SLO, 10.0, start_s=0.0, length_s=10.0).look, schedule(100)

        # Then nothing is said while those that are due for more than a second are nearly all answered
        assert look(progress(0.0, 0), plan) is None
        assert look(progress(5.0, 30, outstanding=20), plan) is None
        # And the end is clear when 16 of them are not, five more than may be
        assert look(progress(5.0, 25, outstanding=25), plan) is None
        reason = look(progress(5.0, 24, outstanding=26), plan)
        assert reason is not None
        assert reason.startswith("over capacity: at least 16 of 100 requests miss the SLO at 10 requests/s, and 10 may")

    def test_when_more_requests_failed_than_may(self) -> None:
        slo = Slo(tpot_ms=50, quantile=0.9)
        look, plan = LossWatch(slo, 10.0, start_s=0.0, length_s=10.0).look, schedule(100)

        look(progress(0.0, 0), plan)

        assert look(progress(9.0, 70, failed=15), plan) is None
        assert look(progress(9.0, 70, failed=16), plan) is not None

    def test_but_not_by_what_may_belong_to_the_warm_up(self) -> None:
        # Given 50 requests of the warm-up, 20 of them under way when the window begins
        look, plan = LossWatch(self.SLO, 10.0, start_s=5.0, length_s=10.0).look, schedule(150)

        assert look(progress(4.0, 0, failed=30, phase="warmup"), plan) is None
        assert look(progress(5.0, 0, failed=30, outstanding=20), plan) is None

        # Then 35 more failures may be 20 of those and 15 of the window's
        assert look(progress(14.0, 90, failed=65), plan) is None
        assert look(progress(14.0, 89, failed=66), plan) is not None

    def test_by_requests_that_were_answered_too_late(self) -> None:
        # Given requests that all end, but after 0.6 s instead of 0.5 s
        watch, plan = LossWatch(Slo(e2e_ms=500, quantile=0.9), 10.0, start_s=1.0, length_s=10.0), schedule(110)
        for request in plan:
            watch.begins(request, record_of(request, after_s=0.6))
            watch.ends(request, record_of(request, after_s=0.6))
            if watch.look(progress(request.intended_s or 0.0, ok=0), plan):
                break

        # Then the sixteenth of the window's hundred is one too many, and those of the warm-up do not count
        assert request.index == 10 + 15

    def test_by_requests_under_way_that_have_no_first_token_yet(self) -> None:
        watch, plan = LossWatch(Slo(ttft_ms=500, quantile=0.9), 10.0, start_s=0.0, length_s=10.0), schedule(100)
        for request in list(plan)[:30]:
            watch.begins(request, RequestRecord(request.index, max_tokens=11))

        assert watch.look(progress(2.0, ok=0, outstanding=10), plan) is None
        assert watch.look(progress(2.1, ok=0, outstanding=11), plan) is not None

    def test_but_not_by_answers_whose_tokens_the_client_counts_after_the_load(self) -> None:
        # Given a server that counts no tokens, and answers of three chunks in 0.2 s
        watch = LossWatch(Slo(ttft_ms=500, tpot_ms=50, quantile=0.9), 10.0, start_s=0.0, length_s=10.0)
        plan = schedule(100)
        watch.look(progress(0.0, ok=0), plan)
        for request in plan:
            answered = uncounted(request, texts=["a b", " c", " d e"])
            watch.begins(request, answered)
            watch.ends(request, answered)
        assert watch.look(progress(10.0, ok=100), plan) is None

        # When no tokenizer was named either, then no answer is judgeable
        for request in plan:
            answered = uncounted(request, texts=None)
            watch.begins(request, answered)
            watch.ends(request, answered)
        assert watch.look(progress(10.0, ok=100), plan) is not None


def uncounted(request: ScheduledRequest, texts: list[str] | None) -> RequestRecord:
    due_ns = round((request.intended_s or 0.0) * 1e9)
    answered = RequestRecord(request.index, max_tokens=8, intended_ns=due_ns)
    answered.texts = texts
    answered.chunk_t_ns.extend([due_ns + 100_000_000, due_ns + 200_000_000, due_ns + 300_000_000])
    answered.fill_chunks(None)
    answered.end("ok", due_ns + 300_000_000)
    return answered


def record_of(request: ScheduledRequest, after_s: float) -> RequestRecord:
    due_ns = round((request.intended_s or 0.0) * 1e9)
    answered = RequestRecord(request.index, max_tokens=1, intended_ns=due_ns)
    answered.chunk_t_ns.append(due_ns + round(after_s * 1e9))
    answered.output_tokens = 1
    answered.end("ok", due_ns + round(after_s * 1e9))
    return answered


@pytest.mark.parametrize("slo", [Slo(ttft_ms=50), Slo(e2e_ms=149), Slo(tpot_ms=40), Slo(ttft_ms=51, tpot_ms=50.1)])
def test_one_record_is_judged_as_the_analysis_judges_all(tmp_path: Path, slo: Slo) -> None:
    rows = [record(0, due=1.0, sent=1.0, chunks=[1.05, 1.1, 1.15]), record(1, due=2.0, sent=2.0, status="error")]
    run = load_run(write_run(tmp_path, rows))
    records = []
    for row in rows:
        one = RequestRecord(row["index"], max_tokens=3, intended_ns=row["intended_ns"])
        one.chunk_t_ns.extend(row["chunk_t_ns"])
        one.fill_chunks(row["chunk_tokens"])
        one.output_tokens = row["output_tokens"]
        one.end(row["status"], 0)
        records.append(one)

    assert [may_meet(one, slo) for one in records] == met(run.requests, slo).tolist()


def test_a_stopped_probe_counts_only_what_was_decided(tmp_path: Path) -> None:
    # Given a probe stopped after 5 s, in which nothing was answered after 3 s
    rows = [record(i, due=i * 0.1, sent=i * 0.1, chunks=[i * 0.1 + 0.05]) for i in range(30)]
    rows += [record(i, due=i * 0.1, sent=i * 0.1, status="cancelled") for i in range(30, 50)]
    rows[35] |= {"status": "timeout"}
    run = load_run(write_run(tmp_path / "probe-00", rows, measure=(0.0, 5.0), status="partial"))
    slo = Slo(e2e_ms=1000)

    probe = judge_probe(run, slo, 0, NextProbe(10.0, 0.0, 10.0, edge=True), stopped="over capacity: …")

    # Then the requests of the last second do not count, unless they ended: they might still have made it
    assert sum(probe.outcome.met) == 30
    assert sum(probe.outcome.due) == pytest.approx(40, abs=1)
    assert probe.figures["goodput"] is None


def generator(verdict: str = "ok", added_s: float = 0.0) -> dict[str, Any]:
    figures = dict.fromkeys(("mean", "p50", "p90", "p95", "p99"), added_s)
    added = {"ttft_from_intended_s": {"figures_s": figures, "marked": []}}
    return {"verdict": verdict, "reason": None, "cpu_share": 0.1, "send_lag_p99_s": 0.001, "added": added}


@pytest.mark.parametrize(
    ("near", "stated", "edge", "counts"),
    [
        (0, generator(), True, True),
        # 30 ms of 500 ms are more than is tolerated, but 20 of 40 requests are late by far more than that.
        (0, generator(added_s=0.03), True, True),
        (2, generator(added_s=0.03), True, True),
        (3, generator(added_s=0.03), True, False),
        (3, generator(added_s=0.03), False, False),
        (0, generator("client_saturated"), True, False),
    ],
)
def test_a_probe_counts_unless_the_client_can_explain_its_misses(
    tmp_path: Path, near: int, stated: dict[str, Any], edge: bool, counts: bool
) -> None:
    # Given 20 answers in time, and 20 late ones, of which `near` would be in time without the client's part
    ttft_s = [0.1] * 20 + [0.51] * near + [0.9] * (20 - near)
    rows = [record(i, due=i * 0.2, sent=i * 0.2, chunks=[i * 0.2 + wait]) for i, wait in enumerate(ttft_s)]
    run = load_run(write_run(tmp_path / "probe-00", rows, manifest={"generator": stated}))

    probe = judge_probe(run, Slo(ttft_ms=500), 0, NextProbe(5.0, 0.0, 10.0, edge=edge))

    assert probe.outcome.attainment == 0.5
    assert probe.counts(0.95) == counts


def test_a_short_probe_that_keeps_the_slo_counts_however_late_the_client_was(tmp_path: Path) -> None:
    rows = [record(i, due=i * 0.2, sent=i * 0.2, chunks=[i * 0.2 + 0.1]) for i in range(40)]
    run = load_run(write_run(tmp_path / "probe-00", rows, manifest={"generator": generator("client_saturated")}))

    short, long = (
        judge_probe(run, Slo(ttft_ms=500), 0, NextProbe(5.0, 0.0, 10.0, edge=edge)) for edge in (False, True)
    )

    assert short.counts(0.95)
    assert not long.counts(0.95)
    assert long.doubt == "the load generator could not offer 5 requests/s"


def study(**changes: Any) -> CapacityStudy:
    return msgspec.convert(capacity_document(**changes), CapacityStudy)


def test_the_sheet_begins_with_the_capacity_and_its_interval() -> None:
    sheet = capacity_sheet(study())

    assert sheet.verdict == "pytorch carries 17.2 requests/s within the SLO (15.0 to 20.1)"
    assert sheet.good
    assert dict(sheet.facts)["SLO"] == "TTFT <= 500 ms, TPOT <= 50 ms for 99 % of the requests"
    assert [row[0] for row in sheet.grids[0].rows] == ["8.00", "16.0", "32.0"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"capacity_rps": {"value": None, "low": None, "high": None}}, "does not meet the SLO, not even at 8.00"),
        (
            {"capacity_rps": {"value": 32.0, "low": None, "high": None}, "end_found": False},
            "at 32.0 requests/s, and its end was not found (in windows of 10.0 s)",
        ),
        ({"capacity_rps": {"value": 17.2, "low": None, "high": None}}, "17.2 requests/s within the SLO (no inter"),
        ({"status": "partial", "ended": "interrupted"}, "PARTIAL: pytorch carries 17.2"),
        ({"capacity_rps": None, "interval": None}, "no capacity: only short probes count, and short windows"),
        (
            {"capacity_rps": None, "bracket_rps": {"kept": None, "lost": 8.0}},
            "no capacity: the load generator was late in 3 probes at 16.0, 32.0, 8.00 requests/s",
        ),
        ({"capacity_rps": None, "probes": []}, "no capacity: nothing was measured"),
    ],
)
def test_the_first_line_says_what_is_not_known(changes: dict[str, Any], said: str) -> None:
    assert said in capacity_sheet(study(**changes)).verdict


@pytest.mark.parametrize(
    ("starts", "can_restart", "said"),
    [
        (10, True, "each of the 10 long probes had its own"),
        (1, True, "this server start only: another start may carry some percent more or less (capacity.restarts=true"),
        (1, False, "this server start only: another start may carry some percent more or less (an endpoint is never"),
    ],
)
def test_the_sheet_says_for_which_server_starts_the_interval_holds(starts: int, can_restart: bool, said: str) -> None:
    made = msgspec.to_builtins(study().interval) | {"server_starts": starts, "can_restart": can_restart}

    sheet = capacity_sheet(study(interval=made))

    assert said in dict(sheet.facts)["holds for"]
    assert ("of this server start" in sheet.verdict) == (starts == 1)


def test_rates_of_short_probes_alone_are_no_good_result() -> None:
    sheet = capacity_sheet(study(capacity_rps=None, interval=None))

    assert not sheet.good
    assert "capacity" not in dict(sheet.facts)
    assert dict(sheet.facts)["short probes"] == "met at 16.0, not met at 32.0 requests/s"


class TestAStudyWithoutInterval:
    """The reason stands in the result, with settings that would do."""

    PLAN = SearchPlan(quantile=0.9, start_rate=10.0, resolution=1.1, repeats=10)

    def search(self, edges: int, memory_s: float = 0.5, longest_s: float = 900.0) -> CapacitySearch:
        search = CapacitySearch(replace(self.PLAN, edge_longest_s=longest_s))
        for rate, share in ((10.0, 1.0), (20.0, 0.2), (14.0, 1.0), (16.0, 0.5), (15.0, 1.0)):
            search.add(ProbeOutcome(rate, (200,), (round(200 * share),), 30.0, memory_s))
        for number in range(edges):
            share = 0.93 if number % 2 else 0.87
            rate = 15.2 if number % 2 else 15.8
            search.add(ProbeOutcome(rate, (60,) * 5, (round(60 * share),) * 5, 30.0, memory_s, edge=True))
        return search

    def said(self, search: CapacitySearch, limit: Limits | None = None, **changes: Any) -> str:
        capacity = CapacitySettings(**changes)
        assert search.capacity().low is None
        return without_interval(search, limit, capacity, spent_s=170.0, start_s=5.0)

    def test_names_a_budget_that_would_do(self) -> None:
        search = self.search(edges=2)

        assert ending(search, Limits.BUDGET, CapacitySettings(budget_s=240)) == (
            "the budget of 240 s was used up after 2 of 10 long probes"
        )
        # 170 s are spent; 8 long probes of 36 s, with 7 s for start and drain, and 15 % more
        assert self.said(search, Limits.BUDGET, budget_s=240) == (
            "no interval: 6 long probes are needed, and 2 were made at the edge; capacity.budget_s=570 would probably "
            "do (with --dir, finished probes are kept)"
        )

    def test_names_a_number_of_probes_that_would_do(self) -> None:
        assert "capacity.max_probes=17 would" in self.said(self.search(edges=2), Limits.PROBES, max_probes=7)

    def test_names_the_length_of_windows_that_would_do(self) -> None:
        said = self.said(self.search(edges=10, memory_s=9.0, longest_s=30.0))

        assert "long probes of at most 30 s are too short, as state persists for about 9 s" in said
        assert "capacity.edge_longest_s=180 would do" in said

    def test_names_the_repeats_that_make_too_few(self) -> None:
        assert "capacity.repeats=2 makes too few long probes, 6 or more give one" in self.said(
            self.search(edges=2), repeats=2
        )

    def test_says_so_if_no_long_probe_counts(self) -> None:
        assert self.said(self.search(edges=0)) == "no interval: no long probe that counts was made"

    def test_says_so_if_no_rate_keeps_the_slo_or_none_breaks_it(self) -> None:
        lost, kept = CapacitySearch(self.PLAN), CapacitySearch(self.PLAN)
        lost.add(ProbeOutcome(10.0, (100,), (50,)))
        kept.add(ProbeOutcome(10.0, (100,), (100,)))

        assert self.said(lost).startswith("no rate from 10 requests/s on keeps the SLO; capacity.lowest_rate")
        assert self.said(kept).startswith("no rate up to 10 requests/s breaks the SLO; capacity.highest_rate")
        assert "no rate was found yet that keeps the SLO" in self.said(lost, Limits.BUDGET, budget_s=9)
        assert "no rate was found yet that breaks the SLO" in self.said(kept, Limits.PROBES, max_probes=1)


@pytest.mark.parametrize("changes", [{}, {"capacity_rps": None, "probes": []}, {"engine": None}])
def test_the_page_is_whole_whatever_came_of_it(tmp_path: Path, changes: dict[str, Any]) -> None:
    page = Page(render_capacity(study(**changes), tmp_path))

    assert "crosses the required share" in page.text
    assert not {"script", "link", "img"} & set(page.tags())
    assert math.isclose(len(set(page.values("id"))), len(page.values("id")))
