"""`openai_jsonl`: JSON rows with messages, turns or prompt."""

from __future__ import annotations

from muai_lab.workload.row_set import conversations_source as source

__all__ = ["source"]
