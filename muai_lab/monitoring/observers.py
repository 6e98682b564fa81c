"""Which observers the monitoring settings ask for."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from muai_lab.gpus import memory_reader
from muai_lab.monitoring.machine import MachineMetrics
from muai_lab.monitoring.prometheus import ServingMetrics
from muai_lab.settings.monitoring import MonitoringSettings
from muai_lab.stack.events import Observer


@dataclass(frozen=True, slots=True)
class Exporter:
    """The metrics of one process: what a scrape reads, and what the observers of its stacks write to."""

    registry: CollectorRegistry
    serving: ServingMetrics


def open_exporter(settings: MonitoringSettings) -> Exporter | None:
    """The exporter, with a registry of its own, or None where metrics are switched off."""
    if not (settings.enabled and settings.prometheus.enabled):
        return None
    registry = CollectorRegistry()
    serving = ServingMetrics()
    registry.register(serving)
    registry.register(MachineMetrics(gpu=memory_reader()))
    return Exporter(registry, serving)


def observers_for(exporter: Exporter | None, model: str, engine: str) -> list[Observer]:
    """What watches one model on one engine: nothing where monitoring is off, so that it costs nothing."""
    return [] if exporter is None else [exporter.serving.observer(model, engine)]
