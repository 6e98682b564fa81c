"""The observers that the monitoring settings configure."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from muai_lab.gpus import memory_reader
from muai_lab.monitoring.machine import MachineMetrics
from muai_lab.monitoring.serving_metrics import ServingMetrics
from muai_lab.settings.monitoring import MonitoringSettings
from muai_lab.stack.events import Observer


@dataclass(frozen=True, slots=True)
class Exporter:
    """The metrics of one process. registry: read by a scrape. serving: written by the observers of its stacks."""

    registry: CollectorRegistry
    serving: ServingMetrics


def open_exporter(settings: MonitoringSettings) -> Exporter | None:
    """Return the exporter, with a registry of its own; None if metrics are switched off."""
    if not (settings.enabled and settings.prometheus.enabled):
        return None
    registry = CollectorRegistry()
    serving = ServingMetrics()
    registry.register(serving)
    registry.register(MachineMetrics(gpu=memory_reader()))
    return Exporter(registry, serving)


def observers_for(exporter: Exporter | None, model: str, engine: str) -> list[Observer]:
    """Return the observers of one model on one engine; none if monitoring is off, so that it costs nothing."""
    return [] if exporter is None else [exporter.serving.observer(model, engine)]
