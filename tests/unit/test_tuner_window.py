"""What the tuner sees of the events: blocks of time, in which each request is settled once."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muai_lab.stack.events import (
    Admitted,
    CacheLookup,
    Event,
    Failed,
    Finished,
    Lost,
    Queued,
    Rejected,
    Step,
    Token,
)
from muai_lab.stack.online.window import Block, Targets, TunerWindow, total

CHAT = Targets(ttft_s=1.0, tpot_s=0.1)


def window(targets: Targets = CHAT, *, block_s: float = 10.0, window_s: float = 100.0) -> TunerWindow:
    return TunerWindow(targets, block_s=block_s, window_s=window_s, began=0.0)


def request(name: str, *, queued: float, first: float, end: float, tokens: int = 11) -> list[Event]:
    """All events of a request that was admitted as soon as it came."""
    return [
        Queued(name, queued, 5),
        Admitted(name, queued, queued, 5),
        Token(name, first, 1, 0),
        *(Token(name, end, 1, index) for index in range(1, tokens)),
        Finished(name, end, "length", 5, tokens, queued, queued, first),
    ]


def seen(*events: Event, until: float = 10.0, targets: Targets = CHAT) -> Block:
    watched = window(targets)
    watched.observe(events)
    return total(watched.blocks(until, 0.0))


@pytest.mark.parametrize(
    ("first", "end", "good", "missed_pace", "late"),
    [
        (1.5, 2.4, 1, 0, 0),  # half a second, then 0.09 s per token
        (1.5, 2.6, 0, 1, 0),  # 0.11 s per token
        (2.1, 3.0, 0, 0, 1),  # 1.1 s
        (2.1, 9.0, 0, 0, 1),  # late counts once, whatever the pace
    ],
)
def test_a_request_is_good_when_it_meets_both_targets(
    first: float, end: float, good: int, missed_pace: int, late: int
) -> None:
    block = seen(*request("a", queued=1.0, first=first, end=end))

    assert (block.good, block.missed_pace, block.late, block.settled) == (good, missed_pace, late, 1)


def test_without_targets_every_result_is_good() -> None:
    block = seen(*request("a", queued=1.0, first=8.0, end=9.9), targets=Targets())

    assert (block.good, block.settled, block.output_tokens) == (1, 1, 11)


def test_a_request_that_waits_too_long_is_late_before_it_ends_and_only_once() -> None:
    watched = window()
    watched.observe([Queued("a", 1.0, 5)])

    waiting = total(watched.blocks(10.0, 0.0))
    watched.observe([Token("a", 12.0, 1, 0), Finished("a", 13.0, "length", 5, 11, 1.0, 11.0, 12.0)])
    whole = total(watched.blocks(20.0, 0.0))

    assert (waiting.late, waiting.settled) == (1, 1)
    assert (whole.late, whole.settled, whole.ended) == (1, 1, 1)


def test_what_is_rejected_or_fails_is_settled_and_what_is_cancelled_is_not() -> None:
    block = seen(
        Rejected(1.0, "full"),
        Queued("a", 2.0, 5),
        Failed("a", 2.5, "error", "no", 2.0),
        Queued("b", 3.0, 5),
        Failed("b", 3.1, "cancelled", "gone", 3.0),
    )

    assert (block.arrived, block.rejected, block.failed, block.settled) == (3, 1, 1, 2)
    assert block.attainment == 0.0


def test_a_request_whose_engine_died_is_judged_by_its_next_attempt() -> None:
    block = seen(Queued("a", 1.0, 5), Lost("a", 1.1, "dead", 1.0), *request("a", queued=1.2, first=1.5, end=2.0))

    assert (block.good, block.settled) == (1, 1)


def test_ready_counts_those_that_only_the_queue_made_late() -> None:
    block = seen(
        Queued("a", 1.0, 5),
        Admitted("a", 5.0, 1.0, 5),
        Token("a", 5.5, 1, 0),
        Finished("a", 6.0, "length", 5, 11, 1.0, 5.0, 5.5),
    )

    assert (block.ready, block.good, block.late) == (1, 0, 1)
    assert block.mean_service_s == 1.0


def test_saturated_means_busy_with_others_waiting() -> None:
    steps = [Step(at, at - 1.0, 4, 0, 4, running=4, waiting=2) for at in range(1, 10)]

    assert seen(*steps, Step(9.9, 9.0, 4, 0, 4, running=4, waiting=2)).saturated
    assert not seen(*steps).saturated  # a tenth of the time idle
    assert not seen(*steps[:5], *(Step(at, at - 1.0, 4, 0, 4, 4, waiting=0) for at in range(6, 11))).saturated
    assert seen(*steps).running_when_short == 4.0


def test_a_hit_rate_without_lookups_is_0() -> None:
    assert seen(Queued("a", 1.0, 5)).hit_rate == 0.0
    assert seen(CacheLookup("a", 1.0, 10, 4)).hit_rate == 0.4


def test_blocks_are_on_a_grid_and_those_before_the_window_are_forgotten() -> None:
    watched = window(block_s=10.0, window_s=30.0)
    for at in (1.0, 11.0, 12.0, 21.0, 31.0, 32.0, 33.0):
        watched.observe([Queued(str(at), at, 5)])

    assert [block.queued for block in watched.blocks(39.9, 0.0)] == [1, 2, 1]
    assert [block.queued for block in watched.blocks(40.0, 0.0)] == [2, 1, 3]
    assert [block.queued for block in watched.blocks(40.0, 20.0)] == [1, 3]
    assert [block.queued for block in watched.blocks(40.0, 20.1)] == [3]


def test_time_without_events_makes_empty_blocks() -> None:
    watched = window()

    blocks = watched.blocks(35.0, 0.0)

    assert [block.seconds for block in blocks] == [10.0] * 3
    assert total(blocks).attainment == 1.0


@given(
    st.lists(
        st.tuples(
            st.floats(0, 50), st.floats(0.01, 3), st.floats(0.01, 5), st.sampled_from(["ok", "error", "cancelled"])
        ),
        max_size=20,
    )
)
@settings(max_examples=40, deadline=None)
def test_every_request_is_settled_once_unless_it_is_cancelled_in_time(
    requests: list[tuple[float, float, float, str]],
) -> None:
    events: list[tuple[float, Event]] = []
    for number, (queued, wait, took, how) in enumerate(requests):
        name, first, end = str(number), queued + wait, queued + wait + took
        events += [(queued, Queued(name, queued, 5)), (first, Token(name, first, 1, 0))]
        if how == "ok":
            events.append((end, Finished(name, end, "stop", 5, 9, queued, queued, first)))
        else:
            events.append((end, Failed(name, end, how, "", queued)))
    watched = window(block_s=1.0, window_s=100.0)
    for at, event in sorted(events, key=lambda entry: entry[0]):
        watched.observe([event])
        watched.blocks(at, 0.0)

    settled = total(watched.blocks(99.0, 0.0)).settled

    late = [wait > 1.0 for _, wait, _, how in requests if how == "cancelled"]
    certain = sum(how != "cancelled" for *_, how in requests)
    assert certain <= settled <= certain + sum(late)
