"""Group choices and overrides, composed by Hydra and laid over environment and file."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from muai_lab.errors import SettingsError
from muai_lab.settings import hydra_groups
from muai_lab.settings.compose import compose
from muai_lab.settings.distributions import FixedLength, NormalLength, UniformLength
from muai_lab.settings.hydra_groups import SEARCH_SPACES, groups_folder
from muai_lab.settings.lab import LabSettings
from muai_lab.settings.schema import ENGINE_NAMES

BATCH_SIZE = "optimization.batcher.max_batch_size"


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def problems_of(*argv: str) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        compose(argv)
    return caught.value.problems


def test_without_choices_there_are_the_defaults() -> None:
    settings = compose([]).settings

    assert settings == LabSettings()


def test_choices_and_overrides_of_the_issue_s_example() -> None:
    resolved = compose(["engine=pytorch", "batcher=latency", "arrival=poisson", "arrival.rate=8"])
    settings = resolved.settings

    assert settings.optimization.engine_preference == ("pytorch",)
    assert settings.optimization.batcher.max_batch_size == 8
    assert (settings.arrival.kind, settings.arrival.rate) == ("poisson", 8.0)
    assert str(resolved.origin("optimization.engine_preference")) == "engine=pytorch"
    assert str(resolved.origin(BATCH_SIZE)) == "batcher=latency"
    assert str(resolved.origin("arrival.rate")) == "override"
    assert str(resolved.origin("optimization.cache.max_memory_mb")) == "default"


def test_a_choice_wins_over_environment_and_file_and_an_override_over_all(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("my.yaml").write_text("optimization:\n  batcher: {max_batch_size: 2, batch_timeout_ms: 7}\n", encoding="utf-8")
    file = "config_file=my.yaml"

    def batch_size(*argv: str) -> tuple[int, str]:
        resolved = compose([file, *argv])
        return resolved.settings.optimization.batcher.max_batch_size, str(resolved.origin(BATCH_SIZE))

    assert batch_size() == (2, "my.yaml:2")
    monkeypatch.setenv("MUAI_OPT_BATCHER_MAX_SIZE", "3")
    assert batch_size() == (3, "MUAI_OPT_BATCHER_MAX_SIZE")
    assert batch_size("batcher=configured") == (3, "MUAI_OPT_BATCHER_MAX_SIZE")
    assert batch_size("batcher=static") == (3, "MUAI_OPT_BATCHER_MAX_SIZE")
    assert batch_size("batcher=latency") == (8, "batcher=latency")
    assert batch_size("batcher=latency", f"{BATCH_SIZE}=5") == (5, "override")


def test_an_override_to_the_default_still_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUAI_OPT_BATCHER_MAX_SIZE", "3")

    assert compose([f"{BATCH_SIZE}=32"]).settings.optimization.batcher.max_batch_size == 32


def test_the_file_in_the_current_folder_is_found() -> None:
    Path("config").mkdir()
    Path("config/optimization.yaml").write_text("monitoring:\n  server: {port: 0}\n", encoding="utf-8")

    resolved = compose([])

    assert str(resolved.origin("monitoring.server.port")) == "config/optimization.yaml:2"


@pytest.mark.parametrize("engine", ENGINE_NAMES)
def test_choosing_an_engine_prefers_and_enables_it(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if engine != "pytorch":
        monkeypatch.setenv(f"MUAI_OPT_{engine.upper()}_ENABLED", "false")

    optimization = compose([f"engine={engine}"]).settings.optimization

    assert optimization.engine_preference == (engine,)
    assert getattr(getattr(optimization, engine), "enabled", True) is True


FROM_FILES = ("azure", "azure_code", "burstgpt", "mooncake", "openai_jsonl", "schedule", "sharegpt", "table", "text")
NEEDED = {
    "target=endpoint": ["target.url=http://localhost:1/v1"],
    "arrival=trace": ["workload=azure", "workload.path=trace.csv"],
    **{f"workload={name}": ["workload.path=file"] for name in FROM_FILES},
}


def every_option() -> list[str]:
    folder = groups_folder()
    others = ("hydra", "experiment", SEARCH_SPACES)
    options = [path for path in folder.glob("*/*.yaml") if path.parent.name not in others]
    return sorted(f"{path.parent.name}={path.stem}" for path in options)


@pytest.mark.parametrize("choice", every_option())
def test_every_option_gives_valid_settings(choice: str) -> None:
    resolved = compose([choice, *NEEDED.get(choice, [])])

    option = choice.partition("=")[2]
    neutral = option in ("auto", "configured")
    assert (choice in {str(origin) for origin in resolved.origins.values()}) is not neutral


def test_all_groups_that_were_asked_for_are_there() -> None:
    groups = {choice.partition("=")[0] for choice in every_option()}

    assert groups == {"engine", "batcher", "cache", "model", "workload", "arrival", "slo", "target", "monitoring"}


def test_an_experiment_s_values_lie_over_the_groups_and_below_overrides() -> None:
    resolved = compose(["experiment=load_curve", "arrival.concurrency=2"])

    assert str(resolved.origin("arrival.kind")) == "arrival=poisson"
    assert resolved.settings.slo.ttft_ms == 500
    assert compose(["experiment=batch_size"]).settings.arrival.concurrency == 32
    assert compose(["experiment=batch_size", "arrival.concurrency=2"]).settings.arrival.concurrency == 2


def test_an_option_is_the_origin_of_the_options_that_it_builds_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "groups"
    shutil.copytree(groups_folder(), folder)
    (folder / "arrival" / "mine.yaml").write_text("defaults: [ramp]\nend_rate: ${load.drain_s}\n", encoding="utf-8")
    monkeypatch.setattr(hydra_groups, "groups_folder", lambda: folder)

    resolved = compose(["arrival=mine", "load.drain_s=7"])

    arrival = resolved.settings.arrival
    assert (arrival.kind, arrival.rate, arrival.end_rate) == ("ramp", 5.0, 7.0)
    assert {str(resolved.origin(f"arrival.{key}")) for key in ("kind", "rate", "end_rate")} == {"arrival=mine"}


def test_lengths_can_be_redrawn_on_the_command_line() -> None:
    workload = compose(
        [
            "workload=ragged",
            "workload.prompt_tokens.high=99",
            "workload.output_tokens={distribution:fixed,value:7}",
        ]
    ).settings.workload

    assert workload.prompt_tokens == UniformLength(low=16, high=99)
    assert workload.output_tokens == FixedLength(value=7)
    changed = compose(["workload=chat", "workload.prompt_tokens.distribution=normal"]).settings.workload
    assert changed.prompt_tokens == NormalLength()


def test_model_names_may_be_new_and_hold_dots() -> None:
    models = compose(["optimization.models.mine=/models/mine", "+optimization.models.Qwen2.5=Qwen/Qwen2.5"])

    assert models.settings.optimization.models == {"mine": "/models/mine", "Qwen2.5": "Qwen/Qwen2.5"}


def test_interpolations_are_resolved() -> None:
    assert compose(["load.duration_s=8", "load.drain_s=${load.duration_s}"]).settings.load.drain_s == 8


@pytest.mark.parametrize(
    ("argument", "parts"),
    [
        ("batcherr=latency", ["batcherr: no such group or key", "did you mean batcher"]),
        ("batcher=latncy", ["batcher=latncy: no such option", "did you mean latency?", "valid: adaptive, configured,"]),
        ("batcher.max_batch_size=8", ["no such group or key", f"did you mean {BATCH_SIZE}"]),
        ("optimization.batcher.max_size=8", [f"did you mean {BATCH_SIZE}"]),
        ("+optimization.batcher.brand_new=8", ["optimization.batcher.brand_new: no such group or key"]),
        ("zzz=1", ["zzz: no such group or key; groups: arrival, batcher, cache, engine,"]),
        ("latency", ["latency: overrides look like group=option or key=value"]),
        ("--origin", ["--origin: no such option"]),
        ("seed=1,2", ["seed: one value is expected here, not several"]),
        ("~model.name", ["a setting cannot be taken away"]),
        (f"{BATCH_SIZE}=abc", [f'{BATCH_SIZE} = "abc" (override): expected an integer, at least 1']),
        (f"{BATCH_SIZE}=8.5", ["8.5 (override): expected an integer"]),
        ("optimization.batcher=8", ["optimization.batcher (override): expected a section"]),
        ("seed=${nothing}", ["Interpolation key 'nothing' not found"]),
        ("config_file=nowhere.yaml", ["configuration file nowhere.yaml does not exist"]),
        (
            "monitoring.anomaly.webhook_url=http://h/?SESAME&x=1",
            ["monitoring.anomaly.webhook_url: the value cannot be read"],
        ),
    ],
)
def test_a_mistake_is_answered_with_what_is_valid(argument: str, parts: list[str]) -> None:
    (problem,) = problems_of(argument)

    assert [part for part in parts if part not in problem] == []
    assert "SESAME" not in problem


def test_mistakes_are_reported_together() -> None:
    assert len(problems_of("batcherr=latency", "engine=pytroch", "foo", "seeed=1")) == 4


def test_errors_of_the_file_come_with_those_of_the_command_line() -> None:
    Path("my.yaml").write_text("optimization: {cache: {enabled: maybe}}\n", encoding="utf-8")

    problems = problems_of("config_file=my.yaml", f"{BATCH_SIZE}=0")

    assert len(problems) == 2
