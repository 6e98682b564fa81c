"""The runs of a sweep by configuration: what was set, what came out over all repeats, and how much repeats differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from muai_lab.analysis.configuration import differing, short_names
from muai_lab.analysis.frames import Run
from muai_lab.analysis.noise import Noise, run_noise
from muai_lab.analysis.pairing import PER_REPEAT, Group, is_usable, stated_validity
from muai_lab.analysis.sweep import summary_of
from muai_lab.analysis.validity import VALID
from muai_lab.analysis.wording import estimate_of, judged, setting_text, value_of

FIGURES = ("requests/s", "tokens/s", "TTFT p50", "TTFT p99", "TPOT p50", "goodput/s")
CACHED = "cached"  # share of the prompt tokens that came from the prefix cache
LATENCIES = ("TTFT p50", "TTFT p99", "TPOT p50")


@dataclass(frozen=True, slots=True)
class Configuration:
    """One configuration of a sweep with its repeats, in the order of their number.

    settings: the keys in which the sweep's configurations differ (without those of repeats), with this one's values.
    figures: of each run, by the names of `FIGURES` and `CACHED`; latencies in seconds, None where there is none or
    the run is not usable. valid: how many runs are.
    """

    number: int
    settings: dict[str, Any]
    group: Group
    figures: dict[str, list[float | None]]
    valid: int

    @property
    def name(self) -> str:
        """The settings that tell it apart: `max_batch_size=8, batch_timeout_ms=10`."""
        names = short_names(list(self.settings))
        return (
            ", ".join(f"{names[key]}={setting_text(value)}" for key, value in self.settings.items()) or self.group.name
        )

    def mean(self, figure: str) -> float | None:
        """A figure over the repeats that have it: the geometric mean of a latency, else the mean."""
        known = [value for value in self.figures[figure] if value is not None]
        if not known:
            return None
        if figure in LATENCIES and min(known) > 0:
            return float(np.exp(np.log(known).mean()))
        return float(np.mean(known))

    def range(self, figure: str) -> tuple[float, float] | None:
        """Lowest and highest value over the repeats; None without any."""
        known = [value for value in self.figures[figure] if value is not None]
        return (min(known), max(known)) if known else None


def configurations(runs: Sequence[Run]) -> list[Configuration]:
    """Group runs by configuration, in the order in which the configurations first come."""
    changed = {key: values for key, values in differing(runs).items() if key not in PER_REPEAT}
    grouped: dict[str, list[int]] = {}
    for index in range(len(runs)):
        grouped.setdefault(repr([values[index] for values in changed.values()]), []).append(index)
    found = []
    for number, members in enumerate(grouped.values(), start=1):
        own = sorted((runs[index] for index in members), key=_repeat)
        settings = {key: values[members[0]] for key, values in changed.items()}
        folder = own[0].path.name if len(own) == 1 else own[0].path.parent.name
        figures: dict[str, list[float | None]] = {figure: [] for figure in (*FIGURES, CACHED)}
        for run in own:
            for figure, value in _figures(run).items():
                figures[figure].append(value)
        valid = sum(stated_validity(run)["verdict"] == VALID for run in own)
        found.append(Configuration(number, settings, Group(folder, tuple(own)), figures, valid))
    return found


def sweep_noise(found: Sequence[Configuration]) -> dict[str, Noise]:
    """The A/A noise of each figure that the repeats can tell it of."""
    noises = {figure: run_noise([one.figures[figure] for one in found]) for figure in FIGURES}
    return {figure: noise for figure, noise in noises.items() if noise is not None}


def _repeat(run: Run) -> tuple[int, str]:
    experiment = run.config.get("experiment") or {}
    return int(experiment.get("repeat") or 0), str(run.manifest.get("started") or "")


def _figures(run: Run) -> dict[str, float | None]:
    if not is_usable(run):
        return dict.fromkeys((*FIGURES, CACHED))
    summary = summary_of(run)
    throughput, slo = summary["throughput"], summary["slo"]
    ttft = judged(summary, "ttft")
    return {
        "requests/s": value_of(throughput["requests_per_s"]),
        "tokens/s": value_of(throughput["output_tokens_per_s"]),
        "TTFT p50": value_of(estimate_of(summary, ttft, "p50")),
        "TTFT p99": value_of(estimate_of(summary, ttft, "p99")),
        "TPOT p50": value_of(estimate_of(summary, "tpot_s", "p50")),
        "goodput/s": value_of(slo["goodput_rps"]) if slo else None,
        CACHED: summary.get("cached_share"),
    }
