"""The DeepSpeed step engine: the steps of the PyTorch engine over a model from `deepspeed.init_inference`."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from muai_lab.engines.base import EngineInfo
from muai_lab.engines.deepspeed.library import (
    check_ungrouped,
    communication,
    injection_refusal,
    process_group,
    replaced_layers,
)
from muai_lab.engines.deepspeed.prepare import (
    Prepared,
    RankJob,
    check_shares,
    load,
    prepare,
    probe_logits,
    whole_logits,
)
from muai_lab.engines.deepspeed.probe import NAME, availability, supports, uses_cpu
from muai_lab.engines.deepspeed.ranks import Ranks, SharedDecoder, SharedModel
from muai_lab.engines.prefixes import prefix_refusal
from muai_lab.engines.pytorch.loading import eos_token_ids
from muai_lab.engines.pytorch.slot_engine import PrefixModel, SlotEngine, SlotModel
from muai_lab.errors import EngineError
from muai_lab.scratch import scratch_prefix

if TYPE_CHECKING:
    from muai_lab.models.registry import ModelSource
    from muai_lab.settings.schema import OptimizationSettings

log = logging.getLogger(__name__)


class DeepSpeedEngine(SlotEngine):
    """Serves a Hugging Face checkpoint with DeepSpeed inference, its layers sharded over `tensor_parallel` ranks."""

    def __init__(self, source: ModelSource, optimization: OptimizationSettings, *, slots: int) -> None:
        """Load the model and start the other ranks. If it raises EngineError, nothing is left running."""
        import transformers

        settings = optimization.deepspeed
        can = availability(optimization)
        refusal = can.reason or supports(optimization, source)
        if refusal is not None:
            raise EngineError(NAME, refusal)
        ranks = settings.tensor_parallel
        dtype = can.dtypes[0] if settings.dtype == "auto" else settings.dtype
        with ExitStack() as resources:
            folder = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix=scratch_prefix("deepspeed"))))
            kind = "cpu" if uses_cpu() else "cuda"
            job = RankJob(source, dtype, kind, slots, ranks, folder / "ranks")
            device = job.torch_device(0)
            self._ranks: Ranks | None = None
            if ranks == 1:
                model = load(job)
                refused = injection_refusal(model, device, wanted=settings.replace_with_kernel_inject)
                prepared = prepare(job, model, 0)
                stepped: SlotModel = prepared.slots
            else:
                refused, prepared, stepped = self._share(job, settings.replace_with_kernel_inject, resources)
            if settings.replace_with_kernel_inject:
                log.warning("deepspeed: %s runs without DeepSpeed's kernels: %s", source.name, refused)
            info = EngineInfo(
                name=NAME,
                version=can.version or "",
                device=can.device or kind,
                dtype=dtype,
                max_model_len=prepared.max_len,
                details={
                    "tensor_parallel": ranks,
                    "communication": communication(device) if ranks > 1 else None,
                    "kernel_inject": False,
                    "kernel_inject_refused": refused,
                    "replaced_layers": replaced_layers(prepared.module),
                    "torch": torch.__version__,
                    "transformers": transformers.__version__,
                    "threads": torch.get_num_threads(),
                    "packed_linears": prepared.packed,
                },
            )
            super().__init__(
                stepped,
                info,
                slots=slots,
                eos_token_ids=eos_token_ids(prepared.module),
                vocab_size=prepared.module.get_input_embeddings().num_embeddings,
                encoder_decoder=source.encoder_decoder,
                prefix_refusal=prefix_refusal(source),
            )
            self._resources = resources.pop_all()

    @property
    def worker_process_ids(self) -> list[int]:
        """Process ids of the other ranks."""
        return [] if self._ranks is None else self._ranks.process_ids

    def close(self) -> None:
        """End the other ranks, leave their group, and free the model."""
        super().close()
        self._resources.close()

    def _share(self, job: RankJob, inject: bool, resources: ExitStack) -> tuple[str | None, Prepared, SlotModel]:
        """Start the other ranks, and have every rank prepare its shard of the model."""
        check_ungrouped()
        device = job.torch_device(0)
        threads = max(1, torch.get_num_threads() // job.ranks) if job.device == "cpu" else torch.get_num_threads()
        resources.enter_context(_threads(threads))
        others = Ranks(job, threads=threads)
        resources.callback(others.close)
        model = load(job)
        refused = injection_refusal(model, device, wanted=inject)
        whole = whole_logits(job, model)
        others.wait_for("loaded")
        others.send("join")
        try:
            resources.enter_context(process_group(device, rank=0, ranks=job.ranks, meeting_point=job.meeting_point))
            prepared = prepare(job, model, 0)
            shared = probe_logits(prepared.slots)
        except RuntimeError as error:
            raise others.failure(error) from error
        position_bytes = others.wait_for("ready")
        check_shares(whole, shared)
        self._ranks = others
        if isinstance(prepared.slots, PrefixModel):
            together: SlotModel = SharedDecoder(
                prepared.slots, others, device, others_position_bytes=sum(position_bytes)
            )
        else:
            together = SharedModel(prepared.slots, others, device)
        return refused, prepared, together


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
