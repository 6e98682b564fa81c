"""The workloads: the requests of each run. The keys that exist depend on `kind`."""

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
"""Kinds whose requests have their own times, which `arrival=trace` replays."""


def _label(name: str) -> Any:
    return setting(name, "Label of the workload in results.")


def _answer_length(where: str = "") -> Any:
    return setting(UniformLength(low=8, high=48), f"Length of an answer{where}.")


class Workload(Section):
    """Settings of every kind of workload."""

    name: Name = _label("chat")
    api: Api = setting("completions", "OpenAI endpoint of the requests.")
    temperature: float = setting(0.0, "Sampling temperature; 0 is greedy.", ge=0.0)
    ignore_eos: bool = setting(
        True, "Continue past the end-of-sequence token, so that every output has the requested length."
    )
    context_tokens: int | None = setting(
        None,
        "Limit of prompt and output together. Longer requests are cut, and counted. null is the model's context.",
        unit="tokens",
        ge=2,
    )


class SyntheticWorkload(Workload):
    """Synthetic prompts of drawn lengths, each with a drawn output length."""

    kind: Literal["synthetic"] = setting("synthetic", "Synthetic prompts of drawn lengths.")
    prompt_tokens: LengthDistribution = setting(
        UniformLength(low=16, high=128), "Length of a prompt, chat template included."
    )
    output_tokens: LengthDistribution = _answer_length()


class SharedPrefixWorkload(Workload):
    """Synthetic prompts in groups; the prompts of a group share a prefix, such as a common system prompt."""

    kind: Literal["shared_prefix"] = setting("shared_prefix", "Prompts in groups with a common prefix.")
    name: Name = _label("shared_prefix")
    groups: int = setting(8, "Number of different prefixes.", ge=1)
    popularity: float = setting(
        1.0,
        "Zipf's exponent of the groups' frequencies: the n-th group has a weight of 1 / n^popularity. 0 makes all "
        "equally frequent.",
        ge=0.0,
    )
    prefix_tokens: LengthDistribution = setting(
        FixedLength(value=128), "Length of the prefix that the prompts of a group share."
    )
    prompt_tokens: LengthDistribution = setting(
        UniformLength(low=16, high=64), "Length of the text after the common prefix, chat template included."
    )
    output_tokens: LengthDistribution = _answer_length()


class MultiTurnWorkload(Workload):
    """Conversations. Each turn is sent a think time after the previous answer, with all earlier turns and answers.

    An arrival is the first turn of a conversation. In the closed loop, `arrival.concurrency` conversations are in
    flight.
    """

    kind: Literal["multi_turn"] = setting("multi_turn", "Conversations of several turns.")
    name: Name = _label("multi_turn")
    api: Api = setting("chat", "OpenAI endpoint of the requests; completions joins the turns by line ends.")
    system_tokens: int = setting(
        0, "Length of the system prompt of all conversations; 0 for none.", unit="tokens", ge=0
    )
    turns: LengthDistribution = setting(UniformLength(low=2, high=5), "Turns of a conversation.")
    prompt_tokens: LengthDistribution = setting(UniformLength(low=16, high=64), "Length of the prompt of one turn.")
    output_tokens: LengthDistribution = _answer_length()
    think_time: TimeDistribution = setting(
        ExponentialTime(mean_s=1.0), "Time from the end of an answer to the next turn."
    )


OnError = Literal["fail", "skip"]
TimeUnit = Literal["s", "ms", "us", "ns"]


class FileWorkload(Workload):
    """Settings of every workload from a file."""

    path: Name | None = setting(None, "The file.")
    on_error: OnError = setting("fail", "Action at an invalid line or entry: stop and name it, or skip and count it.")
    skip: int = setting(0, "Requests that are skipped at the beginning of the file.", unit="requests", ge=0)
    limit: int | None = setting(
        None, "Most requests from the file; null takes all. If the run needs more, they repeat.", ge=1
    )
    request_fields: Literal["send", "ignore"] = setting(
        "send",
        "Fields of a row that belong to the request, such as temperature, stop, seed, tools or response_format: send "
        "them instead of the workload's own, or ignore and count them.",
    )

    def conflicts(self) -> Iterator[Conflict]:
        if self.path is None:
            yield Conflict(("path",), f"kind {getattr(self, 'kind', '')} needs a file: set workload.path=FILE")


class TraceWorkload(FileWorkload):
    """Requests of a recorded trace: its lengths, and with `arrival=trace` its times. The texts are synthetic.

    A trace holds no texts: prompts have the recorded lengths, and common prefixes only if the trace records them.
    """

    length_scale: float = setting(
        1.0, "Factor on the recorded lengths of prompts and their shared blocks; at least one token remains.", gt=0
    )
    output_scale: float | None = setting(None, "Factor on the recorded lengths of outputs; null is length_scale.", gt=0)
    time_unit: TimeUnit | None = setting(
        None,
        "Unit of recorded times that are numbers. null takes the format's (mooncake: ms, others: s), or the unit under "
        "which they are times since 1970. Dates need none.",
    )


class AzureWorkload(TraceWorkload):
    """A trace of the Azure LLM inference dataset: CSV with the columns TIMESTAMP, ContextTokens, GeneratedTokens."""

    kind: Literal["azure"] = setting("azure", "Trace of the Azure LLM inference dataset (CSV).")
    name: Name = _label("azure")


class BurstGptWorkload(TraceWorkload):
    """A BurstGPT trace: CSV with the columns Timestamp (seconds), Request tokens, Response tokens, Model, Log Type.

    Requests that failed in the recording have no response tokens; they are skipped and counted.
    """

    kind: Literal["burstgpt"] = setting("burstgpt", "BurstGPT trace (CSV).")
    name: Name = _label("burstgpt")
    model: Name | None = setting(None, "Only requests to this model, such as ChatGPT or GPT-4; null takes all.")
    log_type: Name | None = setting(
        None, "Only requests of this log type, such as Conversation log or API log; null takes all."
    )


class MooncakeWorkload(TraceWorkload):
    """A Mooncake trace: JSON lines with timestamp (ms), input_length, output_length and hash_ids.

    Equal ids at the beginning of two requests become the same text, so the prefixes shared in the recording are shared
    again.
    """

    kind: Literal["mooncake"] = setting("mooncake", "Mooncake trace (JSON lines).")
    name: Name = _label("mooncake")
    block_tokens: int = setting(
        512, "Tokens of the recorded prompt for one of its hash_ids; scaled like the lengths.", ge=1
    )


class PromptSetWorkload(FileWorkload):
    """Settings of every set of written prompts."""

    output_tokens: LengthDistribution = _answer_length(" if the file does not state it")
    order: Literal["file", "shuffled"] = setting(
        "file", "Order of the requests: that of the file, or random by the seed."
    )


class TextWorkload(PromptSetWorkload):
    """Plain text with one prompt per line; empty lines are skipped."""

    kind: Literal["text"] = setting("text", "Plain text with one prompt per line.")
    name: Name = _label("text")


class ConversationSetWorkload(PromptSetWorkload):
    """Settings of every set of written conversations.

    Both kinds read the same rows (JSON lines, a JSON list, CSV or Parquet) with `messages`, `conversations`, `turns` or
    `prompt`, also inside a `body`. They differ in their defaults.
    """

    api: Api = setting("chat", "OpenAI endpoint of the requests; completions joins messages by line ends.")
    max_turns: int | None = setting(
        None, "Most turns of a conversation that are sent; null sends all.", unit="turns", ge=1
    )
    think_time: TimeDistribution = setting(
        ExponentialTime(mean_s=1.0), "Time from the end of an answer to the next turn if the file does not state it."
    )


class OpenAiJsonlWorkload(ConversationSetWorkload):
    """JSON lines with `messages` or `prompt`, the format of OpenAI's batches and fine-tuning and of other benchmarks.

    The length of an answer is `max_tokens` of its row, or a length under another usual name. Without one, it is the
    length of the assistant's message at the end, if there is one.
    """

    kind: Literal["openai_jsonl"] = setting("openai_jsonl", "JSON lines with messages, turns or prompt.")
    name: Name = _label("openai_jsonl")


class ShareGptWorkload(ConversationSetWorkload):
    """ShareGPT's JSON: a list of `conversations`, each a list of `from` (human, gpt) and `value`.

    The messages of the human are sent again. The recorded answers give only the lengths, since conversations continue
    with the answers of the server under test.
    """

    kind: Literal["sharegpt"] = setting("sharegpt", "ShareGPT conversations (JSON).")
    name: Name = _label("sharegpt")
    max_turns: int | None = setting(
        1, "Most turns of a conversation that are sent; null sends all.", unit="turns", ge=1
    )


class TableWorkload(PromptSetWorkload):
    """A table of prompts: a CSV, Parquet or JSON file, recognised by the extension of its name."""

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
        "Column of the answers' lengths in tokens. null takes one of the usual names, such as output_tokens or "
        "max_tokens; without such a column, the lengths are drawn from output_tokens.",
    )


class ScheduleWorkload(Workload):
    """A saved schedule, such as the schedule.parquet of any run directory, sent again unchanged.

    With `arrival=trace` it keeps its times; any other arrival gives it new ones.
    """

    kind: Literal["schedule"] = setting("schedule", "A saved schedule.")
    name: Name = _label("schedule")
    path: Name | None = setting(None, "The schedule.parquet of a run.")

    def conflicts(self) -> Iterator[Conflict]:
        if self.path is None:
            yield Conflict(("path",), "kind schedule needs a file: set workload.path=RUN/schedule.parquet")


_EndlessWorkload = (
    SyntheticWorkload
    | SharedPrefixWorkload
    | MultiTurnWorkload
    | AzureWorkload
    | BurstGptWorkload
    | MooncakeWorkload
    | TextWorkload
    | OpenAiJsonlWorkload
    | ShareGptWorkload
    | TableWorkload
)
PartWorkload = Annotated[_EndlessWorkload, Field(discriminator="kind")]

_OF_THE_MIX = ("api", "temperature", "ignore_eos", "context_tokens")


class MixPart(Section):
    """One of the workloads of a mix."""

    weight: float = setting(
        1.0, "Share of the arrivals that belong to this part, relative to the weights of all parts.", ge=0
    )
    workload: PartWorkload = setting(SyntheticWorkload(), "The workload.")

    def conflicts(self) -> Iterator[Conflict]:
        for key in _OF_THE_MIX:
            if key in self.workload.model_fields_set:
                yield Conflict((f"workload.{key}",), f"{key} is set for the whole mix, not for a part of it")


class MixWorkload(Workload):
    """Several workloads at the same time. Every request carries the name of its part."""

    kind: Literal["mix"] = setting("mix", "Several workloads at the same time.")
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
    _EndlessWorkload | MixWorkload | ScheduleWorkload,
    Field(discriminator="kind"),
    BeforeValidator(_synthetic_by_default),
]
