"""Verdicts on the changes of a comparison: first the primary figure, then the others.

If all figures were tested alike, each would have to be adjusted for all others, and three repeats would find almost
nothing. So one figure, chosen in advance, is tested alone at 5 %. The others get verdicts only after it is decided,
adjusted among themselves (Holm 1979). The chance of any false finding between equal
configurations stays at 5 % (serial gatekeeping, Westfall and Krishen 2001,
https://doi.org/10.1016/S0378-3758(01)00077-5).

A difference is shown if it is significant *and* large enough to matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from muai_lab.analysis.change import (
    BETTER,
    NO_DIFFERENCE,
    NOT_COMPARABLE,
    NOT_TESTED,
    WORSE,
    Difference,
    DifferenceVerdict,
)
from muai_lab.analysis.moderation import SIGNIFICANCE, holm

SMALLEST_EFFECT = 0.02
"""Smallest relative change that counts as a difference, however certain it is."""
NO_SUCCESS = "no request of B succeeded"

_SLO_WITHOUT_ROOM = 0.99  # attainment of both sides above which goodput is the offered rate


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdicts. primary: Name of the figure that decides, None without any. why: The rule that chose it."""

    differences: tuple[Difference, ...]
    verdict: DifferenceVerdict
    primary: str | None
    why: str


def choose_primary(differences: Sequence[Difference], *, closed: bool, slo: bool) -> tuple[str | None, str]:
    """Return the figure that decides unless the user names one, and the reason in words.

    With an SLO it is goodput, unless practically every request of both sides meets it. Else it depends on the load:
    tokens per second in a closed loop. In an open loop the throughput is the offered load, so the median end-to-end
    latency from the intended time decides; it includes queueing, prefill and decode.
    """
    known = {one.figure.name: one for one in differences if one.pairs}
    rules: list[tuple[str, str]] = []
    attained = known.get("attainment")
    room = attained is None or min(attained.a or 0.0, attained.b or 0.0) < _SLO_WITHOUT_ROOM
    if slo and room:
        rules.append(("goodput", "an SLO is set"))
    kept = "both meet the SLO, " if slo and not room else ""
    if closed:
        rules += [(name, f"{kept}the loop is closed") for name in ("tokens", "requests")]
    else:
        rules.append(("p50 e2e", f"{kept}the loop is open: the offered load sets the throughput"))
    rules.append(("success", "nothing else can be compared"))
    rules += [(name, "nothing else can be compared") for name in known]
    return next(((name, why) for name, why in rules if name in known), (None, ""))


def judged(differences: Sequence[Difference], primary: str | None, why: str) -> Judgement:
    """Return the verdicts. Changes without a p-value are not tested: single runs, or changes of unknown noise."""
    first = next((one for one in differences if one.figure.name == primary), None)
    dead = [one for one in differences if _answers_nothing(one)]
    if dead:
        found = [replace(one, verdict=WORSE, reason=NO_SUCCESS) if one in dead else one
                 for one in differences]  # fmt: skip
        return Judgement(tuple(found), WORSE, "success", NO_SUCCESS)
    if first is None or first.p is None or first.pairs < 2:
        return Judgement(tuple(differences), _without_test(first), primary, why)
    decided = first.p <= SIGNIFICANCE
    others = [one for one in differences if one is not first and one.p is not None and one.pairs > 1]
    adjusted = dict(zip([one.figure.name for one in others], holm([one.p or 0.0 for one in others]), strict=True))
    adjusted[first.figure.name] = first.p
    tested = {first.figure.name, *adjusted} if decided else {first.figure.name}
    found = [
        _with_verdict(one, adjusted[one.figure.name]) if one.figure.name in tested
        else replace(one, p_adjusted=adjusted.get(one.figure.name))
        for one in differences
    ]  # fmt: skip
    verdict = next(one.verdict for one in found if one.figure.name == first.figure.name)
    return Judgement(tuple(found), verdict, primary, why)


def _without_test(first: Difference | None) -> DifferenceVerdict:
    return NOT_COMPARABLE if first is None else NOT_TESTED


def _answers_nothing(found: Difference) -> bool:
    """True if no request of B succeeds while those of A do: B is worse without a test."""
    return found.figure.name == "success" and found.b == 0.0 and (found.a or 0.0) > 0.5


def harms(judgement: Judgement) -> list[Difference]:
    """Return the other figures in which B is significantly worse, also those that are not tested."""
    return [
        one
        for one in judgement.differences
        if one.figure.name != judgement.primary
        and (
            one.verdict == WORSE
            or (one.verdict == NOT_TESTED and one.looks_worse and _with_verdict(one, one.p_adjusted).verdict == WORSE)
        )
    ]


def _with_verdict(found: Difference, p_adjusted: float | None) -> Difference:
    if p_adjusted is None or found.a is None or found.b is None:
        return found
    verdict, reason = NO_DIFFERENCE, None
    if p_adjusted <= SIGNIFICANCE:
        relative = None if found.figure.scale == "share" else found.change.value
        if relative is not None and abs(relative) < SMALLEST_EFFECT:
            reason = f"certain, but smaller than {SMALLEST_EFFECT:.0%}"
        elif abs(found.b - found.a) < found.figure.floor:
            reason = "certain, but smaller than the load generator itself may be off"
            if found.figure.scale == "share":
                reason = "certain, but smaller than half a percentage point"
        else:
            rose = found.b > found.a
            verdict = BETTER if rose == (found.figure.better == "higher") else WORSE
    elif found.p is not None and found.p <= SIGNIFICANCE:
        reason = "its interval leaves out 0, as one in twenty does by chance"
    return replace(found, p_adjusted=p_adjusted, verdict=verdict, reason=reason)
