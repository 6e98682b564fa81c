"""The errors of the ruler: our load generator, and others, against a server that records its own latencies.

    python -m benchmarks.ruler [--peers] [--seconds 5] [--repeats 3] [--results FILE] [--document PAGE] [--plot FILE]
    python -m benchmarks.ruler --read FILE [FILE ...] [--document PAGE] [--plot FILE]

A reference server in a process of its own answers 16 tokens after a fixed time and stamps what it really did. Peak: 64
connections, answers without any delay. Rising rates: Poisson arrivals, 50 ms to the first token, 10 ms between tokens.
The error of a tool is the quantile that it reports minus the same quantile of the server's stamps of the same run: late
timers of the server are in both, and cancel out. Repeats are interleaved over the tools; tables show their medians.
`make peers` makes the environments of the other tools.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.document import replace_part
from benchmarks.peers import PEERS, Case, Reported
from muai_lab import __version__
from muai_lab.load.event_loop import run_on_fast_loop
from muai_lab.load.generator import generate
from muai_lab.load.openai_http import HttpTarget
from muai_lab.load.plan import LoadPlan
from muai_lab.models.registry import resolve_model
from muai_lab.workload.arrival import poisson
from muai_lab.workload.randomness import RandomStreams
from muai_lab.workload.schedule import Schedule, ScheduledRequest

OURS = "muai_lab"
PEAK = Case("peak", 0.0, 0.0, None, 4.0)
CHUNKS = Case("chunks", 0.0, 0.0, None, 4.0, tokens=256)
RATES = (100.0, 400.0, 1000.0, 1600.0)
PEER_RATES = (100.0, 400.0, 1000.0)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One tool on one case, once. true_*: from the server's stamps. failed: why there is no result."""

    tool: str
    case: str
    asked_per_s: float | None
    delivered_per_s: float | None = None
    reported: Reported | None = None
    true_ttft_p50_ms: float | None = None
    true_ttft_p99_ms: float | None = None
    true_tpot_p50_ms: float | None = None
    chunks_per_s: float | None = None
    failed: str | None = None


@contextmanager
def reference_server(case: Case) -> Iterator[str]:
    """A reference server in a process of its own; gives its address."""
    command = [sys.executable, "-m", "muai_lab", "reference-server"]
    command += ["--ttft-ms", str(case.ttft_ms), "--itl-ms", str(case.itl_ms)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"]
        process.terminate()


def take_stamps(url: str) -> list[dict[str, Any]]:
    """Return the server's stamps since the last call, without the probes of a tool that looks first."""
    with urllib.request.urlopen(f"{url}/stamps") as response:
        return [stamp for stamp in json.load(response) if stamp["tokens"] > 1]


def schedule_of(case: Case, seconds: float) -> Schedule:
    prompt = np.arange(1000, 1000 + case.prompt_tokens, dtype=np.int32)
    if case.rate is None:
        times: Sequence[float | None] = [None] * int(10_000 * seconds * min(1.0, 64 / case.tokens))
    else:
        times = poisson(case.rate, seconds, RandomStreams(0).stream("arrivals")).tolist()
    return Schedule.of(
        [ScheduledRequest(index, at_s, None, prompt, len(prompt), case.tokens) for index, at_s in enumerate(times)]
    )


def measure_ours(url: str, case: Case) -> Reported:
    """Our own generator, in one process. Everything sent counts, as it does for the others."""
    plan = LoadPlan(
        warmup_s=0.0, duration_s=case.seconds, drain_s=20.0, request_timeout_s=20.0, concurrency=case.concurrency
    )
    result = run_on_fast_loop(generate(schedule_of(case, case.seconds), HttpTarget(url, model="reference"), plan))
    ok = [record for record in result.records if record.status == "ok"]
    ttft = np.array([record.first_content_ns - record.sent_ns for record in ok]) / 1e6
    tpot = np.array([record.last_token_ns - record.first_content_ns for record in ok]) / 1e6 / (case.tokens - 1)
    report = result.generator
    return Reported(
        ttft_p50_ms=_quantile(ttft, 0.5),
        ttft_p99_ms=_quantile(ttft, 0.99),
        tpot_p50_ms=_quantile(tpot, 0.5),
        warning=None if report.verdict == "ok" else f"{report.verdict}: {report.reason}",
        send_lag_p99_ms=None if report.send_lag_p99_s is None or case.rate is None else report.send_lag_p99_s * 1e3,
        cpu_share=report.cpu_share,
    )


def measure(tool: str, case: Case, run: Callable[[str], Reported]) -> Outcome:
    """Run one tool on one case and hold what it says against the server's stamps."""
    with reference_server(case) as url:
        take_stamps(url)
        try:
            reported = run(url)
        except (RuntimeError, subprocess.TimeoutExpired, OSError, KeyError, ValueError) as error:
            return Outcome(tool, case.name, case.rate, failed=f"{type(error).__name__}: {error}")
        stamps = take_stamps(url)
    if not stamps:
        return Outcome(tool, case.name, case.rate, failed="no request reached the server")
    received = np.array([stamp["received_ns"] for stamp in stamps])
    first = np.array([stamp["first_token_ns"] for stamp in stamps])
    last = np.array([stamp["last_token_ns"] for stamp in stamps])
    tokens = np.array([stamp["tokens"] for stamp in stamps])
    span_s = float(received.max() - received.min()) / 1e9
    ttft, tpot = (first - received) / 1e6, (last - first) / 1e6 / (tokens - 1)
    return Outcome(
        tool,
        case.name,
        case.rate,
        delivered_per_s=len(stamps) / span_s,
        reported=reported,
        true_ttft_p50_ms=_quantile(ttft, 0.5),
        true_ttft_p99_ms=_quantile(ttft, 0.99),
        true_tpot_p50_ms=_quantile(tpot, 0.5),
        chunks_per_s=float(tokens.sum()) / span_s,
    )


def _quantile(values: np.ndarray, q: float) -> float:
    return float(np.quantile(values, q))


def run_all(seconds: float, repeats: int, *, peers: bool, say: Callable[[str], None]) -> list[Outcome]:
    """All cases of all tools, `repeats` times, interleaved."""
    tokenizer = resolve_model("qwen_chat", None).path
    others = [peer for peer in PEERS if peer.available()] if peers else []
    missing = [peer.name for peer in PEERS if peer not in others] if peers else []
    if missing:
        say(f"not there, run `make peers` first: {', '.join(missing)}")
    outcomes = []
    for repeat in range(repeats):
        for case in _cases(seconds):
            say(f"{repeat + 1}/{repeats} {case.name}")
            outcomes.append(measure(OURS, case, lambda url, case=case: measure_ours(url, case)))
            if case.tokens != PEAK.tokens or (case.rate is not None and case.rate not in PEER_RATES):
                continue
            for peer in others:
                with tempfile.TemporaryDirectory() as scratch:
                    outcome = measure(
                        peer.name,
                        case,
                        lambda url, case=case, peer=peer, scratch=scratch: peer.run(
                            url, case, tokenizer, Path(scratch)
                        ),
                    )
                say(f"    {peer.name}: {outcome.failed or 'done'}")
                outcomes.append(outcome)
    return outcomes


def _cases(seconds: float) -> list[Case]:
    return [PEAK, CHUNKS, *(Case(f"{rate:g}/s", 50.0, 10.0, rate, seconds) for rate in RATES)]


@dataclass(frozen=True, slots=True)
class Row:
    """The medians of a tool's repeats on one case; None if a tool does not report it, or failed."""

    tool: str
    case: str
    asked_per_s: float | None
    delivered_per_s: float | None
    ttft_p50_ms: float | None
    ttft_p50_off_ms: float | None
    ttft_p99_ms: float | None
    ttft_p99_off_ms: float | None
    tpot_off_ms: float | None
    send_lag_p99_ms: float | None
    cpu_share: float | None
    chunks_per_s: float | None
    warned: int
    repeats: int


def rows_of(outcomes: Sequence[Outcome]) -> list[Row]:
    """One row for each tool and case, in the order in which they were measured first."""
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.case, outcome.tool), []).append(outcome)
    return [_row(group) for group in groups.values()]


def _row(group: Sequence[Outcome]) -> Row:
    first = group[0]
    good = [outcome for outcome in group if outcome.reported is not None]

    def middle(of: Callable[[Outcome, Reported], float | None]) -> float | None:
        values = [value for outcome in good if (value := of(outcome, outcome.reported)) is not None]
        return float(np.median(values)) if values else None

    return Row(
        tool=first.tool,
        case=first.case,
        asked_per_s=first.asked_per_s,
        delivered_per_s=middle(lambda outcome, _: outcome.delivered_per_s),
        ttft_p50_ms=middle(lambda _, said: said.ttft_p50_ms),
        ttft_p50_off_ms=middle(lambda outcome, said: _minus(said.ttft_p50_ms, outcome.true_ttft_p50_ms)),
        ttft_p99_ms=middle(lambda _, said: said.ttft_p99_ms),
        ttft_p99_off_ms=middle(lambda outcome, said: _minus(said.ttft_p99_ms, outcome.true_ttft_p99_ms)),
        tpot_off_ms=middle(lambda outcome, said: _minus(said.tpot_p50_ms, outcome.true_tpot_p50_ms)),
        send_lag_p99_ms=middle(lambda _, said: said.send_lag_p99_ms),
        cpu_share=middle(lambda _, said: said.cpu_share),
        chunks_per_s=middle(lambda outcome, _: outcome.chunks_per_s),
        warned=sum(outcome.reported.warning is not None for outcome in good if outcome.reported is not None),
        repeats=len(group),
    )


def _minus(said: float | None, true: float | None) -> float | None:
    return None if said is None or true is None else said - true


_PEAK_COLUMNS = ("tool", "requests/s", "chunks/s", "own CPU share")
_RATE_COLUMNS = (
    "asked/s", "tool", "delivered/s", "TTFT p50", "off by", "TTFT p99", "off by", "TPOT off by", "send lag p99",
    "own CPU", "warned",
)  # fmt: skip


def peak_cells(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    return [
        (
            row.tool if row.case == PEAK.name else f"{row.tool}, {CHUNKS.tokens} tokens a request",
            _cell(row.delivered_per_s, ",.0f"),
            _cell(row.chunks_per_s, ",.0f"),
            _cell(row.cpu_share, ".0%"),
        )
        for row in rows
        if row.asked_per_s is None
    ]


def rate_cells(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    return [
        (
            _cell(row.asked_per_s, ",.0f"),
            row.tool,
            _cell(row.delivered_per_s, ",.0f"),
            _cell(row.ttft_p50_ms, ".2f"),
            _cell(row.ttft_p50_off_ms, "+.2f"),
            _cell(row.ttft_p99_ms, ".2f"),
            _cell(row.ttft_p99_off_ms, "+.2f"),
            _cell(row.tpot_off_ms, "+.3f"),
            _cell(row.send_lag_p99_ms, ".2f"),
            _cell(row.cpu_share, ".0%"),
            f"{row.warned} of {row.repeats}",
        )
        for row in rows
        if row.asked_per_s is not None
    ]


def _cell(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def markdown(rows: Sequence[Row], measured_with: str) -> str:
    """Both tables as Markdown, with what they were measured on."""
    return "\n".join(
        [measured_with, "", *_markdown_table(_PEAK_COLUMNS, peak_cells(rows)), "",
         *_markdown_table(_RATE_COLUMNS, rate_cells(rows))]
    )  # fmt: skip


def _markdown_table(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---" if column == "tool" else "---:" for column in columns]
    return ["| " + " | ".join(line) + " |" for line in (columns, rule, *cells)]


def versions(*, peers: bool) -> dict[str, str]:
    """Of all tools that take part."""
    found = {OURS: __version__}
    return found | ({peer.name: peer.version() for peer in PEERS if peer.available()} if peers else {})


def about(tools: Mapping[str, str], seconds: float, rows: Sequence[Row]) -> str:
    """Describe tools, cores, time and repeats of the figures in one paragraph."""
    return (
        f"Measured with {', '.join(f'{name} {version}' for name, version in tools.items())} on "
        f"{len(os.sched_getaffinity(0))} cores that the server shares; {seconds:g} s a case, medians of "
        f"{max(row.repeats for row in rows)} interleaved repeats; times in milliseconds."
    )


def plot(rows: Sequence[Row], path: Path) -> None:
    """Error of the p99 TTFT, and what arrived, over the rate that was asked for."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (errors, delivered) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    tools = list(dict.fromkeys(row.tool for row in rows))
    for tool, marker in zip(tools, "osD^v", strict=False):
        mine = [row for row in rows if row.tool == tool and row.asked_per_s is not None]
        mine = [row for row in mine if row.ttft_p99_off_ms is not None and row.delivered_per_s is not None]
        if not mine:
            continue
        asked = [row.asked_per_s for row in mine]
        style = {"marker": marker, "label": tool, "linewidth": 2.2 if tool == OURS else 1.4}
        (line,) = errors.plot(asked, [max(abs(row.ttft_p99_off_ms), 0.05) for row in mine], **style)
        delivered.plot(asked, [row.delivered_per_s / row.asked_per_s for row in mine], color=line.get_color(), **style)
        warned = [row for row in mine if 2 * row.warned >= row.repeats]
        errors.plot(
            [row.asked_per_s for row in warned], [max(abs(row.ttft_p99_off_ms), 0.05) for row in warned],
            linestyle="none", marker=marker, markersize=12, fillstyle="none", color=line.get_color(),
        )  # fmt: skip
    errors.set(xscale="log", yscale="log", title="Error of the reported p99 TTFT", ylabel="milliseconds")
    delivered.set(xscale="log", title="Delivered ÷ asked", ylim=(0, 1.1))
    for axes in (errors, delivered):
        axes.set_xlabel("requests per second asked for")
        axes.set_xticks(RATES, [f"{rate:g}" for rate in RATES])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    errors.plot([], [], linestyle="none", marker="o", markersize=12, fillstyle="none", color="gray", label="it warned")
    errors.legend(frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def show(rows: Sequence[Row], console: Console) -> None:
    for title, columns, cells in (
        ("peak: 64 connections, no delay", _PEAK_COLUMNS, peak_cells(rows)),
        ("rising rates: 50 ms + 10 ms, 16 tokens; ms", _RATE_COLUMNS, rate_cells(rows)),
    ):
        table = Table(title=title, title_justify="left")
        for column in columns:
            table.add_column(column, justify="left" if column == "tool" else "right")
        for line in cells:
            table.add_row(*line)
        console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", action="store_true", help="measure vllm bench, aiperf and guidellm as well")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of one case (default 5)")
    parser.add_argument("--repeats", type=int, default=3, help="how often everything is measured (default 3)")
    parser.add_argument("--results", type=Path, help="file for everything measured, as JSON")
    parser.add_argument("--document", type=Path, help="page whose tables are to be replaced")
    parser.add_argument("--plot", type=Path, help="file for the plot")
    parser.add_argument("--read", type=Path, nargs="+", help="show results of earlier calls instead of measuring")
    args = parser.parse_args()
    console, messages = Console(), Console(stderr=True)
    if args.read:
        saved = [json.loads(file.read_text(encoding="utf-8")) for file in args.read]
        tools, seconds = saved[0]["tools"], saved[0]["seconds"]
        outcomes = [outcome_of(entry) for content in saved for entry in content["outcomes"]]
    else:
        tools, seconds = versions(peers=args.peers), args.seconds
        outcomes = run_all(seconds, args.repeats, peers=args.peers, say=messages.print)
    rows = rows_of(outcomes)
    show(rows, console)
    console.print(about(tools, seconds, rows))
    if args.results:
        content = {"tools": tools, "seconds": seconds, "outcomes": [asdict(outcome) for outcome in outcomes]}
        args.results.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if args.document:
        replace_part(args.document, "ruler", markdown(rows, about(tools, seconds, rows)))
    if args.plot:
        plot(rows, args.plot)
    return 1 if any(outcome.failed for outcome in outcomes) else 0


def outcome_of(entry: Mapping[str, Any]) -> Outcome:
    """An outcome from its JSON."""
    reported = entry["reported"]
    return Outcome(**{**entry, "reported": None if reported is None else Reported(**reported)})


if __name__ == "__main__":
    sys.exit(main())
