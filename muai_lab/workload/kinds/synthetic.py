"""`synthetic`: made-up requests with prompts of exact token counts and outputs of drawn lengths."""

from __future__ import annotations

from collections.abc import Iterator

from muai_lab.settings.workload import SyntheticWorkload
from muai_lab.workload.lengths import endless_lengths
from muai_lab.workload.prompts import PromptMaker
from muai_lab.workload.randomness import RandomStreams, endless_seeds
from muai_lab.workload.rows import Unit
from muai_lab.workload.schedule import ScheduledRequest
from muai_lab.workload.source import Source


def source(workload: SyntheticWorkload, streams: RandomStreams, maker: PromptMaker) -> Source:
    """Return requests without end; taking one raises RunError if its prompt is shorter than the chat template."""
    return Source(_units(workload, streams, maker))


def _units(workload: SyntheticWorkload, streams: RandomStreams, maker: PromptMaker) -> Iterator[Unit]:
    prompt_lengths = endless_lengths(workload.prompt_tokens, streams.stream("prompt lengths"))
    output_lengths = endless_lengths(workload.output_tokens, streams.stream("output lengths"))
    seeds = endless_seeds(streams)
    words = streams.stream("prompts")
    for wanted, output, seed in zip(prompt_lengths, output_lengths, seeds, strict=False):
        length, output_tokens = maker.context.fit(wanted, output, maker.template_tokens + 1)
        prompt, tokens = maker.prompt(length, words)
        yield [ScheduledRequest(-1, None, prompt, None, tokens, output_tokens, seed=seed)]
