"""The online tuner over twenty seeded shifts of the workload, in virtual time.

    python -m benchmarks.online_tuner [--only 4,9] [--others 1,2] [--jobs 2] [--document docs/online-tuner.md]
        [--picture PATH --of 4] [--json]

Each scenario runs three ways over the same requests: under the tuner, with the configured values throughout, and with
every fixed configuration of a grid, of which the best counts. Goodput is that of the requests due in an interval of
60 s. Nothing is measured in real time, so the figures are the same on every machine; all twenty take about 15 minutes
of one core, most of it for the grid. `--others` evaluates variants of the twenty besides: other traffic, up to 15 %
more or less of it, and another configured batch size. Two of the tuner's rules were changed after a look at variant 1,
none after variant 2.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from benchmarks.document import replace_part
from benchmarks.tuner_scenarios import (
    ADAPTED,
    INTERVAL_S,
    LENGTH,
    SHIFT,
    Scenario,
    ScenarioVerdict,
    evaluate,
    scenarios,
)
from muai_lab.stack.events import Tuned, TunerNoted
from muai_lab.stack.online.knobs import Knob, Values

GOAL_SHARE, GOAL_BELOW = 0.90, 2
_COLUMNS = (
    "", "shift", "configured", "best fixed", "untuned", "best", "tuned", "of the best", "there after", "below 95 %",
    "kept", "reverted",
)  # fmt: skip
_COLOURS = {"tuned": "#1f77b4", "configured": "#999999", "best fixed": "#2ca02c"}


def in_words(scenario: Scenario, values: Values) -> str:
    """The knobs that this scenario may move: batch, hold, cache."""
    moves = scenario.bounds.reaches
    words = [str(values.max_batch_size)]
    words += [f"{values.batch_timeout_ms} ms"] if Knob.TIMEOUT in moves else []
    words += [f"{values.max_memory_mb} MB"] if Knob.CACHE in moves else []
    return ", ".join(words)


def cells(verdict: ScenarioVerdict) -> list[str]:
    """One row of the table."""
    scenario = verdict.scenario
    return [
        str(scenario.seed),
        scenario.name,
        in_words(scenario, scenario.home),
        in_words(scenario, verdict.best_values),
        f"{verdict.untuned:.2f}",
        f"{verdict.best:.2f}",
        f"{verdict.tuned:.2f}",
        f"{verdict.share:.0%}".replace("%", " %"),
        "never" if verdict.reached is None else str(verdict.reached),
        str(verdict.below),
        str(verdict.kept),
        str(verdict.reverted),
    ]


def summary(verdicts: Sequence[ScenarioVerdict]) -> str:
    """Return the number of scenarios that meet the goals, in words."""
    count = len(verdicts)
    there, safe = sum(map(reaches, verdicts)), sum(map(is_safe, verdicts))
    return (
        f"{there} of {count} have at least {GOAL_SHARE:.0%} of the best fixed configuration's goodput within {ADAPTED} "
        f"intervals of the shift and from there on; {safe} of {count} are never below 95 % of the untuned one for more "
        f"than {GOAL_BELOW} intervals in a row."
    ).replace("90%", "90 %")


def in_markdown(verdicts: Sequence[ScenarioVerdict], others: Sequence[ScenarioVerdict]) -> str:
    """The table for the page, and what there is to say of the variants."""
    rows = [_COLUMNS, ["---"] * len(_COLUMNS), *(cells(verdict) for verdict in verdicts)]
    lines = [*(f"| {' | '.join(row)} |" for row in rows), "", summary(verdicts)]
    return "\n".join([*lines, "", of_variants(others)] if others else lines)


def of_variants(others: Sequence[ScenarioVerdict]) -> str:
    """The summary of the variants, with those that miss a goal."""
    missed = [one for one in others if not (reaches(one) and is_safe(one))]
    words = [
        f"{one.scenario.seed} in variant {one.scenario.variant} ({one.share:.0%} of the best, {one.below} below)"
        for one in missed
    ]
    numbers = sorted({one.scenario.variant for one in others})
    misses = f" A goal is missed by {', '.join(words)}.".replace("% of", " % of") if words else ""
    name = "Variant" if len(numbers) == 1 else "Variants"
    return f"{name} {' and '.join(map(str, numbers))}: {summary(others)}{misses}"


def reaches(verdict: ScenarioVerdict) -> bool:
    """True if it comes near enough to the best, soon enough."""
    return verdict.share >= GOAL_SHARE and verdict.reached is not None and verdict.reached <= ADAPTED


def is_safe(verdict: ScenarioVerdict) -> bool:
    """True if it never costs much for long."""
    return verdict.below <= GOAL_BELOW


def draw(verdict: ScenarioVerdict, path: Path) -> None:
    """Goodput and batch size over time, with each decision of the tuner."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (top, bottom) = plt.subplots(2, 1, figsize=(10, 6), sharex=True, layout="constrained", height_ratios=(3, 2))
    scenario = verdict.scenario
    intervals = range(LENGTH)
    lines: dict[str, tuple[Sequence[int], Sequence[int], float]] = {
        "best fixed": (range(SHIFT, LENGTH), verdict.best_good, 1.6),
        "configured": (intervals, verdict.untuned_outcome.good, 1.6),
        "tuned": (intervals, verdict.outcome.good, 2.4),
    }
    offered = [count / INTERVAL_S for count in verdict.outcome.offered]
    top.stairs(offered, range(LENGTH + 1), color="#dddddd", fill=True, label="offered")
    for name, (at, good, width) in lines.items():
        edges = [*at, at[-1] + 1]
        rates = [count / INTERVAL_S for count in good]
        top.stairs(rates, edges, color=_COLOURS[name], linewidth=width, label=name, baseline=None)
    top.set(ylabel="good requests per second", title=f"{scenario.name.capitalize()}: shift and recovery")
    knob = next((event.knob for event in verdict.outcome.decisions if isinstance(event, Tuned)), Knob.BATCH.value)
    times, values = [0.0], [scenario.home.of(Knob(knob))]
    for event in verdict.outcome.decisions:
        at = event.at / INTERVAL_S
        if isinstance(event, TunerNoted):
            top.axvline(at, color="#d62728" if event.kind == "shift" else "#bbbbbb", linestyle=":", linewidth=1.2)
        elif event.knob == knob and event.outcome != "kept":
            times.append(at)
            values.append(event.after)
        if isinstance(event, Tuned) and event.knob == knob and event.outcome in ("kept", "reverted"):
            kept = event.outcome == "kept"
            tried = event.after if kept else event.before
            bottom.plot(at, tried, "o" if kept else "x", color="#2ca02c" if kept else "#d62728", markersize=8, zorder=3)
    bottom.step([*times, LENGTH], [*values, values[-1]], where="post", color=_COLOURS["tuned"], linewidth=2.0)
    bottom.axhline(scenario.home.of(Knob(knob)), color=_COLOURS["configured"], linestyle="--", linewidth=1.2)
    bottom.axhline(verdict.best_values.of(Knob(knob)), color=_COLOURS["best fixed"], linestyle="--", linewidth=1.2)
    if knob == Knob.BATCH.value:
        ticks = sorted({1, 2, 4, 8, 16, 32, 64, *values} - {48})
        bottom.set_yscale("log", base=2)
        bottom.set_yticks([tick for tick in ticks if min(values) <= tick <= max(values)], minor=False)
        bottom.yaxis.set_major_formatter("{x:.0f}")
    bottom.plot([], [], "o", color="#2ca02c", label="trial kept")
    bottom.plot([], [], "x", color="#d62728", label="trial reverted")
    bottom.plot([], [], ":", color="#d62728", label="shift noticed")
    bottom.plot([], [], ":", color="#bbbbbb", label="rests")
    bottom.set(xlabel=f"intervals of {INTERVAL_S:g} s", ylabel=knob, xlim=(0, LENGTH))
    for axes in (top, bottom):
        axes.grid(alpha=0.3)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Evaluate, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="numbers of the scenarios to run, with commas")
    parser.add_argument("--others", default="", help="variants to evaluate besides, with commas")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--document", type=Path, help="page whose table is replaced")
    parser.add_argument("--picture", type=Path, help="file for the picture of one scenario")
    parser.add_argument("--of", type=int, default=4, help="which one (default 4)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    wanted = None if options.only is None else {int(number) for number in options.only.split(",")}
    variants = [0, *(int(number) for number in options.others.split(",") if number)]
    chosen = [one for variant in variants for one in scenarios(variant) if wanted is None or one.seed in wanted]
    both: list[ScenarioVerdict] = []
    with ProcessPoolExecutor(options.jobs) as pool:
        for verdict in pool.map(evaluate, chosen):
            both.append(verdict)
            if not options.json:
                sys.stdout.write(" | ".join([f"variant {verdict.scenario.variant}", *cells(verdict)]) + "\n")
                sys.stdout.flush()
    verdicts = [verdict for verdict in both if not verdict.scenario.variant]
    others = [verdict for verdict in both if verdict.scenario.variant]
    if options.json:
        rows = [dict(zip(_COLUMNS, ["", *cells(verdict)[1:]], strict=True)) for verdict in both]
        sys.stdout.write(json.dumps(rows) + "\n")
    else:
        sys.stdout.write(summary(verdicts) + "\n")
        sys.stdout.write(of_variants(others) + "\n" if others else "")
    if options.document:
        replace_part(options.document, "tuner table", in_markdown(verdicts, others))
    for verdict in verdicts:
        if options.picture and verdict.scenario.seed == options.of:
            draw(verdict, options.picture)


if __name__ == "__main__":
    main()
