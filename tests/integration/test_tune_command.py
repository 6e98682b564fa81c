"""`python -m muai_lab tune` with a real server under real load; small, since it is measured for real."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from muai_lab.__main__ import main
from muai_lab.models.registry import context_tokens, resolve_model
from muai_lab.models.tokenizer import load_tokenizer
from muai_lab.settings.changes import with_values
from muai_lab.settings.lab import LabSettings
from muai_lab.settings.resolve import load_settings
from muai_lab.settings.schema import OptimizationSettings
from muai_lab.tuning.arena import ConfigurationFailed
from muai_lab.tuning.bench import Bench, Switch
from muai_lab.tuning.confirmation import PairPlan, confirm
from muai_lab.tuning.fp32_answers import Fp32Answers
from muai_lab.tuning.load_blocks import FRESH, LoadBlocks
from muai_lab.tuning.objective import objectives_of
from muai_lab.tuning.problem import TuningProblem
from muai_lab.tuning.result import read_result
from muai_lab.tuning.search_space import SearchSpace
from muai_lab.tuning.server_arena import ArenaSetup, ServerArena
from tests.integration.started_command import Command

SPACE = """\
parameters:
  optimization.batcher.max_batch_size: {choices: [1, 4, 8]}
  optimization.batcher.batch_timeout_ms: {choices: [0, 50]}
"""
# One core is left to the load generator: blocks in which it was late do not count. Answers are short, so that a block
# has some on a busy machine too.
SHORT = (
    "workload=fixed", "workload.output_tokens.value=4",
    "engine=pytorch", "optimization.pytorch.threads=1", "slo=relaxed", "arrival=closed", "arrival.concurrency=4",
    "tuning.blocks=2", "tuning.block_s=0.6", "tuning.lead_in_s=0.1", "tuning.warmup_s=0.3", "tuning.startup_trials=1",
)  # fmt: skip
STUDY = ("tuning.study=study", "tuning.search_space=space.yaml")
SETTINGS = LabSettings.model_validate(
    {
        "slo": {"ttft_ms": 2000.0},
        "workload": {
            "kind": "synthetic",
            "prompt_tokens": {"distribution": "fixed", "value": 64},
            "output_tokens": {"distribution": "fixed", "value": 4},
        },
        "arrival": {"kind": "closed", "concurrency": 4},
        "optimization": {"engine_preference": ("pytorch",), "pytorch": {"threads": 1}},
        "tuning": {"blocks": 2, "block_s": 0.6, "lead_in_s": 0.1, "warmup_s": 0.3},
    }
)
PROBLEM = TuningProblem(SearchSpace(()), SETTINGS.optimization, objectives_of(SETTINGS))


@pytest.fixture
def tune(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    (tmp_path / "space.yaml").write_text(SPACE)
    with ExitStack() as started:

        def start(*arguments: str) -> Command:
            return started.enter_context(Command(tmp_path, "tune", *SHORT, *STUDY, *arguments))

        yield start


def test_a_search_goes_on_after_a_kill_and_after_ctrl_c_and_leaves_a_file_and_a_report(
    tune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report, endless = tmp_path / "study" / "report.html", ("tuning.n_trials=50", "tuning.patience=50")
    killed = tune(*endless)
    killed.wait_for("trial 1: measured")
    killed.wait_for("trial 2 (")
    killed.process.send_signal(signal.SIGKILL)
    killed.end()
    assert read_result(tmp_path / "study").verdict == "searching"

    interrupted = tune(*endless)
    interrupted.wait_for("trial 3 (")
    interrupted.process.send_signal(signal.SIGINT)

    assert interrupted.end() == 130, interrupted.everything
    assert "trial 0:" not in interrupted.everything
    assert "Traceback" not in interrupted.everything
    assert "stopped before it was confirmed" in interrupted.everything
    assert not psutil.pid_exists(interrupted.process.pid) or not interrupted.children()
    report.unlink()

    finished = tune("tuning.n_trials=3", "tuning.confirm=false")

    assert finished.end() == 0, finished.everything
    result = read_result(tmp_path / "study")
    assert result.verdict == "unconfirmed"
    assert result.engines[0].trials >= 3
    assert "Search on pytorch" in report.read_text()
    monkeypatch.chdir(tmp_path)
    assert main(["export", "study", "--unconfirmed", "--output", "mine.yaml"]) == 0
    batcher = load_settings(tmp_path / "mine.yaml", environ={}).settings.optimization.batcher
    assert batcher.max_slots is None


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("tuning.search_space=nowhere",), "search space nowhere"),
        (("slo=none",), "slo=interactive"),
        (("tuning.storage=postgresql://a@127.0.0.1:1/b",), "cannot be used"),
        (("tuning.sampler=tep",), "tpe"),
        (("--baseline", "nowhere.yaml"), "nowhere.yaml does not exist"),
        (("optimization.pytorch.dtype=fp16", "optimization.pytorch.device=cpu"), "fp16"),
        (("tuning.storage=postgresql://a:secret@h/b",), "PGPASSWORD"),
    ],
)
def test_a_mistake_is_answered_with_what_would_be_right(
    arguments: tuple[str, ...],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """In this process, as most of the time of one's own goes into imports."""
    (tmp_path / "space.yaml").write_text(SPACE)
    monkeypatch.chdir(tmp_path)

    assert main(["tune", *SHORT, *STUDY, *arguments]) == 2

    everything = "".join(capfd.readouterr())
    assert told in everything
    assert "secret" not in everything
    assert "Traceback" not in everything


@pytest.fixture(scope="module")
def blocks() -> LoadBlocks:
    source = resolve_model("qwen_chat")
    return LoadBlocks(SETTINGS, load_tokenizer(source), context_tokens(source))


def with_batcher(**changes: int) -> OptimizationSettings:
    return with_values(SETTINGS.optimization, {"batcher": changes})


def test_an_arena_changes_live_what_it_can_and_outlives_servers_that_do_not_start_or_die(
    blocks: LoadBlocks, tmp_path: Path
) -> None:
    setup = ArenaSetup(SETTINGS, blocks, tmp_path)
    references = Fp32Answers(setup, frozenset())
    arena = ServerArena(setup, "server", slots=64, reference=lambda: references.of("search"))
    bench = Bench(PROBLEM, arena, Switch(), 2)
    threads, impossible = (
        with_values(SETTINGS.optimization, {"pytorch": changes})
        for changes in ({"threads": 2}, {"device": "cpu", "dtype": "fp16"})
    )
    try:
        # given a server, batcher and cache change live, and everything else by a restart
        first = bench.replay(with_batcher(max_batch_size=2), range(2), wants_agreement=True)
        live = bench.replay(with_batcher(max_batch_size=64, batch_timeout_ms=0), range(2))
        restarts = arena.starts
        other = bench.replay(threads, [0])
        assert arena.serving()["name"] == "pytorch"
        assert (first.restarted, live.restarted, other.restarted) == (True, False, True)
        assert (restarts, arena.starts) == (1, 2)
        assert first.agreement is not None
        assert (first.agreement.share, first.agreement.prompts) == (1.0, 64)
        blocks_of_all = [*first.blocks, *live.blocks, *other.blocks]
        assert all(block.due for block in blocks_of_all)
        # Not all of them: on a busy machine an answer may take longer than a block waits for it.
        assert any(block.due > block.failed for block in blocks_of_all)

        # when a server dies or does not start, then that is a failure of the configuration
        for child in psutil.Process().children():
            if "serve" in child.cmdline():
                child.kill()
        with pytest.raises(ConfigurationFailed):
            arena.replay(0)
        with pytest.raises(ConfigurationFailed, match="fp16"):
            arena.apply(impossible)

        # and the next one is measured
        assert arena.apply(with_batcher(max_batch_size=4))
        assert arena.replay(0).due > 0
    finally:
        arena.close()


def test_a_confirmation_starts_a_server_for_each_run_with_exactly_the_file(blocks: LoadBlocks, tmp_path: Path) -> None:
    arena = ServerArena(ArenaSetup(SETTINGS, blocks, tmp_path), "server")
    try:
        bench = Bench(PROBLEM, arena, Switch(), 1)
        found = confirm(bench, with_batcher(max_batch_size=1), with_batcher(max_batch_size=8), PairPlan(1))
    finally:
        arena.close()

    assert arena.starts == 2
    assert len(found.pairs) == 1
    assert "max_slots: null" in (tmp_path / "server" / "optimization.yaml").read_text()
    assert blocks.block(FRESH).hash != blocks.block(0).hash
    assert json.dumps(found.pairs[0].per_block)
