"""Conversations: sessions whose later turns carry the earlier ones, with the server's own answers, along."""

from __future__ import annotations

import json
from collections.abc import Iterator

from muai_lab.settings.workload import MultiTurnWorkload
from muai_lab.workload.lengths import endless_lengths
from muai_lab.workload.prompts import PromptMaker, user
from muai_lab.workload.randomness import RandomStreams, endless_seeds
from muai_lab.workload.rows import Unit
from muai_lab.workload.schedule import Message, ScheduledRequest
from muai_lab.workload.times import endless_times


def multi_turn_units(workload: MultiTurnWorkload, streams: RandomStreams, maker: PromptMaker) -> Iterator[Unit]:
    """Sessions without end.

    A turn's `prompt_tokens` is what the whole conversation comes to if every answer before has its full length; the
    answers themselves are known only once they were given. A session ends before the turn that would not fit into the
    model's context.
    """
    turns = endless_lengths(workload.turns, streams.stream("turns"))
    lengths = endless_lengths(workload.prompt_tokens, streams.stream("prompt lengths"))
    outputs = endless_lengths(workload.output_tokens, streams.stream("output lengths"))
    pauses = endless_times(workload.think_time, streams.stream("think times"))
    seeds = endless_seeds(streams)
    words = streams.stream("prompts")
    system: list[Message] = []
    if workload.system_tokens:
        text = maker.text(workload.system_tokens, streams.stream("system prompt"))
        system = [{"role": "system", "content": text}]
    between = between_turns(maker)
    around = maker.count_conversation([*system, user("")])
    for count in turns:
        unit: list[ScheduledRequest] = []
        known_tokens = 0  # of the conversation before this turn
        # Every turn takes its numbers, whether or not it fits, so that the context changes no later session.
        drawn = [(next(lengths), next(outputs), next(pauses), next(seeds)) for _ in range(count)]
        for turn, (length, output, pause_s, seed) in enumerate(drawn):
            if turn == 0:
                whole, output = maker.context.fit(around + length, output, around + 1)
                length = whole - around
            elif not maker.context.holds(known_tokens + between + length, output):
                maker.context.turns_dropped += count - turn
                break
            said = maker.text(length, words)
            first = [*system, user(said)]
            messages = json.dumps(first, ensure_ascii=False) if system and not turn else None
            tokens = known_tokens + between + length if turn else maker.count_conversation(first)
            unit.append(
                ScheduledRequest(
                    -1,
                    None,
                    said if messages is None else None,
                    None,
                    tokens,
                    output,
                    turn=turn,
                    prefix_group=0 if system else None,
                    seed=seed,
                    messages=messages,
                    think_s=pause_s if turn else None,
                )
            )
            known_tokens = tokens + output
        yield unit


def between_turns(maker: PromptMaker) -> int:
    """Tokens that a further turn adds to a conversation besides the answer and what is said: the template's own."""
    one = [user("")]
    two = [user(""), {"role": "assistant", "content": ""}, user("")]
    return max(0, maker.count_conversation(two) - maker.count_conversation(one))
