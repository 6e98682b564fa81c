"""What a study leaves: a file that `serve` and `config check` take, a result that is read again, a page."""

from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from muai_lab.analysis.statistics import Estimate
from muai_lab.commands import config as config_command
from muai_lab.commands import export as export_command
from muai_lab.errors import RunError
from muai_lab.settings.dump import dump_optimization_yaml
from muai_lab.settings.lab import LabSettings
from muai_lab.settings.resolve import load_settings
from muai_lab.settings.section import with_value
from muai_lab.tuning.agreement import Agreement
from muai_lab.tuning.bench import Bench, Switch
from muai_lab.tuning.confirmation import Confirmation, Pair
from muai_lab.tuning.contribution import Contribution
from muai_lab.tuning.export import EXPORTED, UNCONFIRMED, export_study
from muai_lab.tuning.facts import baseline_of
from muai_lab.tuning.objective import Constraints, objectives_of
from muai_lab.tuning.problem import TuningProblem
from muai_lab.tuning.report import render_tuning
from muai_lab.tuning.result import PRESENT, EngineStudy, TuningResult, read_result, write_result
from muai_lab.tuning.result import RESULT as RESULT_FILE
from muai_lab.tuning.search import Search, SearchBudget
from muai_lab.tuning.soak import Attainment
from muai_lab.tuning.space_file import space_of
from muai_lab.tuning.storage import IN_MEMORY
from muai_lab.tuning.study import TuningStudy
from muai_lab.tuning.trials import tally
from tests.unit.tuning_fakes import FakeArena, SilentWatcher

SIZE = "optimization.batcher.max_batch_size"
SETTINGS = LabSettings.model_validate(
    {
        "slo": {"ttft_ms": 500.0},
        "optimization": {"engine_preference": ("onnx",), "batcher": {"batch_timeout_ms": 7}},
        "monitoring": {"anomaly": {"webhook_url": "https://hooks.example/s3cr3t", "alert_destinations": ("log",)}},
    }
)
PAIRS = tuple(Pair(10.0, 12.0, 0.2, ((10.0, 12.0), (10.0, 12.0)), place % 2 == 1) for place in range(6))
RESULT = TuningResult(
    verdict="confirmed",
    reason="the gain is at least +15.0%, above the noise of 1.0%",
    study="chat",
    storage="chat/study.db",
    engine="onnx",
    objective="goodput",
    unit="requests/s",
    larger_is_better=True,
    changes={SIZE: 8},
    best_changes={SIZE: 8},
    engines=(
        EngineStudy("onnx", "chat/onnx", 20, "20 trials were measured", 12.0, 5, True),
        EngineStudy("vllm", skipped="no GPU"),
    ),
    contributions=(Contribution(SIZE, 32, 8, 0.2, 0.15, 0.25, True, "earns its place"),),
    confirmation=Confirmation(
        PAIRS,
        0.2,
        0.15,
        0.25,
        0.01,
        0.995,
        True,
        "the gain is at least +15.0%",
        kept=Attainment(0.995, 0.9921, 6, 40.0, 31.0),
        between_starts=0.008,
        blocks=5,
        block_s=8.0,
        next_pair=(0.11, 0.30),
        agreement=Agreement(0.984, 0.975, 1530, 1466, 64, 1.3),
    ),
    agreement=Agreement(0.981, 0.972, 1528, 1464, 64, 1.2),
    reduction=Estimate(-0.003, -0.010, 0.004),
    noise=0.01,
    noise_samples=4,
    drift=0.002,
    facts={"baseline": "config/optimization.yaml", "workload": "chat; hash 0123", "date": "2026-01-31T12:00:00+00:00"},
)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    (tmp_path / PRESENT).write_text(dump_optimization_yaml(SETTINGS), encoding="utf-8")
    write_result(tmp_path, RESULT)
    return tmp_path


def test_a_result_is_read_as_it_was_written(study: Path) -> None:
    assert read_result(study) == RESULT


def test_the_file_is_the_present_configuration_with_the_changes_that_earned_their_place(study: Path) -> None:
    target, _ = export_study(study)

    before = load_settings(study / PRESENT, environ={}).settings
    after = load_settings(target, environ={}).settings
    assert target == study / EXPORTED
    assert after.optimization.batcher.max_batch_size == 8
    changed = after.optimization.batcher.model_dump() | {"max_batch_size": 32}
    assert changed == before.optimization.batcher.model_dump()
    assert after.monitoring == before.monitoring


def test_the_header_says_what_the_file_rests_on(study: Path) -> None:
    target, _ = export_study(study)

    header = [line for line in target.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    text = "\n".join(header)
    assert "confirmed by measurement" in header[0]
    assert "gain: +20.0% goodput (+15.0% to +25.0%, 95 % interval, 6 pairs of runs)" in text
    assert "one further pair of runs: +11.0% to +30.0% in 19 of 20 cases" in text
    assert "SLO attainment: 99.50% of the winner's requests, at least 99.21% (lower end of the 95 %" in text
    assert "6 soak windows of 40 s, 31 relaxation times of the queue each" in " ".join(text.replace("#", "").split())
    agreement = "agreement of the winner: 98.4% of the greedy tokens are those of fp32, at least 97.5% (1,530"
    assert agreement in " ".join(text.replace("#", "").split())
    assert "in the search: 98.1%" not in text
    assert "noise between server starts: 0.8% (standard deviation" in text
    assert "blocks: 5 of 8 s in each run" in text
    assert "kept changes against all that were found: -0.3% (-1.0% to +0.4%, 95 % interval)" in text
    assert "noise in the search: runs of one configuration differ by 1.0% (by 4 repeats)" in text
    assert "not examined: engines vllm (no GPU); keys outside the search space" in text
    assert "workload: chat; hash 0123" in text
    assert f"{SIZE}: 32 -> 8  (+20.0%, +15.0% to +25.0%)" in text
    assert "s3cr3t" not in target.read_text(encoding="utf-8")


def test_without_a_confirmation_the_agreement_is_that_of_the_search(study: Path) -> None:
    write_result(study, replace(RESULT, verdict="unconfirmed", confirmation=None))

    target, _ = export_study(study, unconfirmed=True)

    assert "# agreement of the best in the search: 98.1% of the greedy tokens" in target.read_text(encoding="utf-8")


def test_pairs_that_were_given_up_early_have_no_interval_in_file_and_page(study: Path) -> None:
    assert RESULT.confirmation is not None
    given_up = replace(RESULT.confirmation, low=None, high=None, accepted=False, reason="given up after 3 of 6 pairs")
    result = replace(RESULT, confirmation=given_up).refused()
    write_result(study, result)

    assert read_result(study) == result
    target, _ = export_study(study, unconfirmed=True)
    assert "gain: +20.0% goodput (no interval: given up early, 6 pairs of runs)" in target.read_text(encoding="utf-8")
    page = render_tuning(SETTINGS, result, {})
    assert "given up early" in page


def test_the_check_of_configurations_takes_the_file(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, _ = export_study(study)

    assert config_command.main(["check", str(target)]) == 0
    assert "OK" in capsys.readouterr().out


def test_another_engine_first_is_a_change_too(study: Path) -> None:
    write_result(study, replace(RESULT, engine_preference=("pytorch", "onnx")))

    target, _ = export_study(study)

    assert load_settings(target, environ={}).settings.optimization.engine_preference == ("pytorch", "onnx")
    assert 'engine_preference: ["onnx"] -> ["pytorch", "onnx"]' in target.read_text(encoding="utf-8")


def test_what_was_not_confirmed_is_written_only_on_demand_and_says_so(study: Path) -> None:
    write_result(study, replace(RESULT, verdict="searching", reason="the search is not over", confirmation=None))

    with pytest.raises(RunError, match="--unconfirmed"):
        export_study(study)
    target, _ = export_study(study, unconfirmed=True)

    assert target == study / UNCONFIRMED
    assert target.read_text(encoding="utf-8").startswith("# Written by muai_lab tune: UNCONFIRMED")


REFUSED = replace(RESULT, reason="the gain may be as low as -3%", engine_preference=("onnx", "pytorch")).refused()


def test_a_refused_winner_is_written_on_demand_and_marked_in_the_first_line(study: Path) -> None:
    write_result(study, REFUSED)

    target, _ = export_study(study, unconfirmed=True)

    first, *_ = target.read_text(encoding="utf-8").splitlines()
    exported = load_settings(target, environ={}).settings.optimization
    assert target == study / UNCONFIRMED
    assert not (study / EXPORTED).exists()
    assert "UNCONFIRMED, the winner that was REFUSED: the gain may be as low as -3%" in first
    assert (exported.batcher.max_batch_size, exported.engine_preference) == (8, ("onnx", "pytorch"))


def test_a_study_of_an_older_version_still_gives_the_best_of_its_search(study: Path) -> None:
    content = json.loads((study / RESULT_FILE).read_text(encoding="utf-8"))
    for name in ("refused_changes", "refused_preference"):
        del content[name]
    (study / RESULT_FILE).write_text(json.dumps({**content, "verdict": "refused", "changes": {}}), encoding="utf-8")

    target, _ = export_study(study, unconfirmed=True)

    assert load_settings(target, environ={}).settings.optimization.batcher.max_batch_size == 8


def test_a_search_that_found_nothing_else_has_nothing_unconfirmed(study: Path) -> None:
    write_result(study, replace(RESULT, verdict="nothing better", changes={}, best_changes={}))

    with pytest.raises(RunError, match="without --unconfirmed"):
        export_study(study, unconfirmed=True)


def test_a_confirmed_study_exports_the_same_with_unconfirmed(study: Path) -> None:
    target, _ = export_study(study, unconfirmed=True)

    assert target == study / EXPORTED
    assert "confirmed by measurement" in target.read_text(encoding="utf-8").splitlines()[0]


def test_the_command_says_that_a_refused_winner_can_be_had(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_result(study, REFUSED)

    assert export_command.main([str(study)]) == 0
    assert "--unconfirmed writes the best" in capsys.readouterr().out


def test_a_refused_winner_leaves_the_present_configuration_with_the_reason(study: Path) -> None:
    write_result(study, replace(RESULT, verdict="refused", reason="the gain may be as low as -3%", changes={}))

    target, _ = export_study(study)

    assert load_settings(target, environ={}).settings.optimization == SETTINGS.optimization.model_copy()
    assert "the present configuration, unchanged: the gain may be" in target.read_text(encoding="utf-8")


def test_the_command_writes_where_it_is_told(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export_command.main([str(study), "--output", str(tmp_path / "deep" / "mine.yaml")]) == 0
    assert "mine.yaml" in capsys.readouterr().out.replace("\n", "")


def test_a_directory_that_is_no_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is no study"):
        export_study(tmp_path)


class Page(HTMLParser):
    """Ids, links to them, and addresses from elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.sources: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids += [value for name, value in attrs if name == "id" and value]
        if tag in ("script", "img", "link", "iframe"):
            self.sources.append(str(given.get("src") or given.get("href") or tag))


@pytest.mark.parametrize("objectives", [("goodput",), ("goodput", "p99")])
def test_the_report_is_one_page_with_everything_in_it(objectives: tuple[str, ...]) -> None:
    settings = with_value(with_value(SETTINGS, "tuning.objectives", objectives), "tuning.n_trials", 14)
    wanted = objectives_of(settings)
    space = space_of({SIZE: {"choices": [1, 2, 4, 8, 16, 32]}, "optimization.cache.enabled": {}})
    problem = TuningProblem(space, settings.optimization, wanted, Constraints(min_agreement=0.95))
    study = TuningStudy.open(IN_MEMORY, "chat", {}, problem, startup_trials=5)
    arena = FakeArena(
        lambda optimization: 0.5 + 0.01 * optimization.batcher.max_batch_size,
        failing=lambda optimization: optimization.batcher.max_batch_size == 4,
    )
    budget = replace(SearchBudget.of(settings.tuning), startup_trials=5)
    Search(study, Bench(problem, arena, Switch(), 3), budget, SilentWatcher()).run()

    text = render_tuning(settings, RESULT, {"onnx": study})

    page = Page(text)
    assert len(set(page.ids)) == len(page.ids)
    assert not page.sources
    for part in ("History", "Importance", "Slices", "Confirmation, pair by pair", "earns its place", "did not serve"):
        assert part in text
    assert ("Pareto front" in text) == (len(objectives) > 1)
    assert tally(study.records()) in text
    assert f"rials with a figure: {sum(one.outcome in ('measured', 'pruned') for one in study.records())}" in text
    assert "Missed bounds" in text
    assert "99.5 %, at least 99 %" in text


def test_the_baseline_names_its_file_and_what_was_set_above_it(tmp_path: Path) -> None:
    file = tmp_path / "present.yaml"
    file.write_text("optimization: {batcher: {max_batch_size: 4}}")
    size = "optimization.batcher.max_batch_size"

    told = baseline_of(load_settings(file, {}, {size: 8, "seed": 3}))

    assert told == f"{file}, with {size}=8 (override)"
    assert baseline_of(load_settings(file, {})) == str(file)
