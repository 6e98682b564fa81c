"""The command line: runs one command and turns its errors into an exit status.

Only the chosen command is imported, so `--help` and typing mistakes are answered at once. Exit status: 0 success,
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

from muai_lab import __version__
from muai_lab.commands import summaries
from muai_lab.errors import MuaiError
from muai_lab.garbage import collect_rarely

INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM
PIPE_CLOSED = 141  # 128 + SIGPIPE, which is not defined on every system


def help_text() -> str:
    """Return the text of `--help`."""
    commands = summaries()
    width = max(map(len, commands))
    lines = [f"  {name:<{width}}  {summary}" for name, summary in commands.items()]
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
            "  --help     show this text; `COMMAND --help` explains one command",
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
    """Run one command and return the exit status; argv: the arguments, by default those of the process."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Threads of OpenMP (PyTorch, ONNX Runtime) spin while they wait for each other. On cores shared with a load
    # generator or an event loop, spinning takes the very time they wait for: steps were seen to take 100 times as long.
    # The library reads the variable when it is loaded, so it is set before any engine is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # oneDNN caches compiled kernels per shape, 1024 by default, and ragged batches have ever new shapes: the server
    # grew by 600 MiB over 10,000 requests. With 128 it stays flat, at the same speed. Read at the first kernel.
    for cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(cache, "128")
    collect_rarely()  # the server returns to short pauses after loading
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
        # The reader of the output has gone (such as `| head`). Python flushes stdout again at exit: discard that.
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
    commands = summaries()
    if name not in commands:
        from muai_lab.settings.nearest import did_you_mean, nearest

        hint = did_you_mean(nearest(name, commands)) or f"; there are {', '.join(commands)}"
        raise MuaiError(f"no such command: {name}{hint} (python -m muai_lab --help)")
    status = import_module(f"muai_lab.commands.{name.replace('-', '_')}").main(arguments[1:])
    return int(status)


@contextmanager
def _termination_unwinds() -> Iterator[None]:
    """Turn the first SIGTERM into SystemExit, so that every `finally` runs; later ones are ignored."""
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
