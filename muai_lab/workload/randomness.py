"""One seed, many independent streams of random numbers, each with a name.

A stream depends only on the seed and on its own name, so a new consumer of random numbers does not shift those of the
others: arrivals stay the same when a workload gets a new feature.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

_BLOCK = 1024


@dataclass(frozen=True, slots=True)
class RandomStreams:
    """The named streams of one seed.

    Streams are children of one `numpy.random.SeedSequence` with different spawn keys, for which numpy guarantees
    independent streams. The key is the name, instead of the order of spawning.
    """

    seed: int
    prefix: str = ""

    def stream(self, name: str) -> np.random.Generator:
        """Return a new generator at the beginning of the named stream."""
        sequence = np.random.SeedSequence(entropy=self.seed, spawn_key=tuple(f"{self.prefix}{name}".encode()))
        return np.random.Generator(np.random.PCG64(sequence))

    def below(self, name: str) -> RandomStreams:
        """Return the streams of a named part; its numbers do not depend on those of other parts."""
        return RandomStreams(self.seed, f"{self.prefix}{name}/")


def endless_seeds(streams: RandomStreams) -> Iterator[int]:
    """Yield a seed for the sampling of each request, without end."""
    rng = streams.stream("sampling seeds")
    while True:
        yield from rng.integers(2**31, size=_BLOCK).tolist()
