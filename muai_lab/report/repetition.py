"""The command line that repeats a run, from the origins in its configuration."""

from __future__ import annotations

import json
import shlex
from typing import Any

from muai_lab.analysis.configuration import HIDDEN, entries
from muai_lab.analysis.frames import Run

_COMMAND = ("python", "-m", "muai_lab", "run")
_VARIABLES = ("MUAI_OPT_", "MUAI_MON_")


def repeat_commands(run: Run) -> list[str]:
    """Return the command lines that repeat the run and open it.

    Group choices and overrides are those of the run. A value from an environment variable is set before the command.
    Values from a configuration file are set by `config_file`. The user has to fill in secrets.
    """
    variables: dict[str, str] = {}
    groups: dict[str, None] = {}
    overrides: list[str] = []
    for entry in entries(run):
        origin = entry.origin or ("override" if entry.changed else "default")
        if origin.startswith(_VARIABLES):
            variables[origin] = _written(entry.value)
        elif "=" in origin and " " not in origin:
            groups[origin] = None
        elif origin == "override":
            overrides.append(f"{entry.key}={_written(entry.value)}")
    named = run.config.get("config_file")
    if named and not any(override.startswith("config_file=") for override in overrides):
        overrides.insert(0, f"config_file={_written(named)}")
    before = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
    command = " ".join([*before, shlex.join([*_COMMAND, *groups, *overrides])])
    program = (
        f"from muai_lab.analysis import load_run; print(load_run({json.dumps(str(run.path))}).requests.describe())"
    )
    opening = shlex.join(["python", "-c", program])
    return [command, opening] if run.config else [opening]


def _written(value: Any) -> str:
    """A value in the grammar of Hydra's overrides."""
    if value == HIDDEN or value is None or isinstance(value, bool):
        return {HIDDEN: "...", None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{','.join(_written(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{_written(item)}' for key, item in value.items())}}}"
    return _text(value) if isinstance(value, str) else str(value)


def _text(value: str) -> str:
    """A text as it is if an override may hold it so, else in quotes."""
    from muai_lab.settings.overrides import parse_overrides, quoted

    parsed, _ = parse_overrides([f"key={value}"])
    plain = bool(parsed) and not parsed[0].is_sweep_override() and parsed[0].value() == value and "${" not in value
    return value if plain else quoted(value)
