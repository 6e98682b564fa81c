"""Reads a server's `/metrics` while the load runs.

Only bytes are kept during the run; they are parsed afterwards, since parsing takes milliseconds that the load generator
on the same loop would pay for in late requests.
"""

from __future__ import annotations

import asyncio
import json
import time

import aiohttp
import pyarrow as pa
from prometheus_client.parser import text_string_to_metric_families

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

    def table(self) -> pa.Table:
        """Every sample scraped, in long form."""
        rows: dict[str, list[object]] = {name: [] for name in SCHEMA.names}
        for t_ns, page in self._pages:
            for family in text_string_to_metric_families(page.decode()):
                for sample in family.samples:
                    rows["t_ns"].append(t_ns)
                    rows["name"].append(sample.name)
                    rows["labels"].append(json.dumps(sample.labels, sort_keys=True))
                    rows["value"].append(sample.value)
        return pa.table(rows, schema=SCHEMA)
