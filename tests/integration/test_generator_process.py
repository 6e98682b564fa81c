"""The generator and the reference server as processes: signals, ports, and one honest pair of clocks."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

from muai_lab.load.event_loop import run_on_fast_loop
from muai_lab.load.generator import generate
from muai_lab.load.openai_http import HttpTarget
from muai_lab.load.plan import LoadPlan
from muai_lab.workload.arrival import constant
from muai_lab.workload.schedule import Schedule, ScheduledRequest
from tests.integration.reference_process import SERVER, reference_server

INTERRUPTED_LOAD = """
import json, sys
from muai_lab.load.event_loop import run_on_fast_loop
from muai_lab.load.generator import generate
from muai_lab.load.plan import LoadPlan
from muai_lab.load.openai_http import HttpTarget
from muai_lab.load.records import records_table
from muai_lab.workload.schedule import Schedule, ScheduledRequest

schedule = Schedule.of([ScheduledRequest(i, i / 100, "one two", None, 2, 4) for i in range(100_000)])
plan = LoadPlan(warmup_s=0.0, duration_s=1000.0, drain_s=30.0, request_timeout_s=60.0)
told = []

def progress(moment):
    if moment.ok and not told:
        told.append(True)
        print("running", flush=True)

result = run_on_fast_loop(generate(schedule, HttpTarget(sys.argv[1], model="reference"), plan, progress=progress))
statuses = records_table(result.records, result.window)["status"].to_pylist()
print(json.dumps({"interrupted": result.interrupted, "statuses": sorted(set(statuses)), "rows": len(statuses)}))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_reference_server_ends_cleanly_on_a_signal(number: signal.Signals) -> None:
    with reference_server() as (_, process):
        process.send_signal(number)
        _, errors = process.communicate(timeout=100)

    assert (process.returncode, errors) == (0, "")


def test_a_port_in_use_is_an_error_that_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run([*SERVER, "--port", str(port)], capture_output=True, text=True, timeout=100, check=False)

    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
    assert "choose another --port" in done.stderr
    assert "Traceback" not in done.stderr


def test_times_of_two_processes_are_on_one_clock() -> None:
    times = constant(200.0, 0.5).tolist()
    schedule = Schedule.of([ScheduledRequest(i, t, "one two", None, 2, 4) for i, t in enumerate(times)])
    plan = LoadPlan(warmup_s=0.0, duration_s=0.5, drain_s=60.0, request_timeout_s=60.0)
    with reference_server("--ttft-ms", "10", "--itl-ms", "2") as (url, _):
        result = run_on_fast_loop(generate(schedule, HttpTarget(url, model="reference"), plan))
        with urllib.request.urlopen(f"{url}/stamps", timeout=100) as response:
            stamps = {stamp["request_id"]: stamp for stamp in json.load(response)}

    assert len(result.records) == 100
    for record in result.records:
        stamp = stamps[str(record.index)]
        assert record.sent_ns is not None
        assert record.first_content_ns is not None
        assert record.last_token_ns is not None
        assert record.sent_ns <= stamp["received_ns"] <= stamp["first_token_ns"] <= record.first_content_ns
        assert stamp["last_token_ns"] <= record.last_token_ns


def test_an_interrupted_load_hands_over_what_it_has() -> None:
    with reference_server("--ttft-ms", "400") as (url, _):
        command = [sys.executable, "-c", INTERRUPTED_LOAD, url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as load:
            assert load.stdout is not None
            assert load.stdout.readline() == "running\n"
            load.send_signal(signal.SIGINT)
            output, errors = load.communicate(timeout=100)

    assert errors == ""
    told = json.loads(output)
    assert told["interrupted"] is True
    assert told["statuses"] == ["cancelled", "ok"]
    assert 0 < told["rows"] < 100_000
