"""The workloads: who asks what. Which keys there are depends on `kind`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from muai_lab.settings.distributions import (
    ExponentialTime,
    FixedLength,
    LengthDistribution,
    TimeDistribution,
    UniformLength,
)
from muai_lab.settings.section import Conflict, Name, Section, setting

Api = Literal["completions", "chat"]

TIMED_KINDS = ("azure", "mooncake", "burstgpt", "schedule")
"""Kinds whose requests have times of their own, which `arrival=trace` replays."""


def _label(name: str) -> Any:
    return setting(name, "Label of the workload in results.")


def _answer_length(where: str = "") -> Any:
    return setting(UniformLength(low=8, high=48), f"Length of an answer{where}.")


class Workload(Section):
    """What every workload has, whatever its kind."""

    name: Name = _label("chat")
    api: Api = setting("completions", "OpenAI endpoint that the requests go to.")
    temperature: float = setting(0.0, "Sampling temperature; 0 is greedy.", ge=0.0)
    ignore_eos: bool = setting(
        True, "Go on past the end-of-sequence token, so that every output has the length that was asked for."
    )
    context_tokens: int | None = setting(
        None,
        "Prompt and output together are kept within this, and what is cut is counted; null takes the model's context.",
        unit="tokens",
        ge=2,
    )


class SyntheticWorkload(Workload):
    """Made-up prompts of drawn lengths, each asking for an output of drawn length."""

    kind: Literal["synthetic"] = setting("synthetic", "Made-up prompts of drawn lengths.")
    prompt_tokens: LengthDistribution = setting(
        UniformLength(low=16, high=128), "Length of a prompt, chat template included."
    )
    output_tokens: LengthDistribution = _answer_length()


class SharedPrefixWorkload(Workload):
    """Made-up prompts in groups; the prompts of a group begin with the same text, as with a common system prompt."""

    kind: Literal["shared_prefix"] = setting("shared_prefix", "Prompts in groups with a common beginning.")
    name: Name = _label("shared_prefix")
    groups: int = setting(8, "Number of different beginnings.", ge=1)
    popularity: float = setting(
        1.0,
        "How unequally often the groups are asked: Zipf's exponent, the n-th group has a weight of 1 / n^popularity. "
        "0 makes all equally popular.",
        ge=0.0,
    )
    prefix_tokens: LengthDistribution = setting(
        FixedLength(value=128), "Length of the beginning that the prompts of a group share."
    )
    prompt_tokens: LengthDistribution = setting(
        UniformLength(low=16, high=64), "Length of what follows the common beginning, chat template included."
    )
    output_tokens: LengthDistribution = _answer_length()


class MultiTurnWorkload(Workload):
    """Conversations. Each turn is asked a think time after the answer before it, and brings the answers so far along.

    An arrival is the first turn of a conversation; in the closed loop, `arrival.concurrency` conversations are under
    way.
    """

    kind: Literal["multi_turn"] = setting("multi_turn", "Conversations of several turns.")
    name: Name = _label("multi_turn")
    api: Api = setting("chat", "OpenAI endpoint that the requests go to; completions joins what was said by line ends.")
    system_tokens: int = setting(
        0, "Length of a system prompt that all conversations begin with; 0 for none.", unit="tokens", ge=0
    )
    turns: LengthDistribution = setting(UniformLength(low=2, high=5), "Turns of a conversation.")
    prompt_tokens: LengthDistribution = setting(UniformLength(low=16, high=64), "Length of what is said in one turn.")
    output_tokens: LengthDistribution = _answer_length()
    think_time: TimeDistribution = setting(ExponentialTime(mean_s=1.0), "From the end of an answer to the next turn.")


OnError = Literal["fail", "skip"]
TimeUnit = Literal["s", "ms", "us", "ns"]


class FileWorkload(Workload):
    """What every workload from a file has."""

    path: Name | None = setting(None, "The file.")
    on_error: OnError = setting(
        "fail", "What to do at a line or entry that cannot be read: stop and name it, or leave it out and count it."
    )
    skip: int = setting(0, "Leave out this many at the beginning of the file.", unit="requests", ge=0)
    limit: int | None = setting(
        None, "Take at most this many of the file; null takes all. Where more are needed, they come again.", ge=1
    )
    request_fields: Literal["send", "ignore"] = setting(
        "send",
        "Fields of a row that belong to the request, such as temperature, stop, seed, tools or response_format: send "
        "them along with it, in place of the workload's own, or ignore and count them.",
    )

    def conflicts(self) -> Iterator[Conflict]:
        if self.path is None:
            yield Conflict(("path",), f"kind {getattr(self, 'kind', '')} needs a file: set workload.path=FILE")


class TraceWorkload(FileWorkload):
    """Requests of a recorded trace: its lengths, and with `arrival=trace` its times too; the texts are made up.

    A trace says nothing of what was written, so prompts have the recorded lengths and no common beginnings, but where
    the trace tells of them.
    """

    length_scale: float = setting(
        1.0, "Prompts (and their shared blocks) are this many times as long as recorded, and at least one token.", gt=0
    )
    output_scale: float | None = setting(
        None, "Outputs are this many times as long as recorded; null for as many as length_scale says.", gt=0
    )
    time_unit: TimeUnit | None = setting(
        None,
        "Unit of the recorded times that are numbers; null takes that of the format (mooncake: ms, others: s), or the "
        "one that makes them times since 1970. Dates need none.",
    )


class AzureWorkload(TraceWorkload):
    """A trace of the Azure LLM inference dataset: CSV with the columns TIMESTAMP, ContextTokens, GeneratedTokens."""

    kind: Literal["azure"] = setting("azure", "Trace of the Azure LLM inference dataset (CSV).")
    name: Name = _label("azure")


class BurstGptWorkload(TraceWorkload):
    """A BurstGPT trace: CSV with the columns Timestamp (seconds), Request tokens, Response tokens, Model, Log Type.

    Requests that failed when they were recorded have no response tokens; they are left out and counted.
    """

    kind: Literal["burstgpt"] = setting("burstgpt", "BurstGPT trace (CSV).")
    name: Name = _label("burstgpt")
    model: Name | None = setting(None, "Only requests to this model, such as ChatGPT or GPT-4; null takes all.")
    log_type: Name | None = setting(
        None, "Only requests of this log type, such as Conversation log or API log; null takes all."
    )


class MooncakeWorkload(TraceWorkload):
    """A Mooncake trace: JSON lines with timestamp (ms), input_length, output_length and hash_ids.

    Equal ids at the beginning of two requests become the same text, so what was shared when the trace was recorded is
    shared again.
    """

    kind: Literal["mooncake"] = setting("mooncake", "Mooncake trace (JSON lines).")
    name: Name = _label("mooncake")
    block_tokens: int = setting(
        512, "Tokens of the recorded prompt that one of its hash_ids stands for; scaled like the lengths.", ge=1
    )


class PromptSetWorkload(FileWorkload):
    """What every set of written prompts has."""

    output_tokens: LengthDistribution = _answer_length(" if the file does not state it")
    order: Literal["file", "shuffled"] = setting(
        "file", "Ask in the order of the file, or in an order that the seed decides."
    )


class TextWorkload(PromptSetWorkload):
    """Plain text, a prompt in each line; empty lines are no prompts."""

    kind: Literal["text"] = setting("text", "Plain text, a prompt in each line.")
    name: Name = _label("text")


class ConversationSetWorkload(PromptSetWorkload):
    """What sets of written conversations have.

    Both kinds read the same rows (JSON lines, a JSON list, CSV or Parquet) with `messages`, `conversations`, `turns` or
    `prompt`, also inside a `body`. They differ in their defaults.
    """

    api: Api = setting("chat", "OpenAI endpoint that the requests go to; completions joins messages by line ends.")
    max_turns: int | None = setting(
        None, "Most turns of a conversation that are asked; null asks all.", unit="turns", ge=1
    )
    think_time: TimeDistribution = setting(
        ExponentialTime(mean_s=1.0), "From the end of an answer to the next turn, where the file does not say."
    )


class OpenAiJsonlWorkload(ConversationSetWorkload):
    """JSON lines as OpenAI's batches and fine-tuning, and other benchmarks, have them: `messages` or `prompt`.

    `max_tokens` of a row, or a length under another usual name, is the length of its answer; else the length of the
    assistant's message at the end is, if there is one.
    """

    kind: Literal["openai_jsonl"] = setting("openai_jsonl", "JSON lines with messages, turns or prompt.")
    name: Name = _label("openai_jsonl")


class ShareGptWorkload(ConversationSetWorkload):
    """ShareGPT's JSON: a list of `conversations`, each a list of `from` (human, gpt) and `value`.

    The messages of the human are asked again; the recorded answers only give their lengths, since conversations go on
    with the answers of the server under test.
    """

    kind: Literal["sharegpt"] = setting("sharegpt", "ShareGPT conversations (JSON).")
    name: Name = _label("sharegpt")
    max_turns: int | None = setting(
        1, "Most turns of a conversation that are asked; null asks all.", unit="turns", ge=1
    )


class TableWorkload(PromptSetWorkload):
    """A table of prompts: a CSV, Parquet or JSON file, told apart by its name's ending."""

    kind: Literal["table"] = setting("table", "CSV or Parquet table with a column of prompts.")
    name: Name = _label("table")
    prompt_column: Name | None = setting(
        None, "Column of the prompts; null takes the first of the usual names, such as prompt, question or text."
    )
    system_column: Name | None = setting(
        None, "Column of system prompts; null takes `system` or `system_prompt` if there is one."
    )
    output_tokens_column: Name | None = setting(
        None,
        "Column of the answers' lengths in tokens; null takes one of the usual names, such as output_tokens or "
        "max_tokens, and draws the lengths from output_tokens if there is none.",
    )


class ScheduleWorkload(Workload):
    """A saved schedule, asked again as it is: the schedule.parquet of any run directory is one.

    With `arrival=trace` its own times are kept; any other arrival gives it new ones.
    """

    kind: Literal["schedule"] = setting("schedule", "A saved schedule.")
    name: Name = _label("schedule")
    path: Name | None = setting(None, "The schedule.parquet of a run.")

    def conflicts(self) -> Iterator[Conflict]:
        if self.path is None:
            yield Conflict(("path",), "kind schedule needs a file: set workload.path=RUN/schedule.parquet")


PartWorkload = Annotated[
    SyntheticWorkload
    | SharedPrefixWorkload
    | MultiTurnWorkload
    | AzureWorkload
    | BurstGptWorkload
    | MooncakeWorkload
    | TextWorkload
    | OpenAiJsonlWorkload
    | ShareGptWorkload
    | TableWorkload,
    Field(discriminator="kind"),
]

_OF_THE_MIX = ("api", "temperature", "ignore_eos", "context_tokens")


class MixPart(Section):
    """One of the workloads that a mix is made of."""

    weight: float = setting(1.0, "How much of all that arrives is of this part, relative to the others' weights.", ge=0)
    workload: PartWorkload = setting(SyntheticWorkload(), "The workload.")

    def conflicts(self) -> Iterator[Conflict]:
        for key in _OF_THE_MIX:
            if key in self.workload.model_fields_set:
                yield Conflict((f"workload.{key}",), f"{key} is set for the whole mix, not for a part of it")


class MixWorkload(Workload):
    """Several workloads at once. Every request carries the name of its part."""

    kind: Literal["mix"] = setting("mix", "Several workloads at once.")
    name: Name = _label("mix")
    parts: dict[Name, MixPart] = setting(
        {}, "The parts by their names, each with `weight` and `workload` (with its `kind` and that kind's keys)."
    )

    def conflicts(self) -> Iterator[Conflict]:
        if not any(part.weight for part in self.parts.values()):
            yield Conflict(("parts",), "a mix needs parts with a weight above 0: set workload.parts.NAME.workload.kind")


def _synthetic_by_default(value: Any) -> Any:
    return {"kind": "synthetic", **value} if isinstance(value, dict) and "kind" not in value else value


WorkloadSettings = Annotated[
    SyntheticWorkload
    | SharedPrefixWorkload
    | MultiTurnWorkload
    | MixWorkload
    | AzureWorkload
    | BurstGptWorkload
    | MooncakeWorkload
    | TextWorkload
    | OpenAiJsonlWorkload
    | ShareGptWorkload
    | TableWorkload
    | ScheduleWorkload,
    Field(discriminator="kind"),
    BeforeValidator(_synthetic_by_default),
]
