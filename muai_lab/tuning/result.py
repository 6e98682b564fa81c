"""The result of a tuning, as one JSON document in the study's directory; the export and the report read it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from muai_lab.analysis.documents import clean
from muai_lab.analysis.statistics import Estimate
from muai_lab.errors import RunError
from muai_lab.files import write_whole
from muai_lab.tuning.agreement import Agreement
from muai_lab.tuning.confirmation import Confirmation, Pair
from muai_lab.tuning.contribution import Contribution
from muai_lab.tuning.search_space import Value
from muai_lab.tuning.soak import Attainment, Missed

RESULT, PRESENT = "result.json", "present.yaml"
SCHEMA_VERSION = 1

TuningVerdict = Literal["searching", "unconfirmed", "confirmed", "refused", "nothing better"]
"""searching: Not over yet, or killed. unconfirmed: Stopped before its end. refused: The confirmation failed."""


@dataclass(frozen=True, slots=True)
class EngineStudy:
    """The search on one engine.

    skipped: The reason why there was none. best: Value of the first objective; None without a measured trial.
    """

    engine: str
    study: str | None = None
    trials: int = 0
    stopped: str | None = None
    best: float | None = None
    best_trial: int | None = None
    feasible: bool = False
    skipped: str | None = None


@dataclass(frozen=True, slots=True)
class TuningResult:
    """The outcome of `tune`.

    changes: Dotted path -> value in which the exported configuration differs from the present one; empty if nothing
    better was shown. best_changes: Those of the best configuration of the search, before any was put back.
    agreement: Of the best configuration of the search, on prompts of the search; None if none was compared.
    reduction: Gain of the changes that stay over all of best_changes; None if none was put back or none was measured.
    refused_changes, refused_preference: The winner that was not confirmed, which only `export --unconfirmed` writes.
    facts: Facts that a reader needs to judge it (objective, SLO, workload, noise, hardware, versions, date, …), in the
    order of the file.
    """

    verdict: TuningVerdict
    reason: str
    study: str
    storage: str
    engine: str | None
    objective: str
    unit: str
    larger_is_better: bool
    changes: Mapping[str, Value] = field(default_factory=dict)
    best_changes: Mapping[str, Value] = field(default_factory=dict)
    engine_preference: tuple[str, ...] | None = None
    refused_changes: Mapping[str, Value] = field(default_factory=dict)
    refused_preference: tuple[str, ...] | None = None
    engines: tuple[EngineStudy, ...] = ()
    contributions: tuple[Contribution, ...] = ()
    reduction: Estimate | None = None
    confirmation: Confirmation | None = None
    agreement: Agreement | None = None
    noise: float | None = None
    noise_samples: int = 0
    drift: float | None = None
    missed: str | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def updated(self, **entries: Any) -> TuningResult:
        """Return the result with other entries."""
        return replace(self, **entries)

    def refused(self) -> TuningResult:
        """Return the result with the winner set aside, so that the present configuration is exported."""
        return self.updated(
            verdict="refused",
            refused_changes=self.changes,
            refused_preference=self.engine_preference,
            changes={},
            engine_preference=None,
        )

    def unconfirmed(self) -> TuningResult | None:
        """Return the result with the best that was found, confirmed or not; None if it is the present configuration.

        A confirmed result stays as it is.
        """
        if self.verdict in ("confirmed", "searching", "unconfirmed"):
            return self
        if self.refused_changes or self.refused_preference is not None:
            return self.updated(changes=self.refused_changes, engine_preference=self.refused_preference)
        return self.updated(changes=self.best_changes) if self.best_changes else None


def write_result(directory: Path, result: TuningResult) -> None:
    """Write it so that a reader sees all of it or none. Raises RunError if it cannot be written."""
    target = directory / RESULT
    try:
        write_whole(target, json.dumps(clean(asdict(result)), indent=2, allow_nan=False) + "\n")
    except OSError as error:
        raise RunError(f"cannot write {target}: {error.strerror}; free space and run the same command again") from error


def _agreement(entries: Mapping[str, Any]) -> Agreement | None:
    found = entries.get("agreement")
    return Agreement(**found) if isinstance(found, dict) else None


def read_result(directory: Path) -> TuningResult:
    """Read the result of a study. Raises RunError if the directory holds none."""
    file = directory / RESULT
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        confirmation = content["confirmation"]
        if confirmation is not None:
            pairs = tuple(
                Pair(**{**pair, "per_block": tuple(tuple(block) for block in pair["per_block"])})
                for pair in confirmation["pairs"]
            )
            kept, further = confirmation.get("kept"), confirmation.get("next_pair")
            misses = confirmation.get("present_misses")
            confirmation = Confirmation(
                **{
                    **confirmation,
                    "pairs": pairs,
                    "kept": None if kept is None else Attainment(**kept),
                    "agreement": _agreement(confirmation),
                    "next_pair": None if further is None else tuple(further),
                    "present_misses": None if misses is None else Missed(**misses),
                }
            )
        reduction = content.get("reduction")
        preferences = {
            name: None if content.get(name) is None else tuple(content[name])
            for name in ("engine_preference", "refused_preference")
        }
        return TuningResult(
            **{
                **content,
                "confirmation": confirmation,
                "agreement": _agreement(content),
                **preferences,
                "engines": tuple(EngineStudy(**entry) for entry in content["engines"]),
                "reduction": None if reduction is None else Estimate(**reduction),
                "contributions": tuple(Contribution(**entry) for entry in content["contributions"]),
            }
        )
    except FileNotFoundError:
        raise RunError(
            f"{directory} is no study: it has no {RESULT} (a study is what `muai_lab tune` writes)"
        ) from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RunError(f"cannot read {file}: {error}") from error
