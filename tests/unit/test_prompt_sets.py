"""Prompts that somebody wrote: text, JSON lines, ShareGPT, tables; and what may be wrong with such files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muai_lab.errors import RunError
from muai_lab.workload.prompts import Context
from muai_lab.workload.schedule import Schedule
from tests.unit.drawing import draw, written
from tests.unit.word_tokenizer import TEMPLATE_TOKENS

FIXED = {"output_tokens": {"distribution": "fixed", "value": 9}}


def prompts(schedule: Schedule) -> list[str | None]:
    return [request.prompt for request in schedule]


class TestText:
    def test_a_line_is_a_prompt_and_an_empty_line_is_none(self, tmp_path: Path) -> None:
        path = written(tmp_path / "prompts.txt", "Why is the sky blue?", "", "  ", "And the sea?", end="")
        schedule = draw({"kind": "text", "path": path, **FIXED}, load={"requests": 3})

        assert prompts(schedule) == ["Why is the sky blue?", "And the sea?", "Why is the sky blue?"]
        assert [request.prompt_tokens for request in schedule] == [5, 3, 5]
        assert {request.max_tokens for request in schedule} == {9}
        assert schedule.notes == ("prompts.txt holds 2 prompts, and 3 were asked for: they repeat",)

    def test_the_order_can_be_that_of_the_seed(self, tmp_path: Path) -> None:
        path = written(tmp_path / "prompts.txt", *(f"prompt {number}" for number in range(20)))
        text = {"kind": "text", "path": path, "order": "shuffled"}
        orders = [prompts(draw(text, load={"requests": 20}, seed=seed)) for seed in (0, 0, 1)]

        assert orders[0] == orders[1] != orders[2]
        assert len(set(orders[0])) == 20

    def test_prompts_that_do_not_fit_are_left_out_and_counted(self, tmp_path: Path) -> None:
        path = written(tmp_path / "prompts.txt", "short one", "a much longer prompt " * 4)
        schedule = draw({"kind": "text", "path": path, **FIXED}, context_tokens=10, load={"requests": 2})

        assert prompts(schedule) == ["short one", "short one"]
        assert schedule.request(0).max_tokens == 8
        assert schedule.notes[-2:] == (
            "cut to fit the model's context of 10 tokens: 2 outputs",
            "left out, not to exceed the model's context of 10 tokens: 1 prompt",
        )

    def test_a_file_whose_prompts_are_all_too_long_is_refused(self, tmp_path: Path) -> None:
        path = written(tmp_path / "prompts.txt", "one two three")

        with pytest.raises(RunError, match="no prompt that fits into the model's context of 3 tokens"):
            draw({"kind": "text", "path": path}, context_tokens=3)

    def test_an_empty_file_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(RunError, match=r"prompts\.txt holds no prompt: check workload\.path"):
            draw({"kind": "text", "path": written(tmp_path / "prompts.txt", "")})


class TestOpenAiJsonl:
    def schedule(self, tmp_path: Path, *lines: Any, **keys: Any) -> Schedule:
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        path = written(tmp_path / "set.jsonl", *texts)
        return draw({"kind": "openai_jsonl", "path": path, **FIXED, **keys}, load={"requests": len(lines)})

    def test_prompts_messages_and_batch_bodies_are_all_read(self, tmp_path: Path) -> None:
        schedule = self.schedule(
            tmp_path,
            {"prompt": "one two"},
            {"messages": [{"role": "user", "content": "one"}], "max_tokens": 4},
            {"custom_id": "a", "body": {"messages": [{"role": "user", "content": "uno"}], "max_completion_tokens": 5}},
        )

        assert prompts(schedule) == ["one two", "one", "uno"]
        assert [request.max_tokens for request in schedule] == [9, 4, 5]
        assert schedule.request(0).prompt_tokens == 2 + TEMPLATE_TOKENS

    def test_conversations_are_kept_and_an_answer_at_the_end_lends_its_length(self, tmp_path: Path) -> None:
        said = [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "why "}, {"type": "text", "text": "so"}]},
            {"role": "assistant", "content": "because it is so"},
        ]
        request = self.schedule(tmp_path, {"messages": said}).request(0)

        assert [message["content"] for message in request.conversation()] == ["be brief", "why so"]
        assert request.prompt_tokens == 4 + 2 * TEMPLATE_TOKENS
        assert request.max_tokens == 4

    def test_as_plain_completions_messages_are_joined(self, tmp_path: Path) -> None:
        said = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "why"}]
        request = self.schedule(tmp_path, {"messages": said}, api="completions").request(0)

        assert request.text() == "be brief\nwhy"
        assert request.prompt_tokens == 4

    @pytest.mark.parametrize(
        ("line", "problem"),
        [
            ('{"prompt": "cut of', r"set\.jsonl:2: no JSON"),
            (
                {"question_id": "why"},
                r"set\.jsonl:2: expected messages, conversations, turns or prompt, found question_id",
            ),
            ({"prompt": 5}, r"prompt is 5, expected a text"),
            ([1, 2], r"set\.jsonl:2: expected a JSON object, found \[1, 2\]"),
            ({"messages": {}}, r"messages is {}, expected a list"),
            ({"messages": [{"role": "user"}]}, r"has no role or no text"),
            ({"messages": [{"role": "assistant", "content": "hm"}]}, r"holds an answer and no question"),
            ({"prompt": "a", "max_tokens": "many"}, r"max_tokens is 'many', expected a whole number"),
        ],
    )
    def test_a_bad_line_is_named_or_left_out_and_counted(self, tmp_path: Path, line: Any, problem: str) -> None:
        with pytest.raises(RunError, match=problem):
            self.schedule(tmp_path, {"prompt": "fine"}, line)

        schedule = self.schedule(tmp_path, {"prompt": "fine"}, line, on_error="skip")
        assert prompts(schedule) == ["fine", "fine"]
        assert schedule.notes[0].startswith("left out of set.jsonl, since they cannot be read: 1 line")


def conversation(*said: str) -> dict[str, Any]:
    speakers = ["human", "gpt"] * len(said)
    return {
        "id": "x",
        "conversations": [{"from": who, "value": text} for who, text in zip(speakers, said, strict=False)],
    }


class TestShareGpt:
    def schedule(self, path: Path, content: str, requests: int = 2, **keys: Any) -> Schedule:
        path.write_text(content, encoding="utf-8")
        return draw({"kind": "sharegpt", "path": str(path), **FIXED, **keys}, load={"requests": requests})

    def test_first_questions_are_asked_with_the_lengths_of_their_answers(self, tmp_path: Path) -> None:
        entries = [conversation("why is that", "it is so", "hm", "yes"), conversation("how")]
        schedule = self.schedule(tmp_path / "sg.json", json.dumps(entries))

        assert prompts(schedule) == ["why is that", "how"]
        assert [request.max_tokens for request in schedule] == [3, 9]
        assert [request.session for request in schedule] == [None, None]

    def test_whole_conversations_are_sessions(self, tmp_path: Path) -> None:
        entries = [conversation("one", "uno", "two", "dos dos", "three", "tres")]
        schedule = self.schedule(tmp_path / "sg.json", json.dumps(entries), max_turns=2)

        first, second = schedule
        assert [(turn.prompt, turn.turn, turn.max_tokens) for turn in schedule] == [("one", 0, 1), ("two", 1, 2)]
        assert second.think_s is not None
        assert second.prompt_tokens == first.prompt_tokens + 1 + TEMPLATE_TOKENS + 1 + TEMPLATE_TOKENS

    def test_a_conversation_whose_beginning_is_missing_is_not_asked(self, tmp_path: Path) -> None:
        entries = [
            {"conversations": [{"from": "gpt", "value": "…continued"}, {"from": "human", "value": "go on"}]},
            {"conversations": []},
            conversation("why", "so"),
        ]
        schedule = self.schedule(tmp_path / "sg.json", json.dumps(entries), requests=1)

        assert prompts(schedule) == ["why"]

    def test_a_list_that_breaks_off_is_named_by_line_or_used_as_far_as_it_goes(self, tmp_path: Path) -> None:
        whole = json.dumps([conversation("one", "uno"), conversation("two", "dos")], indent=1)
        cut = whole[: whole.index("dos")]

        with pytest.raises(RunError, match=r"sg\.json:15: the list breaks off in the entry that begins here"):
            self.schedule(tmp_path / "sg.json", cut)
        schedule = self.schedule(tmp_path / "sg.json", cut, on_error="skip")
        assert prompts(schedule) == ["one", "one"]
        assert schedule.notes[0].startswith("left out of sg.json, since they cannot be read: 1 line, first line 15")

    @pytest.mark.parametrize(
        ("content", "problem"),
        [
            ('{"a": 1}', r"sg\.json:1: expected messages, conversations, turns or prompt, found a"),
            ('[{"conversations": 5}]', r"sg\.json:1: conversations is 5, expected a list"),
            ('[{"conversations": [{"from": "human"}]}]', r"has no role or no text"),
            ("[" + json.dumps(conversation("a", "b")), r"the list has no end: the file was cut off"),
            ("", r"holds no prompt"),
        ],
    )
    def test_a_file_of_another_shape_is_refused(self, tmp_path: Path, content: str, problem: str) -> None:
        with pytest.raises(RunError, match=problem):
            self.schedule(tmp_path / "sg.json", content)


TABLE = {"question": ["why", 'say "a, b"\nand c'], "n": [3, 7], "system": ["be brief", None]}


class TestTable:
    def test_a_parquet_table_is_read_by_its_columns(self, tmp_path: Path) -> None:
        path = tmp_path / "set.parquet"
        pq.write_table(pa.table(TABLE), path)
        keys = {"prompt_column": "question", "output_tokens_column": "n", "system_column": "system", "api": "chat"}
        schedule = draw({"kind": "table", "path": str(path), **keys}, load={"requests": 2})

        assert [len(request.conversation()) for request in schedule] == [2, 1]
        assert [request.max_tokens for request in schedule] == [3, 7]
        assert schedule.request(1).prompt == 'say "a, b"\nand c'

    def test_a_csv_table_may_have_line_ends_in_its_fields(self, tmp_path: Path) -> None:
        path = written(tmp_path / "set.csv", "question,n", '"say ""a, b""\nand c",3', "why,7")
        schedule = draw({"kind": "table", "path": path, "prompt_column": "question"}, load={"requests": 2})

        assert prompts(schedule) == ['say "a, b"\nand c', "why"]

    def test_a_bad_row_is_named_by_the_line_it_begins_in(self, tmp_path: Path) -> None:
        path = written(tmp_path / "set.csv", "question,n", '"two\nlines",3', "  ,4", "why,x")
        table = {"kind": "table", "path": path, "prompt_column": "question", "output_tokens_column": "n"}

        with pytest.raises(RunError, match=r"set\.csv:4: question is '  ', expected a text"):
            draw(table)
        schedule = draw({**table, "on_error": "skip"}, load={"requests": 1})
        assert schedule.notes[0].startswith("left out of set.csv, since they cannot be read: 2 lines")

    @pytest.mark.parametrize(
        ("name", "content", "problem"),
        [
            ("set.csv", b"a,b\n1,2\n", r"has no column prompt, but a, b: check workload\.path"),
            ("set.parquet", b"no parquet", r"is no Parquet file, or a damaged one"),
            ("set.xlsx", b"PK\0\0", r"is neither CSV nor Parquet nor JSON"),
            ("set.csv", b"", r"holds no prompt"),
        ],
    )
    def test_a_file_that_is_no_such_table_is_refused(
        self, tmp_path: Path, name: str, content: bytes, problem: str
    ) -> None:
        (tmp_path / name).write_bytes(content)

        with pytest.raises(RunError, match=problem):
            draw({"kind": "table", "path": str(tmp_path / name)})

    def test_a_missing_parquet_file_is_named(self) -> None:
        with pytest.raises(RunError, match=r"cannot read gone\.parquet: .*; check workload\.path"):
            draw({"kind": "table", "path": "gone.parquet"})


@given(
    context=st.integers(2, 200),
    lengths=st.tuples(st.integers(1, 400), st.integers(1, 400)),
    least=st.integers(1, 60),
)
def test_what_is_fitted_fits_and_what_fits_is_left_alone(context: int, lengths: tuple[int, int], least: int) -> None:
    least = min(least, context - 1, lengths[0])
    room = Context(context)

    prompt, output = room.fit(*lengths, least)

    assert prompt + output <= context
    assert prompt >= least
    assert output >= 1
    assert ((prompt, output) == lengths) == (sum(lengths) <= context)
    assert bool(room.notes()) == (sum(lengths) > context)
