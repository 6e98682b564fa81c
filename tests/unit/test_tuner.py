"""The online tuner in virtual time: minutes of traffic under the real scheduler, in milliseconds."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from muai_lab.simulation.step_time import StepTime
from muai_lab.simulation.traffic import SimulatedRequest
from muai_lab.simulation.tuned import Setup, SimulatedOutcome, Tuning, simulate
from muai_lab.stack.events import Event, Finished, Queued, Token, Tuned, TunerNoted
from muai_lab.stack.limits import BatchLimits
from muai_lab.stack.online.knobs import Knob, KnobBounds, Reach, Values
from muai_lab.stack.online.tuner import OnlineTuner
from muai_lab.stack.online.window import Block, Targets, TunerWindow

INTERVAL_S = 20.0
SLOTS = 32
# A step costs 20 ms and 1 ms for each sequence: a batch of 4 makes 167 tokens/s, one of 32 makes 615.
STEPS = StepTime(0.002, 0.0, 0.0, 0.02, 0.001, 0.0)
CHAT = Targets(ttft_s=1.0, tpot_s=0.1)
BATCH = KnobBounds({Knob.BATCH: Reach(1, SLOTS)})
OUTPUT = 40  # tokens
MIB = 2**20
CACHE = KnobBounds({Knob.CACHE: Reach(0, 1000)})


def traffic(*rates: float, seed: int = 1, output: int = OUTPUT, prefixes: int = 0) -> Iterator[SimulatedRequest]:
    """So many requests per second in each interval, in even steps with some jitter.

    prefixes: how many are shared, each the most of a long prompt; 0 for short prompts that share nothing.
    """
    draw = random.Random(seed)
    number = 0
    for interval, rate in enumerate(rates):
        count = round(rate * INTERVAL_S)
        for at in sorted(draw.uniform(0, INTERVAL_S) for _ in range(count)):
            due = interval * INTERVAL_S + at
            if prefixes:
                yield SimulatedRequest(number, due, 200, output, prefix=number % prefixes, prefix_tokens=192)
            else:
                yield SimulatedRequest(number, due, 10, output)
            number += 1


def tuned(
    rates: tuple[float, ...],
    *,
    batch: int,
    targets: Targets = CHAT,
    bounds: KnobBounds = BATCH,
    seed: int = 1,
    timeout_ms: int = 0,
    output: int = OUTPUT,
    prefixes: int = 0,
    cache_mb: int = 0,
    **limits: object,
) -> SimulatedOutcome:
    setup = Setup(
        replace(STEPS, prefill_token_s=0.001) if cache_mb else STEPS,
        BatchLimits(SLOTS, **limits),  # type: ignore[arg-type]
        SLOTS,
        targets,
        queue_capacity=40,
        position_bytes=MIB // 16 if cache_mb else 0,  # so that a block of 16 tokens takes 1 MB
    )
    return simulate(
        setup,
        traffic(*rates, seed=seed, output=output, prefixes=prefixes),
        Values(batch, timeout_ms, cache_mb),
        intervals=len(rates),
        interval_s=INTERVAL_S,
        tuning=Tuning(bounds, INTERVAL_S, 5 * INTERVAL_S),
        seed=seed,
    )


def moves(outcome: SimulatedOutcome) -> list[tuple[str, int, int, str]]:
    return [
        (event.knob, event.before, event.after, event.outcome)
        for event in outcome.decisions
        if isinstance(event, Tuned)
    ]


def in_force(outcome: SimulatedOutcome, begin: int, knob: Knob = Knob.BATCH) -> int:
    """The value at the end."""
    for event in outcome.decisions:
        if isinstance(event, Tuned) and event.knob == knob.value and event.outcome in ("tried", "reverted"):
            begin = event.after
    return begin


@cache
def overloaded() -> SimulatedOutcome:
    """A batch of 4 serves 4 requests per second, and 8 come from the fourth interval on."""
    return tuned((2.0,) * 4 + (8.0,) * 8, batch=4)


def test_it_leaves_alone_what_is_good() -> None:
    assert tuned((3.0,) * 8, batch=8).decisions == ()


def test_it_leaves_an_idle_server_alone() -> None:
    assert moves(tuned((3.0, 3.0, 0.0, 0.0, 0.0, 0.0), batch=8)) == []


def test_it_decides_nothing_on_a_handful_of_requests() -> None:
    slow = tuned((0.15,) * 8, batch=1, output=300)  # 6 s each, one at a time, so that many wait too long

    assert sum(slow.good) < sum(slow.offered)
    assert moves(slow) == []


def test_it_raises_the_batch_size_when_requests_wait_for_a_slot_and_keeps_it() -> None:
    outcome = overloaded()

    assert moves(outcome)[:2] == [("max_batch_size", 4, 8, "tried"), ("max_batch_size", 4, 8, "kept")]
    assert in_force(outcome, 4) >= 8
    assert outcome.good[-4:] == outcome.offered[-4:]


def test_a_shift_is_told_with_what_has_changed() -> None:
    notes = [event for event in overloaded().decisions if isinstance(event, TunerNoted)]

    assert notes[0].kind == "shift"
    assert notes[0].reason.startswith("arrivals 2 -> ")


def test_it_lowers_the_batch_size_when_tokens_come_too_slowly() -> None:
    pace = Targets(tpot_s=0.034)  # 14 sequences at a time

    outcome = tuned((12.0,) * 14, batch=32, targets=pace)

    assert in_force(outcome, 32) in (8, 12)
    assert outcome.good[0] < 0.3 * outcome.offered[0]
    assert sum(outcome.good[-4:]) > 10 * sum(outcome.good[:1])


def test_a_trial_that_hurts_is_cut_short_and_an_interval_passes_before_the_next() -> None:
    pace = Targets(tpot_s=0.034)

    outcome = tuned((12.0,) * 16, batch=12, targets=pace)  # the best there is, and not enough

    cut = [event for event in outcome.decisions if isinstance(event, Tuned) and "cut short" in event.reason]
    assert cut
    assert all(event.at % INTERVAL_S < 0.8 * INTERVAL_S for event in cut)
    tried = [event.at for event in outcome.decisions if isinstance(event, Tuned) and event.outcome == "tried"]
    assert all(late - early > 1.5 * INTERVAL_S for early, late in pairwise(tried))
    assert in_force(outcome, 12) == 12


def test_when_nothing_helps_it_rests_and_each_time_for_longer() -> None:
    pace = Targets(tpot_s=0.034)

    outcome = tuned((12.0,) * 40, batch=12, targets=pace)

    rests = [event.reason for event in outcome.decisions if isinstance(event, TunerNoted) and event.kind == "rest"]
    assert rests[:3] == [f"nothing helped; rests for {count} intervals" for count in (4, 8, 16)]


def test_without_targets_it_looks_for_tokens_per_second() -> None:
    outcome = tuned((20.0,) * 10, batch=4, targets=Targets())

    kept = [move for move in moves(outcome) if move[3] == "kept"]
    assert kept[0] == ("max_batch_size", 4, 8, "kept")
    assert in_force(outcome, 4) == SLOTS


def test_a_hold_that_makes_requests_late_is_shortened() -> None:
    bounds = KnobBounds({Knob.TIMEOUT: Reach(0, 8000)})

    outcome = tuned((2.0,) * 4, batch=8, bounds=bounds, timeout_ms=1800, min_batch_size=6)

    assert moves(outcome)[:2] == [("batch_timeout_ms", 1800, 900, "tried"), ("batch_timeout_ms", 1800, 900, "kept")]


def test_a_cache_too_small_for_the_shared_prefixes_is_raised_and_kept() -> None:
    outcome = tuned((5.0,) * 6, batch=32, bounds=CACHE, prefixes=20, cache_mb=100)  # of the 240 MB they take

    assert moves(outcome) == [("max_memory_mb", 100, 1000, "tried"), ("max_memory_mb", 100, 1000, "kept")]
    assert outcome.good[0] < 0.8 * outcome.offered[0]
    assert outcome.good[-2:] == outcome.offered[-2:]


def test_what_helps_nothing_is_taken_back() -> None:
    outcome = tuned((8.0,) * 12, batch=4, bounds=CACHE, cache_mb=100)  # no two prompts share anything

    outcomes = [move[3] for move in moves(outcome)]
    assert outcomes.count("tried") == outcomes.count("reverted") >= 2
    assert in_force(outcome, 100, Knob.CACHE) == 100


def test_another_workload_ends_the_rest_and_what_had_failed_is_tried_again() -> None:
    pace = Targets(tpot_s=0.034)

    outcome = tuned((12.0,) * 16 + (24.0,) * 4, batch=12, targets=pace)

    rested, shifted = (
        next(event.at for event in outcome.decisions if isinstance(event, TunerNoted) and event.kind == kind)
        for kind in ("rest", "shift")
    )
    tried = [event for event in outcome.decisions if isinstance(event, Tuned) and event.outcome == "tried"]
    assert rested < 16 * INTERVAL_S < shifted < 18.5 * INTERVAL_S
    again = next(event for event in tried if event.at >= shifted)
    assert again.at < shifted + 1.5 * INTERVAL_S
    assert again.after in [event.after for event in tried if event.at < rested]


def test_it_does_not_move_what_its_switches_leave_out() -> None:
    assert moves(tuned((8.0,) * 6, batch=4, bounds=KnobBounds({}))) == []


def test_with_adaptive_batching_it_moves_the_bound_only_where_the_bound_holds_requests_back() -> None:
    pace = Targets(ttft_s=1.0, tpot_s=0.034)

    adaptive = tuned((12.0,) * 10, batch=32, targets=pace, adaptive=True, latency_target_s=0.03)
    bounded = tuned((8.0,) * 8, batch=4, adaptive=True, latency_target_s=0.1)

    assert moves(adaptive) == []  # the limit keeps itself at about 10, far below its bound
    assert moves(bounded)[0] == ("max_batch_size", 4, 8, "tried")


def test_the_same_traffic_gives_the_same_decisions() -> None:
    assert tuned((3.0,) * 2 + (8.0,) * 4, batch=4) == tuned((3.0,) * 2 + (8.0,) * 4, batch=4)


def test_it_begins_with_the_values_that_it_is_given_within_the_bounds() -> None:
    window = TunerWindow(CHAT, block_s=1.0, window_s=50.0, began=0.0)

    tuner = OnlineTuner(
        window,
        home=Values(8, 0, 0),
        bounds=BATCH,
        targets=CHAT,
        interval_s=10.0,
        window_s=50.0,
        began=0.0,
        start=Values(64, 500, 9),
    )

    assert tuner.values == tuner.good == Values(32, 0, 0)


class Recorded:
    """A window of blocks of a second, as they were recorded."""

    def __init__(self) -> None:
        self.seconds: list[Block] = []

    def blocks(self, now: float, since: float) -> list[Block]:
        return [block for begin, block in enumerate(self.seconds) if begin >= since and begin + 1 <= now]


def test_what_a_trial_leaves_behind_is_worked_off_before_the_next_one() -> None:
    window = Recorded()
    tuner = OnlineTuner(
        window,  # type: ignore[arg-type]
        home=Values(32, 0, 0),
        bounds=BATCH,
        targets=CHAT,
        interval_s=10.0,
        window_s=50.0,
        began=0.0,
    )

    def interval(good: int, late: int = 0, missed_pace: int = 0) -> list[str]:
        outcomes = []
        for _ in range(10):
            ended = good + late + missed_pace
            window.seconds.append(
                Block(seconds=1.0, queued=ended, ended=ended, good=good, ready=good + late, busy_s=0.5)
            )
            window.seconds[-1].late, window.seconds[-1].missed_pace = late, missed_pace
            told = tuner.tick(float(len(window.seconds)))
            outcomes += [event.outcome for event in told if isinstance(event, Tuned)]
        return outcomes

    first = interval(good=12, missed_pace=8)
    no_better = interval(good=12, missed_pace=8)
    queue_left = interval(good=2, late=6, missed_pace=12)
    worked_off = interval(good=12, missed_pace=8)

    assert (first, no_better, queue_left, worked_off) == (["tried"], ["reverted"], [], ["tried"])


# Whatever happens


@given(
    rates=st.lists(st.sampled_from([0.0, 0.5, 3.0, 9.0, 20.0]), min_size=3, max_size=8),
    batch=st.sampled_from([1, 4, 12, 32]),
    low=st.integers(1, 4),
    targets=st.sampled_from([CHAT, Targets(), Targets(tpot_s=0.03), Targets(ttft_s=0.2)]),
    seed=st.integers(0, 99),
)
@settings(max_examples=12, deadline=None)
def test_every_move_is_within_bounds_and_each_trial_ends_before_the_next(
    rates: list[float], batch: int, low: int, targets: Targets, seed: int
) -> None:
    bounds = KnobBounds({Knob.BATCH: Reach(low, 24), Knob.TIMEOUT: Reach(0, 100)})

    outcome = tuned(tuple(rates), batch=max(batch, low), targets=targets, bounds=bounds, seed=seed, timeout_ms=50)

    trying: dict[str, tuple[int, int]] = {}
    for event in outcome.decisions:
        if not isinstance(event, Tuned):
            continue
        home = {"max_batch_size": max(batch, low), "batch_timeout_ms": 50}[event.knob]
        reach = bounds.reaches[Knob(event.knob)]
        assert reach.low <= event.after <= reach.high or event.after == home
        if event.outcome == "tried":
            assert event.knob not in trying
            trying[event.knob] = (event.before, event.after)
        elif event.outcome == "kept":
            assert trying.pop(event.knob) == (event.before, event.after)
        else:
            assert trying.pop(event.knob) == (event.after, event.before)


def test_random_events_that_make_no_sense_do_not_break_it() -> None:
    draw = random.Random(5)
    window = TunerWindow(CHAT, block_s=1.0, window_s=50.0, began=0.0)
    tuner = OnlineTuner(
        window, home=Values(8, 0, 0), bounds=BATCH, targets=CHAT, interval_s=10.0, window_s=50.0, began=0.0
    )

    for second in range(300):
        events: list[Event] = []
        for _ in range(draw.randint(0, 6)):
            name = str(draw.randint(0, 9))
            at = second + draw.random()
            events.append(
                draw.choice(
                    [
                        Queued(name, at, 5),
                        Token(name, at, 1, 0),
                        Finished(name, at, "stop", 5, draw.randint(1, 9), at - 2, at - 1, at - 0.5),
                    ]
                )
            )
        window.observe(events)
        tuner.tick(float(second))

    assert 1 <= tuner.values.max_batch_size <= SLOTS
