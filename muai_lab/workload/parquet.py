"""Tables of a run directory, written atomically."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from muai_lab.errors import RunError
from muai_lab.files import replacing


def write_parquet(table: pa.Table, path: Path) -> None:
    """Write a table; raises RunError if the file cannot be written (directory missing, no rights, disk full)."""
    try:
        with replacing(path) as draft:
            pq.write_table(table, draft, compression="zstd")
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunError(f"cannot write {path}: {reason}; free space or choose another output directory") from error


def read_parquet(path: Path, schema: pa.Schema, what: str, *, later_columns: Collection[str] = ()) -> pa.Table:
    """Read a table of exactly `schema`; raises RunError that names the file and its fault.

    Args:
        path: The file.
        schema: Its columns.
        what: Name of its content for messages, such as `schedule`.
        later_columns: Columns at the end of the schema that files of earlier versions lack; filled with nulls.
    """
    try:
        table = pq.read_table(path)
    except FileNotFoundError as error:
        raise RunError(f"no {what} at {path}: check the path") from error
    except (OSError, pa.ArrowInvalid) as error:
        raise RunError(f"{path} is not a {what}: {error}") from error
    for field in schema:
        if field.name in later_columns and field.name not in table.schema.names:
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    if not table.schema.equals(schema):
        missing = sorted(set(schema.names) - set(table.schema.names))
        problem = f"it lacks the columns {', '.join(missing)}" if missing else "its columns have other types"
        raise RunError(f"{path} is not a {what} of this version: {problem}; draw it again")
    return table
