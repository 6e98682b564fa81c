"""From a checkpoint to a model over slots, on one of the ranks that share it. All ranks run this in lockstep."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from muai_lab.engines.base import PrefillChunk
from muai_lab.engines.deepspeed.library import init_inference
from muai_lab.engines.deepspeed.probe import NAME
from muai_lab.engines.pytorch.device import DTYPES
from muai_lab.engines.pytorch.linear import pack_linears
from muai_lab.engines.pytorch.loading import load_model, max_model_len
from muai_lab.engines.pytorch.slot_engine import SlotModel, over_slots
from muai_lab.errors import EngineError

if TYPE_CHECKING:
    from muai_lab.models.registry import ModelSource

_PROBE_PROMPT = (0, 1, 2)
_UNSHARE = "DeepSpeed shares this model out wrongly: set optimization.deepspeed.tensor_parallel=1"


@dataclass(frozen=True, slots=True)
class RankJob:
    """The job of every rank. device: `cpu` or `cuda`. meeting_point: file through which the ranks find each other."""

    source: ModelSource
    dtype: str
    device: str
    slots: int
    ranks: int
    meeting_point: Path

    def torch_device(self, rank: int) -> torch.device:
        """Return the device of a rank: a GPU for each, or the CPU for all."""
        return torch.device("cuda", rank) if self.device == "cuda" else torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A rank's model. module: the Hugging Face model after DeepSpeed. packed: linear layers that we packed."""

    module: Any
    slots: SlotModel
    max_len: int
    packed: int


def load(job: RankJob) -> Any:
    """Load the whole Hugging Face model into CPU memory; DeepSpeed moves it, or this rank's shard, to the device."""
    try:
        return load_model(job.source, DTYPES[job.dtype], torch.device("cpu"))
    except EngineError as error:
        raise EngineError(NAME, error.reason) from error


def prepare(job: RankJob, model: Any, rank: int) -> Prepared:
    """Have DeepSpeed prepare the model, and put it over slots. With several ranks, call it in `process_group`."""
    device, dtype = job.torch_device(rank), DTYPES[job.dtype]
    module = init_inference(model, dtype, device, rank=rank, ranks=job.ranks)
    packed = pack_linears(module) if job.device == "cpu" and dtype is torch.float32 else 0
    max_len = max_model_len(module.config, None)
    try:
        slots = _over_slots(job, module, slots=job.slots, max_len=max_len)
    except EngineError as error:
        if job.ranks == 1:
            raise
        raise EngineError(NAME, f"{error.reason}. {_UNSHARE}") from error
    return Prepared(module, slots, max_len, packed)


def whole_logits(job: RankJob, model: Any) -> torch.Tensor:
    """Return the logits of a short prompt `[1, vocabulary]` before the model is sharded; on one rank, on the CPU."""
    return probe_logits(_over_slots(job, model, slots=1, max_len=2 * len(_PROBE_PROMPT)))


@torch.inference_mode()
def probe_logits(model: SlotModel) -> torch.Tensor:
    """Return the logits of the same prompt from the model over slots; on all ranks together once it is sharded."""
    logits = model.prefill([PrefillChunk(0, _PROBE_PROMPT)])
    model.release(0)
    return logits.float().cpu()


def check_shares(whole: torch.Tensor, shared: torch.Tensor) -> None:
    """Raise EngineError if the ranks together do not compute the same as the whole model.

    DeepSpeed decides by the names of layers how to shard them, and can be wrong without an error.
    """
    likeness = torch.cosine_similarity(whole, shared).item()
    if not likeness > 0.99:
        raise EngineError(
            NAME,
            f"the ranks together give other logits than the whole model (cosine {likeness:.3f}). {_UNSHARE}",
        )


def _over_slots(job: RankJob, model: Any, *, slots: int, max_len: int) -> SlotModel:
    return over_slots(model, encoder_decoder=job.source.encoder_decoder, slots=slots, max_len=max_len, engine=NAME)
