"""A default gives way to what was set: one key alone never makes a configuration that contradicts itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from muai_lab.errors import SettingsError
from muai_lab.settings.catalogue import Branch, Key, VariantBranch, catalogue
from muai_lab.settings.compose import compose
from muai_lab.settings.resolve import Resolved, load_settings
from muai_lab.settings.schema import BatcherSettings, CacheSettings, OptimizationSettings, TunerSettings
from muai_lab.settings.tuning import TuningSettings

Values = Mapping[str, object]

# What a kind cannot be without, and no default could give.
FILE = {"workload.path": "trace.csv"}
MIX = {"workload.parts": {"chat": {"workload": {"kind": "synthetic"}}}}
URL = {"target.url": "http://host:1/v1"}
NEEDED: Mapping[tuple[str, object], Values] = {
    ("target.kind", "endpoint"): URL,
    ("load.backend", "ray"): URL,
    ("arrival.kind", "trace"): {"workload.kind": "azure", **FILE},
    ("monitoring.anomaly.alert_destinations", ("webhook",)): {"monitoring.anomaly.webhook_url": "http://h"},
    ("monitoring.anomaly.alert_destinations", ("alertmanager",)): {"monitoring.anomaly.alertmanager_url": "http://h"},
}
TEXTS = ("a", "/a", "/ready", "/health", "http://h:1/v1", "KEY", "postgresql://h/d", "trace.csv")
NUMBERS = (0, 1, 2, 7, 8000, 9090, 10**9, 1e-9, 0.5, 2.5, 1e9)


def keys_with_what_they_need(
    node: Branch | VariantBranch, needed: Values, seen: set[object]
) -> Iterator[tuple[Key, Values]]:
    """Every key with what must be set beside it, once for each kind of workload or distribution that has it."""
    for kind, group in node.kinds.items() if isinstance(node, VariantBranch) else [("", node)]:
        if (group.model, node.path.rpartition(".")[2]) in seen:
            continue
        seen.add((group.model, node.path.rpartition(".")[2]))
        beside = dict(needed)
        if isinstance(node, VariantBranch):
            beside[f"{node.path}.{node.discriminator}"] = kind
            beside |= FILE if node.path == "workload" and "path" in group.children else {}
            beside |= MIX if kind == "mix" else {}
            beside |= {f"{node.path}.values": [3]} if kind == "empirical" else {}
        for child in group.children.values():
            if isinstance(child, Key):
                yield child, beside
            else:
                yield from keys_with_what_they_need(child, beside, seen)


def legal_values(key: Key) -> list[object]:
    """Some values within the key's bounds: its options, its extremes, and what others are by default."""
    bounds = [bound for bound in (key.range.ge, key.range.le) if bound is not None]
    numbers = [*NUMBERS, *bounds]
    candidates: list[object] = [True, False, None, *TEXTS, *key.options, *numbers, *map(int, numbers)]
    candidates += [(item,) for item in (*key.options, *TEXTS, *numbers)] + [{}, {"a": "b"}]
    return [value for value in candidates if is_legal(key, value)]


def is_legal(key: Key, value: object) -> bool:
    try:
        key.check(value)
    except ValueError:
        return False
    return True


ALONE = [
    (key, beside)
    for key, beside in keys_with_what_they_need(catalogue(), {}, set())
    if key.path != "config_file" and key.kind != "sections"
]


def load_alone(key: Key, value: object, beside: Values) -> Resolved:
    needed = {**beside, **NEEDED.get((key.path, value if isinstance(value, tuple | str) else ""), {})}
    if key.name == "path" and value is not None:  # lengths come from a file or are given
        needed = {path: other for path, other in needed.items() if not path.endswith(".values")}
    if key.path.startswith("target.") and key.path != "target.kind":
        needed |= URL
    return load_settings(environ={}, overrides={key.path: value, **needed})


def moved(resolved: Resolved) -> dict[str, tuple[object, str]]:
    """The defaults that gave way: their values and origins."""
    return {
        entry.key.path: (entry.value, str(entry.origin))
        for entry in resolved.entries()
        if entry.origin.layer == "default" and str(entry.origin) != "default"
    }


def moved_by(**overrides: object) -> dict[str, tuple[object, str]]:
    """As `moved`; `__` in a name stands for a dot."""
    return moved(load_settings(environ={}, overrides={name.replace("__", "."): v for name, v in overrides.items()}))


@pytest.mark.parametrize("section", sorted({key.path.partition(".")[0] for key, _ in ALONE}))
def test_every_legal_value_of_every_key_loads_alone(section: str) -> None:
    for key, beside in ALONE:
        if key.path.partition(".")[0] == section:
            for value in legal_values(key):
                load_alone(key, value, beside)


@hypothesis_settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_number_within_its_bounds_loads_alone(data: st.DataObject) -> None:
    key, beside = data.draw(st.sampled_from([(key, beside) for key, beside in ALONE if key.kind in ("int", "float")]))
    bounds = key.range
    low, high = bounds.ge if bounds.ge is not None else bounds.gt, bounds.le if bounds.le is not None else bounds.lt
    assert low is not None, f"{key.path} has no lower bound"
    if key.kind == "int":
        value: float = data.draw(st.integers(int(low), int(high if high is not None else 10**9)))
    else:
        value = data.draw(st.floats(low, high if high is not None else 1e9))

    if is_legal(key, value):
        load_alone(key, value, beside)


@pytest.mark.parametrize(("trials", "startup"), [(1, 1), (2, 1), (6, 3), (15, 8), (40, 8)])
def test_random_points_stay_at_most_half_of_the_trials(trials: int, startup: int) -> None:
    assert TuningSettings(n_trials=trials).startup_trials == startup


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"tuning__n_trials": 6}, {"tuning.startup_trials": (3, "tuning.n_trials")}),
        ({"tuning__startup_trials": 60}, {"tuning.n_trials": (120, "tuning.startup_trials")}),
        (
            {"optimization__batcher__min_batch_size": 64},
            {"optimization.batcher.max_batch_size": (64, "optimization.batcher.min_batch_size")},
        ),
        (
            {"optimization__batcher__max_slots": 4},
            {"optimization.batcher.max_batch_size": (4, "optimization.batcher.max_slots")},
        ),
        (
            {"optimization__tuner__cache_max_memory_mb": 100},
            {"optimization.cache.max_memory_mb": (100, "optimization.tuner.cache_max_memory_mb")},
        ),
        (
            {"optimization__tuner__observation_window_seconds": 30},
            {"optimization.tuner.tuning_interval_seconds": (30, "optimization.tuner.observation_window_seconds")},
        ),
        ({"capacity__lowest_rate": 20_000.0}, {"capacity.highest_rate": (40_000.0, "capacity.lowest_rate")}),
        ({"workload__prompt_tokens__low": 200}, {"workload.prompt_tokens.high": (200, "workload.prompt_tokens.low")}),
        ({"workload__output_tokens__high": 4}, {"workload.output_tokens.low": (4, "workload.output_tokens.high")}),
        (
            {"workload__output_tokens__value": 4},
            {"workload.output_tokens.distribution": ("fixed", "workload.output_tokens.value")},
        ),
        ({"workload__groups": 3}, {"workload.kind": ("shared_prefix", "workload.groups")}),
        ({"target__url": "http://h/v1"}, {"target.kind": ("endpoint", "target.url")}),
        ({"load__requests": 9}, {"arrival.kind": ("closed", "load.requests")}),
        ({"arrival__concurrency": 9}, {"arrival.kind": ("closed", "arrival.concurrency")}),
        ({"arrival__rate": 3.0, "arrival__cv": 2.0}, {"arrival.kind": ("gamma", "arrival.cv")}),
        ({"arrival__speed": 2.0}, {}),  # the workload has no times that could be replayed
        (
            {"arrival__speed": 2.0, "workload__kind": "azure", "workload__path": "a.csv"},
            {"arrival.kind": ("trace", "arrival.speed")},
        ),
        ({"load__requests": None}, {}),
        ({"monitoring__prometheus__port": 8000}, {"monitoring.server.port": (8001, "monitoring.prometheus.port")}),
        (
            {"monitoring__server__health_check_path": "/ready"},
            {"monitoring.server.readiness_check_path": ("/readyz", "monitoring.server.health_check_path")},
        ),
        ({"optimization__batcher__max_batch_size": 64}, {}),  # contradicts nothing
    ],
)
def test_the_default_that_gives_way_says_to_what(
    overrides: dict[str, object], expected: dict[str, tuple[object, str]]
) -> None:
    told = {path: (value, f"default, gives way to {key}") for path, (value, key) in expected.items()}

    assert moved_by(**overrides) == told


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        ({"tuning.n_trials": 6, "tuning.startup_trials": 8}, "startup_trials (8) is above n_trials (6)"),
        ({"capacity.lowest_rate": 5.0, "capacity.highest_rate": 5.0}, "lowest_rate (5) is not below highest_rate (5)"),
        (
            {"optimization.batcher.min_batch_size": 64, "optimization.batcher.max_slots": 32},
            "max_batch_size: default, gives way to optimization.batcher.min_batch_size",
        ),
        ({"arrival.rate": 3.0, "arrival.concurrency": 4}, "arrival.concurrency means something with arrival=closed"),
        ({"arrival.cv": 3.0, "load.requests": 4}, "arrival.cv means something with arrival=gamma"),
        ({"workload.mean": 3.0}, "no such key"),
        ({"workload.path": "a.csv"}, "does not apply to kind synthetic, but to azure, burstgpt"),
        ({"workload.prompt_tokens.mean": 9.0}, "but to normal, lognormal: set workload.prompt_tokens.distribution"),
    ],
)
def test_values_that_contradict_each_other_are_refused_if_both_were_set(overrides: Values, part: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(environ={}, overrides=overrides)

    assert part in str(caught.value)


def test_what_gave_way_does_not_count_as_set() -> None:
    cache = load_settings(
        environ={}, overrides={"optimization.tuner.cache_max_memory_mb": 7}
    ).settings.optimization.cache

    assert (cache.max_memory_mb, cache.model_fields_set) == (7, set())


def test_a_file_s_value_is_set_and_gives_way_to_nothing(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("optimization:\n  batcher: {max_batch_size: 32}\n", encoding="utf-8")

    with pytest.raises(SettingsError, match="is above max_batch_size"):
        load_settings(file, environ={}, overrides={"optimization.batcher.min_batch_size": 64})


def test_models_built_directly_give_way_too_and_leave_the_defaults_of_others_alone() -> None:
    batcher = BatcherSettings(min_batch_size=64)
    optimization = OptimizationSettings(tuner=TunerSettings(cache_max_memory_mb=7))

    assert (batcher.max_batch_size, batcher.model_fields_set) == (64, {"min_batch_size"})
    assert optimization.cache.max_memory_mb == 7
    assert OptimizationSettings().cache == CacheSettings(max_memory_mb=4096)


def test_a_part_of_a_mix_gives_way_too() -> None:
    prompt = {"distribution": "uniform", "low": 200}
    parts = {"long": {"workload": {"kind": "synthetic", "prompt_tokens": prompt}}}

    workload = load_settings(environ={}, overrides={"workload.kind": "mix", "workload.parts": parts}).settings.workload

    assert workload.model_dump()["parts"]["long"]["workload"]["prompt_tokens"]["high"] == 200


def test_options_that_nobody_chose_are_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    assert moved(compose(["workload.prompt_tokens.low=200", "load.requests=5", "target.url=http://h/v1"])) == {
        "arrival.kind": ("closed", "default, gives way to load.requests"),
        "arrival.concurrency": (5, "default, gives way to load.requests"),
        "workload.prompt_tokens.high": (200, "default, gives way to workload.prompt_tokens.low"),
        "target.kind": ("endpoint", "default, gives way to target.url"),
    }
    for chosen in (["workload=chat", "workload.prompt_tokens.low=200"], ["arrival=poisson", "load.requests=5"]):
        with pytest.raises(SettingsError):
            compose(chosen)
