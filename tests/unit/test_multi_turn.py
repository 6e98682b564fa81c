"""Conversations: how sessions are drawn."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muai_lab.settings.lab import LabSettings
from muai_lab.workload.draw import draw_schedule
from muai_lab.workload.schedule import Schedule, ScheduledRequest
from tests.unit.word_tokenizer import TEMPLATE_TOKENS, WordTokenizer

LENGTHS = {
    "prompt_tokens": {"distribution": "fixed", "value": 10},
    "output_tokens": {"distribution": "fixed", "value": 7},
}


def draw(seed: int = 0, context_tokens: int | None = None, duration_s: float = 20.0, **workload: Any) -> Schedule:
    settings = LabSettings.model_validate(
        {
            "seed": seed,
            "arrival": {"kind": "poisson", "rate": 5.0},
            "load": {"warmup_s": 0.0, "duration_s": duration_s},
            "workload": {"kind": "multi_turn", **workload},
        }
    )
    return draw_schedule(settings, WordTokenizer(), context_tokens)


def sessions(schedule: Schedule) -> list[list[ScheduledRequest]]:
    found: dict[int, list[ScheduledRequest]] = {}
    for request in schedule:
        assert request.session is not None
        found.setdefault(request.session, []).append(request)
    return list(found.values())


def test_an_arrival_is_a_first_turn_and_later_turns_wait_for_the_answer_before() -> None:
    schedule = draw()

    assert schedule.open_loop
    for first, *later in sessions(schedule):
        assert (first.turn, first.think_s) == (0, None)
        assert first.intended_s is not None
        assert [turn.turn for turn in later] == list(range(1, len(later) + 1))
        assert all(turn.intended_s is None and turn.think_s is not None for turn in later)


def test_turns_of_a_session_stand_together_and_rows_know_how_many_follow() -> None:
    schedule = draw()

    starts = schedule.starts
    lengths = [len(turns) for turns in sessions(schedule)]
    assert [schedule.later_turns(row) + 1 for row in starts] == lengths
    assert np.cumsum([0, *lengths])[:-1].tolist() == starts


def test_sessions_have_the_wanted_numbers_of_turns() -> None:
    lengths = [len(turns) for turns in sessions(draw(turns={"distribution": "uniform", "low": 2, "high": 4}))]

    assert set(lengths) == {2, 3, 4}


def test_a_turn_counts_the_conversation_so_far_with_full_answers() -> None:
    schedule = draw(turns={"distribution": "fixed", "value": 3}, **LENGTHS)

    said = 10 + TEMPLATE_TOKENS
    answered = 7 + TEMPLATE_TOKENS
    for turns in sessions(schedule):
        assert [turn.prompt_tokens for turn in turns] == [said, 2 * said + answered, 3 * said + 2 * answered]


def test_conversations_as_plain_text_are_joined_by_line_ends() -> None:
    schedule = draw(api="completions", turns={"distribution": "fixed", "value": 2}, **LENGTHS)

    assert [turn.prompt_tokens for turn in sessions(schedule)[0]] == [10, 10 + 1 + 7 + 1 + 10]


def test_the_system_prompt_opens_every_conversation() -> None:
    schedule = draw(system_tokens=4, turns={"distribution": "fixed", "value": 2}, **LENGTHS)

    openings = [json.loads(turns[0].messages or "[]") for turns in sessions(schedule)]
    assert {message[0]["content"] for message in openings} == {openings[0][0]["content"]}
    assert [message["role"] for message in openings[0]] == ["system", "user"]
    assert len(openings[0][0]["content"].split()) == 4
    assert all(turns[1].messages is None for turns in sessions(schedule))
    assert {request.prefix_group for request in schedule} == {0}


def test_a_session_ends_before_the_turn_that_does_not_fit() -> None:
    roomy = draw(turns={"distribution": "fixed", "value": 5}, **LENGTHS)
    tight = draw(turns={"distribution": "fixed", "value": 5}, context_tokens=60, **LENGTHS)

    assert {len(turns) for turns in sessions(tight)} == {2}
    assert all(turn.prompt_tokens + turn.max_tokens <= 60 for turn in tight)
    dropped = len(roomy) - len(tight)
    assert tight.notes == (f"left out, not to exceed the model's context of 60 tokens: {dropped} turns",)
    assert roomy.notes == ()


@pytest.mark.parametrize(
    ("think_time", "mean_s", "variation"),
    [
        ({"distribution": "fixed", "value_s": 0.5}, 0.5, 0.0),
        ({"distribution": "exponential", "mean_s": 2.0}, 2.0, 1.0),
        ({"distribution": "lognormal", "mean_s": 2.0, "sigma": 0.5}, 2.0, np.sqrt(np.exp(0.25) - 1)),
    ],
    ids=lambda value: value["distribution"] if isinstance(value, dict) else "",
)
def test_think_times_follow_their_distribution(think_time: dict[str, Any], mean_s: float, variation: float) -> None:
    pauses = draw(think_time=think_time, duration_s=400.0).table["think_s"].drop_null().to_numpy()

    assert pauses.mean() == pytest.approx(mean_s, rel=0.06)
    assert pauses.std() / pauses.mean() == pytest.approx(variation, abs=0.06)


@given(seed=st.integers(0, 50), longer=st.integers(21, 60))
def test_a_longer_load_begins_with_the_same_sessions(seed: int, longer: int) -> None:
    short, long = draw(seed), draw(seed, duration_s=float(longer))

    assert long.table.slice(0, len(short)).equals(short.table)


def test_a_closed_loop_cuts_the_last_session_at_the_wanted_number_of_requests() -> None:
    settings = LabSettings.model_validate(
        {
            "arrival": {"kind": "closed"},
            "load": {"requests": 10},
            "workload": {"kind": "multi_turn", "turns": {"distribution": "fixed", "value": 4}},
        }
    )
    schedule = draw_schedule(settings, WordTokenizer())

    assert not schedule.open_loop
    assert [len(turns) for turns in sessions(schedule)] == [4, 4, 2]
