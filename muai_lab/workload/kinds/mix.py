"""`mix`: several workloads at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from muai_lab.settings.workload import MixWorkload
from muai_lab.workload.kinds import open_source
from muai_lab.workload.prompts import PromptMaker
from muai_lab.workload.randomness import RandomStreams
from muai_lab.workload.rows import Unit
from muai_lab.workload.source import Source

_BLOCK = 4096


def source(workload: MixWorkload, streams: RandomStreams, maker: PromptMaker) -> Source:
    """Return arrivals, each of the part that the weights drew for it; requests carry the part's name.

    A part's requests do not depend on the other parts: they are the same in every mix.
    """
    names = list(workload.parts)
    sources = [open_source(part.workload, streams.below(name), maker) for name, part in workload.parts.items()]
    weights = np.array([part.weight for part in workload.parts.values()])

    def units() -> Iterator[Unit]:
        rng = streams.stream("parts")
        bounds = np.cumsum(weights) / weights.sum()
        while True:
            for part in np.searchsorted(bounds, rng.random(_BLOCK), side="right").tolist():
                yield [
                    replace(request, part=names[part], prefix_group=_apart(request.prefix_group, part, len(names)))
                    for request in next(sources[part].units)
                ]

    def notes() -> tuple[str, ...]:
        return tuple(f"{name}: {note}" for name, part in zip(names, sources, strict=True) for note in part.notes())

    return Source(units(), notes=notes)


def _apart(group: int | None, part: int, parts: int) -> int | None:
    """Return a group's number that no other part has."""
    return None if group is None else group * parts + part
