"""The runs of a sweep by configuration: settings, figures over all repeats, and the noise between repeats.

A *round* is one run of each configuration over the same draws of the workload. Configurations are compared over the
same rounds only: the mean of one over rounds 0 and 1 says nothing against that of another over rounds 1 and 2.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from muai_lab.analysis.configuration import differing, named_sections, short_names
from muai_lab.analysis.frames import Run
from muai_lab.analysis.moderation import SMALLEST_VARIANCE, Variance
from muai_lab.analysis.noise import Noise, run_noise
from muai_lab.analysis.noise_history import NoiseHistory, key_of
from muai_lab.analysis.pairing import PER_REPEAT, Group, is_usable, stated_validity
from muai_lab.analysis.summary_schema import value_of
from muai_lab.analysis.sweep import summary_of
from muai_lab.analysis.validity import VALID
from muai_lab.wording import setting_text

FIGURES = ("requests/s", "tokens/s", "TTFT p50", "TTFT p99", "TPOT p50", "goodput/s")
_UNLISTED = ("E2E p50", "E2E p99")  # for the history of noise; tables leave them out
CACHED = "cached"  # share of the prompt tokens that came from the prefix cache
LATENCIES = ("TTFT p50", "TTFT p99", "TPOT p50")
_KEY_FIGURES = {
    "requests/s": "requests", "tokens/s": "tokens", "TTFT p50": "p50 ttft", "TTFT p99": "p99 ttft",
    "TPOT p50": "p50 tpot", "goodput/s": "goodput", "E2E p50": "p50 e2e", "E2E p99": "p99 e2e",
}  # fmt: skip

_Round = tuple[int, int, int]  # number of the repeat, seed, and which of several runs with both


@dataclass(frozen=True, slots=True)
class Configuration:
    """One configuration of a sweep with its repeats, in the order of their rounds.

    Attributes:
        number: That in the names of its runs (`3-batcher=off`), else its place in the sweep, from 1. settings: The keys
        in which the configurations differ (without those of repeats), with the values of this one. figures: By the
        names of `FIGURES`, `_UNLISTED` and `CACHED`, one value for each round; latencies in seconds, None
            if there is none or the run is not usable.
        compared: Positions of the rounds over which means are taken.
        valid: Number of valid runs.
    """

    number: int
    settings: dict[str, Any]
    group: Group
    figures: dict[str, list[float | None]]
    compared: tuple[int, ...]
    valid: int

    @property
    def name(self) -> str:
        """The settings in which it differs from others: `max_batch_size=8, batch_timeout_ms=10`."""
        return _settings_text(self.settings) or self.group.name

    @property
    def rounds(self) -> int:
        """Number of rounds of the sweep; each should have a run of this configuration."""
        return len(self.figures[CACHED])

    @property
    def drawn(self) -> bool:
        """True if it has a point in a plot of latency over throughput."""
        return self.mean("tokens/s") is not None and self.mean("TTFT p50") is not None

    def mean(self, figure: str) -> float | None:
        """Return a figure over the compared rounds that have it: the geometric mean of a latency, else the mean."""
        known = self._known(figure)
        if not known:
            return None
        if figure in LATENCIES and min(known) > 0:
            return float(np.exp(np.log(known).mean()))
        return float(np.mean(known))

    def range(self, figure: str) -> tuple[float, float] | None:
        """Return the lowest and highest value over the compared rounds; None without any."""
        known = self._known(figure)
        return (min(known), max(known)) if known else None

    def _known(self, figure: str) -> list[float]:
        values = [self.figures[figure][place] for place in self.compared]
        return [value for value in values if value is not None]


def configurations(runs: Sequence[Run]) -> list[Configuration]:
    """Group runs by configuration, in the order of their first runs."""
    changed = named_sections({key: values for key, values in differing(runs).items() if key not in PER_REPEAT})
    grouped: dict[str, list[int]] = {}
    for index in range(len(runs)):
        grouped.setdefault(repr([values[index] for values in changed.values()]), []).append(index)
    members = [_by_round([runs[index] for index in own]) for own in grouped.values()]
    rounds = sorted({key for own in members for key in own})
    settings = [{key: values[own[0]] for key, values in changed.items()} for own in grouped.values()]
    names = _names([list(own.values()) for own in members], settings)
    usable = [[key in own and is_usable(own[key]) for key in rounds] for own in members]
    return [
        Configuration(
            number,
            set_to,
            Group(name, tuple(own[key] for key in rounds if key in own)),
            _columns([own[key] if key in own and is_usable(own[key]) else None for key in rounds]),
            compared,
            sum(stated_validity(run).verdict == VALID for run in own.values()),
        )
        for number, set_to, name, own, compared in zip(
            _numbers(names), settings, names, members, compared_rounds(usable), strict=True
        )
    ]


def compared_rounds(usable: Sequence[Sequence[bool]]) -> list[tuple[int, ...]]:
    """Return for each configuration the positions of the rounds over which its means are taken.

    These are the rounds in which every configuration with any usable run has one. If there is no such round, each
    configuration keeps its own, and `same_rounds` is false. usable: [configurations, rounds].
    """
    own = [tuple(place for place, is_so in enumerate(row) if is_so) for row in usable]
    shared = set.intersection(*(set(places) for places in own if places)) if any(own) else set()
    return [tuple(place for place in places if place in shared) if shared else places for places in own]


def same_rounds(found: Sequence[Configuration]) -> bool:
    """True if the means of all configurations are over the same rounds, so that they may be compared."""
    return len({one.compared for one in found if one.compared}) <= 1


def figures_of(run: Run) -> dict[str, float | None]:
    """Return the figures of one run, valid or not, by the names of `FIGURES`, `_UNLISTED` and `CACHED`."""
    summary = summary_of(run)
    ttft, e2e = summary.judged("ttft"), summary.judged("e2e")
    return {
        "requests/s": value_of(summary.throughput.requests_per_s),
        "tokens/s": value_of(summary.throughput.output_tokens_per_s),
        "TTFT p50": value_of(summary.estimate(ttft, "p50")),
        "TTFT p99": value_of(summary.estimate(ttft, "p99")),
        "TPOT p50": value_of(summary.estimate("tpot_s", "p50")),
        "goodput/s": value_of(summary.slo.goodput_rps) if summary.slo else None,
        "E2E p50": value_of(summary.estimate(e2e, "p50")),
        "E2E p99": value_of(summary.estimate(e2e, "p99")),
        CACHED: summary.cached_share,
    }


def sweep_noise(found: Sequence[Configuration], figures: Sequence[str] = FIGURES) -> dict[str, Noise]:
    """Return the A/A noise of each figure for which the repeats show it."""
    noises = {
        figure: run_noise([one.figures[figure] for one in found if any(one.figures[figure])]) for figure in figures
    }
    return {figure: noise for figure, noise in noises.items() if noise is not None}


def record_sweep_noise(runs: Sequence[Run], history: NoiseHistory) -> str | None:
    """Add the noise between the repeats of a sweep to the history; return the reason if it could not be written."""
    found = configurations(runs)
    usable = [run for one in found for run in one.group.runs if is_usable(run)]
    variances = {
        _KEY_FIGURES[figure]: Variance(max(noise.sd**2, SMALLEST_VARIANCE), float(noise.freedom))
        for figure, noise in sweep_noise(found, list(_KEY_FIGURES)).items()
    }
    return history.add(key_of(usable), usable, variances)


def _by_round(runs: Sequence[Run]) -> dict[_Round, Run]:
    seen: Counter[tuple[int, int]] = Counter()
    found = {}
    for run in sorted(runs, key=lambda run: run.started):
        experiment = run.config.get("experiment") or {}
        key = int(experiment.get("repeat") or 0), int(run.config.get("seed") or 0)
        found[(*key, seen[key])] = run
        seen[key] += 1
    return found


def _columns(runs: Sequence[Run | None]) -> dict[str, list[float | None]]:
    nothing = dict.fromkeys((*FIGURES, *_UNLISTED, CACHED))
    rows = [nothing if run is None else figures_of(run) for run in runs]
    return {figure: [row[figure] for row in rows] for figure in nothing}


def _names(members: Sequence[Sequence[Run]], settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The folder of each configuration: that of its only run, or the one that has its repeats and nothing else."""
    folders = [own[0].path if len(own) == 1 and not _is_repeat(own[0]) else own[0].path.parent for own in members]
    return [
        folder.name if folders.count(folder) == 1 else _settings_text(set_to) or folder.name
        for folder, set_to in zip(folders, settings, strict=True)
    ]


def _is_repeat(run: Run) -> bool:
    return re.fullmatch(r"repeat-\d+", run.path.name) is not None


def _numbers(names: Sequence[str]) -> list[int]:
    """The numbers in the names if they are unique, else 1, 2, ..."""
    borne = [number for name in names if (number := _leading_number(name)) is not None]
    return borne if len(set(borne)) == len(names) else list(range(1, len(names) + 1))


def _leading_number(name: str) -> int | None:
    match = re.match(r"(\d+)(-|$)", name)
    return None if match is None else int(match[1])


def _settings_text(settings: Mapping[str, Any]) -> str:
    names = short_names(list(settings))
    return ", ".join(f"{names[key]}={setting_text(value)}" for key, value in settings.items())
