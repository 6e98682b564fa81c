"""Prompts that no server has seen: other beginnings, the same lengths, the same sharing."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muai_lab.workload.salt import new_salt, repeated_share, salted
from muai_lab.workload.schedule import Schedule, ScheduledRequest
from tests.unit.word_tokenizer import WordTokenizer

TOKENIZER = WordTokenizer()
SALT = "0123456789abcdef"


def texts(*prompts: str) -> Schedule:
    return Schedule.of([ScheduledRequest(i, None, text, None, len(text.split()), 4) for i, text in enumerate(prompts)])


def ids(*prompts: list[int]) -> Schedule:
    return Schedule.of(
        [ScheduledRequest(i, None, None, np.array(row, dtype=np.int32), len(row), 4) for i, row in enumerate(prompts)]
    )


def test_each_salt_gives_other_beginnings_of_the_same_length_and_the_drawn_schedule_stays() -> None:
    drawn = texts("one two three four five", "six seven eight nine")
    before = drawn.hash

    sent = [salted(drawn, new_salt(), TOKENIZER).schedule for _ in range(3)]

    prompts = [[request.prompt for request in schedule] for schedule in sent]
    assert len({tuple(found) for found in prompts}) == 3
    assert all(found[0].endswith(" four five") and len(found[0].split()) == 5 for found in prompts if found[0])
    assert drawn.hash == before


def test_prompts_that_share_a_prefix_still_share_one() -> None:
    found = [r.prompt or "" for r in salted(texts("a b c d x", "a b c d y", "q r s t"), SALT, TOKENIZER).schedule]

    assert found[0][:-1] == found[1][:-1]
    assert found[0].split()[0] != found[2].split()[0]


def test_token_ids_get_another_beginning_too() -> None:
    found = [request.prompt_ids for request in salted(ids([1, 2, 3, 4, 5, 6], [7]), SALT, TOKENIZER).schedule]

    assert found[0] is not None
    assert found[1] is not None
    assert found[0].tolist()[4:] == [5, 6]
    assert (len(found[0]), len(found[1])) == (6, 1)


def test_the_first_message_of_a_conversation_is_changed_and_its_later_turns_are_not() -> None:
    messages = json.dumps([{"role": "system", "content": "be very brief now"}, {"role": "user", "content": "hello"}])
    drawn = Schedule.of(
        [
            ScheduledRequest(0, None, None, None, 5, 4, session=0, turn=0, messages=messages),
            ScheduledRequest(1, None, "and you my friend", None, 9, 4, session=0, turn=1, think_s=0.0),
        ]
    )

    first, later = salted(drawn, SALT, TOKENIZER).schedule

    sent = json.loads(first.messages or "")
    assert sent[0]["content"] != "be very brief now"
    assert sent[0]["content"].endswith("now")
    assert sent[1]["content"] == "hello"
    assert later.prompt == "and you my friend"


def test_a_prompt_of_one_word_is_counted_as_unsalted() -> None:
    assert salted(texts("hello", "one two three four"), SALT, TOKENIZER).unsalted == 1


@given(st.lists(st.text(st.sampled_from("ab \n\té"), max_size=30), min_size=1, max_size=5), st.integers(0, 2**63))
def test_any_prompt_keeps_its_number_of_tokens_and_its_spaces(prompts: list[str], number: int) -> None:
    drawn = texts(*prompts)

    found = salted(drawn, f"{number:016x}", TOKENIZER)

    assert found.other_length == 0
    for before, after in zip(drawn, found.schedule, strict=True):
        assert len(TOKENIZER.encode(after.prompt or "")) == len(TOKENIZER.encode(before.prompt or ""))


@pytest.mark.parametrize(
    ("prompts", "share"), [(("abcd", "abxx"), 0.25), (("aa", "bb"), 0.0), (("same", "same"), 0.5), (("one",), 0.0)]
)
def test_the_share_that_a_cache_can_know_from_the_same_run(prompts: tuple[str, ...], share: float) -> None:
    assert repeated_share(texts(*prompts)) == pytest.approx(share)
