"""The online tuner in a real server: under load it tries, decides, and says so in metrics and log."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import openai

from tests.integration.serving import Served, serving

MODEL = "qwen_chat"
CLIENTS = 8
DECIDED_S = 250.0
LABELS = f'engine="pytorch",knob="max_batch_size",model="{MODEL}"'


@contextmanager
def load(server: Served) -> Iterator[list[Exception]]:
    """So many clients, each asking again as soon as it is answered; what went wrong for them is collected."""
    over = threading.Event()
    errors: list[Exception] = []
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=200)

    def ask() -> None:
        while not over.is_set():
            try:
                client.completions.create(model=MODEL, prompt="Once", max_tokens=8, extra_body={"ignore_eos": True})
            except openai.OpenAIError as error:
                errors.append(error)
                return

    threads = [threading.Thread(target=ask) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield errors
    finally:
        over.set()
        for thread in threads:
            thread.join()


def wait_until(condition: Callable[[], object]) -> None:
    """Return once it is true, or after so long; the caller asserts it."""
    give_up_at = time.monotonic() + DECIDED_S
    while not condition() and time.monotonic() < give_up_at:
        time.sleep(0.2)


def decisions(server: Served, outcome: str) -> float:
    return server.metric(f'muai_tuner_decisions_total{{{LABELS},outcome="{outcome}"}}') or 0.0


def overrides(directory: Path) -> list[str]:
    return [
        "optimization.batcher.max_batch_size=1",
        f"optimization.batcher.max_slots={CLIENTS}",
        "optimization.tuner.enabled=true",
        "optimization.tuner.tuning_interval_seconds=1",
        "optimization.tuner.observation_window_seconds=4",
        f"optimization.tuner.state_directory={directory}",
    ]


def test_it_tries_decides_drops_no_request_and_remembers_across_a_restart(tmp_path: Path) -> None:
    # given a server with a batch size of 1, and more clients than that
    with serving(tmp_path, *overrides(tmp_path / "state")) as server, load(server) as errors:
        # when the tuner has had time to try another one
        wait_until(lambda: decisions(server, "kept"))

        # then it has kept a larger one, in the metrics, in the log and on disk, and nobody was refused
        assert decisions(server, "tried") >= decisions(server, "kept") >= 1
        assert (server.metric(f"muai_tuner_value{{{LABELS}}}") or 0) > 1
        assert f"tuner of {MODEL} on pytorch: max_batch_size 1 -> 3 tried: requests wait for a slot" in server.log
        assert "kept: output tokens/s" in server.log
        assert errors == []
    assert [path.suffix for path in (tmp_path / "state").iterdir()] == [".json"]

    # and when the server is started again, it begins with what was good
    with serving(tmp_path, *overrides(tmp_path / "state")) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=200)
        client.completions.create(model=MODEL, prompt="Once", max_tokens=8)
        wait_until(lambda: decisions(server, "restored"))

        assert decisions(server, "restored") == 1
        assert (server.metric(f"muai_tuner_value{{{LABELS}}}") or 0) > 1
        assert "restored: good before the restart" in server.log
