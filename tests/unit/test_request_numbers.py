"""No number that a client sends gets past its range: into a sampler, into vLLM's arguments, or into an exception."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import msgspec
import pytest
import torch
from hypothesis import example, given, settings

from muai_lab.engines.base import Sampling
from muai_lab.engines.ranges import CHOICES, MAX_TOKENS, PRIORITY, SEED, TEMPERATURE, TOP_P, TokenRange
from muai_lab.engines.sampling import SlotSampler
from muai_lab.engines.vllm.arguments import sampling_keywords
from muai_lab.errors import InvalidRequest
from muai_lab.server.http_error import HttpError
from muai_lab.server.protocol import ChatRequest, CompletionRequest, GenerationFields, parse
from muai_lab.stack.checks import check_request
from muai_lab.stack.request import GenerationRequest
from tests.unit.counting_engine import CountingEngine

VOCABULARY = CountingEngine.vocab_size
HUGE = 1180591620717411303424  # 2^70: the request that ended every engine
RANGES = {
    "max_tokens": MAX_TOKENS,
    "temperature": TEMPERATURE,
    "top_p": TOP_P,
    "seed": SEED,
    "n": CHOICES,
    "priority": PRIORITY,
}
NUMBERS = [
    *RANGES,
    *("top_k", "best_of", "max_completion_tokens", "min_tokens", "min_p", "logprobs", "top_logprobs", "echo"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty", "length_penalty", "logit_bias", "stop_token_ids"),
]

# Literals that Python's own writer does not make, beside what it does.
LITERALS = st.sampled_from(["1e400", "-1e400", "NaN", "Infinity", "-Infinity", "-0", "1E+2", "1" + "0" * 4400])
VALUES = st.one_of(
    LITERALS,
    st.one_of(
        st.integers(),
        st.integers(-3, 3),
        st.sampled_from([HUGE, -HUGE, 2**31, 2**32, 2**63, -(2**63), 2**64 - 1, -1, 10**400]),
        st.floats(),
        st.sampled_from([1e300, 5e-324, 1e-320, -0.0, 2.0, 1.0]),
        st.booleans(),
        st.none(),
        st.text(max_size=3),
        st.lists(st.integers(), max_size=2),
        st.dictionaries(st.text(max_size=2), st.floats(), max_size=1),
    ).map(json.dumps),
)
PROMPTS = st.sampled_from(
    ['"ab"', "[5, 6]", "[99]", "[100]", f"[{HUGE}]", "[-1]", "[true]", "[1.0]", "[]", "[[5], [6]]"]
)


class WordsAsBytes:
    vocab_size = VOCABULARY

    def encode(self, text: str) -> list[int]:
        return [number % VOCABULARY for number in text.encode()]

    def encode_chat(self, messages: list[dict[str, str]]) -> list[int]:
        return [1, 2]


def body(fields: dict[str, str]) -> bytes:
    return ("{" + ", ".join(f'"{name}": {value}' for name, value in fields.items()) + "}").encode()


def samplings(request: GenerationFields) -> list[Sampling]:
    """What reaches an engine, or nothing for a request that the stack refuses."""
    found = []
    for prompt in request.token_ids(WordsAsBytes()):  # type: ignore[arg-type]
        for choice in range(min(request.choices, 2)):
            stacked = GenerationRequest(
                "a",
                prompt,
                request.token_limit() or 1,
                sampling=request.sampling(choice),
                priority=request.priority or 0,
                cache_salt=request.cache_salt or "",
            )
            try:
                check_request(stacked, CountingEngine(), vocabulary=VOCABULARY)
            except InvalidRequest:
                continue
            found.append(stacked.sampling)
    return found


def accepted(document: bytes, *, chat: bool) -> list[Sampling]:
    """The samplings of a request; none if it is refused. Anything but a refusal is raised."""
    try:
        return samplings(parse(ChatRequest if chat else CompletionRequest, document))
    except HttpError as refusal:
        if refusal.status != 400 or len(refusal.message) > 5000:
            raise
        return []


@settings(max_examples=100, deadline=None)
@given(fields=st.dictionaries(st.sampled_from(NUMBERS), VALUES, max_size=5), prompt=PROMPTS, chat=st.booleans())
@example(fields={"top_k": str(HUGE), "temperature": "1"}, prompt='"ab"', chat=False)
@example(fields={"temperature": "1e300"}, prompt='"ab"', chat=False)
@example(fields={"temperature": "5e-324", "top_p": "5e-324", "seed": "-9223372036854775808"}, prompt="[5]", chat=True)
def test_whatever_a_client_sends_is_sampled_or_refused(fields: dict[str, str], prompt: str, chat: bool) -> None:
    given_fields = {"model": '"m"', **fields}
    given_fields |= {"messages": '[{"role": "user", "content": "a"}]'} if chat else {"prompt": prompt}

    for sampling in accepted(body(given_fields), chat=chat):
        sampler = SlotSampler()
        sampler.open(0, sampling)
        (token,) = sampler.choose(torch.linspace(-5, 5, VOCABULARY).unsqueeze(0), [0])
        assert 0 <= token < VOCABULARY
        keywords = sampling_keywords(sampling)
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(keywords)) == keywords
        assert 0 <= keywords["top_k"] < 2**31
        assert keywords["seed"] is None or 0 <= keywords["seed"] < 2**63
        assert 0 <= keywords["temperature"] <= 2
        assert 0 < keywords["top_p"] <= 1


@pytest.mark.parametrize("name", RANGES)
def test_both_ends_of_a_range_are_taken_and_what_lies_beyond_is_refused(name: str) -> None:
    numbers = RANGES[name]
    whole = isinstance(numbers.most, int) and name not in ("temperature", "top_p")

    def parsed(value: float) -> Any:
        fields = {"model": '"m"', "prompt": '"a"', name: json.dumps(value)}
        return getattr(parse(CompletionRequest, body(fields)), name)

    beyond = [numbers.most + 1, numbers.least - 1, *([numbers.least] if numbers.above else [])]
    assert parsed(numbers.most) == numbers.most
    assert numbers.above or parsed(numbers.least) == numbers.least
    for value in beyond if whole else [*beyond, math.nextafter(numbers.most, math.inf), math.nan, math.inf]:
        with pytest.raises(HttpError, match=f"'{name}' is invalid"):
            parsed(value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400, -(10**400)])
def test_no_range_holds_what_is_no_number_or_far_beyond(value: float) -> None:
    assert not any(numbers.holds(value) for numbers in RANGES.values())
    assert not TokenRange(0, 1, above=True).holds(0)


@pytest.mark.parametrize("top_k", [VOCABULARY, VOCABULARY + 1, 2**63, HUGE, 10**400])
def test_a_top_k_of_the_vocabulary_or_more_keeps_every_token(top_k: int) -> None:
    def tokens(top_k: int) -> list[int]:
        sampler = SlotSampler()
        sampler.open(0, Sampling(1.0, top_k=top_k, seed=5))
        return [sampler.choose(torch.zeros(1, VOCABULARY), [0])[0] for _ in range(50)]

    assert tokens(top_k) == tokens(0)


def test_the_documentation_states_the_ranges() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "server.md").read_text()

    for name, numbers in RANGES.items():
        assert any(f"`{name}`" in line and str(numbers) in line for line in page.splitlines()), name
