"""A study that several processes share, any of which may be killed: SQLite and a real PostgreSQL."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from sqlalchemy import event

from muai_lab.errors import RunError
from muai_lab.tuning.storage import open_storage, storage_url
from tests.integration.postgres import postgres
from tests.integration.tuning_worker import open_study


class Worker:
    """A process of the study. waits: after it has opened the study and after its first trial, until `go`."""

    def __init__(self, url: str, n_trials: int, *, stuck_after: int | None = None, waits: bool = False) -> None:
        stuck = [] if stuck_after is None else [str(stuck_after)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.tuning_worker", url, "study", str(n_trials), *stuck],
            stdin=subprocess.PIPE if waits else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )

    def wait_for(self, text: str) -> str:
        """The first line with this text."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if text in line:
                return line
        raise AssertionError(f"the worker ended with {self.process.wait()} and never said {text!r}")

    def go(self) -> None:
        """Let it go on."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def end(self) -> list[str]:
        """Its lines until it ends by itself."""
        lines = self.process.communicate(timeout=100)[0].splitlines()
        assert self.process.returncode == 0, lines
        return lines

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield storage_url(tmp_path, None)
    else:
        with postgres(tmp_path) as address:
            yield storage_url(tmp_path, address)


def test_a_killed_process_loses_no_finished_trial_and_its_own_is_measured_again(url: str) -> None:
    worker = Worker(url, 60, stuck_after=3)
    worker.wait_for("ended 3 ")
    running = int(worker.wait_for("begins").split()[1])
    worker.kill()
    study = open_study(url, "study")
    before = {record.number: record for record in study.records()}

    Worker(url, 8).end()

    after = {record.number: record for record in study.records()}
    assert {number: after[number] for number in before} == before
    assert after[running].outcome == "lost"
    again = [record for record in after.values() if record.number > running and record.point == after[running].point]
    assert again
    assert all(record.outcome != "lost" for record in again)


def test_two_processes_share_a_study_and_find_the_best(url: str) -> None:
    workers = [Worker(url, 16, waits=True) for _ in range(2)]
    for worker in workers:
        worker.wait_for("opened")
    for worker in workers:
        worker.go()
    first = [worker.wait_for("ended").split()[1] for worker in workers]
    for worker in workers:
        worker.go()
    rest = [{line.split()[1] for line in worker.end() if line.startswith("ended")} for worker in workers]

    study = open_study(url, "study")
    ended = [{number} | others for number, others in zip(first, rest, strict=True)]
    assert not ended[0] & ended[1]
    assert [record.kind for record in study.records()].count("present") == 1
    records = [record for record in study.records() if record.outcome == "measured"]
    best = max(records, key=lambda record: record.values or (0.0,))
    assert best.point["optimization.batcher.max_batch_size"] in range(4, 32)
    assert len({trial.user_attrs["worker"]["pid"] for trial in study.study.trials}) == 2


def test_plain_optuna_opens_the_study_as_the_dashboard_does(tmp_path: Path) -> None:
    url = storage_url(tmp_path, None)
    Worker(url, 12).end()

    study = optuna.load_study(study_name="study", storage=url)

    assert study.metric_names == ["goodput"]
    assert study.best_trial.values
    assert any(trial.state is optuna.trial.TrialState.PRUNED for trial in study.trials)


def test_a_database_that_cannot_be_reached_is_named_without_the_user(tmp_path: Path) -> None:
    url = storage_url(tmp_path, "postgresql://somebody@127.0.0.1:1/studies")

    with pytest.raises(RunError, match=r"postgresql://127\.0\.0\.1:1/studies cannot be used") as caught:
        open_storage(url)
    assert "somebody@" not in str(caught.value)


def test_a_full_disk_says_so_and_what_to_do(tmp_path: Path) -> None:
    study = open_study(storage_url(tmp_path, None), "study")
    engine = study.study._storage._backend.engine  # type: ignore[attr-defined]
    with engine.connect() as connection:  # SQLite's own word for a disk that is full, without filling one
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
    engine.dispose()
    event.listen(engine, "connect", lambda raw, _: raw.execute(f"PRAGMA max_page_count = {pages}"))

    with pytest.raises(RunError, match=r"study\.db cannot be used: .*full.*run the same command again"):
        study.note("large", "x" * 100_000)
