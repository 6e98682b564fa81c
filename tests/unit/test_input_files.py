"""Files as other tools write them: each field is used or named as ignored, whatever the format around it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muai_lab.errors import MuaiError, RunError
from muai_lab.workload.schedule import Schedule
from tests.unit.drawing import draw, written
from tests.unit.word_tokenizer import TEMPLATE_TOKENS

TRACE = {"kind": "trace"}
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens"
FIXED = {"output_tokens": {"distribution": "fixed", "value": 9}}


def asked(tmp_path: Path, *rows: Any, kind: str = "openai_jsonl", count: int | None = None, **keys: Any) -> Schedule:
    """A closed loop over JSON lines of these rows."""
    path = written(tmp_path / "set.jsonl", *(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return draw({"kind": kind, "path": path, **FIXED, **keys}, load={"requests": count or len(rows)})


def extra(schedule: Schedule, row: int = 0) -> Any:
    text = schedule.request(row).extra
    return None if text is None else json.loads(text)


class TestLengths:
    @pytest.mark.parametrize(
        "fields",
        [
            {"output_len": 4},
            {"output_length": "4"},
            {"output_tokens": 4.0},
            {"max_tokens": "4.0"},
            {"maxTokens": 4},
            {"max_completion_tokens": 4},
            {"generated_tokens": 4},
            {"num_output_tokens": 4},
            {"expected_output_len": 4},
            {"max_new_tokens": 4},
            {"sampling_params": {"max_tokens": 4}},
            {"parameters": {"max_new_tokens": 4}},
            {"usage": {"completion_tokens": 4}},
            {"output_tokens_count": 4},
            {"max_tokens": 4, "output_tokens": None},
            {"max_tokens": 500, "output_tokens": 4},
            {"completion": "one two three four"},
            {"response": "one two three four"},
            {"completion": "one two", "output_tokens": 4},
        ],
        ids=json.dumps,
    )
    def test_an_answer_has_the_length_that_the_row_gives_it(self, tmp_path: Path, fields: dict[str, Any]) -> None:
        assert asked(tmp_path, {"prompt": "why", **fields}).request(0).max_tokens == 4

    @pytest.mark.parametrize("where", ["body", "payload", "input", "request"])
    def test_inside_a_body_too(self, tmp_path: Path, where: str) -> None:
        row = {where: {"messages": [{"role": "user", "content": "why"}], "max_tokens": 4}}

        assert asked(tmp_path, row).request(0).max_tokens == 4

    def test_a_length_beside_another_limit_is_taken_and_noted(self, tmp_path: Path) -> None:
        schedule = asked(tmp_path, {"prompt": "why", "max_tokens": 500, "output_tokens": 4})

        assert "set.jsonl: 1 row with a length and another limit of the answer: the length is taken" in schedule.notes

    @pytest.mark.parametrize("limit", [-1, "-1", None])
    def test_no_limit_is_no_length(self, tmp_path: Path, limit: Any) -> None:
        schedule = asked(tmp_path, {"prompt": "a", "max_tokens": limit}, {"prompt": "b", "max_tokens": 3})

        assert [request.max_tokens for request in schedule] == [9, 3]
        assert schedule.notes == ("set.jsonl: 1 row without a length of the answer: drawn from workload.output_tokens",)

    def test_rows_that_ask_for_nothing_are_left_out_and_counted(self, tmp_path: Path) -> None:
        schedule = asked(
            tmp_path,
            {"prompt": "a", "max_tokens": 0},
            {"messages": []},
            {"messages": [{"role": "user", "content": " "}]},
            {"conversations": []},
            {"prompt": "b"},
            count=1,
        )

        assert schedule.request(0).prompt == "b"
        assert schedule.notes == (
            "left out of set.jsonl: 1 row with an answer of 0 tokens",
            "left out of set.jsonl: 3 rows with an empty conversation",
        )

    @pytest.mark.parametrize(
        ("value", "problem"),
        [
            (472.5, "expected a whole number of tokens"),
            ("1e999", "expected a whole number of tokens"),
            (True, "expected a whole number of tokens"),
            ([4], "expected a whole number of tokens"),
            (-3, "expected a number of tokens from 0"),
            (10**30, "expected at most 100,000,000 tokens"),
            (10**5000, "expected at most"),
        ],
        ids=lambda value: str(value)[:20] if not isinstance(value, int) or value < 10**9 else "huge",
    )
    def test_what_is_no_length_is_named(self, tmp_path: Path, value: Any, problem: str) -> None:
        line = '{"prompt": "a", "max_tokens": %s}' % ("1" + "0" * 400 if value == 10**5000 else json.dumps(value))

        with pytest.raises(RunError, match=rf"set\.jsonl:1: .*{problem}"):
            asked(tmp_path, line)

    def test_two_lengths_that_contradict_each_other_are_named(self, tmp_path: Path) -> None:
        with pytest.raises(RunError, match="output_len is 4, but generated_tokens is 5"):
            asked(tmp_path, {"prompt": "a", "output_len": 4, "generated_tokens": 5})


BODY = {
    "model": "m",
    "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "why"}],
    "max_tokens": 4,
    "temperature": 0.7,
    "seed": 3,
    "stop": ["x"],
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "response_format": {"type": "json_object"},
    "stream": True,
    "n": 1,
    "store": False,
}


class TestFieldsOfTheRequest:
    def test_those_of_a_body_are_sent_along_and_those_that_are_not_are_named(self, tmp_path: Path) -> None:
        batch = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": BODY}
        schedule = asked(tmp_path, batch)

        sent = ("temperature", "seed", "stop", "tools", "response_format", "store")
        assert extra(schedule) == {name: BODY[name] for name in sent}
        assert [message["role"] for message in schedule.request(0).conversation()] == ["system", "user"]
        assert schedule.notes == (
            "fields of set.jsonl without a use here, ignored: custom_id (1), body.model (1)",
            "set.jsonl: prompt lengths of 1 row are estimates: tools are counted as their JSON text",
        )

    def test_they_can_be_ignored(self, tmp_path: Path) -> None:
        schedule = asked(tmp_path, {"prompt": "a", "temperature": 0.7, "max_tokens": 3}, request_fields="ignore")

        assert (extra(schedule), schedule.request(0).max_tokens) == (None, 3)
        assert schedule.notes == ("fields of set.jsonl without a use here, ignored: temperature (1)",)

    def test_a_flat_row_sends_what_is_a_parameter_of_the_api_and_nothing_else(self, tmp_path: Path) -> None:
        row = {"prompt": "a", "top_p": 0.9, "category": "x", "user": "me", "sampling_params": {"top_k": 5, "n": 2}}
        schedule = asked(tmp_path, row, row)

        assert extra(schedule, 1) == {"top_p": 0.9, "top_k": 5}
        assert schedule.notes == (
            "fields of set.jsonl without a use here, ignored: category (2), user (2), sampling_params.n (2)",
        )

    def test_tools_are_no_part_of_plain_completions(self, tmp_path: Path) -> None:
        schedule = asked(tmp_path, {"prompt": "a", "tools": [{}]}, api="completions")

        assert extra(schedule) is None
        assert schedule.notes == ("fields of set.jsonl without a use here, ignored: tools (1)",)

    def test_a_csv_file_has_numbers_and_lists_as_texts(self, tmp_path: Path) -> None:
        path = written(
            tmp_path / "s.csv",
            "prompt,temperature,stop,ignore_eos,tools,output_tokens",
            'a,0.5,5,True,"[{""type"": ""function""}]",472.0',
        )
        schedule = draw({"kind": "table", "path": path, "api": "chat"}, load={"requests": 1})

        assert extra(schedule) == {
            "temperature": 0.5, "stop": "5", "ignore_eos": True, "tools": [{"type": "function"}],
        }  # fmt: skip
        assert schedule.request(0).max_tokens == 472

    @pytest.mark.parametrize(
        ("row", "problem"),
        [
            ({"url": "/v1/embeddings", "body": {"prompt": "a"}}, "url is '/v1/embeddings', expected"),
            ({"method": "GET", "body": {"prompt": "a"}}, "method is 'GET', expected POST"),
        ],
    )
    def test_a_batch_for_another_endpoint_is_refused(self, tmp_path: Path, row: Any, problem: str) -> None:
        with pytest.raises(RunError, match=problem):
            asked(tmp_path, row)

    def test_a_batch_for_the_other_kind_of_endpoint_is_noted(self, tmp_path: Path) -> None:
        schedule = asked(tmp_path, {"url": "/v1/completions", "body": {"prompt": "a"}})

        assert schedule.notes == ("set.jsonl: 1 row for the completions endpoint: sent to that of workload.api=chat",)


class TestConversations:
    def test_turns_of_mt_bench_are_a_session(self, tmp_path: Path) -> None:
        row = {"question_id": 81, "category": "writing", "turns": ["one two", "three"], "reference": ["x"]}
        first, second = asked(tmp_path, row, count=2)

        assert [(turn.prompt, turn.turn, turn.session) for turn in (first, second)] == [
            ("one two", 0, 0),
            ("three", 1, 0),
        ]

    def test_turns_of_aiperf_have_lengths_delays_and_fields_of_their_own(self, tmp_path: Path) -> None:
        turns = [
            {"text": "one", "output_length": 4},
            {"texts": ["two"], "delay": 1500, "output_length": 5, "extra": {"top_k": 3}, "image": "i.png"},
        ]
        schedule = asked(tmp_path, {"session_id": "a", "turns": turns}, count=2)

        assert [(turn.max_tokens, turn.think_s) for turn in schedule] == [(4, None), (5, 1.5)]
        assert extra(schedule, 1) == {"top_k": 3}
        assert schedule.notes == ("fields of set.jsonl without a use here, ignored: session_id (1), turns[].image (1)",)

    @pytest.mark.parametrize("keys", [("from", "value"), ("role", "content")])
    @pytest.mark.parametrize("field", ["conversations", "conversation"])
    def test_sharegpt_with_either_names_keeps_its_system_message(
        self, tmp_path: Path, keys: tuple[str, str], field: str
    ) -> None:
        who, what = keys
        said = [("system", "be brief"), ("human", "why"), ("gpt", "it is so"), ("user", "hm")]
        row = {"id": 1, field: [{who: speaker, what: text} for speaker, text in said]}
        schedule = asked(tmp_path, row, kind="sharegpt")

        assert [message["content"] for message in schedule.request(0).conversation()] == ["be brief", "why"]
        assert schedule.request(0).max_tokens == 3
        assert schedule.notes == (
            "set.jsonl: 1 row with more than 1 turns: the others are not asked, see workload.max_turns",
            "fields of set.jsonl without a use here, ignored: id (1)",
        )

    def test_a_conversation_ends_before_what_the_server_cannot_go_on_from(self, tmp_path: Path) -> None:
        said = [{"from": "human", "value": "a"}, {"from": "observation", "value": "b"}, {"from": "human", "value": "c"}]
        schedule = asked(tmp_path, {"conversations": said}, kind="sharegpt", max_turns=None, count=1)

        assert schedule.request(0).session is None
        assert "another role than user and assistant" in schedule.notes[0]

    def test_a_conversation_without_its_beginning_is_counted(self, tmp_path: Path) -> None:
        said = [{"from": "gpt", "value": "b"}, {"from": "human", "value": "c"}]
        schedule = asked(tmp_path, {"conversations": said}, {"prompt": "why"}, count=1)

        assert schedule.notes == ("left out of set.jsonl: 1 row with a conversation whose beginning is missing",)

    def test_tool_calls_and_their_results_are_sent_as_they_are(self, tmp_path: Path) -> None:
        said = [
            {"role": "user", "content": "weather?"},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}], "weight": 0},
            {"role": "tool", "content": "sunny", "tool_call_id": "1"},
        ]
        schedule = asked(tmp_path, {"messages": said})

        said[1].pop("weight")
        assert schedule.request(0).conversation() == said
        assert schedule.notes == ("fields of set.jsonl without a use here, ignored: messages[].weight (1)",)

    def test_parts_that_are_no_text_are_sent_and_noted(self, tmp_path: Path) -> None:
        parts = [{"type": "text", "text": "what is it"}, {"type": "image_url", "image_url": {"url": "http://x/i"}}]
        schedule = asked(tmp_path, {"messages": [{"role": "user", "content": parts}]})

        assert schedule.request(0).conversation()[0]["content"] == parts
        assert schedule.request(0).prompt_tokens == 3 + TEMPLATE_TOKENS
        assert "their tokens are not counted" in schedule.notes[0]

    def test_an_instruction_and_its_input_are_one_prompt(self, tmp_path: Path) -> None:
        row = {"instruction": "sum up", "input": "a text", "output": "one two"}
        schedule = asked(tmp_path, row, api="completions")

        assert (schedule.request(0).prompt, schedule.request(0).max_tokens) == ("sum up\n\na text", 2)
        assert schedule.notes == ()


ROWS = [{"prompt": "one", "max_tokens": 3}, {"prompt": "zwei ä", "max_tokens": 4}]


class TestFormats:
    @pytest.mark.parametrize(
        "content",
        [
            "\n".join(map(json.dumps, ROWS)),
            "\ufeff" + "\r\n".join(map(json.dumps, ROWS)) + "\r\n\r\n",
            json.dumps(ROWS),
            json.dumps(ROWS, indent=2),
            "[\n" + ",\n".join(map(json.dumps, ROWS)) + "\n]\n",
            "\n".join(json.dumps(row, indent=1) for row in ROWS),
            json.dumps({"name": "x", "data": ROWS}),
            json.dumps({"data": ROWS}, indent=4),
            json.dumps({"data": [{"session_id": "s", "payloads": ROWS}]}),
            'prompt,max_tokens\none,3\n"zwei ä",4\n',
            'prompt;max_tokens;\r\none;3;\r\n"zwei ä";4.0;\r\n',
            "\ufeff,prompt,max_tokens\n0,one,3\n1,zwei ä,4,,\n",
        ],
        ids=[
            "lines", "mark and CRLF", "list", "pretty list", "list of lines", "pretty objects", "wrapped",
            "pretty and wrapped", "payloads", "csv", "semicolons and trailing ones", "index and trailing commas",
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("packed", [False, True])
    def test_the_same_rows_are_read_from_all_of_them(self, tmp_path: Path, content: str, packed: bool) -> None:
        path = tmp_path / "set"
        path.write_bytes(gzip.compress(content.encode()) if packed else content.encode())
        schedule = draw({"kind": "openai_jsonl", "path": str(path)}, load={"requests": 2})

        assert [(request.prompt, request.max_tokens) for request in schedule] == [("one", 3), ("zwei ä", 4)]

    @pytest.mark.parametrize("content", [json.dumps(ROWS[0]), json.dumps(ROWS[0], indent=3), json.dumps([ROWS[0]])])
    def test_a_single_object_is_one_request(self, tmp_path: Path, content: str) -> None:
        path = written(tmp_path / "one.json", content)

        assert draw({"kind": "openai_jsonl", "path": path}, load={"requests": 1}).request(0).prompt == "one"

    def test_parquet_is_read_by_every_kind(self, tmp_path: Path) -> None:
        pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "set.parquet")
        lengths = {"timestamp": [0, 27], "input_length": [4, 5], "output_length": [1, 2]}
        pq.write_table(pa.table(lengths), tmp_path / "trace.parquet")

        one = draw({"kind": "openai_jsonl", "path": str(tmp_path / "set.parquet")}, load={"requests": 2})
        other = draw({"kind": "mooncake", "path": str(tmp_path / "trace.parquet")}, arrival=TRACE)

        assert [request.max_tokens for request in one] == [3, 4]
        assert [request.prompt_tokens for request in other] == [4, 5]

    @pytest.mark.parametrize(
        ("content", "problem"),
        [
            (b'{"prompt": "a"}\n{"prompt": "b', r"set:2: no JSON"),
            (b'{"prompt": "a"}\n[1]', r"set:2: expected a JSON object, found \[1\]"),
            (b'{"prompt": "\\ud800"}', r"set:1: .*surrogate|set:1: no JSON"),
            (b"[" * 100_000, r"set:1: .*nested too deeply"),
            (b'{"prompt": "a"}\n' + b"[" * 100_000, r"set:2: no JSON"),
            (b"\x1f\x8b\x08\x00rubbish", r"set"),
            (gzip.compress(b'{"prompt": "a"}\n' * 2000, mtime=0)[:-30], r"set:\d+: the compressed file breaks off"),
            (b"\x00\x01\x02", r"set is neither CSV nor Parquet nor JSON"),
            (b"PAR1 no", r"set is no Parquet file"),
            (b'a,b\n"unclosed', r"set:2: no CSV"),
            (b"a,a\n1,2\n", r"set:1: several columns are called 'a'"),
        ],
        ids=lambda value: str(value)[:30],
    )
    def test_damage_is_named_by_file_and_line(self, tmp_path: Path, content: bytes, problem: str) -> None:
        (tmp_path / "set").write_bytes(content)

        with pytest.raises(RunError, match=problem):
            draw({"kind": "openai_jsonl", "path": str(tmp_path / "set")}, load={"requests": 1})

    def test_rows_after_a_line_that_is_no_text_keep_their_numbers(self, tmp_path: Path) -> None:
        path = tmp_path / "set.csv"
        path.write_bytes(b"prompt,n\na,1\n\xff\xff,2\nb,x\n")

        with pytest.raises(RunError, match=r"set\.csv:3: no UTF-8 text"):
            draw({"kind": "table", "path": str(path)})
        schedule = draw({"kind": "table", "path": str(path), "on_error": "skip", "output_tokens_column": "n"})
        assert schedule.notes[0].startswith("left out of set.csv, since they cannot be read: 2 lines, first line 3")

    def test_json_lines_read_as_plain_text_are_noted(self, tmp_path: Path) -> None:
        assert "with a JSON object, asked as it stands" in asked(tmp_path, *ROWS, kind="text").notes[0]


def mooncake(tmp_path: Path, *rows: Any, arrival: Any = TRACE, **keys: Any) -> Schedule:
    path = written(tmp_path / "trace.jsonl", *map(json.dumps, rows))
    return draw({"kind": "mooncake", "path": path, "block_tokens": 8, **keys}, arrival=arrival)


class TestMooncakeOfOtherTools:
    def test_texts_and_messages_are_asked_as_they_are(self, tmp_path: Path) -> None:
        schedule = mooncake(
            tmp_path,
            {"timestamp": 0, "text_input": "hello you", "output_length": 4},
            {"timestamp": 100, "messages": [{"role": "user", "content": "why"}], "output_length": 5, "tools": [{}]},
            {"timestamp": 200, "payload": {"prompt": "so", "max_tokens": 6, "top_p": 0.5}},
            {"timestamp": 300, "input_length": 7, "output_length": 8, "extra": {"priority": 9}},
            api="chat",
        )

        assert [request.max_tokens for request in schedule] == [4, 5, 6, 8]
        assert [request.prompt for request in schedule][:3] == ["hello you", "why", "so"]
        assert [extra(schedule, row) for row in range(4)] == [None, {"tools": [{}]}, {"top_p": 0.5}, {"priority": 9}]
        assert schedule.table["intended_s"].to_pylist() == pytest.approx([0.0, 0.1, 0.2, 0.3])

    def test_a_delay_makes_a_turn_of_its_session(self, tmp_path: Path) -> None:
        schedule = mooncake(
            tmp_path,
            {"timestamp": 0, "session_id": "a", "input_length": 4, "output_length": 2},
            {"timestamp": 10, "session_id": "b", "text_input": "one two", "output_length": 3},
            {"session_id": "a", "delay": 500, "input_length": 5, "output_length": 2},
            {"session_id": "b", "delay": 1500.5, "text_input": "three", "output_length": 4},
        )

        rows = [(r.session, r.turn, r.think_s, r.prompt_tokens, r.max_tokens) for r in schedule]
        assert rows == [(0, 0, None, 4, 2), (0, 1, 0.5, 13, 2), (1, 0, None, 2, 3), (1, 1, 1.5005, 8, 4)]

    def test_messages_that_hold_the_whole_session_send_only_what_is_new(self, tmp_path: Path) -> None:
        first = [{"role": "user", "content": "hello"}]
        second = [*first, {"role": "assistant", "content": "hi"}, {"role": "user", "content": "how are you"}]
        schedule = mooncake(
            tmp_path,
            {"timestamp": 0, "session_id": "a", "messages": first, "output_length": 2},
            {"session_id": "a", "delay": 20, "messages": second, "output_length": 2},
            api="chat",
        )

        assert [request.prompt for request in schedule] == ["hello", "how are you"]
        assert "with a recorded answer inside a session" in schedule.notes[0]

    def test_turns_with_times_of_their_own_keep_them(self, tmp_path: Path) -> None:
        row = {"session_id": "a", "input_length": 4, "output_length": 2}
        schedule = mooncake(tmp_path, {"timestamp": 0, **row}, {"timestamp": 50, **row})

        assert schedule.table["intended_s"].to_pylist() == pytest.approx([0.0, 0.05])
        assert "of a session with a time of their own" in schedule.notes[0]

    def test_a_trace_without_times_lends_its_lengths(self, tmp_path: Path) -> None:
        row = {"input_length": 4, "output_length": 2}

        assert mooncake(tmp_path, row, row, arrival={"kind": "constant", "rate": 1.0}).request(1).prompt_tokens == 4
        with pytest.raises(RunError, match="this one has none"):
            mooncake(tmp_path, row, row)
        with pytest.raises(RunError, match=r"trace\.jsonl:2: the time is missing"):
            mooncake(tmp_path, {"timestamp": 3, **row}, row)

    @pytest.mark.parametrize("delay", [-1, "x", float("nan"), True])
    def test_a_delay_that_is_none_is_named(self, tmp_path: Path, delay: Any) -> None:
        with pytest.raises(RunError, match=r"trace\.jsonl:1: delay is"):
            mooncake(tmp_path, {"timestamp": 0, "input_length": 4, "output_length": 2, "delay": delay})


def trace_of(tmp_path: Path, *times: Any, **keys: Any) -> Schedule:
    rows = [{"timestamp": time, "input_length": 4, "output_length": 2} for time in times]
    return mooncake(tmp_path, *rows, **keys)


class TestTimes:
    @pytest.mark.parametrize(
        ("times", "unit"),
        [
            ([0, 2000], None),
            ([0, 2], "s"),
            ([0, "2000.0"], "ms"),
            ([5, 5 + 2_000_000], "us"),
            ([1_700_000_000, 1_700_000_002], None),
            ([1_700_000_000_000, 1_700_000_002_000], None),
            ([1_700_000_000_000_000_000, 1_700_000_002_000_000_000], None),
            (["2024-05-10 00:00:00+00:00", "2024-05-10T02:00:02+02:00"], None),
            (["2024-05-10T00:00:00Z", "2024-05-10 00:00:02.0000000"], None),
        ],
        ids=str,
    )
    def test_they_are_read_in_the_unit_that_they_have(self, tmp_path: Path, times: list[Any], unit: str | None) -> None:
        schedule = trace_of(tmp_path, *times, time_unit=unit)

        assert schedule.table["intended_s"].to_pylist() == pytest.approx([0.0, 2.0], abs=1e-5)

    def test_seconds_read_as_milliseconds_are_doubted(self, tmp_path: Path) -> None:
        times = [number * 0.3 for number in range(50)]

        doubt = trace_of(tmp_path, *times).notes[0]
        assert doubt.startswith("the recorded times, read as milliseconds, are 3.33e+03 arrivals/s: set workload.time_")
        for certain in ({"time_unit": "s"}, {"time_unit": "ms"}, {"arrival": {"kind": "trace", "trace_rate": 1.0}}):
            assert not any("read as" in note for note in trace_of(tmp_path, *times, **certain).notes)

    def test_milliseconds_read_as_seconds_are_doubted(self, tmp_path: Path) -> None:
        lines = [f"{number * 300},4,2" for number in range(50)]
        path = written(tmp_path / "b.csv", "Timestamp,Request tokens,Response tokens", *lines)
        schedule = draw({"kind": "burstgpt", "path": path}, arrival=TRACE)

        assert schedule.notes[0].startswith("the recorded times, read as seconds, are 0.00333 arrivals/s: set workload")

    def test_requests_out_of_order_are_sorted_and_those_at_once_counted(self, tmp_path: Path) -> None:
        schedule = trace_of(tmp_path, 90, 0, 0, 0, 90)

        assert schedule.table["intended_s"].to_pylist() == pytest.approx([0.0, 0.0, 0.0, 0.09, 0.09])
        assert schedule.notes[:2] == (
            "trace.jsonl is not in the order of time (1 steps back): its requests were sorted",
            "5 of 5 requests of trace.jsonl have a recorded time in common with another",
        )

    @pytest.mark.parametrize("time", ["NaN", '"x"', "true", "[]", "1e300", '""'])
    def test_what_is_no_time_is_named(self, tmp_path: Path, time: str) -> None:
        lines = [f'{{"timestamp": {each}, "input_length": 4, "output_length": 2}}' for each in ("0", time)]
        path = written(tmp_path / "t.jsonl", *lines)

        with pytest.raises(RunError, match=r"t\.jsonl:2: (timestamp is|the time is missing)"):
            draw({"kind": "mooncake", "path": path}, arrival=TRACE)

    def test_lengths_that_look_like_bytes_are_doubted(self, tmp_path: Path) -> None:
        rows = [{"timestamp": at, "input_length": 900_000, "output_length": 2} for at in (0, 50)]
        schedule = mooncake(tmp_path, *rows, length_scale=1e-5)

        assert "900,000 tokens at the median: are these characters or bytes?" in schedule.notes[0]

    def test_quoted_columns_with_other_names_are_a_trace(self, tmp_path: Path) -> None:
        lines = ['"2023-11-16 18:17:03.9","1,5",2'.replace("1,5", "15"), '"2023-11-16 18:17:04.9","472.0","8"']
        path = written(tmp_path / "a.csv", '"Timestamp","input_tokens","output_tokens"', *lines)
        schedule = draw({"kind": "azure", "path": path}, arrival=TRACE)

        assert [(request.prompt_tokens, request.max_tokens) for request in schedule] == [(15, 2), (472, 8)]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
FIELDS = (
    "prompt", "messages", "conversations", "turns", "body", "max_tokens", "output_tokens", "timestamp", "delay",
    "input_length", "output_length", "hash_ids", "session_id", "text_input", "stop", "temperature", "tools", "url",
    "role", "content", "from", "value", "extra", "sampling_params", "data", "payloads", "system", "instruction",
    "input",
)  # fmt: skip
nested = st.dictionaries(
    st.sampled_from(FIELDS),
    json_values | st.lists(st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=4), max_size=3),
    max_size=5,
)
rows = st.dictionaries(st.sampled_from(FIELDS), json_values | nested | st.lists(nested, max_size=2), max_size=6)


@settings(max_examples=100, deadline=None)
@given(
    entries=st.lists(rows | json_values, max_size=4),
    kind=st.sampled_from(["openai_jsonl", "sharegpt", "table", "mooncake", "azure", "burstgpt", "text"]),
    api=st.sampled_from(["chat", "completions"]),
    on_error=st.sampled_from(["fail", "skip"]),
)
def test_arbitrary_rows_give_a_schedule_or_an_error_that_names_the_file(
    tmp_path_factory: pytest.TempPathFactory, entries: list[Any], kind: str, api: str, on_error: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "arbitrary.jsonl"
    path.write_text("\n".join(map(json.dumps, entries)), encoding="utf-8")

    schedule = problem = None
    try:
        schedule = draw({"kind": kind, "path": str(path), "api": api, "on_error": on_error}, context_tokens=4096)
    except MuaiError as error:
        problem = str(error)
    if schedule is None:
        assert "arbitrary.jsonl" in (problem or "")
        return
    schedule.write(path.with_suffix(".parquet"))
    for request in Schedule.read(path.with_suffix(".parquet")):
        assert request.max_tokens >= 1
        assert request.prompt_tokens >= 0
        assert isinstance(request.text(), str)
        assert json.dumps(request.conversation())
        assert isinstance(json.loads(request.extra or "{}"), dict)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {"prompt": st.text("ab \n,\"';\t", min_size=1, max_size=12).filter(str.strip)},
            optional={"output_tokens": st.integers(1, 99), "temperature": st.floats(0, 2)},
        ),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from(["csv", "jsonl", "json", "parquet"]),
)
def test_the_fields_of_a_schedule_agree_with_the_rows(
    tmp_path_factory: pytest.TempPathFactory, entries: list[dict[str, Any]], suffix: str
) -> None:
    import csv

    path = tmp_path_factory.getbasetemp() / f"agree.{suffix}"
    columns = ("prompt", "output_tokens", "temperature")
    if suffix == "csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(entries)
    elif suffix == "parquet":
        types = (pa.string(), pa.int64(), pa.float64())
        schema = pa.schema(list(zip(columns, types, strict=True)))
        pq.write_table(pa.Table.from_pylist(entries, schema=schema), path)
    else:
        lines = map(json.dumps, entries)
        path.write_text("\n".join(lines) if suffix == "jsonl" else json.dumps(entries), encoding="utf-8")

    schedule = draw({"kind": "table", "path": str(path), **FIXED}, load={"requests": len(entries)})

    for request, entry in zip(schedule, entries, strict=True):
        assert request.prompt == entry["prompt"].replace("\r", "")
        assert request.max_tokens == entry.get("output_tokens", 9)
        assert json.loads(request.extra or "{}").get("temperature") == entry.get("temperature")


class TestWhatOtherToolsWrite:
    def test_the_prompt_of_alpaca_is_its_instruction_and_not_the_text_that_holds_the_answer(
        self, tmp_path: Path
    ) -> None:
        schedule = asked(tmp_path, {"instruction": "Sum up", "input": "a b", "output": "x", "text": "Sum up a b: x"})

        assert schedule.request(0).prompt == "Sum up\n\na b"
        assert any("text (1)" in note for note in schedule.notes)

    def test_the_context_of_dolly_is_part_of_the_prompt(self, tmp_path: Path) -> None:
        schedule = asked(tmp_path, {"instruction": "When", "context": "In 1990", "response": "x y"})

        assert schedule.request(0).prompt == "When\n\nIn 1990"

    def test_a_payload_may_be_a_list_of_bodies(self, tmp_path: Path) -> None:
        bodies = [{"messages": [{"role": "user", "content": text}], "max_tokens": 6} for text in ("a", "b")]

        schedule = asked(tmp_path, {"data": [{"payload": bodies}]}, count=2)

        assert [(request.prompt, request.max_tokens) for request in schedule] == [("a", 6), ("b", 6)]

    def test_messages_and_tools_may_be_json_texts(self, tmp_path: Path) -> None:
        tools = [{"type": "function", "function": {"name": "f"}}]
        row = {"messages": json.dumps([{"role": "User", "content": "a"}]), "tools": json.dumps(tools)}

        schedule = asked(tmp_path, row, {"prompt": "b", "tools": "[]"})

        assert schedule.request(0).conversation() == [{"role": "user", "content": "a"}]
        assert extra(schedule, 0) == {"tools": tools}
        assert extra(schedule, 1) is None

    def test_a_message_of_an_image_alone_is_asked(self, tmp_path: Path) -> None:
        image = {"type": "image_url", "image_url": {"url": "http://h/i.png"}}

        schedule = asked(tmp_path, {"messages": [{"role": "user", "content": [image]}]})

        assert schedule.request(0).conversation()[0]["content"] == [image]
        assert any("no text" in note for note in schedule.notes)

    @pytest.mark.parametrize("number", ["1180591620717411303424", "NaN", "Infinity"])
    def test_a_number_that_no_request_can_hold_is_named(self, tmp_path: Path, number: str) -> None:
        with pytest.raises(RunError, match=r":1: seed is .*64 bits"):
            asked(tmp_path, f'{{"prompt": "a", "seed": {number}}}')

    def test_sessions_of_rounded_numbers_are_not_taken_for_one(self, tmp_path: Path) -> None:
        rows = (f'{{"session_id": {2**70 + place}, "input_length": 5, "output_length": 2}}' for place in (0, 1))

        with pytest.raises(RunError, match=r"session_id is .*64 bits"):
            draw({"kind": "mooncake", "path": written(tmp_path / "m.jsonl", *rows)})

    def test_more_blocks_than_tokens_are_noted(self, tmp_path: Path) -> None:
        path = written(tmp_path / "m.jsonl", '{"input_length": 60, "output_length": 2, "hash_ids": [1, 2, 3, 4]}')

        blocks_of_512 = draw({"kind": "mooncake", "path": path})
        blocks_of_16 = draw({"kind": "mooncake", "path": path, "block_tokens": 16})

        assert any("1 row with more hash_ids than blocks of 512 tokens" in note for note in blocks_of_512.notes)
        assert not any("hash_ids" in note for note in blocks_of_16.notes)


class TestFilesThatCannotBeRead:
    @pytest.mark.parametrize(
        ("begun", "remedy"),
        [
            ("a".encode("utf-16"), "convert it to UTF-8"),
            (b"BZh91AY", "compress it with gzip"),
            (b"\xfd7zXZ\0", "compress it with gzip"),
            (b"\x28\xb5\x2f\xfd\0", "compress it with gzip"),
            (b"PK\x03\x04\0", "unpack it"),
        ],
    )
    @pytest.mark.parametrize("kind", ["text", "openai_jsonl", "table", "azure"])
    def test_the_remedy_is_named(self, tmp_path: Path, begun: bytes, remedy: str, kind: str) -> None:
        path = tmp_path / "file.jsonl"
        path.write_bytes(begun)

        with pytest.raises(RunError, match=f"{path}.*{remedy}"):
            draw({"kind": kind, "path": str(path), "on_error": "skip"})

    def test_a_header_that_is_no_csv_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "old.csv"
        path.write_bytes(b"prompt,max_tokens\ra,2\rb,3\r")

        with pytest.raises(RunError, match=r"old\.csv:1: the header is no CSV"):
            draw({"kind": "table", "path": str(path)})

    def test_a_header_may_have_line_ends_and_delimiters_in_quotes(self, tmp_path: Path) -> None:
        delimiters = written(tmp_path / "a.csv", '"a, b, c";prompt;max_tokens', "x;hello, you;4")
        lines = written(tmp_path / "b.csv", '"two', 'lines",prompt,max_tokens', 'x,"hello, you",4')

        for path in (delimiters, lines):
            request = draw({"kind": "table", "path": path}, load={"requests": 1}).request(0)
            assert (request.prompt, request.max_tokens) == ("hello, you", 4)

    def test_two_columns_of_one_name_are_an_error_in_parquet_too(self, tmp_path: Path) -> None:
        path = tmp_path / "twice.parquet"
        pq.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["prompt", "prompt"]), path)

        with pytest.raises(RunError, match="several columns are called 'prompt'"):
            draw({"kind": "table", "path": str(path)})

    def test_a_table_read_as_plain_text_is_noted(self, tmp_path: Path) -> None:
        path = written(tmp_path / "t.csv", "prompt,max_tokens", "a b,4")

        schedule = draw({"kind": "text", "path": path})

        assert any("workload.kind=table reads its fields" in note for note in schedule.notes)


class TestOriginsOfTimes:
    @pytest.mark.parametrize(
        "times",
        [
            ("0.5", "2023-11-14 22:13:21"),
            ("2023-11-14 22:13:21+02:00", "2023-11-14 22:13:22"),
            ("1700000000", "12"),
            ("2023-11-14", "20231115"),
        ],
    )
    def test_times_without_a_common_origin_are_an_error(self, tmp_path: Path, times: tuple[str, str]) -> None:
        with pytest.raises(RunError, match=r":2: .*another origin"):
            trace_of(tmp_path, *times)

    def test_numbers_since_1970_and_dates_have_one(self, tmp_path: Path) -> None:
        schedule = trace_of(tmp_path, "1700000000", "2023-11-14 22:13:21", "2023-11-14 22:13:22")

        assert schedule.table["intended_s"].to_pylist() == [0.0, 1.0, 2.0]

    def test_a_doubt_never_proposes_the_unit_that_it_doubts(self, tmp_path: Path) -> None:
        days = written(tmp_path / "days.csv", AZURE, *(f"45245.{place:06},5,2" for place in range(1, 9)))

        schedule = draw({"kind": "azure", "path": days}, arrival=TRACE)

        assert any("convert them to seconds if that is wrong" in note for note in schedule.notes)
