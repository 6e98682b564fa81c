"""The schedule: drawn from one seed, hashed by content, saved and replayed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muai_lab.errors import RunError
from muai_lab.settings.lab import LabSettings
from muai_lab.workload.draw import closed_loop_requests, draw_schedule
from muai_lab.workload.schedule import SCHEDULE_SCHEMA, Schedule, ScheduledRequest


class LetterTokenizer:
    """One token per word; a conversation is wrapped into five more."""

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        return [0] * (5 + sum(len(message["content"].split()) for message in messages))

    def prompt_of(self, n_tokens: int, rng: np.random.Generator) -> tuple[str, list[int]]:
        ids = rng.integers(26, size=n_tokens).tolist()
        return " ".join("abcdefghijklmnopqrstuvwxyz"[number] for number in ids), ids


def settings(seed: int = 0, **sections: dict[str, Any]) -> LabSettings:
    defaults: dict[str, Any] = {
        "arrival": {"kind": "poisson", "rate": 20.0},
        "load": {"warmup_s": 1.0, "duration_s": 9.0},
    }
    return LabSettings.model_validate({"seed": seed, **defaults, **sections})


def draw(seed: int = 0, **sections: dict[str, Any]) -> Schedule:
    return draw_schedule(settings(seed, **sections), LetterTokenizer())


CLOSED = {"kind": "closed", "concurrency": 8}


class TestDrawing:
    def test_the_same_settings_give_the_same_schedule(self) -> None:
        assert draw().hash == draw().hash
        assert draw().table.equals(draw().table)

    def test_another_seed_gives_another_schedule(self) -> None:
        assert draw(seed=0).hash != draw(seed=1).hash

    def test_every_repeat_has_a_schedule_of_its_own_and_the_first_is_that_of_a_single_run(self) -> None:
        hashes = [draw(experiment={"repeat": repeat}).hash for repeat in (None, 0, 1, 2)]

        assert hashes[0] == hashes[1]
        assert len(set(hashes)) == 3

    def test_arrivals_do_not_depend_on_the_workload(self) -> None:
        other = {"prompt_tokens": {"distribution": "fixed", "value": 9}, "api": "chat"}

        assert draw().table["intended_s"].equals(draw(workload=other).table["intended_s"])

    def test_lengths_do_not_depend_on_the_arrivals(self) -> None:
        rows = 100
        poisson, closed = draw().table.slice(0, rows), draw(arrival=CLOSED).table.slice(0, rows)

        for column in ("prompt", "prompt_tokens", "max_tokens", "seed"):
            assert poisson[column].equals(closed[column])

    def test_a_longer_load_begins_with_the_same_requests(self) -> None:
        short, long = draw(), draw(load={"warmup_s": 1.0, "duration_s": 19.0})

        assert len(long) > len(short)
        assert long.table.slice(0, len(short)).equals(short.table)

    def test_open_loop_requests_fill_warm_up_and_measurement_in_order(self) -> None:
        times = draw().table["intended_s"].to_numpy()

        assert draw().open_loop
        assert 150 < len(times) < 250
        assert np.all(np.diff(times) >= 0)
        assert times[-1] < 10.0

    def test_closed_loop_requests_have_no_times(self) -> None:
        schedule = draw(arrival=CLOSED)

        assert not schedule.open_loop
        assert schedule.table["intended_s"].null_count == len(schedule)

    @pytest.mark.parametrize(
        ("arrival", "load", "count"),
        [
            (CLOSED, {"warmup_s": 1.0, "duration_s": 9.0}, 640),
            ({"kind": "closed", "concurrency": 1}, {"warmup_s": 0.0, "duration_s": 1.0}, 64),
            (CLOSED, {"requests": 17}, 17),
        ],
    )
    def test_a_closed_loop_gets_enough_requests_for_its_time(
        self, arrival: dict[str, Any], load: dict[str, Any], count: int
    ) -> None:
        chosen = settings(arrival=arrival, load=load)

        assert closed_loop_requests(chosen.arrival, chosen.load) == count

    def test_prompts_have_exactly_the_drawn_number_of_tokens(self) -> None:
        schedule = draw(workload={"prompt_tokens": {"distribution": "uniform", "low": 2, "high": 5}})

        assert {request.prompt_tokens for request in schedule} == {2, 3, 4, 5}
        assert all(len((request.prompt or "").split()) == request.prompt_tokens for request in schedule)

    def test_a_chat_prompt_counts_its_template(self) -> None:
        schedule = draw(workload={"api": "chat", "prompt_tokens": {"distribution": "fixed", "value": 12}})

        assert {len((request.prompt or "").split()) for request in schedule} == {7}
        assert {request.prompt_tokens for request in schedule} == {12}

    def test_a_chat_prompt_shorter_than_its_template_is_refused(self) -> None:
        with pytest.raises(RunError, match=r"the chat template alone takes 5; set its lowest length to 6"):
            draw(workload={"api": "chat", "prompt_tokens": {"distribution": "fixed", "value": 5}})

    def test_an_empty_schedule_says_why_and_how_to_mend_it(self) -> None:
        arrival = {"kind": "poisson", "rate": 0.0001}

        with pytest.raises(RunError, match=r"no poisson arrival at 0\.0001 requests/s falls into 10 s; raise"):
            draw(arrival=arrival)

    @pytest.mark.parametrize(
        "sections",
        [
            {"arrival": CLOSED, "load": {"duration_s": 1e99}},
            {"arrival": CLOSED, "load": {"requests": 10**12}},
            {"arrival": {"kind": "poisson", "rate": 1e12}},
            {"arrival": {"kind": "ramp", "rate": 1.0, "end_rate": 1e12}},
            {"arrival": {"kind": "steps", "step_rates": [1.0, 1e12]}},
        ],
    )
    def test_a_load_that_no_memory_holds_is_refused_before_it_is_drawn(self, sections: dict[str, Any]) -> None:
        with pytest.raises(RunError, match=r"a schedule holds at most 50,000,000: lower load\.duration_s"):
            draw(**sections)


def small(**changes: Any) -> Schedule:
    first = {"index": 0, "intended_s": 0.5, "prompt": "a", "prompt_ids": None, "prompt_tokens": 1, "max_tokens": 4}
    second = ScheduledRequest(1, 0.75, None, np.array([5, 6], dtype=np.int32), 2, 8, seed=9)
    return Schedule.of([ScheduledRequest(**{**first, **changes}), second])


class TestContent:
    def test_rows_come_back_as_they_were_put_in(self) -> None:
        first, second = small()

        assert (first.prompt, first.prompt_ids, first.intended_s, first.max_tokens) == ("a", None, 0.5, 4)
        assert second.prompt is None
        assert second.prompt_ids is not None
        assert second.prompt_ids.tolist() == [5, 6]
        assert (second.seed, second.session) == (9, None)

    @pytest.mark.parametrize(
        "changes",
        [
            {"intended_s": 0.5000001},
            {"prompt": "b"},
            {"prompt": None},
            {"prompt": None, "prompt_ids": np.array([], dtype=np.int32)},
            {"max_tokens": 5},
            {"prompt_tokens": 2},
            {"session": 0},
            {"turn": 0},
            {"prefix_group": 0},
            {"seed": 0},
            {"extra": "{}"},
        ],
        ids=str,
    )
    def test_any_change_of_content_changes_the_hash(self, changes: dict[str, Any]) -> None:
        assert small(**changes).hash != small().hash

    def test_token_ids_on_the_border_of_two_rows_count_for_their_row(self) -> None:
        def of(*rows: list[int]) -> str:
            ids = [np.array(row, dtype=np.int32) for row in rows]
            return Schedule.of([ScheduledRequest(i, None, None, row, 1, 1) for i, row in enumerate(ids)]).hash

        assert of([1, 2], [3]) != of([1], [2, 3])

    @given(
        st.lists(
            st.tuples(
                st.none() | st.floats(0, 1e6),
                st.none() | st.text(max_size=8),
                st.none() | st.lists(st.integers(0, 2**31 - 1), max_size=5),
            ),
            max_size=12,
        ),
        st.integers(1, 5),
    )
    def test_the_hash_does_not_depend_on_how_the_table_is_cut(self, rows: list[Any], cut: int) -> None:
        schedule = Schedule.of(
            [
                ScheduledRequest(i, time, text, None if ids is None else np.array(ids, dtype=np.int32), 1, 1)
                for i, (time, text, ids) in enumerate(rows)
            ]
        )
        pieces = [schedule.table.slice(start, cut) for start in range(0, len(schedule), cut)]
        rejoined = Schedule(pa.concat_tables(pieces) if pieces else schedule.table)

        assert rejoined.hash == schedule.hash


class TestStorage:
    def test_a_saved_schedule_is_the_same_schedule(self, tmp_path: Path) -> None:
        drawn = draw()
        drawn.write(tmp_path / "schedule.parquet")
        replayed = Schedule.read(tmp_path / "schedule.parquet")

        assert replayed.hash == drawn.hash
        assert replayed.request(3) == drawn.request(3)

    def test_further_fields_of_a_request_and_the_notes_are_saved_too(self, tmp_path: Path) -> None:
        schedule = Schedule(small(extra='{"stop":["x"]}').table, ("a note",))
        schedule.write(tmp_path / "schedule.parquet")
        replayed = Schedule.read(tmp_path / "schedule.parquet")

        assert (replayed.request(0).extra, replayed.request(1).extra) == ('{"stop":["x"]}', None)
        assert replayed.notes == ("a note",)
        assert replayed.hash == schedule.hash != small().hash

    def test_a_schedule_of_a_version_without_the_latest_column_is_the_same_schedule(self, tmp_path: Path) -> None:
        pq.write_table(small().table.drop_columns(["extra"]), tmp_path / "schedule.parquet")

        assert Schedule.read(tmp_path / "schedule.parquet").hash == small().hash

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(RunError, match=r"no schedule at .*gone\.parquet"):
            Schedule.read(tmp_path / "gone.parquet")

    def test_a_file_that_is_not_parquet_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "schedule.parquet"
        path.write_text("index,prompt\n0,hello\n")

        with pytest.raises(RunError, match=r"schedule\.parquet is not a schedule"):
            Schedule.read(path)

    def test_a_table_of_other_columns_is_refused_by_the_missing_names(self, tmp_path: Path) -> None:
        path = tmp_path / "schedule.parquet"
        pq.write_table(draw().table.drop_columns(["max_tokens", "seed"]), path)

        with pytest.raises(RunError, match=r"it lacks the columns max_tokens, seed; draw it again"):
            Schedule.read(path)

    def test_an_unwritable_place_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(RunError, match="cannot write"):
            draw().write(tmp_path / "missing" / "schedule.parquet")

    def test_columns_are_as_documented(self) -> None:
        assert draw().table.schema.equals(SCHEDULE_SCHEMA)
