"""Written prompts from a file: the common part of all formats."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence

from muai_lab.errors import InvalidRequest
from muai_lab.settings.distributions import FixedTime, TimeDistribution
from muai_lab.settings.workload import PromptSetWorkload
from muai_lab.workload.lengths import endless_lengths
from muai_lab.workload.prompts import PromptMaker
from muai_lab.workload.randomness import RandomStreams, endless_seeds
from muai_lab.workload.reading import FileReading, counted
from muai_lab.workload.rows import Unit
from muai_lab.workload.schedule import Message, ScheduledRequest, message_text
from muai_lab.workload.source import Passes, Source
from muai_lab.workload.times import endless_times
from muai_lab.workload.written import Written, WrittenTurn

_PROMPT_TOOLS = ("tools", "functions")
"""Fields of a request that the chat template writes into the prompt."""


def prompt_set_source(
    workload: PromptSetWorkload,
    reading: FileReading,
    written: Iterable[Written],
    streams: RandomStreams,
    maker: PromptMaker,
    think_time: TimeDistribution | None = None,
) -> Source:
    """Return the prompts in the wanted order, without end: after the last comes the first again.

    Prompts that do not fit into the model's context are left out and counted: cutting would change their meaning.

    Args:
        workload: Its settings.
        reading: The file, with its counts of left-out rows.
        written: Its prompts and conversations.
        streams: Random numbers.
        maker: Counts tokens.
        think_time: Pauses between turns if the file has none.

    Raises:
        RunError: There is no prompt; taking units raises it if none fits.
    """
    chosen = _chosen(workload, written)
    if not chosen:
        raise reading.nothing("prompt")
    order = list(range(len(chosen)))
    if workload.order == "shuffled":
        order = streams.stream("order").permutation(len(chosen)).tolist()
    rounds = Passes(len(chosen), "prompt", reading.path.name)
    scripts = Scripts(maker, reading.path.name)
    too_long: set[int] = set()

    def units() -> Iterator[Unit]:
        outputs = endless_lengths(workload.output_tokens, streams.stream("output lengths"))
        pauses = endless_times(think_time or FixedTime(value_s=0.0), streams.stream("think times"))
        seeds = endless_seeds(streams)
        for place in rounds.places():
            number = order[place]
            if number not in too_long and scripts.fits(chosen[number], number):
                yield scripts.unit(chosen[number], number, outputs, pauses, seeds)
                continue
            rounds.pass_over()
            too_long.add(number)
            maker.context.prompts_dropped = len(too_long)
            if len(too_long) == len(chosen):
                raise reading.nothing(f"prompt that fits into the model's context of {maker.context.tokens} tokens")

    return Source(units(), notes=lambda: (*reading.notes(), *scripts.notes(), *rounds.notes()))


def _chosen(workload: PromptSetWorkload, written: Iterable[Written]) -> list[Written]:
    chosen: list[Written] = []
    for number, entry in enumerate(written):
        if number >= workload.skip:
            chosen.append(entry)
        if len(chosen) == workload.limit:
            break
    return chosen


class Scripts:
    """Makes requests of written prompts and conversations, and counts lengths that are not from the file.

    name: of the file. Entries have numbers, so that a repeated one counts once.
    """

    def __init__(self, maker: PromptMaker, name: str) -> None:
        self._maker = maker
        self._name = name
        self._between = maker.between_turns()
        self._told: set[int] = set()
        self._drawn: set[int] = set()
        self._refused: set[int] = set()
        self._with_tools: set[int] = set()

    def fits(self, entry: Written, number: int) -> bool:
        """True if the first turn and one token of answer fit into the model's context."""
        context = self._maker.context
        return context.tokens is None or context.holds(self._tokens(entry[0], number), 1)

    def unit(
        self, entry: Written, number: int, outputs: Iterator[int], pauses: Iterator[float], seeds: Iterator[int]
    ) -> Unit:
        """Return the requests of an entry, up to the first later turn that does not fit.

        outputs, pauses (seconds): used if the file has none; each turn takes one of each.
        """
        maker = self._maker
        unit: list[ScheduledRequest] = []
        known_tokens = 0  # of the conversation before this turn
        for place, turn in enumerate(entry):
            drawn, pause_s, seed = next(outputs), next(pauses), next(seeds)
            wanted = self._output(turn, drawn, number)
            own_tokens = self._tokens(turn, number)
            tokens = known_tokens + self._between + own_tokens - maker.template_tokens if place else own_tokens
            if place and not maker.context.holds(tokens, wanted):
                maker.context.turns_dropped += len(entry) - place
                break
            output = maker.context.fit(tokens, wanted, tokens)[1]
            prompt, messages = _columns(turn.messages, chat=maker.api == "chat")
            think_s = pause_s if turn.think_s is None else turn.think_s
            unit.append(
                ScheduledRequest(
                    -1,
                    None,
                    prompt,
                    None,
                    tokens,
                    output,
                    turn=place if len(entry) > 1 else None,
                    seed=seed,
                    messages=messages,
                    think_s=think_s if place else None,
                    extra=turn.extra,
                )
            )
            known_tokens = tokens + output
        return unit

    def notes(self) -> tuple[str, ...]:
        """Return notes on lengths that are drawn although other rows have theirs, and on estimated lengths."""
        notes = []
        if self._told and self._drawn:
            rows = counted(len(self._drawn), "row")
            notes.append(f"{self._name}: {rows} without a length of the answer: drawn from workload.output_tokens")
        for numbers, why in (
            (self._with_tools, "tools are counted as their JSON text"),
            (self._refused, "the model's chat template refuses their order of roles, and so may the server"),
        ):
            if numbers:
                notes.append(f"{self._name}: prompt lengths of {counted(len(numbers), 'row')} are estimates: {why}")
        return tuple(notes)

    def _output(self, turn: WrittenTurn, drawn: int, number: int) -> int:
        if turn.output_tokens is not None:
            wanted = turn.output_tokens
        elif turn.answer:
            wanted = max(1, len(self._maker.tokenizer.encode(turn.answer)))
        else:
            self._drawn.add(number)
            return drawn
        self._told.add(number)
        return wanted

    def _tokens(self, turn: WrittenTurn, number: int) -> int:
        """Return the number of tokens of the messages of a turn and of its tools."""
        extra = {} if turn.extra is None else json.loads(turn.extra)
        tools = [extra[name] for name in _PROMPT_TOOLS if extra.get(name)]
        if tools:
            self._with_tools.add(number)
        encode = self._maker.tokenizer.encode
        return self._messages(turn.messages, number) + sum(len(encode(json.dumps(tool))) for tool in tools)

    def _messages(self, messages: Sequence[Message], number: int) -> int:
        maker = self._maker
        try:
            return maker.count_conversation(messages)
        except InvalidRequest:
            self._refused.add(number)
            return sum(maker.template_tokens + len(maker.tokenizer.encode(message_text(each))) for each in messages)


def _columns(messages: Sequence[Message], *, chat: bool) -> tuple[str | None, str | None]:
    """Return the columns prompt and messages of a schedule; one of them is None."""
    first = messages[0]
    plain = set(first) == {"role", "content"} and isinstance(first["content"], str)
    if len(messages) == 1 and plain and (not chat or first["role"] == "user"):
        return first["content"], None
    return None, json.dumps([dict(message) for message in messages], ensure_ascii=False)
