"""Calls of DeepSpeed without side effects: no output, no environment variables, nothing compiled while serving."""

from __future__ import annotations

import gc
import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from muai_lab.engines.deepspeed.probe import NAME
from muai_lab.errors import EngineError

log = logging.getLogger(__name__)

# Longest time that one rank waits for the others within an operation. Ranks that wait for work are in no operation.
_GROUP_TIMEOUT = timedelta(seconds=120)


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Set environment variables within the context, except those that the user has set."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update({name: value for name, value in variables.items() if before[name] is None})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)


def import_deepspeed(device: torch.device) -> Any:
    """Import the module, with its log sent to ours instead of standard output. Raises EngineError if that fails."""
    first = "deepspeed" not in sys.modules
    # DeepSpeed sets the second variable when it is imported, and leaves it set.
    with environment(DS_ACCELERATOR=device.type, PYTORCH_NVML_BASED_CUDA_CHECK="1"), _quiet():
        try:
            import deepspeed
        except (ImportError, RuntimeError, AttributeError, OSError) as error:
            # Also raised for versions of torch and DeepSpeed that do not match, and for a broken CUDA installation.
            raise EngineError(NAME, f"DeepSpeed cannot be imported: {type(error).__name__}: {error}") from error
    if first:
        logger = logging.getLogger("DeepSpeed")
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
        logger.propagate = True
    return deepspeed


def init_inference(model: Any, dtype: torch.dtype, device: torch.device, *, rank: int, ranks: int) -> Any:
    """Return the model of `deepspeed.init_inference`: in `dtype`, on the device, with its layers sharded.

    All ranks must call this inside `process_group`. Raises EngineError.
    """
    deepspeed = import_deepspeed(device)
    from deepspeed.module_inject.policy import TransformerPolicy

    config = TransformerPolicy.hf_model_config
    try:
        with environment(LOCAL_RANK=str(rank)), _quiet():
            prepared = deepspeed.init_inference(
                model, dtype=dtype, tensor_parallel={"tp_size": ranks}, replace_with_kernel_inject=False
            )
    except (ValueError, RuntimeError, AssertionError, AttributeError, NotImplementedError) as error:
        # DeepSpeed raises AssertionError for a model that it cannot shard.
        name = type(model).__name__
        raise EngineError(NAME, f"init_inference failed for {name}: {type(error).__name__}: {error}") from error
    finally:
        TransformerPolicy.hf_model_config = config
    return prepared.module.eval()


def injection_refusal(model: Any, device: torch.device, *, wanted: bool) -> str | None:
    """Return why DeepSpeed's kernels are not injected into the model.

    Even if a policy and kernels exist, we cannot serve with them. An injected layer keeps keys and values in memory
    of DeepSpeed, in which all rows of a batch have one length. So no sequence could join or leave a running batch.
    Source: `deepspeed/model_implementations/transformers/ds_transformer.py`.
    """
    if not wanted:
        return "switched off by replace_with_kernel_inject"
    import_deepspeed(device)
    from deepspeed.module_inject.auto_tp import AutoTP

    with _quiet():
        matched = AutoTP.kernel_supported(list(model.modules()))
    if not matched:
        return f"DeepSpeed has no injection policy for {type(model).__name__}"
    if device.type != "cuda":
        return "DeepSpeed has these kernels for CUDA only"
    return "the injected layers' own key/value cache has no rows of different lengths, which continuous batching needs"


def replaced_layers(model: torch.nn.Module) -> int:
    """Count the modules of the model that DeepSpeed has replaced."""
    return sum(type(module).__module__.partition(".")[0] == "deepspeed" for module in model.modules())


@contextmanager
def process_group(device: torch.device, *, rank: int, ranks: int, meeting_point: Path) -> Iterator[None]:
    """Join the process group of torch and DeepSpeed. Its ranks meet through a file, so no port is opened.

    Raises EngineError, also if this process is already in another group.
    """
    deepspeed = import_deepspeed(device)
    import torch.distributed as distributed
    from deepspeed.comm import comm
    from deepspeed.inference.engine import InferenceEngine
    from torch.distributed import FileStore  # type: ignore[attr-defined]  # documented, but not in its __all__

    check_ungrouped()
    backend = communication(device)
    # All ranks are on this machine. NCCL's watchdog would end this process when a rank dies: `Ranks` watches instead.
    with environment(GLOO_SOCKET_IFNAME="lo", TORCH_NCCL_ASYNC_ERROR_HANDLING="0", LOCAL_RANK=str(rank)):
        try:
            if device.type == "cuda":
                torch.cuda.set_device(rank)
            store = FileStore(str(meeting_point), ranks)
            with _excepthook_kept():
                distributed.init_process_group(
                    backend, store=store, rank=rank, world_size=ranks, timeout=_GROUP_TIMEOUT
                )
            with _no_compiled_ops(), _quiet():
                deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
            # Without this, init_inference makes a second group of the same ranks, with a timeout of half an hour.
            InferenceEngine.inference_mp_group = distributed.group.WORLD
        except (RuntimeError, ValueError) as error:
            _leave(comm, InferenceEngine)
            raise EngineError(NAME, f"the {ranks} ranks cannot form a group over {backend}: {error}") from error
    try:
        yield
    finally:
        _leave(comm, InferenceEngine)


@contextmanager
def _excepthook_kept() -> Iterator[None]:
    """Undo torch.distributed's hook, which prefixes every line of a traceback with the rank, once per group."""
    before = sys.excepthook
    try:
        yield
    finally:
        sys.excepthook = before


def check_ungrouped() -> None:
    """Raise EngineError if this process is in a group already: torch.distributed and DeepSpeed support only one."""
    import torch.distributed as distributed

    if distributed.is_initialized():
        raise EngineError(
            NAME,
            "this process is already part of a group of torch.distributed, and there can be but one: serve with"
            " optimization.deepspeed.tensor_parallel=1, or in a process of its own",
        )


def communication(device: torch.device) -> str:
    """Return the communication backend of the ranks."""
    return "nccl" if device.type == "cuda" else "gloo"


def abort_group() -> None:
    """Make operations that wait for other ranks fail. Only for NCCL: gloo's fail when the sockets of a rank close."""
    import torch.distributed as distributed
    from torch.distributed import distributed_c10d

    if distributed.is_initialized() and distributed.get_backend() == "nccl":
        distributed_c10d._abort_process_group()


def _leave(comm: Any, inference_engine: Any) -> None:
    import torch.distributed as distributed

    inference_engine.inference_mp_group = None
    gc.collect()  # the layers hold the group, which has threads and sockets, and are in reference cycles
    if distributed.is_initialized():
        if comm.cdb is not None:
            comm.destroy_process_group()
        else:
            distributed.destroy_process_group()
    comm.cdb = None


@contextmanager
def _no_compiled_ops() -> Iterator[None]:
    """Hide DeepSpeed's compiled operations from it.

    It would run the compiler for a shared-memory reduction, which takes a minute and waits for a dead rank forever.
    """
    import deepspeed.ops

    known = vars(deepspeed.ops)
    before = known.get("__compatible_ops__")
    known["__compatible_ops__"] = {}
    try:
        yield
    finally:
        if before is None:
            del known["__compatible_ops__"]
        else:
            known["__compatible_ops__"] = before


@contextmanager
def _quiet() -> Iterator[None]:
    """Send DeepSpeed's output to the debug log."""
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            yield
    finally:
        if text := printed.getvalue().strip():
            log.debug("DeepSpeed: %s", text)
