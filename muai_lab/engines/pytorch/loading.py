"""From a checkpoint on disk to a Hugging Face model in memory, with errors that name the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from muai_lab.engines.architectures import encoder_decoder_refusal
from muai_lab.engines.pytorch.attention import ATTENTION_NAME, slot_attention
from muai_lab.engines.pytorch.device import NAME, device_failures
from muai_lab.errors import EngineError

if TYPE_CHECKING:
    from muai_lab.models.registry import ModelSource

_DEFAULT_POSITIONS = 512  # T5 has relative positions and names no limit; it was trained on 512


def load_model(source: ModelSource, dtype: torch.dtype, device: torch.device) -> Any:
    """Return the Hugging Face model of `source`, ready to run.

    Raises EngineError if the architecture is not served, or if files are missing, damaged or of another model.
    """
    import transformers
    from safetensors import SafetensorError

    if source.path is None:
        raise EngineError(NAME, f"{source.name} has no files on this machine")
    transformers.AttentionInterface.register(ATTENTION_NAME, slot_attention)
    try:
        with _quiet():
            config = transformers.AutoConfig.from_pretrained(source.path, local_files_only=True)
            refusal = encoder_decoder_refusal(config.model_type) if source.encoder_decoder else None
            if refusal is not None:
                raise EngineError(NAME, refusal)
            kind: Any = (
                transformers.AutoModelForSeq2SeqLM if source.encoder_decoder else transformers.AutoModelForCausalLM
            )
            model, report = kind.from_pretrained(
                source.path,
                config=config,
                dtype=dtype,
                attn_implementation="sdpa" if source.encoder_decoder else ATTENTION_NAME,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are in the report, which makes for a better message
                local_files_only=True,
            )
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
        # Transformers raises any of these for missing, truncated or foreign files and unknown architectures.
        raise EngineError(NAME, f"cannot load {source.name} from {source.path}: {_reason(error)}") from error
    _check_complete(source, report)
    with device_failures(source.name):
        return model.to(device).eval()


def max_model_len(config: Any, wanted: int | None) -> int:
    """Return the positions that one sequence may take: `wanted`, or all that the model has.

    Raises EngineError if the model has fewer.
    """
    text = config.get_text_config(decoder=True)
    own = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None) or _DEFAULT_POSITIONS
    if wanted is not None and wanted > own:
        raise EngineError(
            NAME, f"optimization.pytorch.max_model_len is {wanted}, but the model has only {own} positions: lower it"
        )
    return int(wanted or own)


def eos_token_ids(model: Any) -> frozenset[int]:
    """Return the tokens that end a sequence, as the checkpoint says: one, several or none."""
    ids = model.generation_config.eos_token_id
    if ids is None:
        ids = model.config.eos_token_id
    if ids is None:
        return frozenset()
    return frozenset(ids) if isinstance(ids, list) else frozenset((ids,))


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError) and ATTENTION_NAME in str(error):
        return "the attention of its architecture cannot be replaced"
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep progress bars and load reports off the terminal; the errors raised here say what matters of them."""
    import transformers.utils.logging

    logging: Any = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _check_complete(source: ModelSource, report: dict[str, Any]) -> None:
    """Raise EngineError for tensors that the checkpoint lacks: Transformers fills them with random numbers."""
    missing = sorted(report["missing_keys"])
    if missing:
        raise EngineError(
            NAME,
            f"the weights of {source.name} in {source.path} lack {len(missing)} tensors that its config.json asks"
            f" for, the first is {missing[0]}: copy the whole model again",
        )
    mismatched = sorted(report["mismatched_keys"])
    if mismatched:
        name, found, expected = mismatched[0]
        raise EngineError(
            NAME,
            f"{len(mismatched)} tensors of {source.name} in {source.path} have other shapes than its config.json"
            f" says, the first is {name}: {tuple(found)}, not {tuple(expected)}",
        )
