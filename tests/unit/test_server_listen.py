"""Sockets: what is said when they cannot be had, and how they are shown."""

from __future__ import annotations

import asyncio
import gc
import resource
import socket
from typing import Any

import pytest

from muai_lab.errors import RunError
from muai_lab.server.connection import Connection
from muai_lab.server.listen import (
    SPARE_DESCRIPTORS,
    TICKS_PER_SWEEP,
    HttpServer,
    connections_allowed,
    is_exposed,
    listen,
    url_of,
)
from muai_lab.server.service import InferenceService
from muai_lab.settings.resolve import load_settings
from tests.unit.http_client import Client
from tests.unit.server_fakes import ParrotEngine, parrot_stack

KEY = "monitoring.server.port"


def test_port_0_is_any_free_port() -> None:
    with listen("127.0.0.1", 0, KEY) as listener:
        port = listener.getsockname()[1]

        assert port > 0
        assert url_of(listener, "/metrics") == f"http://127.0.0.1:{port}/metrics"
        assert not is_exposed(listener)


def test_a_socket_that_listens_everywhere_is_shown_by_its_loopback_address() -> None:
    with listen("0.0.0.0", 0, KEY) as listener:
        assert url_of(listener).startswith("http://127.0.0.1:")
        assert is_exposed(listener)


def test_a_port_in_use_is_named_with_the_way_out() -> None:
    with listen("127.0.0.1", 0, KEY) as taken:
        port = taken.getsockname()[1]

        with pytest.raises(RunError) as refused:
            listen("127.0.0.1", port, KEY)

    assert f"127.0.0.1:{port}" in str(refused.value)
    assert f"{KEY}=0" in str(refused.value)
    assert refused.value.exit_status == 2


def test_a_port_in_use_by_someone_who_listens_everywhere_is_in_use() -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken, pytest.raises(RunError, match="in use"):
        listen("127.0.0.1", taken.getsockname()[1], KEY)


@pytest.mark.parametrize("host", ["192.0.2.1", "x" * 64])  # another's address; a name too long to be looked up
def test_an_address_that_is_not_this_machines_is_refused(host: str) -> None:
    with pytest.raises(RunError, match=f"cannot listen on {host}:0"):
        listen(host, 0, KEY)


@pytest.mark.parametrize(
    ("soft", "hard", "allowed", "raised"),
    [
        (1024, 1_000_000, 2048, 2048 + SPARE_DESCRIPTORS),
        (1024, resource.RLIM_INFINITY, 2048, 2048 + SPARE_DESCRIPTORS),
        (1024, 1024, 1024 - SPARE_DESCRIPTORS, 1024),
        (100_000, 100_000, 2048, None),
        (64, 64, 1, 64),
    ],
)
def test_connections_are_allowed_as_far_as_there_are_descriptors(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, allowed: int, raised: int | None
) -> None:
    limits: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _what: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _what, to: limits.append(to))

    assert connections_allowed(2048) == allowed
    assert limits == ([] if raised is None else [(raised, hard)])


@pytest.mark.parametrize(
    ("overrides", "host"),
    [
        ({}, "0.0.0.0"),
        ({"monitoring.server.host": "127.0.0.1"}, "127.0.0.1"),
        ({"monitoring.server.host": "127.0.0.1", "monitoring.prometheus.host": "0.0.0.0"}, "0.0.0.0"),
        ({"monitoring.prometheus.host": "127.0.0.1"}, "127.0.0.1"),
    ],
)
def test_the_metrics_listen_where_the_server_does_unless_told_otherwise(overrides: dict[str, str], host: str) -> None:
    assert load_settings(environ={}, overrides=overrides).settings.monitoring.metrics_host == host


@pytest.mark.parametrize(
    ("server", "metrics", "named"),
    [
        ("127.0.0.1", "127.0.0.1", []),
        ("127.0.0.1", "0.0.0.0", ["monitoring.prometheus.host"]),
        ("0.0.0.0", "127.0.0.1", ["monitoring.server.host"]),
        ("0.0.0.0", "0.0.0.0", ["monitoring.server.host", "monitoring.prometheus.host"]),
    ],
)
def test_every_socket_that_is_open_to_others_is_warned_of(
    caplog: pytest.LogCaptureFixture, server: str, metrics: str, named: list[str]
) -> None:
    ports: dict[str, object] = {"monitoring.server.port": 0, "monitoring.prometheus.port": 0}
    hosts = {"monitoring.server.host": server, "monitoring.prometheus.host": metrics}
    service = InferenceService(load_settings(environ={}, overrides=ports | hosts).settings)

    service._log_addresses()
    asyncio.run(service.stop())

    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [key for key in hosts if any(f"{key}=127.0.0.1" in warning for warning in warnings)] == named


def test_every_connection_is_looked_at_once_in_a_round_of_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Connection] = []
    monkeypatch.setattr(Connection, "end_if_overdue", lambda self, now: seen.append(self))

    async def work() -> list[Connection]:
        with listen("127.0.0.1", 0, KEY) as listener:
            server = HttpServer(app, listener, flush_s=1)
            connections = [Client(app, server.server_state).connection for _ in range(20)]
            for tick in range(TICKS_PER_SWEEP):
                server.sweep(tick, 0.0)
        return connections

    connections = asyncio.run(work())

    assert len(seen) == 20
    assert set(seen) == set(connections)


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Never asked."""


def test_what_a_model_leaves_in_memory_is_not_looked_through_again_while_it_is_served() -> None:
    """A full collection over a loaded model takes half a second, in which no request is answered."""
    ports = {"monitoring.server.port": 0, "monitoring.prometheus.port": 0, "monitoring.server.host": "127.0.0.1"}
    settings = load_settings(environ={}, overrides=ports).settings
    service = InferenceService(settings, lambda _settings, _name, _observers: parrot_stack(ParrotEngine()))
    gc.unfreeze()

    async def work() -> int:
        await service.start()
        frozen = gc.get_freeze_count()
        await service.stop()
        return frozen

    try:
        assert asyncio.run(work()) > 1000
    finally:
        gc.unfreeze()
