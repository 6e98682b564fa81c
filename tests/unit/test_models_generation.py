"""transformers loads the embedded models as they are, and what they write is fit for tests and demonstrations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from muai_lab.models.registry import ModelSource, resolve_model
from muai_lab.models.tokenizer import ModelTokenizer, load_tokenizer

TOKENS = 96
PROMPTS = 8


def load(source: ModelSource, **options: Any) -> Any:
    loader = AutoModelForSeq2SeqLM if source.encoder_decoder else AutoModelForCausalLM
    return loader.from_pretrained(source.path, local_files_only=True, **options)


def greedy(model: Any, prompts: list[list[int]]) -> list[list[int]]:
    """Greedy output of prompts of one length, until the end token or `TOKENS`."""
    ids = torch.tensor(prompts)
    with torch.inference_mode():
        output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False)
    return output[:, 1 if model.config.is_encoder_decoder else ids.shape[1] :].tolist()


@pytest.fixture(scope="module", params=["qwen_chat", "t5_summarizer"])
def source(request: pytest.FixtureRequest, embedded_cache: Path) -> ModelSource:
    return resolve_model(request.param)


@pytest.fixture(scope="module")
def tokenizer(source: ModelSource) -> ModelTokenizer:
    return load_tokenizer(source)


@pytest.fixture(scope="module")
def model(source: ModelSource) -> Any:
    return load(source)


@pytest.fixture(scope="module")
def prompts(tokenizer: ModelTokenizer) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [tokenizer.prompt_of(24, rng)[1] for _ in range(PROMPTS)]


@pytest.fixture(scope="module")
def outputs(model: Any, prompts: list[list[int]]) -> list[list[int]]:
    return greedy(model, prompts)


def test_transformers_finds_every_weight_and_no_other(source: ModelSource) -> None:
    model, report = load(source, output_loading_info=True)

    assert not any(report.values())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_vocabulary_and_weights_fit(model: Any, tokenizer: ModelTokenizer) -> None:
    assert model.config.vocab_size == tokenizer.vocab_size
    assert set(np.atleast_1d(model.generation_config.eos_token_id)) == tokenizer.eos_token_ids


def test_greedy_output_is_varied_and_never_ends(outputs: list[list[int]]) -> None:
    distinct = [len(set(output)) / TOKENS for output in outputs]

    assert [len(output) for output in outputs] == [TOKENS] * PROMPTS
    assert min(distinct) > 0.6


def test_greedy_output_falls_into_no_loop(outputs: list[list[int]]) -> None:
    for output in outputs:
        tail = output[-24:]
        assert [period for period in range(1, 9) if tail[period:] == tail[:-period]] == []


def test_different_prompts_give_different_outputs(outputs: list[list[int]]) -> None:
    assert len({tuple(output) for output in outputs}) == PROMPTS


def test_one_changed_prompt_token_changes_the_output(
    model: Any, tokenizer: ModelTokenizer, prompts: list[list[int]], outputs: list[list[int]]
) -> None:
    other = tokenizer.ordinary_token_ids[0]
    changed = [[prompt[0], other, *prompt[2:]] for prompt in prompts]

    assert all(one != two for one, two in zip(greedy(model, changed), outputs, strict=True))


def test_output_is_printable_text(outputs: list[list[int]], tokenizer: ModelTokenizer) -> None:
    for output in outputs:
        text = tokenizer.decode(output)
        assert text.replace("\n", "").isprintable()
        assert "\ufffd" not in text


def test_first_choice_is_clear(
    model: Any, source: ModelSource, prompts: list[list[int]], outputs: list[list[int]]
) -> None:
    """Rounding differences of float32 engines are near 2e-5; gaps below 1e-3 are where they could choose apart."""
    with torch.inference_mode():
        if source.encoder_decoder:
            start = [[model.config.decoder_start_token_id, *output[:-1]] for output in outputs]
            logits = model(input_ids=torch.tensor(prompts), decoder_input_ids=torch.tensor(start)).logits
        else:
            whole = [prompt + output[:-1] for prompt, output in zip(prompts, outputs, strict=True)]
            logits = model(torch.tensor(whole)).logits[:, len(prompts[0]) - 1 :]
    best, second = logits.topk(2).values.unbind(-1)
    gaps = best - second

    assert logits.argmax(-1).tolist() == outputs  # a whole pass chooses what step-by-step decoding chose
    assert gaps.median() > 0.2
    assert (gaps < 1e-3).float().mean() < 0.01


def test_sampled_output_ends_after_some_hundred_tokens(
    model: Any, source: ModelSource, prompts: list[list[int]], outputs: list[list[int]], tokenizer: ModelTokenizer
) -> None:
    with torch.inference_mode():
        if source.encoder_decoder:
            logits = model(input_ids=torch.tensor(prompts), decoder_input_ids=torch.tensor(outputs)).logits
        else:
            logits = model(torch.tensor(outputs)).logits
    end = logits.softmax(-1)[..., sorted(tokenizer.eos_token_ids)].sum(-1)

    assert 1 / 1000 < end.mean() < 1 / 100
