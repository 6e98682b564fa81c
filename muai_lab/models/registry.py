"""From the name that a user gives to the files of a model that an engine can load."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from muai_lab.errors import ModelError
from muai_lab.models.content import content_hash
from muai_lab.models.embedded import EMBEDDED_MODELS, embedded_path

_WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
_HUB_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model whose files are on this machine.

    name: as clients request it. path: directory in the Hugging Face layout. hub_id: its name on the hub, if it came
    from there. content_hash: see `muai_lab.models.content`. encoder_decoder, model_type (`qwen2`, `t5`): as its
    config.json says.
    """

    name: str
    path: Path | None
    hub_id: str | None
    kind: Literal["embedded", "local", "hub"]
    content_hash: str | None
    encoder_decoder: bool
    model_type: str

    def config(self) -> dict[str, Any]:
        """Read its config.json; empty without files. Raises ModelError if the file cannot be read."""
        return {} if self.path is None else _read_json(self.path / "config.json")


def resolve_model(name: str, checkpoint: str | None = None) -> ModelSource:
    """Find the files of model `name`.

    The network is used for a hub id only, and only if its files are not in the hub's cache yet.

    Args:
        name: The model's name, as clients request it.
        checkpoint: A local directory or a hub id (`org/name`). None for the embedded model of that name, or if `name`
            is itself a directory or a hub id.

    Raises:
        ModelError: The name is unknown, or files are missing or cannot be downloaded.
    """
    reference = checkpoint or name
    if checkpoint is None and name in EMBEDDED_MODELS:
        path = embedded_path(name)
        return ModelSource(name, path, None, "embedded", content_hash(path), *_architecture(path))
    directory = Path(reference).expanduser()
    if directory.is_dir():
        _check_directory(directory)
        served_as = name if checkpoint else directory.resolve().name
        hashed = content_hash(directory)
        return ModelSource(served_as, directory, None, "local", hashed, *_architecture(directory))
    if checkpoint is not None and checkpoint in EMBEDDED_MODELS:
        source = resolve_model(checkpoint)
        return replace(source, name=name)
    if _looks_like_path(reference):
        raise ModelError(
            f"model {name}: there is no directory {reference}. "
            "Give a directory with config.json, weights and tokenizer, or a hub id (org/name)."
        )
    if reference.count("/") != 1:
        raise ModelError(_unknown(reference))
    directory = _from_hub(reference)
    _check_directory(directory)
    hashed = content_hash(directory)
    return ModelSource(name, directory, reference, "hub", hashed, *_architecture(directory))


def _looks_like_path(reference: str) -> bool:
    return reference.startswith(("/", ".", "~")) or reference.endswith("/") or reference.count("/") > 1


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, EMBEDDED_MODELS, n=2, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    return (
        f"unknown model {name!r}. {hint}Embedded models: {', '.join(EMBEDDED_MODELS)}. "
        "Any other model is a local directory or a hub id (org/name)."
    )


def _check_directory(directory: Path) -> None:
    missing = []
    if not (directory / "config.json").is_file():
        missing.append("config.json")
    if not any(path for pattern in _WEIGHT_FILES for path in directory.glob(pattern)):
        missing.append("weights (*.safetensors)")
    if not any((directory / file).is_file() for file in _TOKENIZER_FILES):
        missing.append("a tokenizer (tokenizer.json)")
    if missing:
        raise ModelError(
            f"model directory {directory} lacks {', '.join(missing)}. Copy the whole model there, "
            "for one with save_pretrained of the model and of its tokenizer."
        )
    lost = _lost_shards(directory)
    if lost:
        raise ModelError(
            f"model directory {directory} lacks {len(lost)} of the files in model.safetensors.index.json, "
            f"the first is {lost[0]}. Copy or download the model again."
        )


def _lost_shards(directory: Path) -> list[str]:
    index = directory / "model.safetensors.index.json"
    if not index.is_file():
        return []
    weight_map = _read_json(index).get("weight_map")
    files = set(weight_map.values()) if isinstance(weight_map, dict) else set()
    return sorted(file for file in files if not (directory / file).is_file())


def _architecture(directory: Path) -> tuple[bool, str]:
    """Return True for an encoder-decoder, and the model type."""
    config = _read_json(directory / "config.json")
    model_type = str(config.get("model_type", "unknown"))
    # T5 configurations may leave the key out, as it is the default of their architecture.
    default = model_type in ("t5", "mt5", "umt5", "bart", "mbart", "pegasus")
    return bool(config.get("is_encoder_decoder", default)), model_type


def context_tokens(source: ModelSource) -> int | None:
    """Return the model's positions for prompt and output, as its config.json says; None if it does not say.

    Raises ModelError if the file cannot be read.
    """
    config = source.config()
    text = config.get("text_config")  # of a model that also takes images or sound
    for part in (text if isinstance(text, dict) else {}, config):
        for name in ("max_position_embeddings", "n_positions"):
            if isinstance(value := part.get(name), int) and value > 0:
                return value
    return None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {path}: {error}. Copy or download the model again.") from error
    if not isinstance(content, dict):
        raise ModelError(f"cannot read {path}: a JSON object is expected. Copy or download the model again.")
    return content


def _from_hub(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        cached = Path(snapshot_download(hub_id, local_files_only=True, allow_patterns=_HUB_PATTERNS))
        _check_directory(cached)
    except (LocalEntryNotFoundError, ModelError):
        pass  # absent, or an interrupted download: ask the hub
    except HFValidationError as error:
        raise ModelError(f"{_unknown(hub_id)} ({error})") from error
    else:
        return cached
    try:
        return Path(snapshot_download(hub_id, allow_patterns=_HUB_PATTERNS))
    except Exception as error:  # the hub client passes on errors of its HTTP library, and changes the library
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].removesuffix(".")
        raise ModelError(
            f"cannot get model {hub_id} from the hub: {reason}. Check the name and the network, or download the model "
            "on another machine and give its local directory."
        ) from error
