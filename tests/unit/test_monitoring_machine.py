"""What the machine does: CPU between scrapes, GPU memory where there is a GPU."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from muai_lab.monitoring.machine import MachineMetrics, cpu_seconds


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
