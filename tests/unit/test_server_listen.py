"""Sockets: what is said when they cannot be had, and how they are shown."""

from __future__ import annotations

import socket

import pytest

from muai_lab.errors import RunError
from muai_lab.server.listen import is_exposed, listen, url_of

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
