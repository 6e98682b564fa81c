"""`compare`: differences between A and B, or between the configurations of a sweep."""

from __future__ import annotations

import argparse
import glob
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from muai_lab.commands.terminal import command_parser, say
from muai_lab.errors import MuaiError, RunError

if TYPE_CHECKING:
    from muai_lab.analysis.comparison import Comparison
    from muai_lab.analysis.noise_history import NoiseHistory
    from muai_lab.analysis.regression import Condition, RegressionOutcome

SUMMARY = "report if runs differ, with intervals; for CI, too"
REGRESSION = 1

_EPILOG = """\
A and B are run directories, directories that hold repeats of one configuration, or patterns in quotes
('runs/*/batcher=off/*'). A is the baseline. A alone is the directory of a sweep: its table, as `run -m` ended with.

Invalid runs are left out. --include-invalid shows their figures, marked, and no verdict that rests on them.

One run of each side gives the changes and no verdict; --fail-on then needs the noise between runs from elsewhere:
the history of this machine (kept in MUAI_CACHE_DIR), or from --noise.

exit status: 0 no regression; 1 a regression: a broken condition of --fail-on, or without --fail-on any figure
that is worse; 2 a mistake, runs that cannot be compared, or a condition that cannot be judged

--fail-on conditions (docs/compare.md has the grammar):
  p50 ttft +5%      the median time to first token rose by more than 5 %
  p99 e2e +20ms     the 99th percentile of the end-to-end latency rose by more than 20 ms
  tokens -3%        output tokens per second fell by more than 3 %
  attainment -1pp   the share of requests that met the SLO fell by more than a percentage point

examples:
  python -m muai_lab compare runs/2026-01-31/A runs/2026-01-31/B
  python -m muai_lab compare runs/2026-01-31/12-00-00-sweep --include-invalid
  python -m muai_lab compare 'runs/base/*' 'runs/new/*' --fail-on 'p50 ttft +5%' --fail-on 'goodput -3%'
"""


def main(argv: Sequence[str]) -> int:
    """Compare two runs or groups of repeats, or the configurations of a sweep; return the exit status."""
    args = _parser().parse_args(argv)
    return _show_sweep(args) if args.b is None else _show_comparison(args)


def _show_comparison(args: argparse.Namespace) -> int:
    from muai_lab.analysis.change import WORSE
    from muai_lab.analysis.comparison_document import comparison_document
    from muai_lab.analysis.documents import clean
    from muai_lab.analysis.regression import judge, parse_condition
    from muai_lab.report.comparison_sheet import comparison_sheet

    conditions = [parse_condition(text) for text in args.fail_on]
    comparison = _compare(args, conditions)
    outcomes: list[RegressionOutcome] = [] if comparison.reasons else judge(conditions, comparison)
    if args.html is not None:
        from muai_lab.report.comparison_page import render_comparison
        from muai_lab.report.page import write_page

        write_page(args.html, render_comparison(comparison, outcomes))
    if args.json:
        document = comparison_document(comparison)
        document["conditions"] = [
            {"condition": outcome.condition.text, "broken": outcome.broken, "because": outcome.because}
            for outcome in outcomes
        ]
        sys.stdout.write(json.dumps(clean(document), indent=2, allow_nan=False) + "\n")
    else:
        comparison_sheet(comparison, outcomes).show(Console())
    if comparison.reasons:
        return MuaiError.exit_status
    worse = any(one.verdict == WORSE for one in comparison.differences)
    broken = any(outcome.broken for outcome in outcomes) if conditions else worse
    return REGRESSION if broken else 0


def _show_sweep(args: argparse.Namespace) -> int:
    from muai_lab.analysis import find_runs, load_run
    from muai_lab.analysis.configurations import record_sweep_noise
    from muai_lab.analysis.frames import in_order
    from muai_lab.report import comparison_table
    from muai_lab.report.page import write_page
    from muai_lab.report.sweep_page import render_sweep_report

    of_two = ("fail_on", "across", "json", "primary", "noise")
    for_two = [f"--{name.replace('_', '-')}" for name in of_two if getattr(args, name)]
    if for_two:
        raise MuaiError(f"{', '.join(for_two)} needs two sides: name a run to compare with {args.a}")
    places = _places(args.a)
    runs = in_order(map(load_run, find_runs(places)))
    if len(runs) == 1:
        raise MuaiError(f"{args.a} holds one run: name another to compare with it, or the directory of a sweep")
    history = _history(args)
    if args.html is not None:
        write_page(args.html, render_sweep_report(runs, args.html.parent, name=places[0].name, history=history))
    comparison_table(runs, include_invalid=args.include_invalid, history=history).show(Console())
    if failure := record_sweep_noise(runs, history):
        say(Console(stderr=True), f"note: {failure}")
    return 0


def _compare(args: argparse.Namespace, conditions: Sequence[Condition]) -> Comparison:
    from muai_lab.analysis.comparison import compare, record_noise
    from muai_lab.analysis.key_figures import COMPARED, NEEDS_SLO
    from muai_lab.analysis.pairing import load_group
    from muai_lab.analysis.regression import parse_figure

    primary = None if args.primary is None else parse_figure(args.primary).name
    history = _history(args)
    a, b = (load_group(_places(pattern), pattern) for pattern in (args.a, args.b))
    asked = [condition.figure.name for condition in conditions]
    with_slo = any(run.slo for run in (a.runs[0], b.runs[0]))
    usual = [name for name in COMPARED if with_slo or name not in NEEDS_SLO]
    found = compare(
        a,
        b,
        figures=list(dict.fromkeys([*usual, *asked])),
        primary=primary,
        across=args.across,
        include_invalid=args.include_invalid,
        noise=None if args.noise is None else args.noise / 100.0,
        history=history,
    )
    failure = record_noise(found, history)
    return found if failure is None else replace(found, notes=(*found.notes, failure))


def _history(args: argparse.Namespace) -> NoiseHistory:
    from muai_lab.analysis.noise_history import NO_HISTORY, NoiseHistory

    return NO_HISTORY if args.no_history else NoiseHistory.of_user()


def _places(pattern: str) -> list[Path]:
    """Return the directories that an argument names: one, or all that a pattern matches."""
    if Path(pattern).exists():
        return [Path(pattern)]
    found = [Path(match) for match in sorted(glob.glob(pattern)) if Path(match).is_dir()]
    if not found:
        raise RunError(f"no run found at {pattern}: there is no such directory, and as a pattern it matches none")
    return found


def _percentage(text: str) -> float:
    try:
        value = float(text.strip().removesuffix("%"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a percentage; write --noise 3%") from None
    if not 0.0 <= value < 100.0:
        raise argparse.ArgumentTypeError(f"{text!r} is out of range; write a percentage from 0 to 100, such as 3%")
    return value


def _parser() -> argparse.ArgumentParser:
    from muai_lab.analysis.pairing import DECLARABLE

    parser = command_parser(
        "compare",
        "Compare runs, or groups of repeats: every key figure with its change, interval and verdict.",
        _EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument("a", metavar="A", help="the baseline")
    parser.add_argument("b", metavar="B", nargs="?", help="the runs to compare with it; without B, A is a sweep")
    parser.add_argument(
        "--fail-on", action="append", default=[], metavar="CONDITION", help="a regression that counts; may be repeated"
    )
    parser.add_argument(
        "--across",
        action="append",
        default=[],
        choices=DECLARABLE,
        help="compare although this differs; may be repeated",
    )
    parser.add_argument(
        "--include-invalid", action="store_true", help="show the figures of invalid runs too, marked, without a verdict"
    )
    parser.add_argument(
        "--noise",
        type=_percentage,
        metavar="PERCENT",
        help="declare how much equal runs differ (standard deviation), in place of the history of this machine",
    )
    parser.add_argument(
        "--primary",
        metavar="FIGURE",
        help="the figure that decides, such as 'p99 e2e' (default: goodput with an SLO, else tokens in a closed loop "
        "and 'p50 e2e' in an open loop)",
    )
    parser.add_argument(
        "--no-history",
        action="store_true",
        help="neither use nor extend the history of noise between runs on this machine",
    )
    parser.add_argument("--json", action="store_true", help="print the comparison as JSON")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the comparison as a page, too")
    return parser
