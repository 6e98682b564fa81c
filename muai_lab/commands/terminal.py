"""The form of commands on a terminal: their arguments and the lines that they print."""

from __future__ import annotations

import argparse

from rich.console import Console


def command_parser(
    command: str, description: str | None, epilog: str, *, allow_abbrev: bool = True
) -> argparse.ArgumentParser:
    """Return the parser of a command; its texts are printed unchanged."""
    return argparse.ArgumentParser(
        prog=f"python -m muai_lab {command}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=allow_abbrev,
    )


def say(console: Console, line: str, style: str = "") -> None:
    """Print a line unchanged: without markup, highlighting or line breaks."""
    console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)
