"""The share of greedy tokens that a configuration has in common with fp32, and its lower bound.

Positions of one prompt resemble each other: a prompt is a cluster, and many positions of few prompts tell less than as
many of different prompts. The bound is Wilson's (1927) for an effective number of positions: their number divided by
the design effect of the clusters, and corrected for the degrees of freedom that clusters leave (Korn and Graubard 1998;
compared with other intervals by Dean and Pagano 2015, https://doi.org/10.1093/jssam/smv024).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri, stdtrit

LOW_TAIL = 0.025
_PRIOR_CORRELATION = 0.1  # between positions of a prompt, as long as few prompts disagree


@dataclass(frozen=True, slots=True)
class PromptAgreement:
    """One prompt's share in the comparison.

    positions: Positions at which both were asked. decoded: Those of them whose token a decode step made; the others
    are the first tokens of answers, which a prefill makes. agreed: Positions with the same token. length: Positions of
    the whole answer, if some were left out.
    """

    positions: int
    decoded: int
    agreed: int
    length: int = 0

    @property
    def weight(self) -> int:
        """Positions that the prompt represents. After a difference one is left out: without weights, prompts with many
        differences would count less, and the share would be too high."""
        return max(self.length, self.positions)

    @property
    def differing(self) -> float:
        """Differing positions, of `weight`."""
        return self.weight * (1.0 - self.agreed / self.positions)


@dataclass(frozen=True, slots=True)
class Agreement:
    """Share of positions at which the greedy token is that of fp32, with its lower bound (95 % interval, lower end).

    positions, decoded: As in `PromptAgreement`, of all prompts. design_effect: Variance of the share, relative to that
    of as many independent positions; at least 1.
    """

    share: float
    low: float
    positions: int
    decoded: int
    prompts: int
    design_effect: float = 1.0

    def keeps(self, least: float) -> bool:
        """True if the lower bound reaches `least`."""
        return self.low >= least

    def __str__(self) -> str:
        return (
            f"{self.share:.1%} of the greedy tokens are those of fp32, at least {self.low:.1%} "
            f"({self.positions:,} positions of {self.prompts} prompts, {self.decoded:,} by decode steps)"
        )


def agreement_of(answers: Sequence[PromptAgreement]) -> Agreement:
    """Judge the answers. Without a position the bound is 0."""
    seen = [answer for answer in answers if answer.positions]
    positions, decoded = sum(one.positions for one in seen), sum(one.decoded for one in seen)
    if not positions:
        return Agreement(0.0, 0.0, 0, 0, 0)
    share = 1.0 - sum(one.differing for one in seen) / sum(one.weight for one in seen)
    effect = design_effect(seen)
    low = _lower_bound(share, positions / effect, len(seen))
    return Agreement(share, low, positions, decoded, len(seen), effect)


def not_kept(found: Agreement | None, least: float) -> str | None:
    """Return why a comparison does not show an agreement of `least`; None if it does, or if there was none."""
    if found is None or found.keeps(least):
        return None
    return f"{found}, and {least:.1%} are asked for (tuning.min_agreement)"


def design_effect(answers: Sequence[PromptAgreement]) -> float:
    """Return the variance of the share by the clusters, relative to independent positions; at least 1.

    The differing positions of few prompts show little about clusters. A correlation within prompts is therefore
    assumed, which counts as one prompt with differences.
    """
    sizes = np.array([answer.weight for answer in answers], dtype=np.float64)
    differing = np.array([answer.differing for answer in answers])
    rate = float(differing.sum() / sizes.sum())
    assumed = 1.0 + _PRIOR_CORRELATION * max(float(np.square(sizes).sum() / sizes.sum()) - 1.0, 0.0)
    hit = int((differing > 0.0).sum())
    if not hit or rate >= 1.0 or len(answers) < 2:
        return assumed
    between = float(np.square(differing - rate * sizes).sum()) * len(answers) / (len(answers) - 1)
    positions = sum(answer.positions for answer in answers)
    shown = between / float(sizes.sum()) ** 2 / (rate * (1.0 - rate) / positions)
    return max((hit * shown + assumed) / (hit + 1), 1.0)


def _lower_bound(share: float, effective: float, clusters: int) -> float:
    """Wilson's lower bound for `effective` independent positions, fewer the fewer clusters there are."""
    if clusters < 2:
        return 0.0
    normal = -float(ndtri(LOW_TAIL))
    student = -float(stdtrit(clusters - 1, LOW_TAIL))
    counted = max(effective * (normal / student) ** 2, 1.0)
    square = normal**2 / counted
    centre = share + square / 2.0
    spread = normal * math.sqrt(share * (1.0 - share) / counted + square / (4.0 * counted))
    return min(max((centre - spread) / (1.0 + square), 0.0), share)
