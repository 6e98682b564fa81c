"""`reference-server`: a server of known latency, the test piece for load generators."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import get_args

from muai_lab.commands.terminal import command_parser
from muai_lab.errors import RunError
from muai_lab.load.dialect import UsageSupport

SUMMARY = "start a server of known latency, to test load generators with"

_EPILOG = """\
One line of JSON on standard output reports the address: {"event": "ready", "url": "http://127.0.0.1:..."}.
GET /stamps returns, and forgets, when each request was read and its first and last token were written, in
CLOCK_MONOTONIC nanoseconds; request_id is the client's X-Request-Id header. SIGTERM and Ctrl-C end it.

examples:
  python -m muai_lab reference-server --ttft-ms 50 --itl-ms 10 --port 8123
  python -m muai_lab run target=endpoint target.url=http://127.0.0.1:8123 arrival.rate=400
"""


def main(argv: Sequence[str]) -> int:
    """Serve until a signal comes and return the exit status; raises RunError if it cannot listen."""
    args = _parser().parse_args(argv)
    from muai_lab.load.event_loop import run_on_fast_loop
    from muai_lab.load.reference_server import ReferenceOptions, serve

    options = ReferenceOptions(ttft_ms=args.ttft_ms, itl_ms=args.itl_ms, tokens=args.tokens, usage=args.usage)
    try:
        run_on_fast_loop(serve(options, args.host, args.port))
    except OSError as error:
        reason = error.strerror or error
        raise RunError(
            f"cannot listen on {args.host}:{args.port}: {reason}; choose another --port or --host"
        ) from error
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "reference-server",
        "An OpenAI-compatible streaming server that computes nothing and answers after fixed times,\n"
        "which it stamps: for testing load generators, this one or others.",
        _EPILOG,
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", type=_port, default=0, help="0 takes any free port (default)")
    parser.add_argument("--ttft-ms", type=_time, default=0.0, help="from request to first token (default 0)")
    parser.add_argument("--itl-ms", type=_time, default=0.0, help="between tokens; 0 sends all at once (default)")
    parser.add_argument(
        "--tokens", type=_count, default=16, help="length of an answer whose request has no max_tokens (default 16)"
    )
    parser.add_argument(
        "--usage",
        choices=get_args(UsageSupport),
        default="continuous",
        help="token counts that it knows: in every chunk on request (default), in a final chunk on request, none",
    )
    return parser


def _time(text: str) -> float:
    value = float(text)
    if not 0 <= value < 86_400_000:  # NaN fails here too
        raise argparse.ArgumentTypeError(f"{text} is not a time in milliseconds from 0 to a day")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a count of at least 1")
    return value


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is not a port from 0 to 65535")
    return value
