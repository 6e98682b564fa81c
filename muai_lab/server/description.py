"""The description of a loaded model, for the ready line and for `/v1/models`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from muai_lab.stack.stack import InferenceStack


def describe_model(name: str, stack: InferenceStack) -> dict[str, Any]:
    """Return the engine that serves at this moment, those that were skipped or have died, and the model's source."""
    info = stack.info
    return {
        "name": name,
        "engine": asdict(info.engine),
        "skipped": [list(entry) for entry in info.skipped],
        "source": {"kind": info.source.kind, "content_hash": info.source.content_hash},
    }
