"""A load ends with the server under test, and its records are kept."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from muai_lab.errors import RunError
from muai_lab.experiment.load_until_death import until_death

DEATH = "the server ended with status 1 during the run"


async def endless(*, keeps_records: bool) -> Any:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        if not keeps_records:
            raise
    return "records"


async def offered(work: Any, failure: str | None, *beside: Any) -> Any:
    load = asyncio.ensure_future(work)
    return await until_death(load, lambda: failure, beside=beside)


def test_a_load_ends_when_the_server_dies_and_its_records_are_kept() -> None:
    assert asyncio.run(offered(endless(keeps_records=True), DEATH)) == ("records", None)


def test_a_server_that_dies_before_the_first_record_is_an_error() -> None:
    with pytest.raises(RunError, match="ended with status 1"):
        asyncio.run(offered(endless(keeps_records=False), DEATH))


def test_the_work_beside_a_load_ends_with_it() -> None:
    ended: list[str] = []

    async def scrape() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("scrape")

    async def short() -> Any:
        await asyncio.sleep(0)
        return "records"

    assert asyncio.run(offered(short(), None, scrape())) == ("records", None)
    assert ended == ["scrape"]
