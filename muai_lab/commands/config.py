"""`config`: show, check and document the configuration."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import SecretStr
from rich.console import Console
from rich.table import Table
from rich.text import Text

from muai_lab.errors import MuaiError
from muai_lab.files import write_whole
from muai_lab.settings.catalogue import plain
from muai_lab.settings.reference import example_file, reference_page
from muai_lab.settings.resolve import Resolved, ResolvedSetting, load_settings

SUMMARY = "show, check and document the configuration"
EXAMPLE_PATH = Path("config/optimization.example.yaml")
REFERENCE_PATH = Path("docs/configuration.md")


def main(argv: Sequence[str]) -> int:
    """Run `config show`, `check`, `example` or `reference` and return the exit status."""
    args = _parser().parse_args(argv)
    console = Console(highlight=False, soft_wrap=True)
    if args.action == "show":
        from muai_lab.settings.compose import compose

        _show(console, compose(args.overrides), origin=args.origin, as_json=args.json)
    elif args.action == "check":
        _check(console, args.file)
    elif args.action == "example":
        _write(console, args.path, example_file())
    else:
        _write(console, args.path, reference_page())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m muai_lab config", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    show = actions.add_parser("show", help="print every setting", description="Print every setting as it is in force.")
    show.add_argument("--origin", action="store_true", help="with the layer that set it")
    show.add_argument("--json", action="store_true", help="as JSON, with origins and defaults")
    show.add_argument(
        "overrides",
        nargs="*",
        metavar="GROUP=OPTION | KEY=VALUE",
        help="choices and overrides as for `run`, among them config_file=PATH",
    )
    check = actions.add_parser(
        "check", help="check a file", description="Check a file as it would load here, environment included."
    )
    check.add_argument("file", type=Path)
    example = actions.add_parser("example", help="write the documented example file")
    example.add_argument("path", nargs="?", type=Path, default=EXAMPLE_PATH, help="default: %(default)s; - prints it")
    reference = actions.add_parser("reference", help="write the reference of all settings")
    reference.add_argument(
        "path", nargs="?", type=Path, default=REFERENCE_PATH, help="default: %(default)s; - prints it"
    )
    return parser


def _show(console: Console, resolved: Resolved, *, origin: bool, as_json: bool) -> None:
    entries = list(resolved.entries())
    if as_json:
        console.print_json(json.dumps({entry.key.path: _as_json(entry) for entry in entries}))
    elif console.is_terminal:
        table = Table(box=None, pad_edge=False)
        table.add_column("key", no_wrap=True)
        table.add_column("value", overflow="fold")
        if origin:
            table.add_column("origin", overflow="fold")
        for entry in entries:
            cells = [entry.key.path, entry.key.shown(entry.value), *([str(entry.origin)] if origin else [])]
            changed = entry.value != entry.key.default
            table.add_row(*(Text(cell) for cell in cells), style="bold" if changed else None)
        console.print(table)
    else:
        for entry in entries:
            line = f"{entry.key.path} = {entry.key.shown(entry.value)}"
            console.print(f"{line}  # {entry.origin}" if origin else line, markup=False)


def _as_json(entry: ResolvedSetting) -> dict[str, object]:
    secret = isinstance(entry.value, SecretStr)
    return {
        "value": entry.key.shown(entry.value) if secret else plain(entry.value),
        "origin": str(entry.origin),
        "default": entry.key.default,
    }


def _check(console: Console, file: Path) -> None:
    resolved = load_settings(file)
    different = [
        entry
        for entry in resolved.entries()
        if entry.value != entry.key.default and entry.origin.layer != "default" and entry.key.path != "config_file"
    ]
    console.print(f"{file}: OK", markup=False)
    if different:
        console.print("differs from the defaults in:")
    for entry in different:
        line = f"  {entry.key.path} = {entry.key.shown(entry.value)}  ({entry.origin})"
        console.print(line, markup=False)


def _write(console: Console, path: Path, text: str) -> None:
    if str(path) == "-":
        console.print(text, end="", markup=False)
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    except OSError as error:
        raise MuaiError(f"cannot write {path}: {error.strerror}") from None
    console.print(f"wrote {path}", markup=False)
