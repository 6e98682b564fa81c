"""Do the statements of an exported file hold? A tuning end to end, then fresh runs of the old and the new file.

    python -m benchmarks.header_holds [--cases throughput,slo,conversations] [--engine onnx] [--rate R] [--pairs 10]
                                      [--seconds 40] [--studies DIR] [--results FILE] [--document PAGE]

Each case is one call of `python -m muai_lab tune`. If that confirms a winner, `run` measures the present configuration
and the exported file as often as asked for, in the order A B, B A, on servers and load that the tuning has never seen.
Counted is in how many pairs the gain lies within what the header foretells for one, in how many runs of the exported
file the SLO holds, and if the mean over all pairs agrees with the header's interval.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from scipy.special import stdtrit

from benchmarks.document import replace_part
from benchmarks.outcomes import keep_outcomes, kept_outcomes
from muai_lab.settings.catalogue import show
from muai_lab.tuning.export import EXPORTED
from muai_lab.tuning.result import PRESENT, RESULT, TuningResult, read_result

SEARCH = (
    *("tuning.n_trials=8", "tuning.startup_trials=3", "tuning.patience=6", "tuning.blocks=2", "tuning.block_s=2.5"),
    *("tuning.warmup_s=2", "tuning.confirm_pairs=6", "tuning.search_space=batching"),
)
# Small batches, as a file from an older machine may have them: something to find, and something that can be lost.
SMALL_BATCHES = "optimization:\n  batcher: {max_batch_size: 4, adaptive_batching: false}\n"
# Near capacity at the rate of the case `slo`: a queue forms, but the backlog does not grow without end.
NEAR_CAPACITY = "optimization:\n  batcher: {max_batch_size: 8, adaptive_batching: false}\n"
# Each further key costs soak windows of its own: one key keeps the case below half an hour.
BATCH_SIZE = "parameters:\n  optimization.batcher.max_batch_size: {low: 1, high: 64, log: true}\n"
NO_CACHE = "optimization:\n  batcher: {max_batch_size: 8, adaptive_batching: false}\n  cache: {enabled: false}\n"
CASES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "throughput": (
        "closed loop, 32 clients, throughput",
        SMALL_BATCHES,
        ("workload=ragged", "arrival=closed", "arrival.concurrency=32", "tuning.objectives=[throughput]"),
    ),
    "slo": (
        "open loop near capacity, interactive SLO for 90 %",
        NEAR_CAPACITY,
        ("workload=chat", "slo=interactive", "slo.quantile=0.9", "arrival=poisson"),
    ),
    "conversations": (
        "conversations with a long system prompt, 8 clients, interactive SLO for 90 %",
        NO_CACHE,
        (
            *("workload=multi_turn", "workload.system_tokens=512", "workload.think_time.mean_s=0.01"),
            *("slo=interactive", "slo.quantile=0.9", "arrival=closed", "arrival.concurrency=8"),
        ),
    ),
}  # fmt: skip
_FIGURES = {"throughput": ("throughput", "output_tokens_per_s"), "goodput": ("slo", "goodput_rps")}


@dataclass(slots=True)
class Outcome:
    """Of one case.

    before, after: The objective of each fresh run. attainments: Of the fresh runs of the exported file, before_kept:
    of those of the present configuration. missed_high: Most that the present configuration attains, if the header says
    that it misses the SLO; the gain is then no statement of the header.
    """

    case: str
    engine: str
    verdict: str
    reason: str
    header: list[str]
    changes: dict[str, object]
    gain: float | None = None
    low: float | None = None
    high: float | None = None
    next_pair: tuple[float, float] | None = None
    kept_low: float | None = None
    quantile: float | None = None
    minutes: float = 0.0
    before: list[float] = field(default_factory=list)
    after: list[float] = field(default_factory=list)
    attainments: list[float] = field(default_factory=list)
    before_kept: list[float] = field(default_factory=list)
    missed_high: float | None = None

    def factors(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Logarithms of the fresh pairs' factors."""
        return np.log(np.array(self.after) / np.array(self.before))

    def foretold(self) -> int:
        """Fresh pairs whose gain lies within what the header foretells for one."""
        assert self.next_pair is not None
        low, high = self.next_pair
        return int(sum(low <= gain <= high for gain in np.expm1(self.factors())))

    def mean_of_fresh(self) -> tuple[float, float, float]:
        """Geometric mean gain of the fresh pairs with its 95 % interval."""
        factors = self.factors()
        reach = float(stdtrit(len(factors) - 1, 0.975)) * float(factors.std(ddof=1)) / len(factors) ** 0.5
        low, mean, high = (float(np.expm1(factors.mean() + end)) for end in (-reach, 0.0, reach))
        return mean, low, high


def tuned(case: str, engine: str, extra: Sequence[str], directory: Path) -> Outcome:
    """Tune in a process of its own; its messages go through."""
    _, present, arguments = CASES[case]
    directory.mkdir(parents=True, exist_ok=True)
    baseline = directory / "present-before.yaml"
    baseline.write_text(present, encoding="utf-8")
    study = directory / "study"
    if case == "slo":
        space = directory / "batch_size.yaml"
        space.write_text(BATCH_SIZE, encoding="utf-8")
        extra = (*extra, f"tuning.search_space={space}")
    began = time.monotonic()
    command = [sys.executable, "-m", "muai_lab", "tune", "--baseline", str(baseline), f"engine={engine}"]
    done = subprocess.run([*command, *arguments, *SEARCH, *extra, f"tuning.study={study}"], check=False)
    if not (study / RESULT).exists():
        sys.exit(done.returncode or 1)  # it has said why
    result = read_result(study)
    text = (study / EXPORTED).read_text(encoding="utf-8").splitlines() if (study / EXPORTED).exists() else []
    outcome = Outcome(
        case,
        engine,
        result.verdict,
        result.reason,
        [line for line in text if line.startswith("#")],
        dict(result.changes),
        minutes=(time.monotonic() - began) / 60,
    )
    _note_confirmation(outcome, result)
    return outcome


def _note_confirmation(outcome: Outcome, result: TuningResult) -> None:
    found = result.confirmation
    if found is None:
        return
    outcome.gain, outcome.low, outcome.high, outcome.next_pair = found.gain, found.low, found.high, found.next_pair
    if found.present_misses is not None:
        outcome.missed_high = found.present_misses.high
    outcome.kept_low = None if found.kept is None else found.kept.low


def measured(file: Path, case: str, engine: str, extra: Sequence[str], seed: int, directory: Path) -> Mapping[str, Any]:
    """The summary of one fresh run of a file."""
    command = [sys.executable, "-m", "muai_lab", "run", f"engine={engine}", f"config_file={file}", f"seed={seed}"]
    overrides = [one for one in (*CASES[case][2], *extra) if not one.startswith("tuning.")]
    subprocess.run([*command, *overrides, f"hydra.run.dir={directory}"], check=True, stdout=subprocess.DEVNULL)
    summary: dict[str, Any] = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
    return summary


def measure_again(
    outcome: Outcome, study: Path, extra: Sequence[str], pairs: int, seconds: float, objective: str
) -> None:
    """Fill in the fresh pairs of a confirmed tuning."""
    section, name = _FIGURES[objective]
    load = (f"load.duration_s={seconds:g}", "load.warmup_s=5")
    for number in range(pairs):
        files = {"before": study / PRESENT, "after": study / EXPORTED}
        for arm in sorted(files, reverse=number % 2 == 0):
            directory = study.parent / f"fresh-{number}-{arm}"
            summary = measured(files[arm], outcome.case, outcome.engine, (*extra, *load), 50_000 + number, directory)
            getattr(outcome, arm).append(summary[section][name]["value"])
            if summary["slo"] is not None:
                outcome.quantile = summary["slo"]["quantile"]
                kept = outcome.attainments if arm == "after" else outcome.before_kept
                kept.append(summary["slo"]["attainment"]["value"])
        sys.stderr.write(f"pair {number + 1} of {pairs}: {outcome.before[-1]:.4g} -> {outcome.after[-1]:.4g}\n")


def markdown(outcomes: Sequence[Outcome]) -> str:
    """The table of all outcomes."""
    lines = [
        (
            "| load, engine | changes | header: gain, one further pair | fresh pairs: gain, how many as foretold "
            "| header: attainment at least | fresh runs that keep the SLO | minutes |"
        ),
        "|---|---|---|---|---|---|---|",
    ]
    for one in outcomes:
        head = f"{CASES[one.case][0]}, {one.engine}"
        if one.verdict != "confirmed" or one.gain is None or one.next_pair is None:
            lines.append(f"| {head} | {one.verdict}: {one.reason} | | | | | {one.minutes:.1f} |")
            continue
        keys = ", ".join(f"`{key.removeprefix('optimization.')}: {show(value)}`" for key, value in one.changes.items())
        kept = "" if one.kept_low is None else f"{one.kept_low:.1%}"
        met = ""
        if one.quantile is not None:
            holds = sum(share >= one.quantile for share in one.attainments)
            met = f"{holds} of {len(one.attainments)} (lowest {min(one.attainments):.1%})"
        if one.missed_high is not None and one.quantile is not None:
            missed = sum(share < one.quantile for share in one.before_kept)
            lines.append(
                f"| {head} | {keys} | the SLO; with the present configuration at most {one.missed_high:.0%} meet it "
                f"| the present configuration misses it in {missed} of {len(one.before_kept)} | {kept} | {met} "
                f"| {one.minutes:.1f} |"
            )
            continue
        low, high = one.next_pair
        mean, *ends = one.mean_of_fresh()
        lines.append(
            f"| {head} | {keys} | {one.gain:+.0%} ({one.low:+.0%} to {one.high:+.0%}), {low:+.0%} to {high:+.0%} "
            f"| {mean:+.0%} ({ends[0]:+.0%} to {ends[1]:+.0%}), {one.foretold()} of {len(one.after)} "
            f"| {kept} | {met} | {one.minutes:.1f} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Tune every case asked for and measure what it exported again; earlier results in the same file are kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--engine", default="onnx")
    parser.add_argument("--rate", type=float, default=34.0, help="requests per second of the case slo")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=40.0, help="length of a fresh run's window")
    parser.add_argument("--studies", type=Path, help="where studies and runs are kept; else they are deleted")
    parser.add_argument("--results", type=Path, help="JSON file to read and to add to")
    parser.add_argument("--document", type=Path, help="page whose table is to be replaced")
    args = parser.parse_args()
    outcomes = kept_outcomes(Outcome, args.results)
    with TemporaryDirectory() as scratch:
        for case in args.cases.split(","):
            directory = (args.studies or Path(scratch)) / f"{args.engine}-{case}"
            extra = (f"arrival.rate={args.rate:g}",) if case == "slo" else ()
            outcome = tuned(case, args.engine, extra, directory)
            objective = "throughput" if case == "throughput" else "goodput"
            if outcome.verdict == "confirmed":
                measure_again(outcome, directory / "study", extra, args.pairs, args.seconds, objective)
            outcomes.append(outcome)
            keep_outcomes(outcomes, args.results)
    text = markdown(outcomes)
    sys.stdout.write(f"{text}\n")
    if args.document:
        replace_part(args.document, "header", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
