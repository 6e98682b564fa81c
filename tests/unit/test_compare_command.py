"""`compare` as a user and a CI job see it: the table, the page, the conditions, the exit status."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from muai_lab.analysis import compare, load_group, load_run
from muai_lab.analysis.key_figures import FIGURES
from muai_lab.analysis.moderation import Variance
from muai_lab.analysis.noise_history import NoiseHistory, key_of
from muai_lab.analysis.regression import parse_condition
from muai_lab.commands.compare import main
from muai_lab.errors import MuaiError
from muai_lab.report import comparison_page
from tests.unit.synthetic_run import record, write_run

Make = Callable[..., Path]


@pytest.fixture(autouse=True)
def _own_history(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without history: no test sees the noise that another one measured."""
    monkeypatch.setenv("MUAI_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A run of 100 requests whose latencies are `slower` times those of the baseline, and hardly differ."""

    def run(name: str, *, slower: float = 1.0, failed: bool = False, **written: object) -> Path:
        rng = np.random.default_rng(len(name))
        rows = []
        for index in range(100):
            due = index * 0.1
            steps = np.cumsum(slower * np.array([0.04, 0.01, 0.01, 0.01]) * rng.lognormal(0.0, 0.02, size=4))
            chunks = [] if failed else [float(due + step) for step in steps]
            rows.append(record(index, due=due, sent=due, chunks=chunks, status="error" if failed else "ok"))
        return write_run(tmp_path / name, rows, **written)  # type: ignore[arg-type]

    return run


@pytest.fixture
def repeats(make: Make, tmp_path: Path) -> Make:
    """A directory with three repeats of one configuration, over three schedules."""

    def runs(name: str, *, slower: float = 1.0, **written: object) -> Path:
        for repeat, drift in enumerate((1.0, 1.01, 0.99)):
            started = f"2026-01-31T12:{repeat:02d}:{len(list(tmp_path.rglob('manifest.json'))):02d}"
            stated = {"schedule_hash": f"s{repeat}", "started": started} | dict(
                written.get("manifest", {})  # type: ignore[call-overload]
            )
            make(f"{name}/{repeat}", slower=slower * drift, **(written | {"manifest": stated}))
        return tmp_path / name

    return runs


def test_equal_runs_end_with_0_and_say_so(repeats: Make, capsys: pytest.CaptureFixture[str]) -> None:
    status = main([str(repeats("a")), str(repeats("b"))])

    output = capsys.readouterr().out
    assert status == 0
    assert output.startswith("no difference shown between A and B: E2E p50 ")
    assert " % or more would be found in 4 of 5 such comparisons\n" in output
    assert "averaged with what is known before: as usual, 4 % (as 1 degree of freedom)" in output
    assert "no difference shown (detectable: " in next(line for line in output.splitlines() if "(primary)" in line)
    assert next(line for line in output.splitlines() if "TTFT p50" in line).endswith("not tested")


def test_a_slower_configuration_ends_with_1(repeats: Make, capsys: pytest.CaptureFixture[str]) -> None:
    status = main([str(repeats("a")), str(repeats("b", slower=1.3))])

    output = capsys.readouterr().out
    assert status == 1
    assert output.startswith("B is worse than A: E2E p50 +30")
    assert "; also worse: TTFT p50 +30" in output.splitlines()[0]


def test_one_run_each_is_described_and_not_judged(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    status = main([str(make("a")), str(make("b", slower=1.3))])

    output = capsys.readouterr().out
    assert status == 0
    assert output.startswith("no verdict from one run each: E2E p50 +30")
    assert "about 2 repeats of each would decide a change of this size (experiment.repeats=2)" in output
    assert "interval within the runs" in output
    assert "not measured: one run each" in output


def test_the_primary_figure_can_be_named(repeats: Make, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = str(repeats("a")), str(repeats("b", slower=1.3))

    assert main([a, b, "--primary", "ttft p50"]) == 1
    assert capsys.readouterr().out.startswith("B is worse than A: TTFT p50 +30")
    with pytest.raises(MuaiError, match="--primary 'p50 tftt': no such figure: 'p50 tftt'; did you mean p50 ttft"):
        main([a, b, "--primary", "p50 tftt"])
    with pytest.raises(MuaiError, match=r"primary figure p99 ttft cannot be compared: A: 100 successful requests, at"):
        main([a, b, "--primary", "p99 ttft"])
    with pytest.raises(MuaiError, match=r"figure goodput cannot be compared: A: no SLO was set \(run with slo="):
        main([a, b, "--primary", "goodput"])


def test_comparisons_build_the_history_that_later_ones_use(repeats: Make, capsys: pytest.CaptureFixture[str]) -> None:
    # Given one comparison of repeats, made twice
    a, b = str(repeats("a")), str(repeats("b"))
    for _ in range(2):
        main([a, b])
        assert "no earlier comparison on this machine" in capsys.readouterr().out

    # Then others know it, once, unless they are told not to
    c, d = str(repeats("c")), str(repeats("d", slower=1.1))
    main([c, d, "--no-history"])
    assert "no earlier comparison on this machine" in capsys.readouterr().out
    main([c, d])
    assert "as in 1 earlier comparison on this machine" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("conditions", "status", "said"),
    [
        (["p50 ttft +5%"], 1, "REGRESSION: TTFT p50 5"),
        (["ttft p50 + 5 %"], 1, "REGRESSION: TTFT p50"),
        (["p50 ttft +50%"], 0, "no regression; B is worse than A"),
        (["p50 ttft +5ms"], 1, "REGRESSION: TTFT p50"),
        (["p50 ttft +0.1s"], 0, "no regression"),
        (["mean itl +5%"], 1, "REGRESSION: ITL mean"),
        (["tokens -3%", "success -1pp"], 0, "no regression"),
    ],
)
def test_conditions_decide_what_counts_as_a_regression(
    repeats: Make, capsys: pytest.CaptureFixture[str], conditions: list[str], status: int, said: str
) -> None:
    arguments = [word for condition in conditions for word in ("--fail-on", condition)]

    assert main([str(repeats("a")), str(repeats("b", slower=1.3)), *arguments]) == status
    assert said in capsys.readouterr().out


def test_a_condition_is_not_judged_from_one_run_each_unless_the_noise_is_known(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    # Given one run each, on a machine without history
    a, b, condition = str(make("a")), str(make("b", slower=1.3)), ("--fail-on", "p50 ttft +5%")
    with pytest.raises(MuaiError, match=r"cannot be judged from one run each.*experiment.repeats=3.*--noise 3%"):
        main([a, b, *condition])

    # When the noise is declared, or enough of it was measured before, then it is judged
    assert main([a, b, *condition, "--noise", "3%"]) == 1
    assert main([a, b, *condition, "--noise", "20%"]) == 0
    assert "which chance can do as well" in capsys.readouterr().out
    past = load_run(make("past", manifest={"started": "2026-01-30T12:00:00"}))
    NoiseHistory.of_user().add(key_of([past]), [past], {"p50 ttft": Variance(1e-4, 10.0)})
    assert main([a, b, *condition]) == 1
    assert main([a, a, *condition]) == 0


def test_a_candidate_that_answers_nothing_breaks_every_condition_on_latency(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(make("a")), str(make("b", failed=True)), "--fail-on", "p50 ttft +5%"]) == 1
    assert "cannot be shown any more: B: no successful request" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("p50 ttft", r"cannot be read: write FIGURE CHANGE, such as 'p50 ttft \+5%'"),
        ("5%", "cannot be read"),
        ("", "cannot be read"),
        ("p50 tftt +5%", "no such figure: 'p50 tftt'; did you mean p50 ttft"),
        ("p50 ttft -5%", r"is better when lower, so a regression is written 'p50 ttft \+5%'"),
        ("goodput +5%", "is better when higher, so a regression is written 'goodput -5%'"),
        ("p50 ttft +5", r"the unit is missing; write 'p50 ttft \+5%' or 'p50 ttft \+5ms'"),
        ("tokens -5ms", "the unit 'ms' is not one; write 'tokens -5%'"),
        ("attainment -1%", "the unit '%' is not one; write 'attainment -1pp'"),
    ],
)
def test_a_mistyped_condition_names_the_valid_forms(text: str, said: str) -> None:
    with pytest.raises(MuaiError, match=said):
        parse_condition(text)


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_can_be_a_condition(name: str) -> None:
    figure = FIGURES[name]
    sign, unit = "+" if figure.better == "lower" else "-", "pp" if figure.scale == "share" else "%"

    condition = parse_condition(f"{name} {sign}2.5{unit}")

    assert (condition.figure, condition.amount) == (figure, 0.025)


def test_a_condition_that_cannot_be_judged_is_a_mistake(make: Make) -> None:
    a, b = str(make("a")), str(make("b"))

    with pytest.raises(MuaiError, match=r"cannot be judged: A: 100 successful requests, at least 500 needed"):
        main([a, b, "--fail-on", "p99 ttft +5%"])
    with pytest.raises(MuaiError, match=r"no SLO was set \(run with slo=interactive, or another\)"):
        main([a, b, "--fail-on", "goodput -5%"])


def test_what_cannot_be_compared_ends_with_2(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    status = main([str(make("a")), str(make("b", manifest={"schedule_hash": "other"}))])

    assert status == 2
    assert capsys.readouterr().out.startswith("A and B cannot be compared: other workload")
    declared = [str(make("c")), str(make("d", manifest={"schedule_hash": "other"})), "--across", "workload"]
    assert main(declared) == 0


def test_patterns_and_directories_hold_repeats(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for repeat in range(3):
        make(f"base/{repeat}", manifest={"schedule_hash": f"s{repeat}"})
        make(f"new/{repeat}", manifest={"schedule_hash": f"s{repeat}"})

    assert main([str(tmp_path / "base"), str(tmp_path / "new" / "*"), "--json"]) == 0

    document = json.loads(capsys.readouterr().out)
    assert (document["pairs"], document["schema_version"]) == (3, 2)
    assert document["primary"]["figure"] == "p50 e2e"
    assert document["figures"]["p50 e2e"]["interval"] == "between runs"
    assert document["figures"]["p50 e2e"]["noise"]["prior"] == "default"
    assert document["figures"]["p50 e2e"]["detectable"] > 0.0
    assert len(document["b"]["runs"]) == 3


def test_a_pattern_without_a_match_says_so(tmp_path: Path) -> None:
    with pytest.raises(MuaiError, match="no such directory, and as a pattern it matches none"):
        main([str(tmp_path / "no*"), str(tmp_path / "nothing")])


def test_the_page_stands_alone_and_draws_every_change(
    repeats: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "out" / "comparison.html"

    main([str(repeats("<a>")), str(repeats("b", slower=1.3)), "--html", str(page)])

    html = page.read_text(encoding="utf-8")
    assert "&lt;a&gt;" in html
    assert "<a>" not in html
    assert 'role="img"' in html
    assert "<script" not in html
    assert "TTFT p50" in html


LATE = {"generator": {"verdict": "client_saturated", "reason": "late"}}


def test_invalid_runs_are_shown_on_request_and_never_judged(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = str(make("a")), str(make("b", slower=1.3, manifest=LATE))

    assert main([a, b]) == 2
    output = capsys.readouterr().out
    assert "B has no valid run" in output
    assert "TTFT p50" not in output
    assert "note: --include-invalid shows the figures of invalid runs" in output

    assert main([a, b, "--include-invalid"]) == 2
    output = capsys.readouterr().out
    assert "A and B cannot be compared: invalid runs of B are included" in output
    assert "B (invalid)" in output
    row = next(line for line in output.splitlines() if "TTFT p50" in line)
    assert row.split()[2:4] == ["40.0", "51.9"]
    assert row.endswith("not comparable")


def test_the_document_names_invalid_runs(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    b = str(make("b", manifest=LATE))

    assert main([str(make("a")), b, "--include-invalid", "--json"]) == 2

    assert json.loads(capsys.readouterr().out)["invalid_runs"] == {"a": [], "b": [b]}


def test_a_sweep_alone_gives_its_table_again(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make("sweep/0-a", config={"arrival": {"rate": 5.0}})
    make("sweep/1-b", config={"arrival": {"rate": 9.0}}, manifest=LATE)
    page = tmp_path / "page.html"

    assert main([str(tmp_path / "sweep"), "--include-invalid", "--html", str(page)]) == 0

    output = capsys.readouterr().out
    assert output.startswith("2 runs, 1 valid\n")
    assert "NOT VALID: figures to look at" in output
    assert "Sweep over arrival.rate" in page.read_text(encoding="utf-8")
    with pytest.raises(MuaiError, match="--json needs two sides"):
        main([str(tmp_path / "sweep"), "--json"])
    with pytest.raises(MuaiError, match="holds one run"):
        main([str(tmp_path / "sweep" / "0-a")])


def test_a_sweep_with_repeats_adds_its_noise_to_the_history(repeats: Make, tmp_path: Path) -> None:
    for number, rate in enumerate((5.0, 9.0)):
        repeats(f"sweep/{number}", config={"arrival": {"rate": rate}})

    assert main([str(tmp_path / "sweep")]) == 0

    (line,) = Path(NoiseHistory.of_user().path or "").read_text(encoding="utf-8").splitlines()
    stored = json.loads(line)
    assert len(stored["runs"]) == 6
    assert stored["variances"]["p50 e2e"][1] == 2
    assert {"tokens", "p50 ttft", "requests"} <= set(stored["variances"])


def test_bars_and_labels_of_the_chart_have_the_sign_of_the_table(
    repeats: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    monkeypatch.setattr(comparison_page, "inline_svg", lambda figure, *texts: drawn.append(figure) or "")
    a, b = (load_group(repeats(name, slower=slower)) for name, slower in (("a", 1.0), ("b", 1.3)))
    found = [one for one in compare(a, b).differences if one.change.value]

    comparison_page.forest_figure(found, name="x")

    (axes,) = drawn[0].axes
    points = [line.get_xdata()[0] for line in axes.lines if line.get_marker() in ("o", "<", ">")]
    assert len(points) == len(found) == len(axes.texts) >= 3
    for one, point, label in zip(found, points, axes.texts, strict=True):
        assert one.change.value is not None
        assert np.sign(point) == np.sign(one.change.value)
        assert label.get_text().startswith("+" if point > 0 else "-")
    assert any(label.get_text().endswith("worse") for label in axes.texts)
