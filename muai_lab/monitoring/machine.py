"""Metrics of the machine: CPU, GPU memory, and the memory of this process, read at every scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import psutil
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

GpuReader = Callable[[], Sequence[tuple[str, int]]]


def cpu_seconds() -> tuple[float, float]:
    """Return the busy and the total CPU seconds of the whole machine since it started."""
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    # Guest time is already contained in user time if the kernel reports both.
    total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    return total - idle, total


class MachineMetrics(Collector):
    """`cpu_usage_percent`, `gpu_memory_used_bytes{gpu_id}` and `muai_process_resident_bytes`.

    CPU usage is that of the whole machine between two scrapes (the first: since construction), so no scrape waits.
    """

    def __init__(self, cpu: Callable[[], tuple[float, float]] = cpu_seconds, gpu: GpuReader | None = None) -> None:
        self._cpu = cpu
        self._gpu = gpu
        self._process = psutil.Process()
        self._busy_s, self._total_s = cpu()
        self._percent = 0.0

    def collect(self) -> Iterable[Metric]:
        """Return all samples of this moment; the GPU family has none if no GPU can be read."""
        gpu, cpu, resident = self.describe()
        for gpu_id, used in self._gpu() if self._gpu else ():
            gpu.add_metric([gpu_id], used)
        cpu.add_metric([], self._cpu_percent())
        resident.add_metric([], self._process.memory_info().rss)
        return [gpu, cpu, resident]

    def describe(self) -> tuple[GaugeMetricFamily, GaugeMetricFamily, GaugeMetricFamily]:
        """Return the families without samples; does not end the interval of the CPU usage."""
        return (
            GaugeMetricFamily("gpu_memory_used_bytes", "GPU memory usage", labels=["gpu_id"]),
            GaugeMetricFamily("cpu_usage_percent", "CPU utilization"),
            GaugeMetricFamily("muai_process_resident_bytes", "Resident memory of the server"),
        )

    def _cpu_percent(self) -> float:
        busy_s, total_s = self._cpu()
        if total_s > self._total_s:  # the kernel counts in ticks; between two of them the last value stands
            self._percent = 100.0 * (busy_s - self._busy_s) / (total_s - self._total_s)
            self._busy_s, self._total_s = busy_s, total_s
        return min(100.0, max(0.0, self._percent))
