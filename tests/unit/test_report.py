"""The report: whole, self-contained, accessible and without secrets, whatever the run was like."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from muai_lab.analysis import load_run
from muai_lab.errors import RunError
from muai_lab.report import render_report, write_report
from muai_lab.report.run_plots import mark_quantiles
from muai_lab.report.svg import new_figure
from tests.unit.synthetic_run import record, simulated, write_run

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Collects what the tests ask about and checks that every element is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "title"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def values(self, attribute: str) -> list[str]:
        return [value for _, attrs in self.elements if (value := attrs.get(attribute)) is not None]

    def tags(self) -> list[str]:
        return [tag for tag, _ in self.elements]


def report_of(path: Path, rows: list[dict[str, Any]], **written: Any) -> Page:
    return Page(render_report(load_run(write_run(path, rows, **written))))


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    slo = {"slo": {"ttft_ms": 200, "tpot_ms": 40}}
    path = simulated(tmp_path_factory.mktemp("run") / "full", rate=22.0, failures=0.005, burst=2, config=slo)
    return render_report(load_run(path))


def test_it_parses_and_every_id_is_unique(html: str) -> None:
    ids = Page(html).values("id")

    assert len(ids) == len(set(ids))
    assert {"content", "latency", "configuration", "timeline-title"} <= set(ids)


def test_it_loads_nothing_from_elsewhere(html: str) -> None:
    page = Page(html)

    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(page.tags())
    assert all(target.startswith("#") for attribute in ("href", "src", "action") for target in page.values(attribute))
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    assert "http://" not in html
    assert "https://" not in html


def test_every_reference_inside_it_leads_somewhere(html: str) -> None:
    page = Page(html)
    ids = set(page.values("id"))

    assert {target[1:] for target in page.values("href")} <= ids
    assert set(re.findall(r"url\(#([^)]+)\)", html)) <= ids
    assert {name for value in page.values("aria-labelledby") for name in value.split()} <= ids


def test_it_is_made_for_everyone(html: str) -> None:
    page = Page(html)
    levels = [int(tag[1]) for tag in page.tags() if re.fullmatch(r"h[1-6]", tag)]
    figures = [attrs for tag, attrs in page.elements if tag == "svg"]

    assert ("html", {"lang": "en"}) in page.elements
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later - earlier <= 1 for earlier, later in pairwise(levels))
    assert page.tags().count("table") == page.tags().count("caption")
    assert all(attrs.get("role") == "img" and attrs.get("aria-labelledby") for attrs in figures)
    assert page.tags().count("desc") == page.tags().count("title") - 1 == len(figures) == 5
    assert ("a", {"class": "skip", "href": "#content"}) in page.elements
    assert "prefers-color-scheme" in html
    assert "@media print" in html


def test_it_says_first_whether_the_run_is_valid_and_what_came_out(html: str) -> None:
    text = Page(html).text

    assert text.index("pytorch answered") < text.index("Valid: run complete") < text.index("Timeline")
    assert "Skipped: vllm" in text
    assert "The SLO was" in text
    assert "of the gaps stand for several tokens" in text
    assert "HTTP 500: engine died" in text


def test_the_same_run_gives_the_same_page(tmp_path: Path) -> None:
    run = load_run(simulated(tmp_path, duration=3.0))

    assert render_report(run) == render_report(run)


def test_what_was_changed_stands_before_everything_else(html: str) -> None:
    text = Page(html).text

    changed, everything = text.split("Settings that differ from the defaults")[1].split("All settings", 1)
    assert "optimization.batcher.max_batch_size 16 32" in changed
    assert "optimization.batcher.batch_timeout_ms" not in changed
    assert "optimization.batcher.batch_timeout_ms 50 50" in everything


def test_secrets_are_never_in_it(tmp_path: Path) -> None:
    rows = [record(0, chunks=[0.1, 0.2]), record(1, status="error", error="401: bad key sk-abcdef1234567890")]
    config = {
        "monitoring": {"anomaly": {"alertmanager_url": "http://user:hunter2@alerts:9093/api?token=hunter3"}},
        "target": {"api_key_env": "hunter5abc"},
    }
    origins = {"monitoring.anomaly.webhook_url": "override", "arrival.rate": "override"}
    write_run(tmp_path, rows, config=config, origins=origins, manifest={"versions": {"api_key": "hunter4"}})

    html = render_report(load_run(tmp_path))

    assert "monitoring.anomaly.webhook_url=..." in html
    for secret in ("T0PS3CRET", "hunter", "sk-abcdef"):
        assert secret not in html


def test_what_comes_from_outside_is_escaped(tmp_path: Path) -> None:
    attack = "<script>alert(1)</script>"
    page = report_of(
        tmp_path,
        [record(0, chunks=[0.1, 0.2]), record(1, status="error", error=attack)],
        manifest={"skipped_engines": [["onnx", attack]], "model": {"name": attack}},
        config={"model": {"name": attack}},
    )

    assert "script" not in page.tags()
    assert page.text.count(attack) >= 3


ONE = [record(0, due=1.0, sent=1.0, chunks=[1.1, 1.2])]


@pytest.mark.parametrize(
    ("rows", "written", "expected"),
    [
        pytest.param([], {}, "No request was due in the measurement window", id="no requests"),
        pytest.param(
            [record(i, due=i * 0.1, sent=i * 0.1, status="error", error=None) for i in range(5)],
            {"config": {"slo": {"ttft_ms": 100}}},
            "None of the 5 requests in the measurement window succeeded",
            id="all failed",
        ),
        pytest.param([record(0, sent=None, status="timeout")], {}, "None of the 1 request in", id="never sent"),
        pytest.param(ONE, {}, "too few samples", id="one request"),
        pytest.param([record(0, chunks=[1.0])], {}, "too few samples", id="one token"),
        pytest.param([record(0, chunks=[])], {}, "No successful request in the measurement window", id="no token"),
        pytest.param(ONE, {"status": "running"}, "NOT VALID, partial: the run never ended", id="killed"),
        pytest.param(ONE, {"measure": (5.0, 5.0)}, "No request was due", id="empty window"),
        pytest.param(
            ONE,
            {"server_metrics": [(0.5, "muai_waiting_requests", {}, float("nan"))]},
            "not recorded",
            id="NaN from the server",
        ),
        pytest.param(
            [record(i, closed=True, due=i * 0.1, sent=i * 0.1, chunks=[i * 0.1 + 0.2] * 3) for i in range(60)],
            {"manifest": {"load": {"kind": "closed", "concurrency": 8}}},
            "to 8 clients that each wait for their answer",
            id="closed loop, all tokens at once",
        ),
        pytest.param(
            ONE,
            {"manifest": dict.fromkeys(("engine", "model", "load", "hardware", "versions", "git", "generator"))},
            "Engine that served not known",
            id="bare manifest",
        ),
    ],
)
def test_it_survives_runs_that_went_wrong(
    tmp_path: Path, rows: list[dict[str, Any]], written: dict[str, Any], expected: str
) -> None:
    assert expected in report_of(tmp_path, rows, **written).text


def test_it_gives_the_command_that_repeats_the_run(tmp_path: Path) -> None:
    origins = {
        "model.name": "model=qwen_chat",
        "arrival.kind": "arrival=poisson",
        "arrival.rate": "override",
        "optimization.engine_preference": "override",
        "optimization.batcher.max_batch_size": "MUAI_OPT_BATCHER_MAX_SIZE",
        "seed": "lab.yaml:3",
    }

    page = report_of(tmp_path, ONE, origins=origins, config={"config_file": "lab.yaml"})

    assert (
        "MUAI_OPT_BATCHER_MAX_SIZE=16 python -m muai_lab run model=qwen_chat arrival=poisson config_file=lab.yaml "
        "'optimization.engine_preference=[vllm,pytorch]' arrival.rate=20.0"
    ) in page.words


def test_it_stays_small_with_many_requests(tmp_path: Path) -> None:
    rows = [
        record(i, due=i * 0.01, sent=i * 0.01, chunks=[i * 0.01 + 0.1 + (i % 97) * 0.003, i * 0.01 + 0.9])
        for i in range(5000)
    ]

    html = render_report(load_run(write_run(tmp_path, rows, measure=(0.0, 50.0))))

    assert len(html) < 500_000
    assert "of 5,000 drawn" in html


def test_it_is_written_whole_beside_the_records(tmp_path: Path) -> None:
    target = write_report(load_run(write_run(tmp_path, ONE)))

    assert target == tmp_path / "report.html"
    assert target.read_text(encoding="utf-8").endswith("</html>")
    assert not list(tmp_path.glob(".*"))


def test_a_directory_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path, ONE))
    (tmp_path / "report.html").mkdir()

    with pytest.raises(RunError, match=r"cannot write .*report\.html"):
        write_report(run)


def test_the_slowest_requests_show_what_the_server_says_of_their_phases(tmp_path: Path) -> None:
    rows = [
        record(
            i, due=float(i), sent=i + 0.01, chunks=[i + 0.5, i + 0.9], server_queue_ns=300_000_000 + i,
            server_prefill_ns=150_000_000,
        )
        for i in range(3)
    ]  # fmt: skip

    page = report_of(tmp_path, rows)

    assert "of which queue" in page.text
    assert {"lag", "queue", "prefill", "between", "decode"} <= set(page.values("class"))
    assert "300 150 400 900" in page.text  # queue, prefill, decode, total


def test_a_server_that_says_nothing_of_its_phases_gets_one_for_all_of_them(tmp_path: Path) -> None:
    page = report_of(tmp_path, [record(0, due=0.0, sent=0.01, chunks=[0.5, 0.9])])

    assert "of which queue" not in page.text
    assert "does not report the time in its queue" in page.text


@pytest.mark.parametrize(
    ("p50", "p99"), [(10.0, 90.0), (49.0, 51.0), (1.0, 3.0), (97.0, 99.0), (50.0, 50.0), (2.0, 40.0), (59.0, 83.0)]
)
def test_the_names_of_p50_and_p99_neither_touch_each_other_nor_the_other_line(p50: float, p99: float) -> None:
    axes = new_figure(4.3, 2.3).subplots()
    axes.stairs(np.ones(60), np.linspace(0.0, 100.0, 61))

    mark_quantiles(axes, {"p50": p50, "p99": p99}, 20.0)

    renderer = axes.figure.canvas.get_renderer() if hasattr(axes.figure.canvas, "get_renderer") else None
    first, second = (text.get_window_extent(renderer) for text in axes.texts)
    frame = axes.get_window_extent()
    assert not first.overlaps(second)
    for box, line in ((first, axes.lines[1]), (second, axes.lines[0])):
        end = line.get_window_extent(renderer)
        assert not (box.x0 < end.x0 < box.x1 and end.y1 > box.y0 + 1.0) or p50 == p99
        assert frame.x0 - 1.0 <= box.x0
        assert box.x1 <= frame.x1 + 1.0


def test_a_window_that_could_show_only_large_rises_says_so_without_intervals() -> None:
    from muai_lab.analysis.summary_schema import ReportedTrend
    from muai_lab.report.run_page import _trends

    precise = ReportedTrend(signal="TTFT", change=0.01, low=-0.05, high=0.08, smallest_found=0.2)
    weak = ReportedTrend(signal="requests in flight", change=-0.3, low=-1.3, high=0.74, smallest_found=2.172)

    assert _trends([precise, weak]) == [
        "TTFT changed by -5 % to +8 % (a rise by 20 % would have shown)",
        "too short to show any but large rises: requests in flight +217 %",
    ]
