"""The configurations that the bound on greedy agreement accepts, and the share of lower bounds below the truth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.coverage import Table
from muai_lab.settings.tuning import TuningSettings
from muai_lab.tuning.agreement import Agreement
from muai_lab.tuning.quality import PROMPTS, TOKENS, ForcedAnswer, compare

TRUTHS, CORRELATIONS = (0.92, 0.94, 0.95, 0.97, 0.98, 0.99), (0.0, 0.05, 0.2)
LEAST: float = TuningSettings().min_agreement or 0.0
FIRST_TOKENS = 96  # that were compared before, one after each prompt
THREE_BITS = 0.556  # agreement over decode steps of a cache of 3 bits, whose first tokens are all right


class Differing:
    """A configuration whose greedy tokens agree with fp32 with a known probability.

    share: Mean of that probability, over decode steps. correlation: Between the positions of a prompt; the probability
    of a prompt is drawn from a beta distribution. first: Probability of first tokens, None for that of the prompt.
    """

    def __init__(
        self, share: float, correlation: float, random: np.random.Generator, *, first: float | None = None
    ) -> None:
        within = np.full(PROMPTS, share)
        if correlation:
            size = (1.0 - correlation) / correlation
            within = random.beta(share * size, (1.0 - share) * size, PROMPTS)
        chances = np.repeat(within[:, None], TOKENS, axis=1)
        if first is not None:
            chances[:, 0] = first
        self._agrees = random.random((PROMPTS, TOKENS)) < chances
        self.reference = [ForcedAnswer([place], list(range(TOKENS))) for place in range(PROMPTS)]

    def __call__(self, prompt: Sequence[int], begun: Sequence[int], count: int) -> list[int]:
        """See `muai_lab.tuning.quality.Ask`; behind a difference nothing agrees any more."""
        agrees = self._agrees[prompt[0], len(begun) : len(begun) + count]
        until = int(np.argmin(agrees)) if not agrees.all() else count
        return [len(begun) + place if place < until else -1 for place in range(count)]


def comparisons(
    share: float, correlation: float, repeats: int, seed: int, *, first: float | None = None
) -> list[Agreement]:
    """Compare `repeats` configurations of this kind with fp32."""
    worlds = (
        Differing(share, correlation, np.random.default_rng((seed, repeat)), first=first) for repeat in range(repeats)
    )
    return [compare(world, world.reference, LEAST) for world in worlds]


def accepted_before(share: float, correlation: float, repeats: int, seed: int) -> float:
    """Return the share of comparisons in which first tokens alone reached the limit."""
    random = np.random.default_rng(seed)
    if correlation:
        size = (1.0 - correlation) / correlation
        chances = random.beta(share * size, (1.0 - share) * size, (repeats, FIRST_TOKENS))
    else:
        chances = np.full((repeats, FIRST_TOKENS), share)
    return float(np.mean((random.random(chances.shape) < chances).mean(axis=1) >= LEAST))


def table(repeats: int, seed: int) -> Table:
    """A row for each true agreement. repeats: comparisons."""
    rows = []
    for truth in TRUTHS:
        cells = [f"{truth:.0%}", f"{accepted_before(truth, 0.0, 100 * repeats, seed):.0%}"]
        for correlation in CORRELATIONS:
            found = comparisons(truth, correlation, repeats, seed)
            covered = np.mean([one.low <= truth for one in found])
            cells.append(f"{np.mean([one.keeps(LEAST) for one in found]):.1%} ({covered:.3f})")
        rows.append(cells)
    rounded = comparisons(THREE_BITS, 0.0, repeats, seed, first=1.0)
    accepted = f"{np.mean([one.keeps(LEAST) for one in rounded]):.1%}"
    rows.append([f"first token 100%, decode steps {THREE_BITS:.1%}", "100%", accepted, "-", "-"])
    note = (
        f"Share of the configurations that {LEAST:.0%} (`tuning.min_agreement`) accepts, and how often the lower bound "
        f"lies below the truth. Before: {FIRST_TOKENS} first tokens, their share against the limit. Now: {PROMPTS} "
        f"prompts of {TOKENS} positions by teacher forcing, the lower bound against it; the positions of a prompt are "
        f"correlated as said. {repeats} comparisons behind each figure."
    )
    columns = ("true agreement", "before", *(f"now, correlation {one:g}" for one in CORRELATIONS))
    return Table(columns, rows, note)
