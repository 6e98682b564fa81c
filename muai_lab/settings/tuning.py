"""Settings of `tune`: search space, objectives, budget, and the place of the study."""

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
        "Directory of the study. An existing study continues. null creates studies/DATE/TIME.",
    )
    storage: Annotated[str, AfterValidator(_check_storage)] | None = setting(
        None,
        "Database of the study, such as postgresql://user@host/database, for several `tune` processes on one study. "
        "null keeps it in the study's directory (SQLite).",
        hide_in_errors=True,
    )
    name: Name | None = setting(
        None,
        "Name of the study in the database; null is its directory's name. Processes with one name share the study.",
    )
    search_space: Name | None = setting(
        None, "Name of a file in conf/search_space, or a path; null is the file named after the engine."
    )
    objectives: Annotated[tuple[ObjectiveName, ...], AnySequence, Unique] = setting(
        ("goodput",),
        "Metrics to improve. goodput: requests per second that meet the SLO; throughput: output tokens per second; "
        "p99: of the duration of a request; cost: per million output tokens. Several objectives give a Pareto front; "
        "the first one selects the exported configuration.",
        min_length=1,
    )
    cost_per_hour: float = setting(1.0, "Price of the machine per hour, in any currency; for cost.", gt=0)
    sampler: Literal["tpe", "gp", "cmaes", "random"] = setting(
        "tpe",
        "Method that proposes points: tree-structured Parzen estimators, a Gaussian process (only keys without a "
        "condition), CMA-ES (only numbers, all other keys at random; does not learn from missed bounds), or random.",
    )
    n_trials: int = setting(40, "Most measured trials for each engine.", unit="trials", ge=1)
    timeout_s: float | None = setting(None, "Longest search of one engine; null for no limit.", unit="s", gt=0)
    startup_trials: int = setting(
        8,
        "Random points before the sampler proposes points; by default at most half of `n_trials`.",
        unit="trials",
        ge=1,
    )
    patience: int = setting(16, "Stop after N trials without a gain above twice the noise.", unit="trials", ge=1)
    block_s: float = setting(4.0, "Length of one block of load; every trial replays the same blocks.", unit="s", gt=0)
    blocks: int = setting(5, "Blocks of a trial that is not pruned.", unit="blocks", ge=2)
    lead_in_s: float = setting(0.5, "Warm-up before each block, not counted.", unit="s", ge=0)
    warmup_s: float = setting(3.0, "Warm-up after each start of a server, not counted.", unit="s", ge=0)
    soak_s: float | None = setting(
        None,
        "Length of a soak window: continuous load without a drain, which decides if a configuration meets the SLO "
        "under open-loop load. null derives it from the memory of the queue, between 30 s and `soak_most_s`.",
        unit="s",
        gt=0,
    )
    soak_most_s: float = setting(
        180.0,
        "Longest soak window. If the memory of the queue needs more, no measurement can show that it meets the SLO.",
        unit="s",
        gt=0,
    )
    pruning: bool = setting(
        True, "Prune a trial after a part of its blocks if it is clearly worse than the best so far."
    )
    incumbent_every: int = setting(
        8, "Measure the best so far again after N trials, to estimate noise and drift.", unit="trials", ge=1
    )
    min_agreement: float | None = setting(
        0.95,
        "Least share of greedy tokens that must equal those of the model in fp32, by the lower end of its 95 % "
        "interval. It applies if a key (dtype, quantisation) or another engine may change outputs; null does not "
        "compare. 1,536 positions that all agree prove at most 0.99.",
        gt=0.0,
        le=0.99,
    )
    max_errors: float = setting(0.01, "Largest share of failed requests.", ge=0.0, lt=1.0)
    memory_fraction: float = setting(
        0.9, "Share of the device's memory that a configuration may need, by calculation.", gt=0.0, le=1.0
    )
    confirm_pairs: int = setting(
        6, "Pairs of runs that confirm the winner against the present configuration.", unit="pairs", ge=6
    )
    confirm_most_pairs: int | None = setting(
        None,
        "Most pairs of the confirmation. It adds pairs if the first ones vary too much to show the gain of the search. "
        "null is twice `confirm_pairs`.",
        unit="pairs",
        ge=6,
    )
    confirm: bool = setting(
        True, "Confirm the winner. If off, the process only searches, for a study that another process confirms."
    )

    orders: ClassVar[tuple[Order, ...]] = (
        # Fewer random points than trials: otherwise the sampler would propose nothing.
        Order("startup_trials", "n_trials", "the sampler would never propose a point", apart=2.0),
        Order("confirm_pairs", "confirm_most_pairs"),
        Order("soak_s", "soak_most_s"),
    )

    @property
    def most_pairs(self) -> int:
        """Most pairs of runs in a confirmation."""
        return 2 * self.confirm_pairs if self.confirm_most_pairs is None else self.confirm_most_pairs
