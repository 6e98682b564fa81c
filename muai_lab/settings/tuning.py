"""What `tune` searches, for what, for how long, and where it keeps what it found."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator

from muai_lab.settings.section import AnySequence, Name, Order, Section, Unique, setting

ObjectiveName = Literal["goodput", "throughput", "p99", "cost"]


def _check_storage(value: str) -> str:
    parts = urlsplit(value)
    if not parts.scheme or "://" not in value:
        raise ValueError("expected a database address such as postgresql://user@host/database")
    if parts.password is not None:
        raise ValueError(
            "a password does not belong in this address, which the study's files record: use PGPASSWORD or ~/.pgpass"
        )
    return value


class TuningSettings(Section):
    """The search for a better `optimization` section, by measurement."""

    study: Name | None = setting(
        None,
        "Directory of the study; one that exists is gone on with. null makes a new one, studies/DATE/TIME.",
    )
    storage: Annotated[str, AfterValidator(_check_storage)] | None = setting(
        None,
        "Database of the study, such as postgresql://user@host/database, for several `tune` processes on one study. "
        "null keeps it in the study's directory (SQLite).",
        hide_in_errors=True,
    )
    name: Name | None = setting(
        None,
        "Name of the study in the database; null is the name of its directory. Processes that share it work together.",
    )
    search_space: Name | None = setting(
        None, "A file of conf/search_space by its name, or the path of one; null is the one named after the engine."
    )
    objectives: Annotated[tuple[ObjectiveName, ...], AnySequence, Unique] = setting(
        ("goodput",),
        "What is to get better. goodput: requests per second that keep the promise (slo); throughput: output tokens "
        "per second; p99: of the whole request; cost: per million output tokens. Several give a Pareto front, of which "
        "the first decides what is exported.",
        min_length=1,
    )
    cost_per_hour: float = setting(1.0, "Price of the machine per hour, in any currency; for cost.", gt=0)
    sampler: Literal["tpe", "gp", "cmaes", "random"] = setting(
        "tpe",
        "How points are proposed: tree-structured Parzen estimators, a Gaussian process (sees only keys without a "
        "condition), CMA-ES (numbers only, the rest at random; does not learn from missed bounds), or at random.",
    )
    n_trials: int = setting(40, "Most trials that are measured, for each engine.", unit="trials", ge=1)
    timeout_s: float | None = setting(
        None, "Longest that the search of one engine may take; null for no limit.", unit="s", gt=0
    )
    startup_trials: int = setting(
        8,
        "Random points that are measured before the sampler proposes; by default at most half of `n_trials`.",
        unit="trials",
        ge=1,
    )
    patience: int = setting(
        16, "Stop after so many trials of which none gained more than twice the noise.", unit="trials", ge=1
    )
    block_s: float = setting(4.0, "Length of one block of load; every trial gets the same blocks.", unit="s", gt=0)
    blocks: int = setting(5, "Blocks of a trial that is not given up early.", unit="blocks", ge=2)
    lead_in_s: float = setting(0.5, "Load before each block that is not counted.", unit="s", ge=0)
    warmup_s: float = setting(3.0, "Load after each start of a server that is not counted.", unit="s", ge=0)
    soak_s: float | None = setting(
        None,
        "Length of a soak window: continuous load without a drain, by which an SLO under open-loop load is judged. "
        "null derives it from the memory of the queue, between 30 s and `soak_most_s`.",
        unit="s",
        gt=0,
    )
    soak_most_s: float = setting(
        180.0,
        "Longest soak window. A queue whose memory needs more cannot be shown to keep the SLO.",
        unit="s",
        gt=0,
    )
    pruning: bool = setting(
        True, "Give up trials that are clearly worse than the best so far after a part of their blocks."
    )
    incumbent_every: int = setting(
        8, "Measure the best so far again after so many trials, to know noise and drift.", unit="trials", ge=1
    )
    min_agreement: float | None = setting(
        0.95,
        "Least share of greedy tokens that must be those of the model in fp32, by the lower end of its 95 % interval, "
        "where a key (dtype, quantisation) or another engine may change outputs; null does not compare. 1,536 "
        "positions that all agree show 0.99, and no more.",
        gt=0.0,
        le=0.99,
    )
    max_errors: float = setting(0.01, "Largest share of requests that may fail.", ge=0.0, lt=1.0)
    memory_fraction: float = setting(
        0.9, "Share of the device's memory that a configuration may need by calculation.", gt=0.0, le=1.0
    )
    confirm_pairs: int = setting(
        6, "Pairs of runs that confirm the winner against the present configuration.", unit="pairs", ge=6
    )
    confirm_most_pairs: int | None = setting(
        None,
        "Pairs that the confirmation may go up to where the first ones scatter too much to tell the gain that the "
        "search saw; null is twice `confirm_pairs`.",
        unit="pairs",
        ge=6,
    )
    confirm: bool = setting(True, "Confirm the winner; off only searches, which helps a study of another process.")

    orders: ClassVar[tuple[Order, ...]] = (
        # Fewer random points than trials, else the sampler would propose nothing.
        Order("startup_trials", "n_trials", "the sampler would never propose a point", apart=2.0),
        Order("confirm_pairs", "confirm_most_pairs"),
        Order("soak_s", "soak_most_s"),
    )

    @property
    def most_pairs(self) -> int:
        """Pairs of runs that a confirmation takes at most."""
        return 2 * self.confirm_pairs if self.confirm_most_pairs is None else self.confirm_most_pairs
