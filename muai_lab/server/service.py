"""One inference server: sockets, models, metrics, from start to drained."""

from __future__ import annotations

import gc
import logging
import os
import time
from collections.abc import Callable
from typing import Any

from muai_lab.models.embedded import EMBEDDED_MODELS
from muai_lab.monitoring.exposition import metrics_app
from muai_lab.monitoring.observers import observers_for, open_exporter
from muai_lab.server.app import create_app
from muai_lab.server.description import describe_model
from muai_lab.server.host import ModelHost
from muai_lab.server.listen import HttpServer, connections_allowed, is_exposed, listen, url_of
from muai_lab.server.reading import RequestReader
from muai_lab.settings.lab import LabSettings
from muai_lab.stack.serving import MakeObservers
from muai_lab.stack.stack import InferenceStack

log = logging.getLogger(__name__)

FLUSH_S = 5
METRICS_FLUSH_S = 1

OpenStack = Callable[[LabSettings, str, MakeObservers], InferenceStack]


def open_stack(settings: LabSettings, name: str, observers: MakeObservers) -> InferenceStack:
    """Return the stack of the settings for this model name; blocks for seconds."""
    return InferenceStack.open(
        settings.optimization,
        name,
        checkpoint=settings.model.checkpoint if name == settings.model.name else None,
        queue_capacity=settings.monitoring.server.queue_capacity,
        observers=observers,
    )


class InferenceService:
    """The HTTP API and the metrics of one process.

    The constructor binds both sockets, before any model is loaded.

    Args:
        settings: All settings.
        open_stack: Opens a model; replaceable for tests.
        admin_token: Token of the admin call; None for no admin call.

    Raises:
        RunError: A socket cannot be bound.
    """

    def __init__(
        self, settings: LabSettings, open_stack: OpenStack = open_stack, *, admin_token: str | None = None
    ) -> None:
        self._settings = settings
        self._open_stack = open_stack
        self._admin_token = admin_token
        server, prometheus = settings.monitoring.server, settings.monitoring.prometheus
        self.preloaded = server.preload_models or (settings.model.name,)
        offered = (*self.preloaded, settings.model.name, *settings.optimization.models, *EMBEDDED_MODELS)
        self.host = ModelHost(offered, self._open)
        self._exporter = open_exporter(settings.monitoring)
        self._listener = listen(server.host, server.port, "monitoring.server.port")
        self.url = url_of(self._listener)
        self.metrics_url: str | None = None
        self._metrics_listener = None
        if self._exporter is not None:
            try:
                self._metrics_listener = listen(
                    settings.monitoring.metrics_host, prometheus.port, "monitoring.prometheus.port"
                )
            except BaseException:
                self._listener.close()
                raise
            self.metrics_url = url_of(self._metrics_listener, prometheus.path)
        self._servers: list[HttpServer] = []
        self._reader = RequestReader()

    async def start(self) -> None:
        """Answer health checks at once, and requests after the models are loaded.

        Raises:
            MuaiError: A model cannot be loaded.
        """
        monitoring = self._settings.monitoring
        created = int(time.time())
        api = create_app(self.host, self._reader, monitoring.server, created, admin_token=self._admin_token)
        self._servers.append(
            HttpServer(
                api,
                self._listener,
                flush_s=FLUSH_S,
                client_timeout_s=monitoring.server.client_timeout_s,
                max_connections=connections_allowed(monitoring.server.max_connections),
            )
        )
        if self._exporter is not None and self._metrics_listener is not None:
            metrics = metrics_app(self._exporter.registry, monitoring.prometheus.path)
            self._servers.append(HttpServer(metrics, self._metrics_listener, flush_s=METRICS_FLUSH_S))
        for server in self._servers:
            await server.start()
        self._log_addresses()
        await self.host.preload(self.preloaded)

    async def stop(self) -> None:
        """Refuse new requests, finish the running ones within the configured time, then close everything.

        Metrics are served until the end, so that the drain can be observed.
        """
        await self.host.drain(self._settings.monitoring.server.graceful_shutdown_timeout)
        for server in self._servers:
            await server.stop()
        self._reader.close()
        await self.host.close()
        self._listener.close()
        if self._metrics_listener is not None:
            self._metrics_listener.close()

    def describe(self) -> dict[str, Any]:
        """Return the content of the ready line: addresses, models and engines."""
        return {
            "event": "ready",
            "url": self.url,
            "metrics_url": self.metrics_url,
            "pid": os.getpid(),
            "models": [describe_model(name, stack) for name, stack in self.host.stacks.items()],
        }

    def _open(self, name: str) -> InferenceStack:
        log.info("loading %s", name)
        began = time.monotonic()
        stack = self._open_stack(self._settings, name, lambda engine: observers_for(self._exporter, name, engine.name))
        engine = stack.info.engine
        log.info(
            "%s: served by %s %s on %s in %s, context %d tokens, loaded in %.1f s",
            *(name, engine.name, engine.version, engine.device, engine.dtype),
            *(engine.max_model_len, time.monotonic() - began),
        )
        # The loaded objects stay: a full collection would traverse all of them, and block every request meanwhile.
        gc.collect()
        gc.freeze()
        return stack

    def _log_addresses(self) -> None:
        log.info("listening on %s, OpenAI API at %s/v1", self.url, self.url)
        if self.metrics_url is not None:
            log.info("metrics at %s", self.metrics_url)
        sockets = [("the API", self._listener, "server")]
        if self._metrics_listener is not None:
            sockets.append(("the metrics", self._metrics_listener, "prometheus"))
        for what, listener, section in sockets:
            if is_exposed(listener):
                host, port = listener.getsockname()[:2]
                log.warning("%s on %s, port %d, is open to other machines, without authentication", what, host, port)
                log.warning("monitoring.%s.host=127.0.0.1 keeps it to this machine", section)
