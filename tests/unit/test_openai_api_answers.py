"""Answers of the two endpoints, whole and streamed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from muai_lab.engines.base import PrefillChunk, PromptCompute
from muai_lab.stack.request import Delta, GenerationRequest
from tests.unit.server_fakes import Bench, ParrotEngine, in_bench

USAGE = {"include_usage": True}


def complete(**fields: Any) -> Any:
    return in_bench(lambda bench: bench.complete(**fields))


def chat(**fields: Any) -> Any:
    return in_bench(lambda bench: bench.chat(**fields))


def hello(text: Any = "hello") -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def test_a_whole_completion() -> None:
    answer = complete(prompt="abc", max_tokens=4)

    document = answer.json
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert document["id"] == answer.headers["x-request-id"]
    assert document["id"].startswith("cmpl-")
    assert (document["object"], document["model"]) == ("text_completion", "parrot")
    assert document["choices"] == [{"index": 0, "text": "ABCA", "logprobs": None, "finish_reason": "length"}]
    assert document["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


def test_a_completion_has_16_tokens_unless_told_otherwise() -> None:
    assert complete(prompt="ab").json["usage"]["completion_tokens"] == 16


def test_a_chat_fills_the_context_unless_told_otherwise() -> None:
    usage = chat(messages=hello()).json["usage"]

    assert usage["total_tokens"] == ParrotEngine().info.max_model_len


def test_a_whole_chat_completion() -> None:
    document = chat(messages=hello("hey"), max_tokens=8).json

    assert document["id"].startswith("chatcmpl-")
    assert document["object"] == "chat.completion"
    message = {"role": "assistant", "content": "USER:HEY", "refusal": None}
    assert document["choices"] == [{"index": 0, "message": message, "logprobs": None, "finish_reason": "length"}]


def test_the_newer_name_of_the_token_limit_goes_before_the_older() -> None:
    usage = chat(messages=hello(), max_tokens=3, max_completion_tokens=5).json["usage"]

    assert usage["completion_tokens"] == 5


def test_text_parts_are_joined_and_developer_means_system() -> None:
    parts = [{"type": "text", "text": "he"}, {"type": "text", "text": "y"}]

    document = chat(messages=[{"role": "developer", "content": parts}], max_tokens=10).json

    assert document["choices"][0]["message"]["content"] == "SYSTEM:HEY"


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("ab", ["AB"]),
        ([97, 98], ["AB"]),
        (["ab", "xyz"], ["AB", "XY"]),
        ([[97, 98], [120, 121, 122]], ["AB", "XY"]),
    ],
)
def test_a_prompt_is_text_or_ids_one_or_several(prompt: Any, texts: list[str]) -> None:
    document = complete(prompt=prompt, max_tokens=2).json

    assert [choice["text"] for choice in document["choices"]] == texts
    assert [choice["index"] for choice in document["choices"]] == list(range(len(texts)))


def test_n_choices_per_prompt_follow_each_other_and_count_their_prompt_once() -> None:
    document = complete(prompt=["ab", "xyz"], n=2, max_tokens=2).json

    assert [choice["text"] for choice in document["choices"]] == ["AB", "AB", "XY", "XY"]
    assert document["usage"] == {"prompt_tokens": 5, "completion_tokens": 8, "total_tokens": 13}


def test_the_ids_of_the_tokens_come_with_the_text_if_they_are_asked_for() -> None:
    first = complete(prompt="ab", max_tokens=3, return_token_ids=True).json["choices"][0]
    second = complete(prompt=[97, 0, 98], max_tokens=3, return_token_ids=True).json["choices"][0]
    talk = chat(messages=hello("hey"), max_tokens=4, return_token_ids=True).json["choices"][0]

    assert (first["text"], first["token_ids"]) == ("ABA", [65, 66, 65])
    assert second["token_ids"][-1] == 0
    assert second["finish_reason"] == "stop"
    assert talk["token_ids"] == [ord(letter) for letter in talk["message"]["content"]]
    assert complete(prompt="ab", return_token_ids=True, stream=True).status == 400


def test_an_output_that_has_begun_is_for_encoder_decoder_models() -> None:
    class Encoder(ParrotEngine):
        prompts = PromptCompute.PADDED

        def prefill(self, chunks: Sequence[PrefillChunk]) -> list[int | None]:
            first = super().prefill(chunks)
            for chunk in chunks:
                for _ in chunk.output:
                    first = list(self.decode([chunk.slot]))
            return first

    def asked(bench: Bench) -> Any:
        return bench.complete(prompt="abc", x_muai_output=[65, 66], max_tokens=2, return_token_ids=True)

    assert in_bench(asked, engine=Encoder()).json["choices"][0]["token_ids"] == [67, 65]
    refused = in_bench(asked)
    assert (refused.status, refused.error["param"]) == (400, "x_muai_output")
    assert complete(prompt="abc", x_muai_output=["a"]).status == 400
    assert complete(prompt="abc", x_muai_output=[], max_tokens=1).status == 200


def test_a_stop_string_ends_the_text_before_itself() -> None:
    choice = complete(prompt="abcdef", max_tokens=20, stop=["DE"]).json["choices"][0]

    assert (choice["text"], choice["finish_reason"]) == ("ABC", "stop")


def test_the_end_token_ends_the_text_unless_it_is_ignored() -> None:
    ended = complete(prompt=[97, 0, 98], max_tokens=6).json
    ignored = complete(prompt=[97, 0, 98], max_tokens=6, ignore_eos=True).json

    assert (ended["choices"][0]["finish_reason"], ignored["choices"][0]["finish_reason"]) == ("stop", "length")
    assert ignored["usage"]["completion_tokens"] == 6


def test_sampling_reaches_the_stack_and_choices_of_one_seed_differ() -> None:
    asked: list[GenerationRequest] = []

    async def work(bench: Bench) -> None:
        submit = bench.stack.submit
        bench.stack.submit = lambda request: asked.append(request) or submit(request)  # type: ignore[method-assign]
        await bench.complete(prompt="ab", temperature=0.5, top_p=0.9, top_k=-1, seed=7, n=2, max_tokens=1)
        await bench.complete(prompt="ab", max_tokens=1)

    in_bench(work)

    first, second, default = (request.sampling for request in asked)
    assert (first.temperature, first.top_p, first.top_k) == (0.5, 0.9, 0)
    assert (first.seed, second.seed) == (7, 8)
    assert (default.temperature, default.top_p, default.seed) == (1.0, 1.0, None)
    assert len({request.request_id for request in asked}) == 3


def test_a_streamed_completion_sends_text_then_the_reason_then_done() -> None:
    answer = complete(prompt="abc", max_tokens=4, stream=True)

    assert answer.headers["content-type"].startswith("text/event-stream")
    *events, done = answer.events
    assert done == "[DONE]"
    assert "".join(event["choices"][0]["text"] for event in events) == "ABCA"
    assert [event["choices"][0]["finish_reason"] for event in events][-1] == "length"
    assert all(event["choices"][0]["finish_reason"] is None for event in events[:-1])
    assert {event["id"] for event in events} == {answer.headers["x-request-id"]}
    assert all("usage" not in event for event in events)


def test_a_streamed_chat_opens_with_the_role_and_ends_with_the_reason() -> None:
    *events, done = chat(messages=hello("hey"), max_tokens=8, stream=True).events

    choices = [event["choices"][0] for event in events]
    assert done == "[DONE]"
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert (choices[-1]["delta"], choices[-1]["finish_reason"]) == ({}, "length")
    assert "".join(choice["delta"]["content"] for choice in choices[1:-1]) == "USER:HEY"
    assert all(choice["finish_reason"] is None for choice in choices[:-1])


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_usage_comes_last_without_choices_when_it_was_asked_for(api: str) -> None:
    fields: dict[str, Any] = {"max_tokens": 4, "stream": True, "stream_options": USAGE}
    answer = complete(prompt="abc", **fields) if api == "completions" else chat(messages=hello("hey"), **fields)

    *events, usage, _ = answer.events
    assert all(event["usage"] is None for event in events)
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 4


def test_continuous_usage_tells_the_tokens_so_far_in_every_event() -> None:
    options = {**USAGE, "continuous_usage_stats": True}

    *events, _, _ = complete(prompt="ab", max_tokens=5, stream=True, stream_options=options).events

    counts = [event["usage"]["completion_tokens"] for event in events]
    assert counts == sorted(counts)
    assert counts[-1] == 5
    assert all(event["usage"]["total_tokens"] == event["usage"]["completion_tokens"] + 2 for event in events)


def test_an_unfinished_character_waits_for_its_last_byte() -> None:
    class Echo(ParrotEngine):
        def prefill(self, chunks: Any) -> Any:
            tokens = super().prefill(chunks)
            for chunk in chunks:
                self._said[chunk.slot] = (bytes(chunk.tokens), 1)
            return tokens

    options = {**USAGE, "continuous_usage_stats": True}
    answer = in_bench(
        lambda bench: bench.complete(prompt="aé", max_tokens=3, stream=True, stream_options=options), engine=Echo()
    )

    events = answer.events[:-2]
    assert "".join(event["choices"][0]["text"] for event in events) == "Aé"
    assert events[-1]["usage"]["completion_tokens"] == 3


def test_streamed_choices_are_told_apart_by_their_index() -> None:
    *events, usage, done = complete(prompt=["ab", "xyz"], n=2, max_tokens=3, stream=True, stream_options=USAGE).events

    texts = ["", "", "", ""]
    for event in events:
        texts[event["choices"][0]["index"]] += event["choices"][0]["text"]
    assert texts == ["ABA", "ABA", "XYZ", "XYZ"]
    assert usage["usage"] == {"prompt_tokens": 5, "completion_tokens": 12, "total_tokens": 17}
    assert done == "[DONE]"


def test_cached_prompt_tokens_are_told_where_there_is_a_cache() -> None:
    class Cached:
        token_ids = None

        def cancel(self) -> None: ...

        async def __aiter__(self) -> Any:
            yield Delta("x", 1, 1, "length", cached_tokens=2)

    async def work(bench: Bench) -> Any:
        bench.stack.submit = lambda request: Cached()  # type: ignore[method-assign, assignment, return-value]
        return await bench.complete(prompt="abc")

    assert in_bench(work).json["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}


def test_models_are_listed_and_described() -> None:
    async def work(bench: Bench) -> None:
        listed = (await bench.call("GET", "/v1/models")).json
        one = await bench.call("GET", "/v1/models/parrot")
        none = await bench.call("GET", "/v1/models/org/parrot")

        assert listed == {"object": "list", "data": [one.json]}
        assert (one.json["id"], one.json["object"], one.json["max_model_len"]) == ("parrot", "model", 64)
        assert (none.status, none.error["code"]) == (404, "model_not_found")

    in_bench(work)
