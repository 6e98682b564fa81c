"""Are intervals and verdicts true? Simulated systems of known truth, a table for each claim.

    python -m benchmarks.coverage [TABLE ...] [--repeats N] [--seed N] [--document docs/statistics.md]

Each table is a module `benchmarks.coverage_<name>` with a function `table(repeats, seed)`. With `--document` the tables
of the page between their marks are replaced.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from benchmarks.document import replace_part

TABLES = (
    "intervals",
    "unseen",
    "figures",
    "sequential",
    "steadiness",
    "compare",
    "primary",
    "capacity",
    "tuner_slo",
    "tuner_keys",
    "tuner_confirmation",
    "quality",
)
"""In the order of the page."""


@dataclass(frozen=True, slots=True)
class Table:
    """One table. columns: headings; rows: cells as text; note: what the figures are, and from how many repeats."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str

    def markdown(self) -> str:
        """As a page has it, the note above."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return "\n".join([f"{self.note}\n", *("| " + " | ".join(line) + " |" for line in lines)])


def main() -> None:
    """Make the tables that were asked for, print them, and put them into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"default: all of {', '.join(TABLES)}")
    parser.add_argument("--repeats", type=int, default=300, help="simulated runs behind each figure")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--document", type=Path, help="page whose tables are replaced")
    options = parser.parse_args()
    if unknown := set(options.tables) - set(TABLES):
        parser.error(f"no table {', '.join(sorted(unknown))}: there are {', '.join(TABLES)}")
    if options.repeats < 1:
        parser.error("--repeats needs at least 1")
    for name in options.tables or TABLES:
        began = time.monotonic()
        table: Table = import_module(f"benchmarks.coverage_{name}").table(options.repeats, options.seed)
        sys.stdout.write(f"{table.markdown()}\n\n({name}: {time.monotonic() - began:.0f} s)\n\n")
        sys.stdout.flush()
        if options.document is not None:
            replace_part(options.document, f"coverage {name}", table.markdown())


if __name__ == "__main__":
    main()
