"""`shared_prefix`: requests in groups that begin alike, which a prefix cache can use."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from muai_lab.settings.workload import SharedPrefixWorkload
from muai_lab.workload.lengths import draw_lengths, endless_lengths
from muai_lab.workload.prompts import PromptMaker
from muai_lab.workload.randomness import RandomStreams, endless_seeds
from muai_lab.workload.rows import Unit
from muai_lab.workload.schedule import ScheduledRequest
from muai_lab.workload.source import Source

_BLOCK = 4096


def source(workload: SharedPrefixWorkload, streams: RandomStreams, maker: PromptMaker) -> Source:
    """Return requests without end, each of the group that Zipf's law drew for it.

    A prompt is its group's beginning, a line end, and a text of its own. The line end keeps the two apart for the
    tokenizer, so the tokens of the beginning are the same in every prompt of the group; its own tokens count to the
    second text. Taking a request raises RunError if its prompt is shorter than the chat template.
    """
    return Source(_units(workload, streams, maker))


def _units(workload: SharedPrefixWorkload, streams: RandomStreams, maker: PromptMaker) -> Iterator[Unit]:
    prefix_lengths = draw_lengths(workload.prefix_tokens, workload.groups, streams.stream("prefix lengths"))
    prefix_words = streams.stream("prefixes")
    prefixes = [maker.text(length, prefix_words) for length in prefix_lengths.tolist()]
    groups = _endless_groups(workload.groups, workload.popularity, streams.stream("prefix groups"))
    own_lengths = endless_lengths(workload.prompt_tokens, streams.stream("prompt lengths"))
    output_lengths = endless_lengths(workload.output_tokens, streams.stream("output lengths"))
    words = streams.stream("prompts")
    for group, wanted, output, seed in zip(groups, own_lengths, output_lengths, endless_seeds(streams), strict=False):
        prefix_tokens = int(prefix_lengths[group])
        length, output_tokens = maker.context.fit(
            prefix_tokens + wanted, output, prefix_tokens + maker.template_tokens + 2
        )
        prompt, tokens = maker.prompt(length, words, head=f"{prefixes[group]}\n")
        yield [ScheduledRequest(-1, None, prompt, None, tokens, output_tokens, prefix_group=group, seed=seed)]


def popularity_weights(groups: int, exponent: float) -> npt.NDArray[np.float64]:
    """Probability of each group under Zipf's law: proportional to 1 / rank^exponent."""
    weights = np.arange(1, groups + 1, dtype=np.float64) ** -exponent
    weights /= weights.sum()
    return weights


def _endless_groups(groups: int, exponent: float, rng: np.random.Generator) -> Iterator[int]:
    bounds = np.cumsum(popularity_weights(groups, exponent))
    while True:
        drawn = np.searchsorted(bounds, rng.random(_BLOCK), side="right")
        yield from np.minimum(drawn, groups - 1).tolist()
