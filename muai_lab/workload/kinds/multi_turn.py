"""`multi_turn`: sessions whose later turns carry the earlier ones along, with the server's own answers."""

from __future__ import annotations

import json
from collections.abc import Iterator

from muai_lab.settings.workload import MultiTurnWorkload
from muai_lab.workload.lengths import endless_lengths
from muai_lab.workload.prompts import PromptMaker, user
from muai_lab.workload.randomness import RandomStreams, endless_seeds
from muai_lab.workload.rows import Unit
from muai_lab.workload.schedule import Message, ScheduledRequest
from muai_lab.workload.source import Source
from muai_lab.workload.times import endless_times


def source(workload: MultiTurnWorkload, streams: RandomStreams, maker: PromptMaker) -> Source:
    """Return sessions without end.

    The `prompt_tokens` of a turn assume that every earlier answer has its full length; its real length is known only
    after it was given. A session ends before the first turn that does not fit into the model's context.
    """
    return Source(_units(workload, streams, maker))


def _units(workload: MultiTurnWorkload, streams: RandomStreams, maker: PromptMaker) -> Iterator[Unit]:
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
    between = maker.between_turns()
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
