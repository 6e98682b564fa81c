"""Very small Hugging Face models with random weights, saved to disk: one per architecture, milliseconds to run."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from muai_lab.engines.pytorch.engine import PyTorchEngine
from muai_lab.models.registry import ModelSource
from muai_lab.settings.schema import OptimizationSettings

# Architectures that the PyTorch engine serves.
SERVED = ["qwen2", "llama_tied", "mistral_window", "gemma3_mixed_windows", "gpt2"]
VOCABULARY = 120
CONTEXT = 256

_SHARED = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def build(name: str, directory: Path) -> ModelSource:
    """Make the model of this name in `directory`, the same one each time."""
    import transformers as tf

    configs: dict[str, Any] = {
        "qwen2": lambda: tf.Qwen2Config(**_SHARED),
        "llama_tied": lambda: tf.LlamaConfig(**_SHARED, tie_word_embeddings=True),
        "mistral_window": lambda: tf.MistralConfig(**_SHARED, sliding_window=8),
        "gemma3_mixed_windows": lambda: tf.Gemma3TextConfig(**_SHARED, head_dim=8, sliding_window=8),
        "gpt2": lambda: tf.GPT2Config(
            vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=CONTEXT, bos_token_id=1, eos_token_id=2
        ),
        "t5": lambda: tf.T5Config(
            vocab_size=VOCABULARY,
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            decoder_start_token_id=0,
            eos_token_id=2,
            n_positions=CONTEXT,
        ),
        "gemma2_softcap": lambda: tf.Gemma2Config(**_SHARED, head_dim=8),
        "bloom": lambda: tf.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4),
        "mamba": lambda: tf.MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4),
        "bert": lambda: tf.BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            is_decoder=False,
        ),
        "bart": lambda: tf.BartConfig(
            vocab_size=VOCABULARY,
            d_model=32,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            max_position_embeddings=CONTEXT,
        ),
    }
    config = configs[name]()
    encoder_decoder = bool(config.is_encoder_decoder)
    kind = tf.AutoModelForSeq2SeqLM if encoder_decoder else tf.AutoModelForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind.from_config(config)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                # Larger than at the start of a training, so that greedy output is varied.
                torch.nn.init.normal_(parameter, std=0.25)
    model.save_pretrained(directory)
    return ModelSource(
        name=name,
        path=directory,
        hub_id=None,
        kind="local",
        content_hash=None,
        encoder_decoder=encoder_decoder,
        model_type=config.model_type,
    )


def built_once(make_folder: Callable[[str], Path]) -> Callable[[str], ModelSource]:
    """Builds the model of a name when it is first asked for. make_folder: gives a new folder for it."""
    return cache(lambda name: build(name, make_folder(name)))


def load(source: ModelSource, slots: int = 4, **pytorch: object) -> PyTorchEngine:
    """The PyTorch engine with it, in fp32 where the tests run (see conftest.py). pytorch: settings of the engine."""
    there = {"device": os.environ["MUAI_TEST_DEVICE"], "dtype": "fp32"}
    settings = OptimizationSettings.model_validate({"pytorch": there | pytorch})
    return PyTorchEngine(source, settings, slots=slots)


def prompt(length: int, seed: int = 0) -> list[int]:
    """Random tokens, the same ones each time."""
    return random.Random(f"{length} {seed}").choices(range(3, VOCABULARY), k=length)


def reference(source: ModelSource, prompt: list[int], count: int) -> list[int]:
    """`count` greedy tokens by Transformers' own `generate`."""
    import transformers as tf

    kind = tf.AutoModelForSeq2SeqLM if source.encoder_decoder else tf.AutoModelForCausalLM
    model = kind.from_pretrained(source.path)
    output = model.generate(
        torch.tensor([prompt]),
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    begin = 1 if source.encoder_decoder else len(prompt)
    tokens: list[int] = output[0, begin:].tolist()
    return tokens
