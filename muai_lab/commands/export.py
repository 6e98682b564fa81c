"""`export`: write a study's configuration again."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from muai_lab.commands.terminal import command_parser, say

SUMMARY = "write the configuration of a study again"

_EPILOG = """\
The file has the present configuration with the changes that were kept, and begins with the evidence for them.

examples:
  python -m muai_lab export studies/chat
  python -m muai_lab export studies/chat --output config/optimization.yaml
  python -m muai_lab export studies/chat --unconfirmed
"""


def main(argv: Sequence[str]) -> int:
    """Write the file and return the exit status."""
    args = _parser().parse_args(argv)
    from muai_lab.tuning.export import export_study

    target, result = export_study(args.study, args.output, unconfirmed=args.unconfirmed)
    lines = [f"{result.verdict}: {result.reason}", f"wrote {target}"]
    if result.verdict in ("refused", "nothing better") and not args.unconfirmed:
        lines.append("it is the present configuration; --unconfirmed writes the best that the search found")
    console = Console()
    for line in lines:
        say(console, line)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("export", __doc__, _EPILOG)
    parser.add_argument("study", type=Path, help="directory of the study, as `tune` printed it")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: optimization.yaml in the study")
    parser.add_argument(
        "--unconfirmed",
        action="store_true",
        help="write the best configuration found although it was not confirmed (the search was stopped, or the winner "
        "was refused), by default as optimization.unconfirmed.yaml; its first line warns of that",
    )
    return parser
