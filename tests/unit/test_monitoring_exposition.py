"""The metrics endpoint: one path, two formats."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client import CollectorRegistry

from muai_lab.monitoring.exposition import metrics_app
from muai_lab.monitoring.serving_metrics import ServingMetrics
from tests.unit.server_fakes import Answer, Call


def scrape(path: str, method: str = "GET", accept: str = "") -> Answer:
    registry = CollectorRegistry()
    metrics = ServingMetrics()
    metrics.observer("m", "e")
    registry.register(metrics)
    call = Call(metrics_app(registry, "/numbers"), method, path, headers={"accept": accept})
    return asyncio.run(call.run())


def test_the_configured_path_answers_in_text() -> None:
    answer = scrape("/numbers")

    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert b'inference_requests_total{engine="e",model="m",status="ok"} 0.0' in answer.body


def test_a_scraper_that_asks_for_openmetrics_gets_it() -> None:
    answer = scrape("/numbers", accept="application/openmetrics-text;version=1.0.0,text/plain;q=0.5")

    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.body.endswith(b"# EOF\n")


@pytest.mark.parametrize("path", ["/", "/metrics", "/numbers/", "/numbers/x"])
def test_every_other_path_is_404(path: str) -> None:
    assert scrape(path).status == 404


def test_it_only_reads() -> None:
    assert scrape("/numbers", method="POST").status == 405
