"""Who is named when a machine is busy."""

from __future__ import annotations

import os

import pytest

from muai_lab.load.machine_load import (
    MachineLoad,
    ProcessTable,
    ProcessTime,
    described,
    load_between,
    load_since,
    read_processes,
)

ROOT, OWN, SERVER, ENGINE, STRESS, SHELL = 10, 11, 12, 13, 20, 1


def table(at_s: float, busy_s: float, **cpu_s: float) -> ProcessTable:
    parents = {"shell": (SHELL, 0), "run": (ROOT, SHELL), "own": (OWN, ROOT), "server": (SERVER, ROOT)}
    parents |= {"engine": (ENGINE, SERVER), "stress": (STRESS, SHELL), "late": (30, SHELL)}
    return ProcessTable(
        at_s,
        busy_s,
        {(parents[name][0], 1.0): ProcessTime(name, parents[name][1], spent) for name, spent in cpu_s.items()},
    )


def test_the_run_and_its_descendants_are_not_others() -> None:
    before = table(0.0, 0.0, shell=1.0, run=1.0, own=1.0, server=1.0, engine=1.0, stress=5.0)
    after = table(10.0, 25.0, shell=1.0, run=1.5, own=2.0, server=2.0, engine=6.0, stress=15.0, late=5.0)

    load = load_between(before, after, OWN, ROOT)

    assert (load.own, load.run, load.others) == pytest.approx((0.1, 0.65, 1.75))
    assert load.named == (
        ("stress", pytest.approx(1.0)),
        ("late", pytest.approx(0.5)),
        ("processes that cannot be seen from here", pytest.approx(0.25)),
    )


def test_a_process_of_the_same_id_that_is_another_one_starts_at_zero() -> None:
    before = ProcessTable(0.0, 0.0, {(5, 1.0): ProcessTime("old", 1, 100.0)})
    after = ProcessTable(1.0, 0.5, {(5, 2.0): ProcessTime("new", 1, 0.5)})

    assert load_between(before, after, OWN, ROOT).named == (("new", 0.5),)


@pytest.mark.parametrize(
    ("load", "who", "remedy"),
    [
        (
            MachineLoad(2, 0.1, 0.4, 1.5, (("stress", 1.4),)),
            "other programs used 1.5 of 2 cores (stress 1.4) and the server under test, on the same cores, 0.4",
            "end the other programs",
        ),
        (MachineLoad(2, 0.1, 1.8, 0.0), "the server under test, on the same cores, 1.8", "leave a core to the load"),
        (MachineLoad(2, 0.1, 0.0, 0.0), None, "end the other programs"),
    ],
)
def test_the_culprit_and_the_remedy_are_named(load: MachineLoad, who: str | None, remedy: str) -> None:
    said, advised = described(load)

    assert said == who
    assert advised.startswith(remedy)


def test_the_table_of_this_machine_has_this_process() -> None:
    before = read_processes()

    assert any(pid == os.getpid() for pid, _ in before.processes)
    assert load_since(before).own >= 0.0
