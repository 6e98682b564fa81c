"""Reads a server's `/metrics` while the load runs.

Only bytes are kept during the run; they are parsed afterwards, since parsing takes milliseconds that the load generator
on the same loop would pay for in late requests. What other servers call differently is then given our names besides.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import time
import urllib.error
import urllib.request
from itertools import chain

import aiohttp
import pyarrow as pa
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from muai_lab.experiment.foreign_metrics import MetricsDialect, dialect_of

_PAGE_BYTES = 16 << 20  # more is no page of metrics
_FIND_TIMEOUT_S = 5.0
SCHEMA = pa.schema([("t_ns", pa.int64()), ("name", pa.string()), ("labels", pa.string()), ("value", pa.float64())])


class MetricsScraper:
    """Scrapes one URL every `interval_s` seconds until cancelled; times are CLOCK_MONOTONIC ns."""

    def __init__(self, url: str, *, interval_s: float = 0.5) -> None:
        self._url = url
        self._interval_s = interval_s
        self._pages: list[tuple[int, bytes]] = []
        self.failures = 0

    async def run(self) -> None:
        """Scrape for ever; a scrape that fails is counted and missing, never invented."""
        timeout = aiohttp.ClientTimeout(total=max(2.0, self._interval_s))
        async with aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()) as session:
            due = time.monotonic()
            while True:
                try:
                    async with session.get(self._url, headers={"Accept": "text/plain"}) as answer:
                        answer.raise_for_status()
                        page = await answer.read()
                        self._pages.append((time.monotonic_ns(), page))
                except (aiohttp.ClientError, TimeoutError):
                    self.failures += 1
                due = max(due + self._interval_s, time.monotonic())
                await asyncio.sleep(due - time.monotonic())

    def forget(self) -> None:
        """Drop what was scraped so far, for the next run against the same server."""
        self._pages.clear()
        self.failures = 0

    def table(self) -> pa.Table:
        """Every sample scraped, in long form, and again under our name where the server has another for it."""
        rows: dict[str, list[object]] = {name: [] for name in SCHEMA.names}
        dialect: MetricsDialect | None = None
        for t_ns, page in self._pages:
            samples = samples_of(page)
            if samples is None:
                self.failures += 1
                continue
            dialect = dialect or dialect_of(samples)
            for sample in chain(samples, dialect.translate(samples) if dialect is not None else ()):
                rows["t_ns"].append(t_ns)
                rows["name"].append(sample.name)
                rows["labels"].append(json.dumps(sample.labels, sort_keys=True))
                rows["value"].append(sample.value)
        self._pages.clear()
        return pa.table(rows, schema=SCHEMA)


def samples_of(page: bytes) -> list[Sample] | None:
    """The samples of a page of Prometheus' text format; None when it is none."""
    try:
        families = list(text_string_to_metric_families(page.decode()))
    except ValueError:  # also what is not UTF-8
        return None
    return [sample for family in families for sample in family.samples]


def find_metrics(url: str) -> tuple[MetricsDialect | None, str | None]:
    """Look whether an address has metrics: whose they are, if another server's, and why there are none, if so."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # directly, as the load goes
    try:
        with opener.open(
            urllib.request.Request(url, headers={"Accept": "text/plain"}), timeout=_FIND_TIMEOUT_S
        ) as page:
            samples = samples_of(page.read(_PAGE_BYTES))
    except urllib.error.HTTPError as error:
        return None, f"HTTP {error.code}"
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        return None, str(getattr(reason, "strerror", None) or reason or type(error).__name__)
    if not samples:
        return None, "the answer is not in Prometheus' text format"
    return dialect_of(samples), None
