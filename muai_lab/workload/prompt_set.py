"""Prompts that somebody wrote, from a file: what all of its formats have in common."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from muai_lab.settings.distributions import FixedTime, TimeDistribution
from muai_lab.settings.workload import PromptSetWorkload
from muai_lab.workload.lengths import endless_lengths
from muai_lab.workload.multi_turn import between_turns
from muai_lab.workload.prompts import PromptMaker
from muai_lab.workload.randomness import RandomStreams, endless_seeds
from muai_lab.workload.reading import Reading
from muai_lab.workload.rows import Unit
from muai_lab.workload.schedule import Message, ScheduledRequest
from muai_lab.workload.source import Rounds, Source
from muai_lab.workload.times import endless_times


@dataclass(frozen=True, slots=True)
class WrittenTurn:
    """What is asked in one turn.

    messages: what is new in it, at least one. output_tokens: length of its answer, None where the file does not say;
    answer: a recorded answer, which only lends its length.
    """

    messages: tuple[Message, ...]
    output_tokens: int | None = None
    answer: str | None = None


Written = tuple[WrittenTurn, ...]
"""A prompt, or the turns of a conversation."""


def prompt_set_source(
    workload: PromptSetWorkload,
    reading: Reading,
    written: Iterable[Written],
    streams: RandomStreams,
    maker: PromptMaker,
    think_time: TimeDistribution | None = None,
) -> Source:
    """The prompts in the wanted order, without end: after the last comes the first again.

    Prompts that do not fit into the model's context are left out and counted: cut, they would ask something else.
    Raises RunError when there is no prompt; taking units does when none fits.
    """
    chosen = _chosen(workload, written)
    if not chosen:
        raise reading.nothing("prompt")
    order = list(range(len(chosen)))
    if workload.order == "shuffled":
        order = streams.stream("order").permutation(len(chosen)).tolist()
    rounds = Rounds(len(chosen), "prompt", reading.path.name)
    too_long: set[int] = set()

    def units() -> Iterator[Unit]:
        outputs = endless_lengths(workload.output_tokens, streams.stream("output lengths"))
        pauses = endless_times(think_time or FixedTime(value_s=0.0), streams.stream("think times"))
        seeds = endless_seeds(streams)
        between = between_turns(maker)
        for place in rounds.places():
            number = order[place]
            if number not in too_long and _fits(chosen[number], maker):
                yield _unit(chosen[number], maker, between, outputs, pauses, seeds)
                continue
            rounds.pass_over()
            too_long.add(number)
            maker.context.prompts_dropped = len(too_long)
            if len(too_long) == len(chosen):
                raise reading.nothing(f"prompt that fits into the model's context of {maker.context.tokens} tokens")

    return Source(units(), notes=lambda: (*reading.notes(), *rounds.notes()))


def _chosen(workload: PromptSetWorkload, written: Iterable[Written]) -> list[Written]:
    chosen: list[Written] = []
    for number, entry in enumerate(written):
        if number >= workload.skip:
            chosen.append(entry)
        if len(chosen) == workload.limit:
            break
    return chosen


def _fits(entry: Written, maker: PromptMaker) -> bool:
    return maker.context.tokens is None or maker.context.holds(maker.count_conversation(entry[0].messages), 1)


def _unit(
    entry: Written,
    maker: PromptMaker,
    between: int,
    outputs: Iterator[int],
    pauses: Iterator[float],
    seeds: Iterator[int],
) -> Unit:
    unit: list[ScheduledRequest] = []
    known_tokens = 0  # of the conversation before this turn
    for place, turn in enumerate(entry):
        drawn, pause_s, seed = next(outputs), next(pauses), next(seeds)
        wanted = turn.output_tokens or (_tokens_of(turn.answer, maker) if turn.answer else drawn)
        own_tokens = maker.count_conversation(turn.messages)
        tokens = known_tokens + between + own_tokens - maker.template_tokens if place else own_tokens
        if place and not maker.context.holds(tokens, wanted):
            maker.context.turns_dropped += len(entry) - place
            break
        output = maker.context.fit(tokens, wanted, tokens)[1]
        prompt, messages = _columns(turn.messages, chat=maker.api == "chat")
        several = len(entry) > 1
        unit.append(
            ScheduledRequest(
                -1,
                None,
                prompt,
                None,
                tokens,
                output,
                turn=place if several else None,
                seed=seed,
                messages=messages,
                think_s=pause_s if place else None,
            )
        )
        known_tokens = tokens + output
    return unit


def _tokens_of(text: str, maker: PromptMaker) -> int:
    return max(1, len(maker.tokenizer.encode(text)))


def _columns(messages: Sequence[Message], *, chat: bool) -> tuple[str | None, str | None]:
    """The columns prompt and messages of a schedule, of which one is None."""
    if len(messages) == 1 and (not chat or messages[0]["role"] == "user"):
        return messages[0]["content"], None
    return None, json.dumps([dict(message) for message in messages], ensure_ascii=False)
