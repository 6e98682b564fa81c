"""The frozen blocks of load."""

from __future__ import annotations

import pytest

from muai_lab.errors import RunError
from muai_lab.settings.lab import LabSettings
from muai_lab.tuning.load_blocks import FRESH, LoadBlocks
from muai_lab.workload.draw import closed_loop_requests
from tests.unit.word_tokenizer import WordTokenizer


def blocks_of(**sections: dict) -> LoadBlocks:
    settings = LabSettings.model_validate({"tuning": {"block_s": 2.0, "lead_in_s": 0.0}, **sections})
    return LoadBlocks(settings, WordTokenizer(), None)


def test_the_same_number_is_the_same_load_and_another_number_another() -> None:
    first, again = blocks_of(), blocks_of()

    assert first.hash() == again.hash()
    assert first.block(FRESH).hash == again.block(FRESH).hash
    assert len({first.block(number).hash for number in (0, 1, FRESH)}) == 3
    assert first.hash() != blocks_of(arrival={"rate": 21.0}).hash()


def test_at_a_low_rate_no_block_is_empty() -> None:
    found = blocks_of(arrival={"rate": 0.5})

    assert all(len(found.block(number)) > 0 for number in range(20))
    assert len(found.warmup) > 0


def test_a_rate_at_which_no_request_falls_into_a_block_says_what_to_change() -> None:
    with pytest.raises(RunError, match=r"tuning\.block_s"):
        blocks_of(arrival={"rate": 1e-6}).block(0)


def test_a_load_is_fixed_where_every_request_has_its_time() -> None:
    assert blocks_of().fixed
    assert not blocks_of(arrival={"kind": "closed"}).fixed


def test_a_closed_loop_has_five_times_the_requests_of_a_run_of_that_length() -> None:
    closed = {"kind": "closed", "concurrency": 4}
    run = LabSettings.model_validate({"arrival": closed, "load": {"warmup_s": 0.0, "duration_s": 2.0}})

    assert len(blocks_of(arrival=closed).block(0)) == 5 * closed_loop_requests(run.arrival, run.load)
