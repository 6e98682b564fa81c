"""A look at a checkpoint's weights before vLLM loads them.

vLLM does not notice a tensor that is missing inside a merged one (gate and up projection, for one): it would serve
whatever was in that memory. And it takes many seconds to find out that a file is damaged.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from muai_lab.engines.vllm.probe import NAME
from muai_lab.errors import EngineError

if TYPE_CHECKING:
    from muai_lab.models.registry import ModelSource


def check_weights(source: ModelSource) -> None:
    """Raise EngineError when a safetensors file is damaged or tensors are missing; reads the headers only.

    Other formats, and architectures that transformers does not know, are left to vLLM to judge.
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
    # Names that the model does not have are those of an older layout, which vLLM renames: then nothing can be told.
    if missing and found <= wanted:
        raise EngineError(
            NAME,
            f"the weights of {name} in {directory} lack {len(missing)} tensors that its config.json asks for, the "
            f"first is {missing[0]}: copy the whole model again",
        )


def _parameters(directory: Path) -> set[str]:
    """Names of what the architecture has, tied ones once; empty where transformers cannot tell."""
    import torch
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(directory, local_files_only=True)
        with torch.device("meta"):
            kind: Any = transformers.AutoModelForCausalLM
            model = kind.from_config(config)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, AttributeError, TypeError):
        return set()  # vLLM may know it all the same, and says so if not
    return {name for name, _ in model.named_parameters()}
