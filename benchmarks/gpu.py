"""The PyTorch engine on a GPU: correct tokens, decode and prefill speed against the device's own peaks, one run.

    python -m benchmarks.gpu [--minutes 8] [--parts serving,checks] [--out runs/gpu]
    python -m benchmarks.gpu --device cpu                (the same code on a CPU, on tiny shapes: tries the command)

Needs PyTorch and nothing else to begin with, and fetches nothing: a part for which a package is missing is skipped with
the line that installs it. Parts come in the order of their worth; one for which the time is too short is skipped.
Writes a table as text, and gpu.md and gpu.json into the folder of `--out`. Exit status 0, 1 if a part failed, 2 if the
device cannot be used.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

try:
    import torch
except ImportError:
    sys.exit("PyTorch is not installed: pip install torch")

from benchmarks.gpu_checks import checks
from benchmarks.gpu_facts import Row, device_name, facts
from benchmarks.gpu_measure import SMALL, WHOLE, Left, Peaks, Sizes, peaks, serving

ROOT = Path(__file__).resolve().parents[1]

# Modules by the name of the package that brings them.
_ENGINE = {"numpy": "numpy", "transformers": "transformers"}
_STACK = _ENGINE | {
    "pydantic": "pydantic",
    "yaml": "pyyaml",
    "tokenizers": "tokenizers",
    "safetensors": "safetensors",
    "psutil": "psutil",
    "filelock": "filelock",
}
_TESTS = _STACK | {"pytest": "pytest", "pytest_timeout": "pytest-timeout", "hypothesis": "hypothesis"}
_RUN = _STACK | {
    "hydra": "hydra-core",
    "rich": "rich",
    "starlette": "starlette",
    "uvicorn": "uvicorn",
    "httptools": "httptools",
    "uvloop": "uvloop",
    "prometheus_client": "prometheus-client",
    "orjson": "orjson",
    "pandas": "pandas",
    "pyarrow": "pyarrow",
    "matplotlib": "matplotlib",
    "jinja2": "jinja2",
    "scipy": "scipy",
}


class PartFailed(Exception):
    """A part ran and found something wrong; `rows` is what it has all the same."""

    def __init__(self, reason: str, rows: Sequence[Row] = ()) -> None:
        super().__init__(reason)
        self.rows = list(rows)


@dataclass(frozen=True, slots=True)
class Part:
    """Something to measure. needs: modules and their packages. least_s, most_s: seconds it takes at least, and may."""

    name: str
    title: str
    needs: dict[str, str]
    least_s: float
    most_s: float
    work: Callable[[Left], list[Row]]


@dataclass(slots=True)
class Outcome:
    """What became of a part. status: `done`, `skipped` or `failed`; reason: of the latter two."""

    name: str
    title: str
    status: str
    reason: str = ""
    seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)


def parts_of(device: torch.device, sizes: Sizes, out: Path) -> list[Part]:
    """All parts, the most worth first."""
    found = Peaks()
    small = sizes is SMALL
    least = (0.0, 0.0, 0.0) if small else (30.0, 40.0, 60.0)
    return [
        Part("facts", "Device", {}, 0.0, 30.0, lambda _left: facts(device)),
        Part("peaks", "What the device reaches", {}, 0.0, 40.0, lambda left: peaks(device, sizes, left, found)),
        Part("checks", "Tokens", _ENGINE, 0.0, 90.0, lambda _left: checks(device)),
        Part(
            "serving",
            "Qwen2 of random weights",
            _ENGINE,
            least[0],
            150.0,
            lambda left: serving(device, sizes, left, found),
        ),
        Part("conformance", "Conformance tests", _TESTS, least[1], 180.0, partial(conformance, device, small)),
        Part("run", "A whole run over HTTP", _RUN, least[2], 120.0, partial(run, device, small, out)),
    ]


def missing_packages(part: Part) -> str:
    """The line that installs what a part lacks, empty if nothing is missing."""
    missing = sorted({package for module, package in part.needs.items() if find_spec(module) is None})
    return f"packages are missing: pip install {' '.join(missing)}" if missing else ""


def carry_out(parts: Sequence[Part], budget_s: float, tell: Callable[[Outcome], None]) -> list[Outcome]:
    """Do the parts one after the other, as far as packages and time allow."""
    began = time.monotonic()
    outcomes = []
    for part in parts:
        outcome = Outcome(part.name, part.title, "done")
        left_s = budget_s - (time.monotonic() - began)
        if missing := missing_packages(part):
            outcome.status, outcome.reason = "skipped", missing
        elif left_s < part.least_s or left_s <= 0:
            outcome.status = "skipped"
            outcome.reason = (
                f"takes {part.least_s:.0f} s at least, and {max(0.0, left_s):.0f} s are left: raise --minutes"
            )
        else:
            _do(part, outcome, min(part.most_s, left_s))
        outcomes.append(outcome)
        tell(outcome)
    return outcomes


def _do(part: Part, outcome: Outcome, allowed_s: float) -> None:
    began = time.monotonic()
    try:
        outcome.rows = part.work(lambda: allowed_s - (time.monotonic() - began))
    except PartFailed as error:
        outcome.status, outcome.reason, outcome.rows = "failed", str(error), error.rows
    except Exception as error:  # noqa: BLE001 - the other parts shall be measured all the same
        outcome.status, outcome.reason = "failed", f"{type(error).__name__}: {error}"
    outcome.seconds = time.monotonic() - began


def conformance(device: torch.device, small: bool, left: Left) -> list[Row]:
    """The PyTorch engine's own tests and the conformance suite, with their engines on the device."""
    files = ["tests/unit/test_pytorch_engine.py", "tests/integration/test_conformance.py"]
    chosen = "low_precision" if small else "pytorch"
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "tests.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
        said = _ran([*command, "-k", chosen, *files], left(), MUAI_TEST_DEVICE=device.type)
        if not report.is_file():
            raise PartFailed(f"pytest did not run: {_last_line(said)}")
        return test_rows(report.read_text(encoding="utf-8"))


def test_rows(report: str) -> list[Row]:
    """Counts of a JUnit report. Raises PartFailed, with them, if a test failed or none ran."""
    cases = list(xml.etree.ElementTree.fromstring(report).iter("testcase"))
    failed = [case for case in cases if {child.tag for child in case} & {"failure", "error"}]
    skipped = [child.get("message", "") for case in cases for child in case if child.tag == "skipped"]
    passed = len(cases) - len(failed) - len(skipped)
    rows = [
        Row("tests passed", passed),
        Row("tests failed", len(failed), note=", ".join(str(case.get("name")) for case in failed)),
        Row("tests skipped", len(skipped), note="; ".join(sorted(set(skipped)))),
    ]
    if failed or not passed:
        raise PartFailed(f"{len(failed)} of {len(cases)} tests failed, {passed} passed", rows)
    return rows


def run(device: torch.device, small: bool, out: Path, left: Left) -> list[Row]:
    """`muai_lab run` of the embedded model with the PyTorch engine on the device, through HTTP, with its report."""
    directory = out / f"run-{datetime.now(UTC):%H%M%S}"
    overrides = [
        "engine=pytorch",
        f"optimization.pytorch.device={device.type}",
        "arrival=closed",
        f"arrival.concurrency={2 if small else 32}",
        f"load.duration_s={4 if small else 20}",
        f"hydra.run.dir='{directory}'",
    ]
    said = _ran([sys.executable, "-m", "muai_lab", "run", *overrides], left())
    summary = directory / "summary.json"
    if not summary.is_file():
        raise PartFailed(f"there is no result: {_last_line(said)}")
    return run_rows(json.loads(summary.read_text(encoding="utf-8")), directory)


def run_rows(summary: dict[str, Any], directory: Path) -> list[Row]:
    """The first things to know of a run, by its summary. Raises PartFailed, with them, if the run is not valid."""
    validity, identity, server = (summary.get(name) or {} for name in ("validity", "identity", "server"))
    memory = server.get("gpu_memory_max_bytes")
    report = directory / "report.html"
    rows = [
        Row("verdict", validity.get("verdict"), note=validity.get("reason") or ""),
        Row("served on", identity.get("device"), note=f"{identity.get('engine')}, {identity.get('dtype')}"),
        Row("output", _at(summary, "throughput", "output_tokens_per_s", "value"), "tokens/s"),
        Row("TTFT, mean", _milliseconds(summary, "ttft_s"), "ms"),
        Row("TPOT, mean", _milliseconds(summary, "tpot_s"), "ms"),
        Row(
            "GPU memory, most, by the server's metric",
            None if memory is None else memory / 2**20,
            "MiB",
            "" if memory is not None else "no GPU, or nvidia-ml-py is missing: pip install nvidia-ml-py",
        ),
        Row("report", str(report) if report.is_file() else None, note="" if report.is_file() else "was not written"),
    ]
    if not validity.get("valid"):
        raise PartFailed(f"the run is not valid: {validity.get('reason') or validity.get('verdict')}", rows)
    return rows


def _at(content: Any, *path: str) -> Any:
    for name in path:
        content = content.get(name) if isinstance(content, dict) else None
    return content


def _milliseconds(summary: dict[str, Any], name: str) -> float | None:
    seconds = _at(summary, "latency", name, "mean", "value")
    return None if seconds is None else 1e3 * seconds


def _ran(command: list[str], limit_s: float, **variables: str) -> str:
    """Output of a command in this checkout. Raises PartFailed if it is not done in time; all of it is ended then."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        return process.communicate(timeout=limit_s)[0]
    except subprocess.TimeoutExpired:
        raise PartFailed(f"it was not done after {limit_s:.0f} s: raise --minutes") from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it said nothing"])[-1]


def as_text(outcome: Outcome) -> str:
    """A part's table for a terminal."""
    lines = [f"\n{_heading(outcome)}"]
    width = max((len(row.name) for row in outcome.rows), default=0)
    lines += [
        f"  {row.name:<{width}}  {shown(row.value):>12} {row.unit:<14} {row.note}".rstrip() for row in outcome.rows
    ]
    return "\n".join(lines) + "\n"


def as_markdown(outcomes: Sequence[Outcome], title: str) -> str:
    """All parts as a page."""
    lines = [f"# {title}"]
    for outcome in outcomes:
        lines += ["", f"## {_heading(outcome)}", ""]
        if outcome.rows:
            lines += ["| | value | unit | |", "|---|---:|---|---|"]
            lines += [f"| {row.name} | {shown(row.value)} | {row.unit} | {row.note} |" for row in outcome.rows]
    return "\n".join(lines) + "\n"


def _heading(outcome: Outcome) -> str:
    if outcome.status == "done":
        return f"{outcome.title} ({outcome.seconds:.1f} s)"
    return f"{outcome.title}: {outcome.status}, {outcome.reason}"


def shown(value: float | str | None) -> str:
    """Numbers with three or more digits that count; a dash for what is not known."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--minutes", type=float, default=8.0, help="time that all parts together may take")
    parser.add_argument("--parts", default="", help="only these, comma-separated (default: all)")
    parser.add_argument("--small", action="store_true", help="tiny shapes, as always on a CPU: tries the command")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder for gpu.md, gpu.json and the run")
    options = parser.parse_args(arguments)
    problem = _problem(options.device)
    if problem is not None:
        sys.stderr.write(f"{problem}\n")
        return 2
    device = torch.device(options.device, 0) if options.device == "cuda" else torch.device("cpu")
    out: Path = options.out.resolve()
    small = options.small or device.type == "cpu"
    parts = parts_of(device, SMALL if small else WHOLE, out)
    wanted = [name for name in options.parts.split(",") if name]
    unknown = sorted(set(wanted) - {part.name for part in parts})
    if unknown:
        parser.error(f"there is no part {unknown[0]}: {', '.join(part.name for part in parts)}")
    if not options.minutes > 0:
        parser.error(f"--minutes is {options.minutes:g}: give more than 0")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"{out} cannot be written ({error.strerror}): choose another folder with --out")
    chosen = [part for part in parts if not wanted or part.name in wanted]
    title = f"{device_name(device)}, PyTorch {torch.__version__}, {datetime.now(UTC):%Y-%m-%d}"
    so_far: list[Outcome] = []

    def tell(outcome: Outcome) -> None:
        """Print a part and write all so far: whoever is ended early has had the parts before."""
        so_far.append(outcome)
        sys.stdout.write(as_text(outcome))
        sys.stdout.flush()
        (out / "gpu.md").write_text(as_markdown(so_far, title), encoding="utf-8")
        content = {"title": title, "small": small, "parts": [asdict(outcome) for outcome in so_far]}
        (out / "gpu.json").write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")

    for part in chosen:
        if missing := missing_packages(part):
            sys.stdout.write(f"{part.name} will be skipped: {missing}\n")
    outcomes = carry_out(chosen, 60 * options.minutes, tell)
    sys.stdout.write(f"\n{out / 'gpu.md'}\n")
    return 1 if any(outcome.status == "failed" for outcome in outcomes) else 0


def _problem(device: str) -> str | None:
    """Why the device cannot be used, None if it can."""
    if device == "cpu":
        return None
    from muai_lab.engines.pytorch.device import cuda_problem

    problem = cuda_problem()
    if problem is None:
        return None
    return f"PyTorch {problem}. To try the command itself on a CPU: --device cpu"


if __name__ == "__main__":
    sys.exit(main())
