"""The `monitoring` section: every key with its default, range, options and meaning; see `muai_lab.settings.schema`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from muai_lab.settings.section import (
    AnySequence,
    Conflict,
    GivesWay,
    HttpPath,
    Name,
    OtlpEndpoint,
    SecretUrl,
    Section,
    Unique,
    WasSet,
    setting,
)

_LAST_PORT = 65535

AlertDestination = Literal["log", "webhook", "alertmanager"]


class PrometheusSettings(Section):
    """Metrics in Prometheus' text format, on their own port."""

    enabled: bool = setting(True, "Export metrics.")
    port: int = setting(9090, "HTTP port of the metrics; 0 takes any free port.", ge=0, le=_LAST_PORT)
    host: Name = setting(
        "0.0.0.0",
        "Address to bind; 127.0.0.1 for this machine only. If it is not set, `monitoring.server.host`.",
        unset_matters=True,
    )
    path: HttpPath = setting("/metrics", "HTTP path of the metrics; other paths answer 404.")


class TracingSettings(Section):
    """OpenTelemetry traces over OTLP/gRPC."""

    enabled: bool = setting(True, "Trace requests.")
    endpoint: OtlpEndpoint = setting(
        "http://localhost:4317", "OTLP collector; a bare host:port is accepted and means plaintext."
    )
    sample_rate: float = setting(1.0, "Share of the requests that are traced.", ge=0.0, le=1.0)
    service_name: Name = setting("muai-orchestration", "Name of the service in the traces.")
    export_timeout_ms: int = setting(30000, "Timeout of one export; also bounds the shutdown.", unit="ms", ge=1)


class AnomalySettings(Section):
    """Alerts if latency, errors, memory or throughput leave their bounds."""

    enabled: bool = setting(True, "Detect anomalies.")
    latency_threshold_ms: float = setting(
        1000.0, "Alert if latency is above.", unit="ms", env="MUAI_MON_ANOMALY_LATENCY_THRESHOLD", gt=0
    )
    error_rate_threshold: float = setting(0.05, "Alert if the share of failed requests is above.", ge=0.0, le=1.0)
    memory_threshold_percent: float = setting(90.0, "Alert if memory use is above.", unit="%", ge=0.0, le=100.0)
    throughput_threshold_rps: float = setting(
        1.0, "Alert if throughput is below while requests arrive.", unit="requests/s", ge=0.0
    )
    alert_rate_limit_seconds: int = setting(
        300, "Shortest time between repeats of one alert (same rule, same labels).", unit="s", ge=0
    )
    alert_destinations: Annotated[tuple[AlertDestination, ...], AnySequence, Unique] = setting(
        ("log",), "Destinations of alerts."
    )
    webhook_url: SecretUrl | None = setting(
        None, "Address that alerts are posted to; needed by the destination webhook. A secret: never shown or written."
    )
    alertmanager_url: SecretUrl | None = setting(
        None,
        "Base address of Alertmanager (its v2 API); needed by the destination alertmanager. "
        "A secret, since it may hold credentials: never shown or written.",
        extension=True,
    )

    def conflicts(self) -> Iterator[Conflict]:
        if "webhook" in self.alert_destinations and self.webhook_url is None:
            yield Conflict(
                ("alert_destinations", "webhook_url"),
                "the destination webhook needs webhook_url: set it, or take webhook out of alert_destinations",
            )
        if "alertmanager" in self.alert_destinations and self.alertmanager_url is None:
            yield Conflict(
                ("alert_destinations", "alertmanager_url"),
                "the destination alertmanager needs alertmanager_url: set it, or take alertmanager out of "
                "alert_destinations",
            )


class ServerSettings(Section):
    """The inference server."""

    enabled: bool = setting(False, "Server mode, for deployments that start from this file.")
    host: Name = setting("0.0.0.0", "Address to bind; 127.0.0.1 for this machine only.")
    port: int = setting(8000, "HTTP port; 0 takes any free port.", ge=0, le=_LAST_PORT)
    queue_capacity: int = setting(
        100, "Most requests in the queue; more are rejected with HTTP 429.", unit="requests", ge=1
    )
    preload_models: Annotated[tuple[Name, ...], AnySequence, Unique] = setting(
        (), "Models that are loaded at start, so that the first request does not wait."
    )
    graceful_shutdown_timeout: int = setting(30, "Longest wait of a shutdown for requests in flight.", unit="s", ge=0)
    health_check_path: HttpPath = setting("/health", "HTTP path of the health check: reports the state of the process.")
    readiness_check_path: HttpPath = setting(
        "/ready", "HTTP path of the readiness check: reports if the server accepts requests."
    )
    request_timeout_s: float | None = setting(
        None, "Timeout of one request, queueing included; null for no limit.", unit="s", extension=True, gt=0
    )

    client_timeout_s: float = setting(
        30.0,
        "Longest time that a client may take for the head of a request, may pause within its body, or may leave its "
        "answer unread. Slower clients lose their connection.",
        unit="s",
        extension=True,
        gt=0,
    )
    max_connections: int = setting(
        2048,
        "Most open connections. Another one closes the connection that has been idle longest; if none is idle, it is "
        "rejected with HTTP 503.",
        unit="connections",
        extension=True,
        ge=1,
    )

    def giving_way(self, was_set: WasSet) -> Iterator[GivesWay]:
        if self.health_check_path == self.readiness_check_path:
            health, ready = was_set("health_check_path"), was_set("readiness_check_path")
            if health and not ready:
                yield GivesWay("readiness_check_path", "/readyz", "health_check_path")
            elif ready and not health:
                yield GivesWay("health_check_path", "/healthz", "readiness_check_path")

    def conflicts(self) -> Iterator[Conflict]:
        if self.health_check_path == self.readiness_check_path:
            yield Conflict(
                ("health_check_path", "readiness_check_path"),
                f"health_check_path and readiness_check_path are both {self.health_check_path}: give each its own path",
            )


class MonitoringSettings(Section):
    """Observation of the running system (metrics, traces, alerts), and the server itself."""

    enabled: bool = setting(True, "Master switch of metrics, traces and anomaly detection.")
    prometheus: PrometheusSettings = PrometheusSettings()
    tracing: TracingSettings = TracingSettings()
    anomaly: AnomalySettings = AnomalySettings()
    server: ServerSettings = ServerSettings()

    @property
    def metrics_host(self) -> str:
        """Address of the metrics: their own if it is set, otherwise the server's."""
        return self.prometheus.host if "host" in self.prometheus.model_fields_set else self.server.host

    def giving_way(self, was_set: WasSet) -> Iterator[GivesWay]:
        ports = {"prometheus.port": self.prometheus.port, "server.port": self.server.port}
        taken = [key for key in ports if was_set(key)]
        if len(taken) == 1 and self._metrics_on_the_server_s_port():
            (free,) = ports.keys() - taken
            port = ports[free]
            yield GivesWay(free, port + 1 if port < _LAST_PORT else port - 1, taken[0])

    def conflicts(self) -> Iterator[Conflict]:
        if self.server.enabled and self._metrics_on_the_server_s_port():
            yield Conflict(
                ("prometheus.port", "server.port"),
                f"prometheus.port and server.port are both {self.server.port}: give each its own, or 0 for any free "
                "port",
            )

    def _metrics_on_the_server_s_port(self) -> bool:
        return self.enabled and self.prometheus.enabled and self.prometheus.port == self.server.port != 0
