"""What all tests share: where `../shared` is, and the rule that CI skips nothing that it could run."""

from __future__ import annotations

import gc
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings as hypothesis_settings

from muai_lab.garbage import collect_rarely

# No test is timed: on a machine that is busy with other work an example takes as long as it takes. The same examples
# every time, so that a failure belongs to a change; `--hypothesis-profile exploring` looks for new ones.
hypothesis_settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis_settings.register_profile("exploring", deadline=None)
hypothesis_settings.load_profile("repeatable")

# As in muai_lab.__main__: a third of the time that it takes to import the tests.
collect_rarely()

# As in muai_lab.__main__, for the tests that run an engine in their own process: set before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# `cpu` or `cuda`: where the engines of tests run. On a CPU a machine's GPUs are hidden, so that tests mean the same
# everywhere; with cuda, a test of an engine that cannot serve there is skipped.
DEVICE = os.environ.setdefault("MUAI_TEST_DEVICE", "cpu")
if DEVICE not in ("cpu", "cuda"):
    raise pytest.UsageError(f"MUAI_TEST_DEVICE is {DEVICE!r}: set it to cpu or cuda")
if DEVICE == "cpu":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

# A shell that starts us in the background has SIGINT ignored, and so would every program have that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).resolve().parents[2] / "shared"

# A reason that begins so names something that CI does not have; any other skip is a failure there.
_NOT_IN_CI = "needs a GPU"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--forbid-skips", action="store_true", help=f"fail on a skip whose reason is not {_NOT_IN_CI!r}")


def pytest_runtest_setup() -> None:
    """Set what was imported apart from garbage collection: many tests collect, and each would look through all of it.

    A load generator that ends joins it again.
    """
    if gc.get_freeze_count() == 0:
        gc.freeze()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `../shared` with the specification and the traces; the test is skipped where it is missing."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared")
    return SHARED


@pytest.fixture(autouse=True)
def _handlers_of_the_log() -> Iterator[None]:
    """A command that a test calls in this process sets the log up: its handlers write to what that test captured."""
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and item.config.getoption("--forbid-skips"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if _NOT_IN_CI not in reason:
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid} was skipped where skips are forbidden: {reason}"
    return report
