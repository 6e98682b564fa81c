"""The life of a server process: ports, signals, drains, and what is left behind."""

from __future__ import annotations

import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import openai
import psutil
import pytest
from serving import STOP_S, Served, command, environment, serving

MODEL = "qwen_chat"


def client_of(server: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)


def long_stream(client: openai.OpenAI, max_tokens: int) -> openai.Stream[openai.types.Completion]:
    stream = client.completions.create(
        model=MODEL, prompt="Once", max_tokens=max_tokens, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    return stream


def run_to_the_end(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*overrides), capture_output=True, text=True, cwd=folder, env=environment(), timeout=60, check=False
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


def test_sigterm_lets_a_running_stream_finish_and_refuses_new_requests(tmp_path: Path) -> None:
    with serving(tmp_path) as server, client_of(server) as client:
        stream = long_stream(client, 600)
        server.process.send_signal(signal.SIGTERM)
        refused = _first_refusal(client)
        rest = list(stream)

        assert server.process.wait(STOP_S) == 0
        assert refused.status_code == 503
        assert refused.code == "draining"
        assert int(refused.response.headers["retry-after"]) >= 1
        assert rest[-1].choices[0].finish_reason == "length"
        assert "SIGTERM" in server.log


def test_a_stream_that_outlives_the_grace_period_is_told_so(tmp_path: Path) -> None:
    with serving(tmp_path, "monitoring.server.graceful_shutdown_timeout=0") as server, client_of(server) as client:
        stream = long_stream(client, 8000)
        server.process.send_signal(signal.SIGTERM)

        with pytest.raises(openai.APIError, match="shutting down"):
            list(stream)
        assert server.process.wait(STOP_S) == 0


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        before = psutil.Process(server.process.pid).children(recursive=True)
        with client_of(server) as client:
            client.completions.create(model=MODEL, prompt="a", max_tokens=2)

        assert server.stop() == 0
        assert not [child for child in before if child.is_running()]
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=5).close()


def test_ctrl_c_ends_it_too_with_the_status_of_an_interrupt(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        assert server.stop(signal.SIGINT) == 130
        assert "Traceback" not in server.log


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


def test_health_answers_while_the_models_load_and_readiness_says_wait(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        command(f"monitoring.server.port={port}"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=environment(),
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if "loading" in line:
                break
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=30) as health:
            assert health.status == 200
        with pytest.raises(urllib.error.HTTPError) as waiting:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=30)
        assert waiting.value.code == 503
        assert waiting.value.headers["retry-after"]
        waiting.value.close()
    finally:
        process.kill()
        process.communicate()


def test_a_full_queue_is_429_for_the_client(tmp_path: Path) -> None:
    limits = ["optimization.batcher.max_batch_size=1", "monitoring.server.queue_capacity=1"]
    with serving(tmp_path, *limits) as server, client_of(server) as client:
        running = long_stream(client, 4000)
        waiting = threading.Thread(target=lambda: _ignoring_errors(client))
        waiting.start()
        _until_waiting(server)

        with pytest.raises(openai.RateLimitError) as refused:
            client.completions.create(model=MODEL, prompt="a", max_tokens=1)

        assert int(refused.value.response.headers["retry-after"]) >= 1
        running.close()
        waiting.join()


def test_with_monitoring_off_there_is_no_metrics_port(tmp_path: Path) -> None:
    with serving(tmp_path, "monitoring.enabled=false") as server:
        assert server.ready["metrics_url"] is None
        listening = [
            connection.laddr.port
            for connection in psutil.Process(server.process.pid).net_connections(kind="tcp")
            if connection.status == psutil.CONN_LISTEN
        ]
        assert listening == [int(server.url.rpartition(":")[2])]


def _first_refusal(client: openai.OpenAI) -> openai.APIStatusError:
    """Ask until the answer is a refusal: the signal needs a moment to arrive."""
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        try:
            client.completions.create(model=MODEL, prompt="a", max_tokens=1)
        except openai.APIStatusError as error:
            return error
    raise AssertionError("the server goes on taking requests")


def _ignoring_errors(client: openai.OpenAI) -> None:
    client.completions.create(model=MODEL, prompt="a", max_tokens=1)


def _until_waiting(server: Served) -> None:
    deadline = time.monotonic() + 100
    while server.metric('muai_waiting_requests{model="qwen_chat"}') != 1:
        assert time.monotonic() < deadline
