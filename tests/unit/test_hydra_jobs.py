"""What `run` checks before Hydra starts, and how its task gets its settings."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from muai_lab.commands import run
from muai_lab.errors import MuaiError, RunError, SettingsError
from muai_lab.settings import compose
from muai_lab.settings.compose import check_overrides, resolve_job
from muai_lab.settings.resolve import Resolved

BATCH_SIZE = "optimization.batcher.max_batch_size"
SECRET = "https://hooks.example/SESAME"


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Resolved]]:
    """What each job that `run` starts would measure: the name of its folder and its settings."""
    seen: list[tuple[str, Resolved]] = []

    def note(cfg: object) -> None:
        seen.append((Path(run.HydraConfig.get().runtime.output_dir).name, resolve_job(cfg)))  # type: ignore[arg-type]

    monkeypatch.setattr(run, "_run_one", note)
    monkeypatch.setattr(run, "end_sweep", lambda sweep: None)  # these jobs leave nothing behind
    return seen


def problems_of(*argv: str, multirun: bool = False) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        check_overrides(argv, multirun=multirun)
    return caught.value.problems


def test_a_sweep_counts_its_jobs_and_names_them_by_what_differs() -> None:
    plan = check_overrides(["engine=pytorch", "batcher=latency,off", f"{BATCH_SIZE}=2,4,8"], multirun=True)

    assert (plan.combinations, plan.named, plan.unnamed) == (6, ("batcher", BATCH_SIZE), ("engine",))


def test_values_that_make_no_folder_name_stay_out_of_it() -> None:
    plan = check_overrides(["seed=1,2", "model.checkpoint=a/b,a/c"], multirun=True)

    assert (plan.named, plan.unnamed) == (("seed",), ("model.checkpoint",))


def test_an_experiment_brings_its_sweep() -> None:
    assert check_overrides(["experiment=load_curve"]).combinations == 6  # rates


def test_an_override_replaces_the_experiment_s_values() -> None:
    assert check_overrides(["experiment=batch_size", f"{BATCH_SIZE}=1,2"]).combinations == 4  # two engines


def test_several_values_without_multirun_are_an_error() -> None:
    assert problems_of("seed=1,2") == ("seed: several values need -m (--multirun)",)


def test_a_sweep_names_the_job_that_is_wrong() -> None:
    (problem,) = problems_of("batcher=latency,throughput", f"{BATCH_SIZE}=4", multirun=True)

    assert problem.startswith(
        "batcher=throughput: optimization.batcher: min_batch_size (8) is above max_batch_size (4)"
    )


def test_a_mistyped_option_inside_a_sweep_is_found_before_it_starts() -> None:
    (problem,) = problems_of("batcher=latency,throughputt", multirun=True)

    assert "batcher=throughputt: no such option; did you mean throughput?" in problem


def test_in_a_sweep_too_large_to_try_each_combination_every_value_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compose, "MOST_COMBINATIONS", 3)

    (problem,) = problems_of("seed=1,2", "load.drain_s=1,-1", multirun=True)

    assert "load.drain_s=-1: load.drain_s = -1 (override)" in problem


def test_a_secret_on_the_command_line_is_refused_without_repeating_it() -> None:
    (problem,) = problems_of(f"monitoring.anomaly.webhook_url={SECRET}")

    assert "set MUAI_MON_ANOMALY_WEBHOOK_URL or use the configuration file" in problem
    assert "SESAME" not in problem


def test_a_job_gets_the_settings_that_were_asked_for(jobs: list[tuple[str, Resolved]]) -> None:
    assert run.main(["batcher=latency", "arrival.rate=8"]) == 0

    ((_, resolved),) = jobs
    assert resolved.settings.arrival.rate == 8.0
    assert str(resolved.origin(BATCH_SIZE)) == "batcher=latency"


def test_a_sweep_over_files_reads_each(jobs: list[tuple[str, Resolved]]) -> None:
    for size in (2, 4):
        Path(f"{size}.yaml").write_text(f"optimization: {{batcher: {{max_batch_size: {size}}}}}\n", encoding="utf-8")

    assert run.main(["-m", "config_file=2.yaml,4.yaml", "seed=7"]) == 0

    assert [name for name, _ in jobs] == ["0-config_file=2.yaml", "1-config_file=4.yaml"]
    assert [resolved.settings.optimization.batcher.max_batch_size for _, resolved in jobs] == [2, 4]
    assert [str(resolved.origin(BATCH_SIZE)) for _, resolved in jobs] == ["2.yaml:1", "4.yaml:1"]


def test_repeats_take_turns_and_every_other_round_goes_backwards(jobs: list[tuple[str, Resolved]]) -> None:
    assert run.main(["-m", f"{BATCH_SIZE}=2,4", "seed=7", "experiment.repeats=2"]) == 0

    made = [
        (resolved.settings.experiment.repeat, resolved.settings.optimization.batcher.max_batch_size, name)
        for name, resolved in jobs
    ]
    sizes = [size for _, size, _ in made]
    assert [repeat for repeat, _, _ in made] == [0] * 2 + [1] * 2
    assert sizes == [2, 4, 4, 2]
    assert {name for _, _, name in made} == {"repeat-0", "repeat-1"}
    sweeps = {path.parent for path in Path("runs").rglob("multirun.yaml")}
    assert len(sweeps) == 1


def test_repeats_of_a_single_configuration_need_no_multirun(jobs: list[tuple[str, Resolved]]) -> None:
    assert run.main(["batcher=off", "experiment.repeats=2"]) == 0

    assert [name for name, _ in jobs] == ["repeat-0", "repeat-1"]


def test_one_of_several_repeats_can_be_made_again(jobs: list[tuple[str, Resolved]]) -> None:
    assert run.main(["experiment.repeats=5", "experiment.repeat=3", "hydra.run.dir=again"]) == 0

    assert [(name, resolved.settings.experiment.repeat) for name, resolved in jobs] == [("again", 3)]


def test_an_experiment_may_ask_for_repeats(jobs: list[tuple[str, Resolved]]) -> None:
    assert run.main(["experiment=batch_size", f"{BATCH_SIZE}=1", "experiment.repeats=2"]) == 0

    engines = [resolved.settings.optimization.engine_preference[0] for _, resolved in jobs]
    assert engines == ["pytorch", "onnx", "onnx", "pytorch"]


def test_the_number_of_repeats_cannot_be_swept() -> None:
    assert problems_of("experiment.repeats=2,3", multirun=True) == (
        "experiment.repeats: one value is expected here, not several",
    )


def test_nothing_that_hydra_prints_or_writes_holds_a_secret(
    jobs: list[tuple[str, Resolved]], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MUAI_MON_ANOMALY_WEBHOOK_URL", SECRET)

    run.main(["-m", "seed=1,2"])
    run.main(["--cfg", "all"])

    captured = capfd.readouterr()
    written = [path.read_text(encoding="utf-8") for path in Path("runs").rglob("*") if path.is_file()]
    assert len(jobs) == 2
    assert written
    assert not any("SESAME" in text for text in (captured.out, captured.err, *written))


def test_the_composed_configuration_shown_is_what_holds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("my.yaml").write_text("optimization: {cache: {max_memory_mb: 5}}\n", encoding="utf-8")
    monkeypatch.setenv("MUAI_OPT_BATCHER_TIMEOUT", "6")

    run.main(["--cfg", "job", "config_file=my.yaml", "batcher=off", "seed=3"])

    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["optimization"]["cache"]["max_memory_mb"] == 5
    assert shown["optimization"]["batcher"]["batch_timeout_ms"] == 6
    assert shown["optimization"]["batcher"]["enabled"] is False
    assert shown["seed"] == 3


def test_a_default_that_gives_way_is_shown_with_the_key_that_it_follows(capsys: pytest.CaptureFixture[str]) -> None:
    run.main(["--cfg", "job", "tuning.n_trials=6"])

    assert "  startup_trials: 3  # default, gives way to tuning.n_trials\n" in capsys.readouterr().out


@pytest.mark.parametrize("asked", [("job",), ("all", "--resolve"), ("hydra",)])
def test_each_configuration_of_a_sweep_is_shown_as_a_document(
    asked: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.main(["-m", "arrival.rate=1,2", "seed=3", "--cfg", *asked]) == 0

    shown = list(yaml.safe_load_all(capsys.readouterr().out))
    for document, rate in zip(shown, (1.0, 2.0), strict=True):
        assert ("hydra" in document, "arrival" in document) == (asked[0] != "job", asked[0] != "hydra")
        assert document.get("arrival", {}).get("rate", rate) == rate
    assert not Path("runs").exists()


def test_the_sweep_of_an_experiment_is_shown_too(capsys: pytest.CaptureFixture[str]) -> None:
    run.main(["--cfg", "all", "experiment=load_curve", "arrival.rate=1,2"])

    assert [document["arrival"]["rate"] for document in yaml.safe_load_all(capsys.readouterr().out)] == [1.0, 2.0]


@pytest.mark.parametrize(
    ("package", "expected"),
    [("arrival.rate", 7.0), ("hydra.job.name", "muai_lab"), ("optimization.cache", {"enabled": True})],
)
def test_a_package_of_the_configuration_is_shown_alone(
    package: str, expected: object, capsys: pytest.CaptureFixture[str]
) -> None:
    run.main(["--cfg", "all", "--package", package, "arrival.rate=7"])

    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown == expected or expected.items() <= shown.items()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--cfg", "job", "--package", "nosuch"], "--package nosuch: no such section"),
        (["--cfg", "job", "--package", "arrival.rate.more"], "no such section"),
        (["--resolve"], "--resolve: it belongs to --cfg"),
        (["--package", "arrival"], "--package: it belongs to --cfg"),
        (["-m", "--info", "all"], "--multirun, --info: choose one"),
        (["--run", "--cfg", "job"], "--run, --cfg: choose one"),
        (["--run", "-m"], "--multirun, --run: choose one"),
        (["--shell-completion"], "--shell-completion: it needs"),
        (["--experimental-rerun", "nope.pickle"], "--experimental-rerun: not supported"),
        (["--cfg", "job", "arrival.rate=1,2"], "several values need -m"),
        (["-m", "--cfg", "job", "arrival.rate=1,none"], "arrival.rate=none"),
    ],
)
def test_options_that_do_not_go_together_are_named(arguments: list[str], part: str) -> None:
    with pytest.raises(SettingsError) as caught:
        run.main(arguments)

    assert part in str(caught.value)


def test_help_lists_the_groups_with_their_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run.main(["--help"])

    out = capsys.readouterr().out
    assert ended.value.code == 0
    assert "batcher: adaptive, configured, latency, off, static, throughput" in out
    assert "python -m muai_lab run engine=pytorch batcher=latency arrival=poisson arrival.rate=8" in out


def test_an_error_of_a_job_comes_out_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(cfg: object) -> None:
        raise RunError("the server died")

    monkeypatch.setattr(run, "_run_one", fail)

    with pytest.raises(RunError, match="the server died"):
        run.main([])


def test_a_folder_that_cannot_be_written_is_named(jobs: list[tuple[str, Resolved]]) -> None:
    Path("taken").write_text("a file", encoding="utf-8")

    with pytest.raises(MuaiError, match=r"cannot write the run directory .*taken"):
        run.main(["hydra.run.dir=taken/run"])

    assert jobs == []
