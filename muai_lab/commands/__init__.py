"""The commands: each is a module here with a line `SUMMARY = "..."` and `main(argv) -> int`."""

from __future__ import annotations

import re
from ast import literal_eval
from pathlib import Path

_SUMMARY = re.compile(r"^SUMMARY = (\".*\")$", re.MULTILINE)


def summaries() -> dict[str, str]:
    """Return the one-line summary of each command by its name, in alphabetical order.

    The sources are read, not imported: a command imports libraries that take a second to load.
    """
    found = {}
    for source in sorted(Path(__file__).parent.glob("*.py")):
        if summary := _SUMMARY.search(source.read_text(encoding="utf-8")):
            found[source.stem.replace("_", "-")] = str(literal_eval(summary[1]))
    return found
