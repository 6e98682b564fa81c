"""One seed, many independent streams of random numbers, each with a name.

A stream depends on the seed and on its own name only, so a new consumer of randomness does not shift the numbers of
the others: arrivals stay the same when a workload learns a new feature.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

_BLOCK = 1024


@dataclass(frozen=True, slots=True)
class RandomStreams:
    """The named streams of one seed.

    Streams are children of one `numpy.random.SeedSequence`, told apart by their spawn key (numpy guarantees that
    different spawn keys give independent streams); here the key is the name instead of the order of spawning.
    """

    seed: int
    prefix: str = ""

    def stream(self, name: str) -> np.random.Generator:
        """Return a fresh generator at the beginning of the named stream."""
        sequence = np.random.SeedSequence(entropy=self.seed, spawn_key=tuple(f"{self.prefix}{name}".encode()))
        return np.random.Generator(np.random.PCG64(sequence))

    def below(self, name: str) -> RandomStreams:
        """Return the streams of a part that has a name of its own: its numbers do not depend on what other parts draw."""
        return RandomStreams(self.seed, f"{self.prefix}{name}/")


def endless_seeds(streams: RandomStreams) -> Iterator[int]:
    """Yield seeds for the sampling of each request."""
    rng = streams.stream("sampling seeds")
    while True:
        yield from rng.integers(2**31, size=_BLOCK).tolist()
