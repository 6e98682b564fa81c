"""`serve`: the inference server with its OpenAI-compatible HTTP API."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from typing import Any

from muai_lab.commands.terminal import command_parser
from muai_lab.settings.compose import compose

SUMMARY = "start the inference server (OpenAI-compatible HTTP)"

_EPILOG = """\
Once the server accepts requests, it prints one line of JSON with its addresses, models and engines to stdout; the log
goes to stderr. SIGTERM and Ctrl-C finish the running requests first; a second signal ends the process at once.

examples:
  python -m muai_lab serve
  python -m muai_lab serve engine=pytorch batcher=latency monitoring.server.port=0
  python -m muai_lab serve config_file=config/optimization.yaml
  python -m muai_lab serve model.name=mine model.checkpoint=/path/to/checkpoint
"""


def main(argv: Sequence[str]) -> int:
    """Serve until a signal comes and return the exit status (0 after SIGTERM, 130 after Ctrl-C)."""
    args = _parser().parse_args(argv)
    settings = compose(args.overrides).settings
    _log_to_stderr()
    from muai_lab.server.process import serve  # here, so that --help and typing mistakes do not wait for it

    return serve(settings, _announce)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("serve", __doc__, _EPILOG)
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="GROUP=OPTION | KEY=VALUE",
        help="choices and overrides as for `run`, among them config_file=PATH; model.name is loaded at start, unless "
        "monitoring.server.preload_models names others",
    )
    return parser


def _log_to_stderr() -> None:
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s", force=True
    )
    logging.getLogger("muai_lab").setLevel(logging.INFO)


def _announce(ready: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(ready) + "\n")
    sys.stdout.flush()
