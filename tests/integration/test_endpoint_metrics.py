"""An endpoint whose metrics are read beside the load, and endpoints that have none."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from muai_lab.errors import RunError
from muai_lab.experiment.directory import RunDirectory
from muai_lab.experiment.system_under_test import SystemUnderTest, open_system
from muai_lab.load.event_loop import run_on_fast_loop
from muai_lab.settings.lab import LabSettings

VLLM = """\
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 2.0
"""


@contextmanager
def server(status: int, page: str, path: str = "/metrics") -> Iterator[str]:
    """Answers one path, to which `/metrics` redirects, and nothing else; gives its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found, elsewhere = self.path == path, self.path == "/metrics" != path
            self.send_response(status if found else 307 if elsewhere else 404)
            if elsewhere:
                self.send_header("Location", path)
            self.end_headers()
            self.wfile.write(page.encode() if found else b"")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


@contextmanager
def measured(tmp_path_factory: pytest.TempPathFactory, **target: str) -> Iterator[SystemUnderTest]:
    settings = LabSettings.model_validate({"target": {"kind": "endpoint", "model": "m", **target}})
    with open_system(settings, RunDirectory(tmp_path_factory.mktemp("run")), {}) as measured:
        yield measured


def test_what_vllm_reports_is_found_under_its_names_and_ours(tmp_path_factory: pytest.TempPathFactory) -> None:
    with (
        server(200, VLLM) as url,
        measured(tmp_path_factory, url=f"{url}/v1") as other_side,
    ):
        assert other_side.scraper is not None
        rows = run_on_fast_loop(_scraped(other_side))
        notes = other_side.notes()

    names = {row["name"] for row in rows}
    assert {"vllm:num_requests_running", "muai_running_sequences", "muai_waiting_requests"} <= names
    labels = [json.loads(row["labels"]) for row in rows if row["name"] == "muai_running_sequences"]
    assert {"engine": "0", "model_name": "m"} in labels
    assert notes == [f"the server side is from {url}/metrics, in the terms of vLLM, given our names"]


def test_metrics_are_read_where_a_redirect_leads(tmp_path_factory: pytest.TempPathFactory) -> None:
    with (
        server(200, VLLM, "/metrics/") as url,
        measured(tmp_path_factory, url=url) as other_side,
    ):
        rows = run_on_fast_loop(_scraped(other_side))
        assert other_side.scraper is not None
        failures = other_side.scraper.failures

    assert "muai_running_sequences" in {row["name"] for row in rows}
    assert failures == 0


async def _scraped(other_side: SystemUnderTest) -> list[dict[str, Any]]:
    """The rows that were read first."""
    assert other_side.scraper is not None
    scraping = asyncio.ensure_future(other_side.scraper.run())
    while not (rows := other_side.scraper.table().to_pylist()) and not scraping.done():  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    scraping.cancel()
    with suppress(asyncio.CancelledError):
        await scraping
    return rows


@pytest.mark.parametrize(
    ("status", "page", "why"),
    [(404, "", "HTTP 404"), (200, "<html>hello</html>", "not in Prometheus' text format")],
    ids=["404", "HTML"],
)
def test_an_endpoint_without_metrics_is_measured_without_them(
    tmp_path_factory: pytest.TempPathFactory, status: int, page: str, why: str
) -> None:
    with server(status, page) as url, measured(tmp_path_factory, url=url) as other_side:
        assert other_side.scraper is None
        (note,) = other_side.notes()

    assert f"no metrics at {url}/metrics" in note
    assert why in note


def test_an_address_that_was_named_must_have_metrics(tmp_path_factory: pytest.TempPathFactory) -> None:
    with (
        server(404, "") as url,
        pytest.raises(RunError, match=r"target\.metrics_url=.*/metrics has no metrics: HTTP 404; mend it"),
        measured(tmp_path_factory, url=url, metrics_url=f"{url}/metrics"),
    ):
        pass
