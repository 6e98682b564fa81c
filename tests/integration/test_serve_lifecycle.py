"""The life of a server process: ports, signals, drains, and what is left behind."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from tests.integration.serving import STOP_S, Served, command, environment, serving

MODEL = "qwen_chat"


def client_of(server: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=STOP_S)


def long_stream(client: openai.OpenAI, max_tokens: int) -> openai.Stream[openai.types.Completion]:
    stream = client.completions.create(
        model=MODEL, prompt="Once", max_tokens=max_tokens, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    return stream


def run_to_the_end(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*overrides), capture_output=True, text=True, cwd=folder, env=environment(), timeout=STOP_S, check=False
    )


@pytest.mark.parametrize("section", ["server", "prometheus"])
def test_a_port_in_use_is_exit_2_before_any_model_is_loaded(tmp_path: Path, section: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = run_to_the_end(tmp_path, f"monitoring.{section}.port={port}")

    assert ended.returncode == 2
    assert ended.stdout == ""
    assert f"127.0.0.1:{port}" in ended.stderr
    assert f"monitoring.{section}.port=0" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "loading" not in ended.stderr


def test_a_model_that_cannot_be_loaded_is_exit_2(tmp_path: Path) -> None:
    ended = run_to_the_end(tmp_path, "model.name=mine", "model.checkpoint=./not-there")

    assert ended.returncode == 2
    assert "not-there" in ended.stderr
    assert "Traceback" not in ended.stderr


def listening(process: psutil.Process) -> list[int]:
    connections = process.net_connections(kind="tcp")
    return [connection.laddr.port for connection in connections if connection.status == psutil.CONN_LISTEN]


def test_sigterm_lets_a_running_stream_finish_refuses_new_requests_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """Of a server without monitoring, which has no port for metrics."""
    with serving(tmp_path, "monitoring.enabled=false") as server, client_of(server) as client:
        process, port = psutil.Process(server.process.pid), int(server.url.rpartition(":")[2])
        assert server.ready["metrics_url"] is None
        assert listening(process) == [port]
        stream = long_stream(client, 600)
        children = process.children(recursive=True)

        server.process.send_signal(signal.SIGTERM)

        refused = _first_refusal(client)
        rest = list(stream)
        assert server.process.wait(STOP_S) == 0
        assert refused.status_code == 503
        assert refused.code == "draining"
        assert int(refused.response.headers["retry-after"]) >= 1
        assert rest[-1].choices[0].finish_reason == "length"
        assert "SIGTERM" in server.log
        assert not [child for child in children if child.is_running()]
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5).close()


def test_a_full_queue_is_429_and_a_stream_that_outlives_the_grace_period_is_told_so(tmp_path: Path) -> None:
    settings = ["optimization.batcher.max_batch_size=1", "monitoring.server.queue_capacity=1"]
    settings += ["monitoring.server.graceful_shutdown_timeout=0"]
    with serving(tmp_path, *settings) as server, client_of(server) as client:
        running = long_stream(client, 8000)
        waiting = threading.Thread(target=_ask_in_vain, args=(client,))
        waiting.start()
        _until_waiting(server)

        with pytest.raises(openai.RateLimitError) as refused:
            client.completions.create(model=MODEL, prompt="a", max_tokens=1)
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises(openai.APIError, match="shutting down"):
            list(running)

        waiting.join()
        assert server.process.wait(STOP_S) == 0
        assert int(refused.value.response.headers["retry-after"]) >= 1


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    with serving(tmp_path) as server, client_of(server) as client:
        stream = long_stream(client, 8000)
        server.process.send_signal(signal.SIGTERM)
        _first_refusal(client)  # the first signal has been taken
        server.process.send_signal(signal.SIGTERM)

        assert server.process.wait(STOP_S) == 128 + signal.SIGTERM
        stream.close()


def test_a_signal_while_it_loads_ends_it_at_once(tmp_path: Path) -> None:
    process = subprocess.Popen(command(), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment())
    assert process.stderr is not None
    for line in process.stderr:
        if "loading" in line:
            break
    process.send_signal(signal.SIGTERM)
    rest, log = process.communicate(timeout=STOP_S)

    assert process.returncode == 0
    assert rest == ""
    assert "Traceback" not in log


def status_of(url: str) -> tuple[int, Any]:
    """Status and headers of an answer."""
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return answer.status, answer.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers


def test_while_models_load_health_answers_and_readiness_says_wait_and_ctrl_c_ends_it_once_they_have(
    tmp_path: Path,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    process = subprocess.Popen(
        command(f"monitoring.server.port={url.rpartition(':')[2]}"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=environment(),
    )
    try:
        assert process.stderr is not None
        assert process.stdout is not None
        for line in process.stderr:
            if "loading" in line:
                break
        ready, headers = status_of(f"{url}/ready")
        assert (ready, status_of(f"{url}/health")[0]) == (503, 200)
        assert headers["retry-after"]

        assert json.loads(process.stdout.readline())["event"] == "ready"
        assert status_of(f"{url}/ready")[0] == 200
        process.send_signal(signal.SIGINT)
        _, log = process.communicate(timeout=STOP_S)

        assert process.returncode == 130
        assert "Traceback" not in log
    finally:
        process.kill()
        process.communicate()


def _first_refusal(client: openai.OpenAI) -> openai.APIStatusError:
    """Ask until the answer is a refusal: the signal needs a moment to arrive."""
    deadline = time.monotonic() + STOP_S
    while time.monotonic() < deadline:
        try:
            client.completions.create(model=MODEL, prompt="a", max_tokens=1)
        except openai.APIStatusError as error:
            return error
    raise AssertionError("the server goes on taking requests")


def _ask_in_vain(client: openai.OpenAI) -> None:
    """A request that waits until the server ends."""
    with contextlib.suppress(openai.APIError):
        client.completions.create(model=MODEL, prompt="a", max_tokens=1)


def _until_waiting(server: Served) -> None:
    deadline = time.monotonic() + STOP_S
    while server.metric('muai_waiting_requests{model="qwen_chat"}') != 1:
        assert time.monotonic() < deadline
