"""The check that an exported graph computes the same as the checkpoint, before the graph is kept.

Exporters know architectures by name. A variant that they do not know gives a graph that runs but computes wrong values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from muai_lab.engines.base import PrefillChunk
from muai_lab.engines.onnx.child_process import NAME
from muai_lab.errors import EngineError

if TYPE_CHECKING:
    from muai_lab.engines.pytorch.slot_engine import SlotModel

_PROMPT_TOKENS = 24
_STEPS = 8
# Largest difference of logits as a share of the largest logit. An exact graph differs by 1e-6, one with an approximate
# activation function by 2e-4 (Gemma), one that is wrong by 1e-2 and more.
_TOLERANCE = 1e-3


def sample_logits(model: SlotModel, *, vocab_size: int) -> torch.Tensor:
    """Return logits `[_STEPS + 1, vocabulary]` after a fixed prompt and after each of a few fixed tokens."""
    spread = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocab_size, (_PROMPT_TOKENS + _STEPS,), generator=spread).tolist()
    with torch.inference_mode():
        found = [model.prefill([PrefillChunk(0, tokens[:_PROMPT_TOKENS])])]
        found += [model.decode([0], [token]) for token in tokens[_PROMPT_TOKENS:]]
        model.release(0)
    return torch.cat(found).float().cpu()


def check_logits(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Raise EngineError if the logits of the graph differ from those of the checkpoint."""
    difference = ((found - expected).abs().max() / expected.abs().max()).item()
    if not difference <= _TOLERANCE:  # also when it is not a number
        raise EngineError(
            NAME, f"the exported graph does not compute what the checkpoint does: logits differ by {difference:.1%}"
        )
