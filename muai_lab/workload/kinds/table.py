"""`table`: a column of prompts in a CSV, Parquet or JSON file."""

from __future__ import annotations

from muai_lab.workload.row_set import table_source as source

__all__ = ["source"]
