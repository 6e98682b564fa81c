"""What the machine does: CPU between scrapes, GPU memory where there is a GPU."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry

from muai_lab.monitoring.machine import MachineMetrics, cpu_seconds, gpu_reader


def registry_of(machine: MachineMetrics) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(machine)
    return registry


def test_cpu_usage_is_what_was_busy_since_the_scrape_before() -> None:
    readings = iter([(10.0, 100.0), (11.0, 104.0), (14.0, 108.0), (14.0, 108.0)])
    registry = registry_of(MachineMetrics(cpu=lambda: next(readings)))

    # Registering reads nothing: the first scrape covers the time since the start.
    assert registry.get_sample_value("cpu_usage_percent") == 25.0
    assert registry.get_sample_value("cpu_usage_percent") == 75.0
    assert registry.get_sample_value("cpu_usage_percent") == 75.0  # no tick has passed


def test_the_real_counters_are_plausible() -> None:
    busy_s, total_s = cpu_seconds()

    assert 0.0 < busy_s < total_s


def test_gpu_memory_has_one_sample_per_gpu_and_none_without() -> None:
    with_gpus = registry_of(MachineMetrics(gpu=lambda: [("0", 5), ("1", 7)]))
    without = registry_of(MachineMetrics(gpu=None))

    assert with_gpus.get_sample_value("gpu_memory_used_bytes", {"gpu_id": "1"}) == 7
    assert [family.samples for family in without.collect() if family.name == "gpu_memory_used_bytes"] == [[]]


def test_resident_memory_is_that_of_this_process() -> None:
    resident = registry_of(MachineMetrics()).get_sample_value("muai_process_resident_bytes")

    assert resident is not None
    assert resident > 1_000_000


class NVMLError(Exception):
    """As nvidia-ml-py's."""


def driver(count: int, used: dict[int, int]) -> SimpleNamespace:
    """nvidia-ml-py as it is on a machine with `count` GPUs, of which those in `used` answer."""

    def memory(index: int) -> SimpleNamespace:
        if index not in used:
            raise NVMLError
        return SimpleNamespace(used=used[index])

    return SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: count,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetMemoryInfo=memory,
    )


def test_a_gpu_that_stops_answering_has_no_sample_and_the_others_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", driver(3, {0: 5, 2: 7}))
    read = gpu_reader()

    assert read is not None
    assert read() == [("0", 5), ("2", 7)]


def test_without_the_library_a_driver_or_a_gpu_there_is_no_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    no_driver = driver(0, {})

    def fail() -> None:
        raise NVMLError

    no_driver.nvmlInit = fail
    readers = []
    for module in (None, no_driver, driver(0, {})):  # None: the import fails
        monkeypatch.setitem(sys.modules, "pynvml", module)
        readers.append(gpu_reader())

    assert readers == [None, None, None]
