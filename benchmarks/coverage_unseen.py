"""Do the intervals hold in systems that no constant of their rule was chosen by?"""

from __future__ import annotations

from benchmarks.coverage import Table
from benchmarks.coverage_intervals import FIGURES, rows_of
from benchmarks.unseen_worlds import UNSEEN

_OTHER_SEED = 77_001


def table(repeats: int, seed: int) -> Table:
    """As `coverage_intervals`, for other worlds and with other random numbers."""
    note = f"As above, for systems and loads that the rule was not fitted to, with other seeds ({repeats:,} runs each)."
    return Table(["system", "requests", *FIGURES], rows_of(UNSEEN, repeats, seed + _OTHER_SEED), note)
