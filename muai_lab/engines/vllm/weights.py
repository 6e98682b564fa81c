"""The check of a checkpoint's weights before vLLM loads them.

vLLM does not detect a tensor that is missing in a merged one, such as gate and up projection: it would serve with
uninitialised memory. It also takes many seconds to detect that a file is damaged.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from muai_lab.engines.vllm.probe import NAME
from muai_lab.errors import EngineError

if TYPE_CHECKING:
    from muai_lab.models.registry import ModelSource


def check_weights(source: ModelSource) -> None:
    """Raise EngineError if a safetensors file is damaged or tensors are missing; reads the headers only.

    Other formats, and architectures that Transformers does not know, are left to vLLM.
    """
    from safetensors import SafetensorError, safe_open

    name, directory = source.name, source.path
    if directory is None:
        return
    found: set[str] = set()
    for file in sorted(directory.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as tensors:
                found.update(tensors.keys())
        except (SafetensorError, OSError) as error:
            raise EngineError(
                NAME, f"cannot load {name}: {file} is damaged ({error}): copy the whole model again"
            ) from error
    wanted = _parameters(directory) if found else set()
    missing = sorted(wanted - found)
    # Names that the model does not have belong to an older layout, which vLLM renames: then no check is possible.
    if missing and found <= wanted:
        raise EngineError(
            NAME,
            f"the weights of {name} in {directory} lack {len(missing)} tensors that its config.json asks for, the "
            f"first is {missing[0]}: copy the whole model again",
        )


def _parameters(directory: Path) -> set[str]:
    """Return the names of the architecture's parameters, tied ones once; empty if Transformers does not know it."""
    import torch
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(directory, local_files_only=True)
        with torch.device("meta"):
            kind: Any = transformers.AutoModelForCausalLM
            model = kind.from_config(config)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, AttributeError, TypeError):
        return set()  # vLLM may know the architecture; if not, it reports it
    return {name for name, _ in model.named_parameters()}
