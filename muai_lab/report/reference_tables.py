"""The tables of metrics and recorded columns in a page of the documentation, written from their definitions.

python -m muai_lab.report.reference_tables docs/metrics.md
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa

from muai_lab.analysis.metrics import METRICS
from muai_lab.files import write_whole
from muai_lab.request_record import REQUEST_COLUMNS


def with_tables(page: str) -> str:
    """Return the page with the present tables in the place of the old ones.

    Raises:
        ValueError: The page lacks one of the tables.
    """
    metrics = [(f"`{one.column}`", one.definition, one.missing_when) for one in METRICS]
    columns = [(f"`{one.name}`", _type_name(one.type), one.unit or "-", one.meaning) for one in REQUEST_COLUMNS]
    page = _replaced(page, ("name", "definition", "missing when"), metrics)
    return _replaced(page, ("column", "type", "unit", "meaning"), columns)


def _replaced(page: str, head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    start = f"{_line(head)}|{'---|' * len(head)}\n"
    table = start + "".join(map(_line, rows))
    page, count = re.subn(re.escape(start) + r"(?:\|.*\n)*", lambda _: table, page)
    if count != 1:
        raise ValueError(f"the page must have one table with the head {_line(head).strip()!r}, it has {count}")
    return page


def _type_name(type_: pa.DataType) -> str:
    return f"list of {type_.value_type}" if pa.types.is_list(type_) else str(type_)


def _line(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    place = Path(sys.argv[1])
    write_whole(place, with_tables(place.read_text(encoding="utf-8")))
