"""The embedded models: small, built on first use without network or GPU, kept in the user's cache directory.

`qwen_chat` is a Qwen2 decoder of 5 million parameters, `t5_summarizer` a T5 v1.1 encoder-decoder; both use one
byte-level BPE tokenizer of 2048 tokens. They replace real checkpoints in tests of a stack's speed, scheduling and
correctness: same architecture, same code path, output that is varied but without meaning.

A model's directory is complete in the Hugging Face layout. Its name contains a hash of the recipe, so a new version of
this package builds a new directory. `content.json` holds the hash of every file, so a damaged directory is detected and
built again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from muai_lab.errors import ModelError
from muai_lab.models import vocabulary, weights
from muai_lab.models.content import is_intact, write_content_file

if TYPE_CHECKING:
    from muai_lab.models.weights import Tensor

EMBEDDED_MODELS = ("qwen_chat", "t5_summarizer")

RECIPE_VERSION = 1  # raise it if the code that builds changes; configs, scales and corpus are hashed themselves

_END_OF_TEXT_ID, _IM_END_ID, _PAD_ID = 0, 2, 3

_QWEN2_CONFIG: dict[str, object] = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": None,
    "dtype": "float32",
    "eos_token_id": _IM_END_ID,
    "hidden_act": "silu",
    "hidden_size": 256,
    "initializer_range": 0.02,
    "intermediate_size": 1024,
    "max_position_embeddings": 8192,
    "model_type": "qwen2",
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "pad_token_id": _PAD_ID,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",  # the name that readers before transformers 5 look for
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": vocabulary.VOCAB_SIZE,
}

_T5_CONFIG: dict[str, object] = {
    "architectures": ["T5ForConditionalGeneration"],
    "d_ff": 1024,
    "d_kv": 64,
    "d_model": 256,
    "decoder_start_token_id": _PAD_ID,
    "dropout_rate": 0.0,
    "dtype": "float32",
    "eos_token_id": _END_OF_TEXT_ID,
    "feed_forward_proj": "gated-gelu",
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "layer_norm_epsilon": 1e-6,
    "model_type": "t5",
    "n_positions": 2048,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "num_layers": 3,
    "pad_token_id": _PAD_ID,
    "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "use_cache": True,
    "vocab_size": vocabulary.VOCAB_SIZE,
}

_CONFIGS = {"qwen_chat": _QWEN2_CONFIG, "t5_summarizer": _T5_CONFIG}
_SCALES = {  # measured: the most varied greedy output at which float32 engines still agree
    "qwen_chat": weights.Scales(score=3.0, write=0.6),
    "t5_summarizer": weights.Scales(score=4.0, write=0.8, cross=0.6),
}
_END_TOKENS = {"qwen_chat": (_IM_END_ID,), "t5_summarizer": (_END_OF_TEXT_ID,)}

# Added to the logits of tokens, by the text that they print; see `_bias`.
_BIAS_WORD, _BIAS_PART, _BIAS_END, _BIAS_NEVER = 0.0, -3.0, 3.0, -30.0
_SENTENCE_MARKS = (".", ",", ";", ":", "!", "?")


def cache_dir() -> Path:
    """Return the cache directory: `MUAI_CACHE_DIR`, else `$XDG_CACHE_HOME/muai_lab`, else `~/.cache/muai_lab`."""
    if chosen := os.environ.get("MUAI_CACHE_DIR"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "muai_lab"


def recipe_hash(name: str) -> str:
    """Return a short hash over everything that determines the model `name`."""
    recipe = {
        "version": RECIPE_VERSION,
        "config": _CONFIGS[name],
        "scales": asdict(_SCALES[name]),
        "bias": [_BIAS_WORD, _BIAS_PART, _BIAS_END, _BIAS_NEVER],
        "template": vocabulary.CHAT_TEMPLATE,
        "corpus": vocabulary.corpus(),
    }
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]


def embedded_path(name: str) -> Path:
    """Return the directory of the embedded model `name`; build it if it is absent or damaged (seconds).

    Raises ModelError if the cache directory cannot be written.
    """
    target = cache_dir() / "models" / f"{name}-{recipe_hash(name)}"
    if not is_intact(target):
        try:
            _install(target, lambda directory: _build(name, directory))
        except OSError as error:
            raise ModelError(
                f"cannot build model {name} in {target.parent}: {error.strerror or error}. "
                "Set MUAI_CACHE_DIR to a directory that can be written."
            ) from error
    return target


def _install(target: Path, build: Callable[[Path], None]) -> None:
    """Build beside `target` and rename it into place, so that no reader sees a partial model.

    If several processes build at once, the first to rename wins; their results are the same.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        fresh = Path(scratch) / "model"
        fresh.mkdir()
        build(fresh)
        write_content_file(fresh)
        for attempt in range(3):
            if target.exists() and not is_intact(target):
                shutil.move(target, Path(scratch) / f"damaged-{attempt}")
            try:
                fresh.rename(target)
            except OSError:
                if is_intact(target):
                    return  # another process was faster
                if attempt == 2:
                    raise
            else:
                return


def _build(name: str, directory: Path) -> None:
    from safetensors.numpy import save

    tokenizer = vocabulary.train(vocabulary.corpus())
    config = _CONFIGS[name]
    bias = _bias(vocabulary.token_bytes(tokenizer), vocabulary.words(), _END_TOKENS[name])
    draw_weights = weights.t5_weights if config["model_type"] == "t5" else weights.qwen2_weights
    tensors = draw_weights(name, config, bias, _SCALES[name])
    (directory / "model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
    _write_json(directory / "config.json", config)
    _write_json(directory / "tokenizer.json", tokenizer)
    _write_json(directory / "tokenizer_config.json", _tokenizer_config(name))
    _write_json(directory / "generation_config.json", _generation_config(name))


def _bias(token_bytes: list[bytes], words: frozenset[str], end_tokens: tuple[int, ...]) -> Tensor:
    """Return the bias that is added to each token's logit.

    Whole words and sentence marks have none, parts of words a small negative one. The end token never wins greedily,
    but is drawn about once in a few hundred tokens at temperature 1. Special tokens, control characters and incomplete
    UTF-8 are never produced.
    """
    import numpy as np

    bias = np.full(len(token_bytes), _BIAS_NEVER, np.float32)
    for index, raw in enumerate(token_bytes):
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            continue
        if text and text.replace("\n", " ").isprintable():
            whole = text[0] == " " and text[1:] in words
            bias[index] = _BIAS_WORD if whole or text in _SENTENCE_MARKS else _BIAS_PART
    bias[list(end_tokens)] = _BIAS_END
    return bias


def _tokenizer_config(name: str) -> dict[str, object]:
    shared: dict[str, object] = {
        "clean_up_tokenization_spaces": False,
        "model_max_length": _CONFIGS[name].get("max_position_embeddings", _CONFIGS[name].get("n_positions")),
        "pad_token": vocabulary.PAD,
    }
    if name == "qwen_chat":
        return shared | {
            "chat_template": vocabulary.CHAT_TEMPLATE,
            "eos_token": vocabulary.IM_END,
            "tokenizer_class": "Qwen2Tokenizer",
        }
    return shared | {"eos_token": vocabulary.END_OF_TEXT, "tokenizer_class": "PreTrainedTokenizerFast"}


def _generation_config(name: str) -> dict[str, object]:
    shared: dict[str, object] = {"do_sample": False, "pad_token_id": _PAD_ID}
    if name == "qwen_chat":
        return shared | {"eos_token_id": [_IM_END_ID, _END_OF_TEXT_ID]}
    return shared | {"decoder_start_token_id": _PAD_ID, "eos_token_id": _END_OF_TEXT_ID}


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, sort_keys=True, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
