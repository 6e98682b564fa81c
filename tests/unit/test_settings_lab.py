"""The lab's own settings, and sections whose keys depend on a choice."""

from __future__ import annotations

import pytest

from muai_lab.errors import SettingsError
from muai_lab.settings.distributions import FixedLength, NormalLength, UniformLength
from muai_lab.settings.lab import LabSettings
from muai_lab.settings.origin import Origin
from muai_lab.settings.resolve import flatten, load_settings


def resolve(overrides: dict[str, object], *choices: dict[str, object]) -> LabSettings:
    layers = [flatten(values, Origin("group", f"choice {number}")) for number, values in enumerate(choices)]
    return load_settings(environ={}, overrides=overrides, choices=layers).settings


def problem_of(overrides: dict[str, object]) -> str:
    with pytest.raises(SettingsError) as caught:
        resolve(overrides)
    (problem,) = caught.value.problems
    return problem


def test_defaults_are_half_a_minute_of_open_loop_against_a_server_of_our_own() -> None:
    settings = resolve({})

    assert (settings.model.name, settings.target.kind, settings.arrival.kind) == ("qwen_chat", "server", "poisson")
    assert settings.workload.prompt_tokens == UniformLength(low=16, high=128)
    assert settings.workload.output_tokens == UniformLength(low=8, high=48)
    assert settings.load.warmup_s + settings.load.duration_s == 34


def test_keys_of_the_default_distribution_can_be_changed_one_by_one() -> None:
    assert resolve({"workload.prompt_tokens.high": 64}).workload.prompt_tokens == UniformLength(low=16, high=64)


def test_another_distribution_brings_its_own_keys() -> None:
    fixed = resolve({"workload.prompt_tokens.distribution": "fixed", "workload.prompt_tokens.value": 9})
    normal = resolve({"workload.output_tokens": {"distribution": "normal", "mean": 100.0}})

    assert fixed.workload.prompt_tokens == FixedLength(value=9)
    assert normal.workload.output_tokens == NormalLength(mean=100.0)


def test_changing_the_distribution_drops_what_lower_layers_said_of_the_old_one() -> None:
    chosen = {"workload.prompt_tokens": {"distribution": "uniform", "low": 1, "high": 2}}

    settings = resolve({"workload.prompt_tokens.distribution": "normal"}, chosen)

    assert settings.workload.prompt_tokens == NormalLength()


def test_a_higher_choice_that_keeps_the_distribution_keeps_the_rest() -> None:
    settings = resolve(
        {},
        {"workload.prompt_tokens": {"distribution": "fixed", "value": 5}},
        {"workload.prompt_tokens": {"distribution": "fixed"}},
    )

    assert settings.workload.prompt_tokens == FixedLength(value=5)


def test_a_key_of_another_distribution_is_an_error_if_the_distribution_was_set() -> None:
    problem = problem_of({"workload.prompt_tokens.value": 5, "workload.prompt_tokens.distribution": "uniform"})

    assert problem == (
        "workload.prompt_tokens.value (override): does not apply to distribution uniform, but to fixed: "
        "set workload.prompt_tokens.distribution"
    )


def test_an_unknown_distribution_is_named_with_the_known_ones() -> None:
    problem = problem_of({"workload.prompt_tokens.distribution": "unifrom"})

    assert "expected one of fixed, uniform, normal, lognormal, empirical; did you mean uniform?" in problem


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        ({"workload.prompt_tokens.low": 200, "workload.prompt_tokens.high": 128}, "low (200) is above high (128)"),
        ({"target.kind": "endpoint"}, "needs target.url"),
        (
            {"target.url": "http://localhost:1", "target.kind": "server"},
            "url belongs to target=endpoint, but the target is server",
        ),
        ({"target.model": "mine"}, "model belongs to target=endpoint, but the target is server"),
        ({"arrival.kind": "poisson", "load.requests": 5}, "load.requests needs the closed loop"),
        ({"arrival.kind": "possion"}, "did you mean poisson?"),
        ({"load.duration_s": 0}, "above 0"),
        ({"model.name": ""}, "not empty"),
        ({"workload.api": "completion"}, "did you mean completions?"),
    ],
)
def test_what_cannot_be_run_is_refused(overrides: dict[str, object], part: str) -> None:
    assert part in problem_of(overrides)


def test_an_endpoint_with_its_url_is_fine() -> None:
    target = resolve({"target.kind": "endpoint", "target.url": "https://h/v1", "target.api_key_env": "KEY"}).target

    assert (target.url, target.api_key_env) == ("https://h/v1", "KEY")
