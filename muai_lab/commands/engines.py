"""`engines`: the engines that can serve here, their models, and the meaning of each setting in them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console

from muai_lab.commands.terminal import command_parser, say
from muai_lab.engines.availability import Availability
from muai_lab.engines.catalogue import ENGINES, EngineKind
from muai_lab.errors import ModelError
from muai_lab.models.embedded import EMBEDDED_MODELS
from muai_lab.models.registry import ModelSource, resolve_model
from muai_lab.settings.compose import compose

if TYPE_CHECKING:
    from muai_lab.settings.lab import LabSettings

SUMMARY = "list the engines that can serve here, and the requirements of the others"

_EPILOG = """\
examples:
  python -m muai_lab engines
  python -m muai_lab engines --json
  python -m muai_lab engines optimization.deepspeed.dtype=fp32
"""


@dataclass(frozen=True, slots=True)
class Report:
    """The report on one engine. models: by name, the reason why it cannot serve the model, None if it can."""

    kind: EngineKind
    availability: Availability
    models: dict[str, str | None]

    def document(self) -> dict[str, Any]:
        """Return the report as JSON."""
        found = self.availability
        return {
            "engine": self.kind.name,
            "available": found.available,
            "reason": found.reason,
            "version": found.version,
            "device": found.device,
            "dtypes": list(found.dtypes),
            "models": self.models,
            "keys": dict(self.kind.keys()),
        }


def main(argv: Sequence[str]) -> int:
    """Print the report on every engine, in the order of preference; return the exit status."""
    args = _parser().parse_args(argv)
    settings = compose(args.overrides).settings
    reports = _reports(settings)
    if args.json:
        sys.stdout.write(json.dumps([report.document() for report in reports], indent=2) + "\n")
    else:
        _show(reports, Console(soft_wrap=True), keys=args.keys)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("engines", __doc__, _EPILOG)
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--keys", action="store_true", help="also print the meaning of each setting in the engine")
    parser.add_argument("overrides", nargs="*", metavar="GROUP=OPTION | KEY=VALUE", help="as for `run`")
    return parser


def _reports(settings: LabSettings) -> list[Report]:
    optimization = settings.optimization
    preferred = [
        *optimization.engine_preference,
        *(name for name in ENGINES if name not in optimization.engine_preference),
    ]
    models = _models(settings)
    reports = []
    for kind in (ENGINES[name] for name in preferred):
        support = {
            name: kind.supports(optimization, found) if isinstance(found, ModelSource) else found
            for name, found in models.items()
        }
        reports.append(Report(kind, kind.availability(optimization), support))
    return reports


def _models(settings: LabSettings) -> dict[str, ModelSource | str]:
    """Return every configured model, or the reason why its files cannot be used."""
    checkpoints = dict(settings.optimization.models)
    if settings.model.checkpoint is not None:
        checkpoints[settings.model.name] = settings.model.checkpoint
    names = dict.fromkeys([settings.model.name, *checkpoints, *EMBEDDED_MODELS])
    found: dict[str, ModelSource | str] = {}
    for name in names:
        try:
            found[name] = resolve_model(name, checkpoints.get(name))
        except ModelError as error:
            found[name] = str(error)
    return found


def _show(reports: Sequence[Report], console: Console, *, keys: bool) -> None:
    for place, report in enumerate(reports, start=1):
        found = report.availability
        version = f" {found.version}" if found.version else ""
        if found.available:
            say(console, f"{place}. {report.kind.name}{version}: available", "bold green")
            say(console, f"   device  {found.device}; dtypes {', '.join(found.dtypes)}")
        else:
            say(console, f"{place}. {report.kind.name}{version}: not available", "bold yellow")
            say(console, f"   why     {found.reason}")
        for name, reason in report.models.items():
            say(console, f"   model   {name}: {'yes' if reason is None else f'no, {reason}'}")
        if keys:
            for path, meaning in report.kind.keys().items():
                say(console, f"   key     {path} -> {meaning}")
