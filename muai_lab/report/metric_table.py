"""The table of metrics in a page of the documentation, written again from `METRICS`.

python -m muai_lab.report.metric_table docs/metrics.md
"""

from __future__ import annotations

import sys
from pathlib import Path

from muai_lab.analysis.metrics import METRICS
from muai_lab.files import write_whole

_HEAD = "| name | definition | missing when |\n|---|---|---|\n"


def with_table(page: str) -> str:
    """Return the page with the present table of metrics in the place of its old one.

    Raises:
        ValueError: The page has no such table.
    """
    before, head, rest = page.partition(_HEAD)
    if not head:
        raise ValueError(f"no table of metrics: expected the lines {_HEAD!r}")
    rows = "".join(f"| `{one.column}` | {one.definition} | {one.missing_when} |\n" for one in METRICS)
    _, _, after = rest.partition("\n\n")
    return f"{before}{head}{rows}\n{after}"


def main(path: Path) -> None:
    """Renew the table in a file."""
    write_whole(path, with_table(path.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
