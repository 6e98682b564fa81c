"""The workloads: who asks what. Which keys there are depends on `kind`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from muai_lab.settings.distributions import (
    ExponentialTime,
    FixedLength,
    LengthDistribution,
    TimeDistribution,
    UniformLength,
)
from muai_lab.settings.section import Name, Section, setting

Api = Literal["completions", "chat"]


class Workload(Section):
    """What every workload has, whatever its kind."""

    name: Name = setting("chat", "Label of the workload in results.")
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
    output_tokens: LengthDistribution = setting(UniformLength(low=8, high=48), "Length of an answer.")


class SharedPrefixWorkload(Workload):
    """Made-up prompts in groups; the prompts of a group begin with the same text, as with a common system prompt."""

    kind: Literal["shared_prefix"] = setting("shared_prefix", "Prompts in groups with a common beginning.")
    name: Name = setting("shared_prefix", "Label of the workload in results.")
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
    output_tokens: LengthDistribution = setting(UniformLength(low=8, high=48), "Length of an answer.")


class MultiTurnWorkload(Workload):
    """Conversations. Each turn is asked a think time after the answer before it, and brings the answers so far along.

    An arrival is the first turn of a conversation; in the closed loop, `arrival.concurrency` conversations are under
    way.
    """

    kind: Literal["multi_turn"] = setting("multi_turn", "Conversations of several turns.")
    name: Name = setting("multi_turn", "Label of the workload in results.")
    api: Api = setting("chat", "OpenAI endpoint that the requests go to; completions joins what was said by line ends.")
    system_tokens: int = setting(
        0, "Length of a system prompt that all conversations begin with; 0 for none.", unit="tokens", ge=0
    )
    turns: LengthDistribution = setting(UniformLength(low=2, high=5), "Turns of a conversation.")
    prompt_tokens: LengthDistribution = setting(UniformLength(low=16, high=64), "Length of what is said in one turn.")
    output_tokens: LengthDistribution = setting(UniformLength(low=8, high=48), "Length of an answer.")
    think_time: TimeDistribution = setting(ExponentialTime(mean_s=1.0), "From the end of an answer to the next turn.")


def _synthetic_by_default(value: Any) -> Any:
    return {"kind": "synthetic", **value} if isinstance(value, dict) and "kind" not in value else value


WorkloadSettings = Annotated[
    SyntheticWorkload | SharedPrefixWorkload | MultiTurnWorkload,
    Field(discriminator="kind"),
    BeforeValidator(_synthetic_by_default),
]
