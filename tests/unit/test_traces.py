"""Recorded traces: their lengths, their times, what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from muai_lab.errors import RunError
from muai_lab.workload.schedule import Schedule
from tests.unit.drawing import draw, written
from tests.unit.word_tokenizer import WordTokenizer

TRACE = {"kind": "trace"}
AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens",
    "2023-11-16 18:17:03.9799600,48,10",
    "2023-11-16 18:17:04.0319600,31,8",
    "2023-11-16 18:17:05.9799600,110,27",
)
BURSTGPT = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type",
    "5,ChatGPT,47,18,65,Conversation log",
    "45,GPT-4,41,0,41,Conversation log",
    "45.5,GPT-4,17,23,40,API log",
)


def lengths(schedule: Schedule) -> list[tuple[int, int]]:
    return [(request.prompt_tokens, request.max_tokens) for request in schedule]


class TestAzure:
    @pytest.fixture
    def azure(self, tmp_path: Path) -> dict[str, Any]:
        # As published: a byte order mark in front, no line end after the last line.
        return {"kind": "azure", "path": written(tmp_path / "azure.csv", "\ufeff" + AZURE[0], *AZURE[1:], end="")}

    def test_requests_have_the_recorded_lengths_and_times(self, azure: dict[str, Any]) -> None:
        schedule = draw(azure, arrival=TRACE)

        assert lengths(schedule) == [(48, 10), (31, 8), (110, 27)]
        assert schedule.table["intended_s"].to_pylist() == pytest.approx([0.0, 0.052, 2.0], abs=1e-6)
        assert all(len((request.prompt or "").split()) == request.prompt_tokens for request in schedule)

    def test_a_replay_can_be_faster_or_be_brought_to_a_rate(self, azure: dict[str, Any]) -> None:
        faster = draw(azure, arrival={"kind": "trace", "speed": 10.0})
        rated = draw(azure, arrival={"kind": "trace", "trace_rate": 4.0})

        assert faster.table["intended_s"].to_pylist()[-1] == pytest.approx(0.2, abs=1e-6)
        assert rated.table["intended_s"].to_pylist()[-1] == pytest.approx(0.5, abs=1e-6)

    def test_a_trace_that_ends_before_the_load_says_so(self, azure: dict[str, Any]) -> None:
        schedule = draw(azure, arrival=TRACE)

        end = "the recorded arrivals end after 2.0 s of load, before its 100 s are over"
        assert schedule.notes == (f"{end}: lower load.duration_s or arrival.speed",)

    def test_other_arrivals_take_the_lengths_alone_and_begin_again_at_the_end(self, azure: dict[str, Any]) -> None:
        schedule = draw(azure)

        assert lengths(schedule) == [(48, 10), (31, 8), (110, 27), (48, 10), (31, 8)]
        assert schedule.notes == (
            "azure.csv holds 3 requests, and 5 were asked for: they repeat",
            "recorded times are not used, since arrival.kind is closed: arrival=trace replays them",
        )

    def test_lengths_can_be_scaled_and_are_at_least_one(self, azure: dict[str, Any]) -> None:
        schedule = draw({**azure, "length_scale": 0.05}, arrival=TRACE)

        assert lengths(schedule) == [(2, 1), (2, 1), (6, 1)]

    def test_outputs_can_have_a_scale_of_their_own(self, azure: dict[str, Any]) -> None:
        schedule = draw({**azure, "length_scale": 0.5, "output_scale": 2.0}, arrival=TRACE)

        assert lengths(schedule) == [(24, 20), (16, 16), (55, 54)]

    def test_what_does_not_fit_the_context_is_cut_and_counted(self, azure: dict[str, Any]) -> None:
        schedule = draw(azure, arrival=TRACE, context_tokens=60)

        assert lengths(schedule) == [(48, 10), (31, 8), (33, 27)]
        assert schedule.notes[:1] == ("cut to fit the model's context of 60 tokens: 1 prompt",)

    def test_a_slice_can_be_taken(self, azure: dict[str, Any]) -> None:
        assert lengths(draw({**azure, "skip": 1, "limit": 1}, arrival=TRACE)) == [(31, 8)]

    def test_times_with_a_zone_are_read_too(self, tmp_path: Path) -> None:
        path = written(
            tmp_path / "2024.csv", AZURE[0], "2024-05-10 00:00:00+00:00,9,1", "2024-05-10 02:00:01+02:00,9,1"
        )

        schedule = draw({"kind": "azure", "path": path}, arrival=TRACE)

        assert schedule.table["intended_s"].to_pylist() == [0.0, 1.0]

    @pytest.mark.parametrize(
        ("line", "problem"),
        [
            ("2023-11-16 18:17:06.0,5", r"azure\.csv:3: 2 fields instead of 3"),
            ("2023-11-16 18:17:06.0,nan,5", r"azure\.csv:3: ContextTokens is 'nan', expected a whole number of tokens"),
            ("2023-11-16 18:17:06.0,-4,5", r"azure\.csv:3: ContextTokens is -4, expected a number of tokens from 0"),
            ("yesterday,4,5", r"azure\.csv:3: TIMESTAMP is 'yesterday', expected a number or a date and time"),
        ],
    )
    def test_a_bad_line_is_named_or_left_out_and_counted(self, tmp_path: Path, line: str, problem: str) -> None:
        azure = {"kind": "azure", "path": written(tmp_path / "azure.csv", AZURE[0], AZURE[1], line, AZURE[3])}

        with pytest.raises(RunError, match=problem + r".*; mend it, or .* workload\.on_error=skip"):
            draw(azure, arrival=TRACE)

        schedule = draw({**azure, "on_error": "skip"}, arrival=TRACE)
        assert lengths(schedule) == [(48, 10), (110, 27)]
        assert schedule.notes[0].startswith("left out of azure.csv, since they cannot be read: 1 line, first line 3: ")

    def test_nothing_beyond_the_limit_is_looked_at(self, tmp_path: Path) -> None:
        path = written(tmp_path / "azure.csv", *AZURE, "rubbish")

        assert len(draw({"kind": "azure", "path": path, "limit": 3}, arrival=TRACE)) == 3

    @pytest.mark.parametrize(
        ("content", "problem"),
        [
            ("", r"holds no request to replay: check workload\.path"),
            ("TIMESTAMP,ContextTokens,GeneratedTokens\n", r"holds no request to replay"),
            ("a,b\n1,2\n", r"has no column TIMESTAMP and no column ContextTokens .*, but a, b: check workload\.path"),
            ("TIMESTAMP,ContextTokens,GeneratedTokens\nx\n", r":2: 1 fields instead of 3"),
        ],
        ids=["empty", "header alone", "another table", "broken"],
    )
    def test_a_file_that_is_no_trace_is_refused(self, tmp_path: Path, content: str, problem: str) -> None:
        path = tmp_path / "azure.csv"
        path.write_text(content)

        with pytest.raises(RunError, match=problem):
            draw({"kind": "azure", "path": str(path)}, arrival=TRACE)

    def test_bytes_that_are_no_text_are_named_by_their_line(self, tmp_path: Path) -> None:
        path = tmp_path / "azure.csv"
        path.write_bytes(AZURE[0].encode() + b"\n\xff\xfe\n")

        with pytest.raises(RunError, match=r"azure\.csv:2: no UTF-8 text \(byte 1\)"):
            draw({"kind": "azure", "path": str(path)}, arrival=TRACE)

    def test_a_missing_file_is_named(self) -> None:
        with pytest.raises(RunError, match=r"cannot read gone\.csv: No such file or directory; check workload\.path"):
            draw({"kind": "azure", "path": "gone.csv"}, arrival=TRACE)


class TestBurstGpt:
    @pytest.fixture
    def burstgpt(self, tmp_path: Path) -> dict[str, Any]:
        return {"kind": "burstgpt", "path": written(tmp_path / "burst.csv", *BURSTGPT)}

    def test_requests_that_failed_when_recorded_are_left_out_and_counted(self, burstgpt: dict[str, Any]) -> None:
        schedule = draw(burstgpt, arrival=TRACE)

        assert lengths(schedule) == [(47, 18), (17, 23)]
        assert schedule.table["intended_s"].to_pylist() == [0.0, 40.5]
        assert schedule.notes[0] == "left out of burst.csv: 1 row without an answer"

    def test_one_model_or_one_kind_of_log_can_be_chosen(self, burstgpt: dict[str, Any]) -> None:
        assert lengths(draw({**burstgpt, "model": "ChatGPT"}, arrival=TRACE)) == [(47, 18)]
        assert lengths(draw({**burstgpt, "log_type": "API log"}, arrival=TRACE)) == [(17, 23)]

    def test_a_model_that_is_not_there_is_answered_with_those_that_are(self, burstgpt: dict[str, Any]) -> None:
        with pytest.raises(RunError, match=r"no Model is 'GPT-5'; there are ChatGPT, GPT-4"):
            draw({**burstgpt, "model": "GPT-5"}, arrival=TRACE)

    @pytest.mark.parametrize("time", ["nan", "inf", "soon"])
    def test_a_time_that_is_no_number_is_refused(self, tmp_path: Path, time: str) -> None:
        path = written(tmp_path / "burst.csv", BURSTGPT[0], f"{time},GPT-4,1,1,2,API log")

        with pytest.raises(RunError, match=rf"burst\.csv:2: Timestamp is '{time}', expected a"):
            draw({"kind": "burstgpt", "path": path}, arrival=TRACE)


def mooncake_line(timestamp: float, input_length: int, output_length: int, *ids: int) -> str:
    return json.dumps(
        {"timestamp": timestamp, "input_length": input_length, "output_length": output_length, "hash_ids": ids}
    )


class TestMooncake:
    BLOCK = 8

    def mooncake(self, tmp_path: Path, *lines: str, **keys: Any) -> dict[str, Any]:
        path = written(tmp_path / "trace.jsonl", *lines)
        return {"kind": "mooncake", "path": path, "block_tokens": self.BLOCK, **keys}

    def shared(self, first: str | None, second: str | None) -> int:
        """How many tokens two prompts begin with alike."""
        a, b = ((text or "").replace("\n", " ↵ ").split() for text in (first, second))
        return next((place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))

    def test_equal_ids_at_the_beginning_become_the_same_text(self, tmp_path: Path) -> None:
        lines = [
            mooncake_line(0, 21, 2, 7, 8, 9),
            mooncake_line(27, 30, 3, 7, 8, 10, 11),
            mooncake_line(54, 12, 4, 20, 21),
        ]
        schedule = draw(self.mooncake(tmp_path, *lines), arrival=TRACE)

        first, second, third = schedule
        assert lengths(schedule) == [(21, 2), (30, 3), (12, 4)]
        assert [len(WordTokenizer().encode(request.prompt or "")) for request in schedule] == [21, 30, 12]
        assert 16 <= self.shared(first.prompt, second.prompt) < 21
        assert self.shared(first.prompt, third.prompt) < 4
        assert [request.prefix_group for request in schedule] == [7, 7, 20]
        assert schedule.table["intended_s"].to_pylist() == pytest.approx([0.0, 0.027, 0.054])

    def test_blocks_shrink_with_the_lengths_and_are_shared_still(self, tmp_path: Path) -> None:
        lines = [mooncake_line(0, 32, 8, 1, 2, 3, 4), mooncake_line(1, 32, 8, 1, 2, 3, 5)]
        schedule = draw(self.mooncake(tmp_path, *lines, length_scale=0.5), arrival=TRACE)

        assert lengths(schedule) == [(16, 4), (16, 4)]
        assert self.shared(*(request.prompt for request in schedule)) >= 12

    @pytest.mark.parametrize("api", ["completions", "chat"])
    def test_a_prompt_that_must_be_cut_keeps_its_beginning(self, tmp_path: Path, api: str) -> None:
        mooncake = self.mooncake(tmp_path, mooncake_line(0, 60, 4, *range(8)), mooncake_line(50, 20, 4, 0, 1, 2))
        schedule = draw({**mooncake, "api": api}, arrival=TRACE, context_tokens=40)

        assert lengths(schedule) == [(36, 4), (20, 4)]
        assert self.shared(*(request.prompt for request in schedule)) >= 8
        assert schedule.notes[:1] == ("cut to fit the model's context of 40 tokens: 1 prompt",)

    def test_a_request_again_is_the_same_text_again(self, tmp_path: Path) -> None:
        lines = [mooncake_line(0, 20, 2, 1, 2, 3), mooncake_line(9, 20, 2, 1, 2, 3)]
        first, second = draw(self.mooncake(tmp_path, *lines), arrival=TRACE)

        assert first.prompt == second.prompt

    def test_a_line_without_ids_is_a_prompt_of_its_own(self, tmp_path: Path) -> None:
        line = json.dumps({"timestamp": 0, "input_length": 20, "output_length": 2})
        first, second = draw(self.mooncake(tmp_path, line, line), arrival=TRACE)

        assert first.prompt_tokens == second.prompt_tokens == 20
        assert first.prompt != second.prompt

    @pytest.mark.parametrize(
        ("line", "problem"),
        [
            ('{"timestamp": 0, "input_le', r"trace\.jsonl:2: no JSON \(.* at column \d+\)"),
            ("[1, 2]", r"trace\.jsonl:2: expected a JSON object, found \[1, 2\]"),
            ('{"timestamp": 0, "input_length": 3}', r"trace\.jsonl:2: output_length is missing"),
            ('{"timestamp": NaN, "input_length": 3, "output_length": 1}', r"timestamp is nan, expected a number"),
            ('{"timestamp": "x", "input_length": 3, "output_length": 1}', r"timestamp is 'x', expected a number"),
            (mooncake_line(0, 99, 1, 1), r"1 hash_ids of 8 tokens cannot make an input_length of 99"),
            ('{"timestamp": 0, "input_length": 3, "output_length": 1, "hash_ids": "1"}', r"expected a list of whole"),
        ],
    )
    def test_a_bad_line_is_named_or_left_out_and_counted(self, tmp_path: Path, line: str, problem: str) -> None:
        mooncake = self.mooncake(tmp_path, mooncake_line(0, 8, 1, 1), line)

        with pytest.raises(RunError, match=problem):
            draw(mooncake, arrival=TRACE)

        schedule = draw({**mooncake, "on_error": "skip"}, arrival=TRACE)
        assert len(schedule) == 1
        assert "1 line, first line 2: " in schedule.notes[0]


@pytest.mark.parametrize(
    ("kind", "file", "requests", "keys"),
    [
        ("azure", "AzureLLMInferenceTrace_code.csv", 8819, {}),
        ("mooncake", "mooncake_synthetic_trace.jsonl", 3993, {"length_scale": 1 / 128}),
    ],
)
def test_the_published_traces_are_read_whole_and_replayed_in_slices(
    shared: Path, kind: str, file: str, requests: int, keys: dict[str, Any]
) -> None:
    path = shared / "data" / "traces" / file
    if not path.is_file():
        pytest.skip(f"needs ../shared/data/traces/{file}")
    trace = {"kind": kind, "path": str(path), "length_scale": 1 / 64, **keys}

    slice_ = draw({**trace, "skip": requests - 50}, arrival={"kind": "trace", "trace_rate": 1.0})

    assert len(slice_) == 50
    assert slice_.table["intended_s"].to_pylist()[-1] == pytest.approx(49.0)
    assert slice_.notes[0].startswith("the recorded arrivals end after 49.0 s of load")
    with pytest.raises(RunError, match="holds no request to replay"):
        draw({**trace, "skip": requests}, arrival=TRACE)
