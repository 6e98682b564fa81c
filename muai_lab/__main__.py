"""The command line: finds the sub-command, runs it, and turns what went wrong into an exit status.

Only the chosen sub-command is imported, so `--help` and typing mistakes are answered at once. Exit status: 0 done,
2 a mistake in the input (message on stderr), 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from types import FrameType
from typing import NamedTuple

from muai_lab import __version__
from muai_lab.errors import MuaiError
from muai_lab.garbage import collect_rarely

INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM
PIPE_CLOSED = 141  # 128 + SIGPIPE, which is not defined on every system


class Subcommand(NamedTuple):
    """A sub-command: its module has `main(argv) -> int`. summary: one line for the help."""

    module: str
    summary: str


COMMANDS = {
    "run": Subcommand(
        "muai_lab.commands.run", "measure a server under load; writes a run directory and prints the result"
    ),
    "capacity": Subcommand(
        "muai_lab.commands.capacity", "find the highest rate that keeps a promised latency, with an interval"
    ),
    "compare": Subcommand("muai_lab.commands.compare", "say whether runs differ, with intervals; for CI, too"),
    "serve": Subcommand("muai_lab.commands.serve", "start the inference server (OpenAI-compatible HTTP)"),
    "tune": Subcommand("muai_lab.commands.tune", "search a better configuration, confirm it, write optimization.yaml"),
    "export": Subcommand("muai_lab.commands.export", "write the configuration of a study again"),
    "engines": Subcommand(
        "muai_lab.commands.engines", "say which engines can serve here, and what else they would need"
    ),
    "reference-server": Subcommand(
        "muai_lab.commands.reference_server", "start a server of known latency, to test load generators with"
    ),
    "config": Subcommand("muai_lab.commands.config", "show, check and document the configuration"),
}


def help_text() -> str:
    """What `--help` prints."""
    width = max(len(name) for name in COMMANDS)
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: python -m muai_lab COMMAND [ARGUMENTS]",
            "",
            "Measure and tune LLM inference.",
            "",
            "commands:",
            *lines,
            "",
            "options:",
            "  --help     show this text; `COMMAND --help` tells more about one command",
            "  --version  show the version",
            "",
            "examples:",
            "  python -m muai_lab run",
            "  python -m muai_lab run engine=pytorch batcher=latency arrival=poisson arrival.rate=8",
            "  python -m muai_lab capacity engine=pytorch slo=interactive",
            "  python -m muai_lab compare runs/A runs/B --fail-on 'p50 ttft +5%'",
            "  python -m muai_lab serve config_file=config/optimization.yaml",
            "  python -m muai_lab config show --origin",
            "",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. argv: arguments after the program's name, None for `sys.argv`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Threads of OpenMP (PyTorch, ONNX Runtime) spin while they wait for each other. Beside a load generator or an event
    # loop on the same cores that steals the very time they wait for: steps were seen to take 100 times as long. It is
    # read when the library is loaded, hence here, before any engine is.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # oneDNN keeps compiled kernels per shape, 1024 of them by default, and ragged batches have ever new shapes: the
    # server grew by 600 MiB over 10,000 requests. With 128 it stays flat, at the same speed. Read at the first kernel.
    for cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(cache, "128")
    collect_rarely()  # a server returns to short pauses when it has loaded
    try:
        with _termination_unwinds():
            status = _dispatch(arguments)
            sys.stdout.flush()
            return status
    except MuaiError as error:
        sys.stderr.write(f"muai-lab: {error}\n")
        return error.exit_status
    except KeyboardInterrupt:
        sys.stderr.write("muai-lab: interrupted\n")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output left (such as `| head`). Python flushes stdout once more at exit: let it go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(help_text())
        return 0 if arguments else MuaiError.exit_status
    if arguments[0] in ("-V", "--version"):
        sys.stdout.write(f"muai-lab {__version__}\n")
        return 0
    name = arguments[0]
    if name not in COMMANDS:
        from muai_lab.settings.nearest import did_you_mean, nearest

        hint = did_you_mean(nearest(name, COMMANDS)) or f"; there are {', '.join(COMMANDS)}"
        raise MuaiError(f"no such command: {name}{hint} (python -m muai_lab --help)")
    status = import_module(COMMANDS[name].module).main(arguments[1:])
    return int(status)


@contextmanager
def _termination_unwinds() -> Iterator[None]:
    """Turn the first SIGTERM into SystemExit, so that every `finally` runs; later ones do not disturb that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise SystemExit(TERMINATED)

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
