"""The worth of tuning: the confirmed configuration against the specification's defaults.

    python -m benchmarks.tuned_against_defaults [--engines onnx,pytorch] [--cases chat,conversations,batch]
                                                [--results FILE] [--document PAGE]

Each line is one run of `python -m muai_lab tune` with a small budget, from the defaults, on the embedded chat model.
The gain and its 95 % interval are those of the confirmation: pairs of runs on load that the search has not seen, with
servers started anew. If nothing was confirmed the defaults stay, and the table has the reason.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.document import replace_part
from benchmarks.outcomes import keep_outcomes, kept_outcomes
from muai_lab.settings.catalogue import show
from muai_lab.tuning.result import read_result

# Closed loops that keep the machine busy: a load that the defaults carry to everybody's content leaves nothing to gain.
# Nine requests in ten must meet the SLO: for 99 in a hundred no run of a few seconds is long enough.
CASES = {
    "chat": (
        "interactive chat, 64 clients",
        ("workload=chat", "slo=interactive", "slo.quantile=0.9", "arrival=closed", "arrival.concurrency=64"),
    ),
    "conversations": (
        "conversations with a long system prompt, 32 clients",
        (
            *("workload=multi_turn", "workload.system_tokens=512", "workload.think_time.mean_s=0.01"),
            *("slo=interactive", "slo.quantile=0.9", "arrival=closed", "arrival.concurrency=32"),
        ),
    ),
    "batch": (
        "throughput batch, 96 clients, one greedy token in ten may differ from fp32",
        (
            *("workload=ragged", "arrival=closed", "arrival.concurrency=96"),
            *("tuning.objectives=[throughput]", "tuning.min_agreement=0.9"),
        ),
    ),
}  # fmt: skip
BUDGET = (
    *("tuning.n_trials=12", "tuning.startup_trials=4", "tuning.patience=8", "tuning.incumbent_every=5"),
    *("tuning.blocks=3", "tuning.block_s=2.5", "tuning.warmup_s=2", "tuning.confirm_pairs=6"),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one tuning. gain, low, high: Relative; None if no winner was measured in a confirmation."""

    engine: str
    case: str
    verdict: str
    reason: str
    gain: float | None
    low: float | None
    high: float | None
    changes: dict[str, object]
    minutes: float


def tune(engine: str, case: str, directory: Path) -> Outcome:
    """Tune in a process of its own; its messages go through."""
    began = time.monotonic()
    command = [sys.executable, "-m", "muai_lab", "tune", f"engine={engine}", f"tuning.study={directory}"]
    subprocess.run([*command, *CASES[case][1], *BUDGET], check=True)
    result = read_result(directory)
    found = result.confirmation
    return Outcome(
        engine,
        CASES[case][0],
        result.verdict,
        result.reason,
        None if found is None else found.gain,
        None if found is None else found.low,
        None if found is None else found.high,
        dict(result.changes),
        (time.monotonic() - began) / 60,
    )


def markdown(outcomes: Sequence[Outcome]) -> str:
    """The table of all outcomes."""
    lines = [
        "| engine | load | gain over the defaults, 95 % interval | what changed, or why nothing did | minutes |",
        "|---|---|---|---|---|",
    ]
    for one in sorted(outcomes, key=lambda one: (one.case, one.engine)):
        gain = one.verdict
        if one.gain is not None and one.low is not None and one.high is not None:
            gain = f"{one.gain:+.0%} ({one.low:+.0%} to {one.high:+.0%})"
            gain += "" if one.verdict == "confirmed" else f", {one.verdict}"
        keys = ", ".join(f"`{key.removeprefix('optimization.')}: {show(value)}`" for key, value in one.changes.items())
        lines.append(f"| {one.engine} | {one.case} | {gain} | {keys or one.reason} | {one.minutes:.1f} |")
    return "\n".join(lines)


def main() -> int:
    """Tune every case asked for on every engine; results of earlier calls in the same file are kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", default="onnx,pytorch")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--studies", type=Path, help="where the studies are kept; else they are deleted")
    parser.add_argument("--results", type=Path, help="JSON file to read and to add to")
    parser.add_argument("--document", type=Path, help="page whose table is replaced")
    args = parser.parse_args()
    outcomes = kept_outcomes(Outcome, args.results)
    with TemporaryDirectory() as scratch:
        for engine in args.engines.split(","):
            for case in args.cases.split(","):
                outcomes.append(tune(engine, case, (args.studies or Path(scratch)) / f"{engine}-{case}"))
                keep_outcomes(outcomes, args.results)
    text = markdown(outcomes)
    sys.stdout.write(f"{text}\n")
    if args.document:
        replace_part(args.document, "tuned", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
