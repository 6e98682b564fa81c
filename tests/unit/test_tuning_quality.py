"""Greedy tokens by teacher forcing, and the lower bound of their agreement with fp32."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muai_lab.errors import RunError
from muai_lab.experiment.server_calls import HttpAsk
from muai_lab.settings.lab import LabSettings
from muai_lab.settings.schema import OptimizationSettings
from muai_lab.tuning import fp32_answers
from muai_lab.tuning.agreement import Agreement, PromptAgreement, agreement_of, not_kept
from muai_lab.tuning.fp32_answers import Fp32Answers
from muai_lab.tuning.load_blocks import LoadBlocks
from muai_lab.tuning.quality import (
    PROMPTS,
    TOKENS,
    ForcedAnswer,
    compare,
    forced_positions,
    greedy_answers,
    within,
)
from muai_lab.tuning.server_arena import ArenaSetup
from tests.unit.word_tokenizer import WordTokenizer

Ask = Callable[[Sequence[int], Sequence[int], int], list[int]]
PROMPTS_OF_TEST = [[place, place + 7, 3] for place in range(PROMPTS)]


class SmallAttention:
    """One attention layer over random embeddings, whose cache of keys and values holds so many bits.

    The prefill computes with exact keys and values and stores rounded ones, decode steps read what is stored: as
    quantised caches do.
    """

    def __init__(self, bits: int | None, *, vocabulary: int = 96, width: int = 16) -> None:
        random = np.random.default_rng(11)
        self._embedding = random.normal(size=(vocabulary, width))
        self._keys, self._values, self._queries = (random.normal(size=(width, width)) / 4.0 for _ in range(3))
        self._head = random.normal(size=(width, vocabulary))
        self._bits = bits
        self.asked: list[int] = []

    def __call__(self, prompt: Sequence[int], begun: Sequence[int], count: int) -> list[int]:
        self.asked.append(count)
        seen = self._embedding[[*prompt, *begun]]
        keys, values = seen @ self._keys, seen @ self._values
        tokens = [self._next(seen[-1], keys, values)]
        keys, values = self._stored(keys), self._stored(values)
        while len(tokens) < count:
            last = self._embedding[tokens[-1]]
            keys = np.vstack([keys, self._stored(last @ self._keys)])
            values = np.vstack([values, self._stored(last @ self._values)])
            tokens.append(self._next(last, keys, values))
        return tokens

    def _next(self, last: Any, keys: Any, values: Any) -> int:
        scores = np.exp(keys @ (last @ self._queries))
        return int(np.argmax((last + 3.0 * scores @ values / scores.sum()) @ self._head))

    def _stored(self, exact: Any) -> Any:
        if self._bits is None:
            return exact
        step = 4.0 / 2**self._bits
        return np.round(exact / step) * step


def differing_at(places: set[int]) -> tuple[Ask, ForcedAnswer]:
    """An endpoint that differs from an answer of consecutive ids at these places, and goes astray behind each."""
    answer = list(range(100, 100 + TOKENS))

    def ask(prompt: Sequence[int], begun: Sequence[int], count: int) -> list[int]:
        assert list(begun) == answer[: len(begun)], "asked behind the tokens of fp32"
        tokens: list[int] = []
        for place in range(len(begun), len(begun) + count):
            astray = place in places or (tokens and tokens[-1] < 0)
            tokens.append(-1 if astray else answer[place])
        return tokens

    return ask, ForcedAnswer([1, 2], answer)


def test_every_difference_counts_once_and_the_token_behind_a_new_beginning_does_not_count() -> None:
    assert forced_positions(*differing_at(set())) == PromptAgreement(24, 23, 24, TOKENS)
    assert forced_positions(*differing_at({10})) == PromptAgreement(23, 22, 22, TOKENS)
    assert forced_positions(*differing_at({0})) == PromptAgreement(23, 22, 22, TOKENS)
    assert forced_positions(*differing_at({5, 15})) == PromptAgreement(22, 21, 20, TOKENS)
    assert forced_positions(*differing_at({TOKENS - 1})) == PromptAgreement(24, 23, 23, TOKENS)
    assert forced_positions(*differing_at({TOKENS - 2})) == PromptAgreement(23, 22, 22, TOKENS)


@settings(max_examples=50)
@given(st.sets(st.integers(0, TOKENS - 1)))
def test_whatever_differs_each_position_is_asked_at_most_once_and_none_is_forgotten(places: set[int]) -> None:
    found = forced_positions(*differing_at(places))

    assert 0 <= found.agreed <= found.positions <= TOKENS
    assert found.positions - found.decoded == 1
    # Behind a difference one position is not counted; no other is overlooked.
    counted, skipped = set[int](), False
    for place in range(TOKENS):
        if not skipped:
            counted.add(place)
        skipped = place in places and (not skipped or place in places)
    assert found == PromptAgreement(len(counted), len(counted) - 1, len(counted - places), TOKENS)


def test_a_cache_of_three_bits_is_found_although_every_first_token_is_right() -> None:
    exact, rounded = SmallAttention(None), SmallAttention(3)
    expected = greedy_answers(exact, PROMPTS_OF_TEST, frozenset())

    found = compare(rounded, expected, 0.5)

    assert all(rounded(one.prompt, (), 1) == one.answer[:1] for one in expected)
    assert found.share < 0.9
    assert not found.keeps(0.95)
    assert compare(exact, expected, 0.95).share == 1.0


def test_a_comparison_ends_as_soon_as_it_can_only_be_refused() -> None:
    exact, rounded = SmallAttention(None), SmallAttention(1)
    expected = greedy_answers(exact, PROMPTS_OF_TEST, frozenset())

    found = compare(rounded, expected, 0.95)

    assert found.prompts < PROMPTS
    assert not found.keeps(0.95)


def test_answers_end_behind_an_end_token_while_enough_positions_remain() -> None:
    ask, forced = differing_at(set())

    many = greedy_answers(ask, [[place] for place in range(PROMPTS)], frozenset({forced.answer[19]}))
    few = greedy_answers(ask, [[place] for place in range(PROMPTS)], frozenset({forced.answer[2]}))

    assert {len(one.answer) for one in many} == {20}
    assert {len(one.answer) for one in few} == {TOKENS}


def test_an_engine_is_asked_only_for_what_it_has_room_for() -> None:
    expected = [ForcedAnswer([1] * size, [2] * 4) for size in (3, 6, 8, 9)]

    decoder = within(expected, 8, encoder_decoder=False)
    encoder = within(expected, 8, encoder_decoder=True)

    assert [(len(one.prompt), len(one.answer)) for one in decoder] == [(3, 4), (6, 2)]
    assert [(len(one.prompt), len(one.answer)) for one in encoder] == [(3, 4), (6, 4), (8, 4)]


def test_a_server_without_a_token_is_no_agreement() -> None:
    with pytest.raises(RunError, match="without a token"):
        forced_positions(lambda prompt, begun, count: [], ForcedAnswer([1], [2, 3]))


def test_few_positions_prove_little() -> None:
    assert agreement_of([]).low == 0.0
    assert agreement_of([PromptAgreement(0, 0, 0)]).low == 0.0
    assert agreement_of([PromptAgreement(1000, 999, 1000)]).low == 0.0  # one prompt shows nothing of others
    few, many = (agreement_of([PromptAgreement(24, 23, 24)] * prompts) for prompts in (4, 64))
    assert few.low < 0.95 < 0.99 < many.low < 1.0


def test_differences_in_few_prompts_widen_the_bound() -> None:
    spread = agreement_of([PromptAgreement(24, 23, 23)] * 32 + [PromptAgreement(24, 23, 24)] * 32)
    clustered = agreement_of([PromptAgreement(24, 23, 8)] * 2 + [PromptAgreement(24, 23, 24)] * 62)

    assert spread.share == clustered.share
    assert clustered.design_effect > 4.0
    assert clustered.low < 0.95 < spread.low


def test_a_prompt_weighs_what_its_answer_is_long_however_many_positions_were_left_out() -> None:
    found = agreement_of([PromptAgreement(24, 23, 24, 24), PromptAgreement(16, 15, 8, 24)])

    assert found.share == pytest.approx(0.75)
    assert found.positions == 40


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(1, 40), st.floats(0.0, 1.0)), min_size=1, max_size=80))
def test_the_bound_lies_below_the_share(drawn: list[tuple[int, float]]) -> None:
    found = agreement_of([PromptAgreement(size, size - 1, round(size * part)) for size, part in drawn])

    assert 0.0 <= found.low <= found.share <= 1.0
    assert found.design_effect >= 1.0


def test_a_comparison_is_told_with_its_positions() -> None:
    found = Agreement(0.987, 0.976, 1536, 1472, 64)

    assert str(found) == (
        "98.7% of the greedy tokens are those of fp32, at least 97.6% (1,536 positions of 64 prompts, 1,472 by decode "
        "steps)"
    )
    assert not_kept(found, 0.95) is None
    assert not_kept(None, 0.95) is None
    assert "98.0% are asked for (tuning.min_agreement)" in (not_kept(found, 0.98) or "")


class LetterTokenizer(WordTokenizer):
    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]


def test_prompts_are_different_ones_of_the_workload_and_fresh_ones_are_others() -> None:
    lab = LabSettings.model_validate({"arrival": {"rate": 2.0}})

    prompts = LoadBlocks(lab, LetterTokenizer(), 100).prompts

    assert {name: len(found) for name, found in prompts.items()} == {"search": PROMPTS, "fresh": PROMPTS}
    assert len({tuple(prompt) for found in prompts.values() for prompt in found}) == 2 * PROMPTS
    assert max(len(prompt) for prompt in prompts["search"]) <= 100 - TOKENS


def test_made_up_prompts_join_those_of_a_workload_that_has_few() -> None:
    lab = LabSettings.model_validate({"workload": {"prompt_tokens": {"distribution": "fixed", "value": 40}}})

    prompts = LoadBlocks(lab, WordTokenizer(), None).prompts["search"]  # whose texts of a length are all alike

    assert [len(prompt) for prompt in prompts] == [40] * 24


@contextmanager
def server_that_answers(document: dict[str, Any], status: int = 200) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server with one answer; yields its address and the bodies that it got."""
    bodies: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(document).encode())

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name of the base class
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", bodies
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_server_is_asked_for_ids_behind_the_tokens_of_the_answer() -> None:
    with server_that_answers({"choices": [{"text": "x", "token_ids": [7, 8]}]}) as (url, bodies):
        tokens = HttpAsk(url, "m")([1, 2], [3], 2)
        HttpAsk(url, "m", encoder_decoder=True)([1, 2], [3], 2)

    assert tokens == [7, 8]
    assert bodies[0]["prompt"] == [1, 2, 3]
    assert (bodies[0]["temperature"], bodies[0]["max_tokens"], bodies[0]["return_token_ids"]) == (0, 2, True)
    assert (bodies[1]["prompt"], bodies[1]["x_muai_output"]) == ([1, 2], [3])


@pytest.mark.parametrize(("document", "status"), [({"error": "too long"}, 400), ({"choices": [{"text": "x"}]}, 200)])
def test_a_server_that_gives_no_ids_is_an_error(document: dict[str, Any], status: int) -> None:
    with server_that_answers(document, status) as (url, _), pytest.raises(RunError, match="greedy tokens"):
        HttpAsk(url, "m")([1], [], 2)


def test_the_highest_limit_that_can_be_asked_for_can_be_shown() -> None:
    highest = LabSettings.model_validate({"tuning": {"min_agreement": 0.99}}).tuning.min_agreement

    assert agreement_of([PromptAgreement(TOKENS, TOKENS - 1, TOKENS)] * PROMPTS).keeps(highest or 1.0)


def test_answers_of_fp32_are_asked_for_once_in_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[OptimizationSettings] = []

    class Fp32:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.ask = SmallAttention(None, vocabulary=128)

        def apply(self, optimization: OptimizationSettings) -> None:
            started.append(optimization)

        def close(self) -> None:
            pass

    monkeypatch.setattr(fp32_answers, "ServerArena", Fp32)

    def answers() -> list[ForcedAnswer]:
        blocks = LoadBlocks(LabSettings(), LetterTokenizer(), None)
        return Fp32Answers(ArenaSetup(LabSettings(), blocks, tmp_path), frozenset()).of("search")

    first, again = answers(), answers()
    (tmp_path / fp32_answers.REFERENCE).write_text('{"search": [{"prompt": [1]}]}')
    repaired = answers()

    assert first == again == repaired
    assert len(first) == PROMPTS
    assert [(one.engine_preference, one.pytorch.dtype) for one in started] == [(("pytorch",), "fp32")] * 2
