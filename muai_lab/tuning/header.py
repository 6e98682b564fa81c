"""The statements of an exported file: each is one that a measurement can refute."""

from __future__ import annotations

from statistics import fmean

from muai_lab.tuning.confirmation import Confirmation
from muai_lab.tuning.result import TuningResult
from muai_lab.wording import plural


def statements(result: TuningResult) -> dict[str, str]:
    """Return the statements of a result by name, in the order of the file."""
    found: dict[str, str] = {}
    confirmation = result.confirmation
    if confirmation is not None:
        found |= _of_confirmation(confirmation, result.objective)
    if (confirmation is None or confirmation.agreement is None) and result.agreement is not None:
        found["agreement of the best in the search"] = str(result.agreement)
    if result.reduction is not None and result.reduction.value is not None:
        reduced = result.reduction
        found["kept changes against all that were found"] = (
            f"{reduced.value:+.1%} ({_interval(reduced.low, reduced.high)})"
        )
    if result.noise is not None:
        repeats = f"by {plural(result.noise_samples, 'repeat')}" if result.noise_samples else "assumed"
        found["noise in the search"] = f"runs of one configuration differ by {result.noise:.1%} ({repeats})"
    return found


def not_examined(result: TuningResult) -> str:
    """Return a list, in words, of everything that the tuning did not examine."""
    skipped = [f"{entry.engine} ({entry.skipped})" for entry in result.engines if entry.skipped is not None]
    engines = f"engines {', '.join(skipped)}; " if skipped else ""
    return f"{engines}keys outside the search space, other loads than this workload, and other machines"


def _of_confirmation(confirmation: Confirmation, objective: str) -> dict[str, str]:
    pairs = f"{plural(len(confirmation.pairs), 'pair')} of runs"
    missed = confirmation.present_misses
    if missed is None:
        interval = _interval(confirmation.low, confirmation.high)
        found = {"gain": f"{confirmation.gain:+.1%} {objective} ({interval}, {pairs})"}
        if confirmation.next_pair is not None:
            low, high = confirmation.next_pair
            found["one further pair of runs"] = f"{low:+.1%} to {high:+.1%} in 19 of 20 cases"
    else:
        before, after = (
            fmean(values) for values in zip(*((p.present, p.winner) for p in confirmation.pairs), strict=True)
        )
        found = {
            "gain": f"the SLO, which the present configuration does not keep; mean {objective} {before:.3g} -> "
            f"{after:.3g} ({pairs})",
            "SLO attainment of the present configuration": f"{missed.value:.2%} of its requests, at most "
            f"{missed.high:.2%} (upper end of the 95 % interval)",
        }
    if (kept := _attainment(confirmation)) is not None:
        found["SLO attainment"] = kept
    if confirmation.agreement is not None:
        found["agreement of the winner"] = str(confirmation.agreement)
    if confirmation.between_starts is not None:
        found["noise between server starts"] = (
            f"{confirmation.between_starts:.1%} (standard deviation of runs of one configuration, from these pairs)"
        )
    if confirmation.blocks is not None and confirmation.block_s is not None:
        found["blocks"] = f"{confirmation.blocks} of {confirmation.block_s:g} s in each run"
    return found


def _attainment(confirmation: Confirmation) -> str | None:
    kept = confirmation.kept
    if kept is None:
        if confirmation.attainment is None:
            return None
        return f"{confirmation.attainment:.2%} of the winner's requests"
    told = f"{kept.value:.2%} of the winner's requests, at least {kept.low:.2%} (lower end of the 95 % interval)"
    if kept.relaxations is None:
        return f"{told}; {plural(kept.windows, 'block')} of {kept.seconds:g} s"
    windows = f"{plural(kept.windows, 'soak window')} of {kept.seconds:.0f} s"
    return f"{told}; {windows}, {kept.relaxations:.0f} relaxation times of the queue each"


def _interval(low: float | None, high: float | None) -> str:
    return "no interval: given up early" if low is None or high is None else f"{low:+.1%} to {high:+.1%}, 95 % interval"
