"""Reads a server's `/metrics` while the load runs.

Only bytes are kept during the run and parsed afterwards: parsing takes milliseconds, which would delay requests of the
load generator on the same loop. Metrics of other servers are stored under their own names and under ours.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import ssl
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from http import HTTPStatus
from itertools import chain

import pyarrow as pa
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from yarl import URL

from muai_lab.experiment.foreign_metrics import MetricsDialect, dialect_of
from muai_lab.load.connection_pool import ConnectionPool
from muai_lab.load.endpoint_address import host_header
from muai_lab.load.http_connection import ConnectionProblem
from muai_lab.load.own_limits import GeneratorExhausted
from muai_lab.load.streamed_answer import WholeAnswer

_PAGE_BYTES = 16 << 20  # more is no page of metrics
_FIND_TIMEOUT_S = 5.0
_SCRAPE_TIMEOUT_S = 2.0
SCHEMA = pa.schema([("t_ns", pa.int64()), ("name", pa.string()), ("labels", pa.string()), ("value", pa.float64())])


class MetricsScraper:
    """Scrapes one URL every `interval_s` seconds until cancelled; times are CLOCK_MONOTONIC ns."""

    def __init__(self, url: str, *, interval_s: float = 0.5) -> None:
        self._url = URL(url)
        self._request = (
            f"GET {self._url.raw_path_qs} HTTP/1.1\r\nHost: {host_header(self._url)}\r\n"
            "Accept: text/plain\r\nAccept-Encoding: identity\r\n\r\n"
        ).encode("latin-1")
        self._interval_s = interval_s
        self._pages: list[tuple[int, bytes]] = []
        self._looked_up = False  # the host's name, once for a load
        self.failures = 0

    async def run(self) -> None:
        """Scrape until cancelled. A scrape that fails is counted and missing, never invented."""
        tls = ssl.create_default_context() if self._url.scheme == "https" else None
        pool = ConnectionPool(self._url, time.monotonic_ns, tls)
        self._looked_up = False
        due = time.monotonic()
        try:
            while True:
                page = await self._page(pool)
                if page is None:
                    self.failures += 1
                else:
                    self._pages.append((time.monotonic_ns(), page))
                due = max(due + self._interval_s, time.monotonic())
                await asyncio.sleep(due - time.monotonic())
        finally:
            await pool.close()

    async def _page(self, pool: ConnectionPool) -> bytes | None:
        """The page as it is now; None if there is no answer, or one with another status than 200."""
        answer = WholeAnswer()
        try:
            async with asyncio.timeout(max(_SCRAPE_TIMEOUT_S, self._interval_s)):
                if not self._looked_up:
                    await pool.open()
                    self._looked_up = True
                await pool.exchange(self._request, answer)
        except (ConnectionProblem, GeneratorExhausted, TimeoutError):
            return None
        return answer.content if answer.status == HTTPStatus.OK else None

    def forget(self) -> None:
        """Drop all pages so far, for the next run against the same server."""
        self._pages.clear()
        self.failures = 0

    def table(self) -> pa.Table:
        """Return every sample in long form, and again under our name if the server has another one."""
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
    """Return the samples of a page in Prometheus' text format; None if it is another format."""
    try:
        families = list(text_string_to_metric_families(page.decode()))
    except ValueError:  # also what is not UTF-8
        return None
    return [sample for family in families for sample in family.samples]


@dataclass(frozen=True, slots=True)
class FoundMetrics:
    """The metrics at an address.

    url: The address of the page, behind redirects. dialect: The other server whose metrics they are; None if they are
    ours. missing: The reason why there are no metrics; None if there are.
    """

    url: str
    dialect: MetricsDialect | None = None
    missing: str | None = None


def find_metrics(url: str) -> FoundMetrics:
    """Look for metrics at an address."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # directly, as the load goes
    request = urllib.request.Request(url, headers={"Accept": "text/plain"})
    try:
        with opener.open(request, timeout=_FIND_TIMEOUT_S) as page:
            samples = samples_of(page.read(_PAGE_BYTES))
            url = page.url
    except urllib.error.HTTPError as error:
        return FoundMetrics(url, missing=f"HTTP {error.code}")
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        return FoundMetrics(url, missing=str(getattr(reason, "strerror", None) or reason or type(error).__name__))
    if not samples:
        return FoundMetrics(url, missing="the answer is not in Prometheus' text format")
    return FoundMetrics(url, dialect_of(samples))
