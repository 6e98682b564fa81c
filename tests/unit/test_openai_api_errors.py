"""Every way in which a request can be refused: status, OpenAI's error shape, and what the message names."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import orjson
import pytest

from muai_lab.server.body import MAX_BODY_BYTES
from muai_lab.server.field_values import MAX_STOP_CHARACTERS, MAX_STOP_STRINGS
from muai_lab.server.protocol import MAX_PROBLEMS, CompletionRequest, parse
from muai_lab.settings.monitoring import ServerSettings
from tests.unit.server_fakes import CONTEXT, Bench, Call, ParrotEngine, in_bench

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]


def post(path: str, fields: dict[str, Any]) -> Any:
    return in_bench(lambda bench: bench.call("POST", path, orjson.dumps(fields)))


@pytest.mark.parametrize(
    ("body", "position"),
    [
        (b'{"model": "parrot", "prompt": ', "line 1 column 30"),
        (b'{"model": "parrot",\n "prompt" "a"}', "line 2 column 11"),
        (b"", "line 1 column 0"),
        (b"\xff\xfe", "line 1 column 1"),
    ],
)
def test_malformed_json_is_refused_with_its_position(body: bytes, position: str) -> None:
    answer = in_bench(lambda bench: bench.call("POST", COMPLETIONS, body))

    assert answer.status == 400
    assert answer.error["code"] == "invalid_json"
    assert answer.error["type"] == "invalid_request_error"
    assert position in answer.error["message"]


def test_a_body_that_is_no_object_is_refused() -> None:
    answer = in_bench(lambda bench: bench.call("POST", COMPLETIONS, b"[1]"))

    assert (answer.status, answer.error["message"]) == (400, "the body must be a JSON object")


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (COMPLETIONS, {"prompt": "a"}, "model"),
        (COMPLETIONS, {"model": "parrot"}, "prompt"),
        (COMPLETIONS, {"model": "parrot", "prompt": 1}, "prompt"),
        (COMPLETIONS, {"model": "parrot", "prompt": []}, "prompt"),
        (COMPLETIONS, {"model": "parrot", "prompt": ["a", 1]}, "prompt"),
        (COMPLETIONS, {"model": "parrot", "prompt": [[1], []]}, "prompt"),
        (COMPLETIONS, {"model": "parrot", "prompt": [True]}, "prompt"),
        (COMPLETIONS, {"model": "parrot", "prompt": ""}, "prompt"),
        (COMPLETIONS, {"model": "parrot", "prompt": [65, 256]}, "prompt"),
        (COMPLETIONS, {"model": "parrot", "prompt": "a", "max_tokens": 0}, "max_tokens"),
        (COMPLETIONS, {"model": "parrot", "prompt": "a", "max_tokens": -3}, "max_tokens"),
        (COMPLETIONS, {"model": "parrot", "prompt": "a", "max_tokens": "16"}, "max_tokens"),
        (COMPLETIONS, {"model": "parrot", "prompt": "a", "temperature": -0.1}, "temperature"),
        (COMPLETIONS, {"model": "parrot", "prompt": "a", "temperature": "hot"}, "temperature"),
        (COMPLETIONS, {"model": "parrot", "prompt": "a", "top_p": 0}, "top_p"),
        (COMPLETIONS, {"model": "parrot", "prompt": "a", "top_p": 1.5}, "top_p"),
        (COMPLETIONS, {"model": "parrot", "prompt": "a", "top_k": -2}, "top_k"),
        (COMPLETIONS, {"model": "parrot", "prompt": "a", "n": 0}, "n"),
        (COMPLETIONS, {"model": "parrot", "prompt": "a", "seed": 2**63}, "seed"),
        (COMPLETIONS, {"model": "parrot", "prompt": "a", "stop": [1]}, "stop"),
        (COMPLETIONS, {"model": "parrot", "prompt": "a", "stop": ["x", ""]}, "stop"),
        (COMPLETIONS, {"model": "parrot", "prompt": "a", "stream": 1}, "stream"),
        (COMPLETIONS, {"model": "parrot", "prompt": "a", "stream_options": {"include_usage": True}}, "stream_options"),
        (
            COMPLETIONS,
            {"model": "parrot", "prompt": "a", "stream": True, "stream_options": {"include_usage": "yes"}},
            "stream_options.include_usage",
        ),
        (CHAT, {"model": "parrot"}, "messages"),
        (CHAT, {"model": "parrot", "messages": []}, "messages"),
        (CHAT, {"model": "parrot", "messages": "hello"}, "messages"),
        (CHAT, {"model": "parrot", "messages": [{"role": "user"}]}, "messages[0].content"),
        (CHAT, {"model": "parrot", "messages": [{"role": "poet", "content": "x"}]}, "messages[0].role"),
        (CHAT, {"model": "parrot", "messages": [*HELLO, {"role": "user", "content": 3}]}, "messages[1].content"),
        (CHAT, {"model": "parrot", "messages": HELLO, "max_completion_tokens": 0}, "max_completion_tokens"),
    ],
)
def test_a_bad_field_is_refused_by_name(path: str, fields: dict[str, Any], param: str) -> None:
    answer = post(path, fields)

    assert answer.status == 400
    assert answer.error["param"] == param
    assert answer.error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "extra",
    [
        {"echo": True},
        {"logprobs": 0},
        {"suffix": "x"},
        {"best_of": 3},
        {"frequency_penalty": 0.5},
        {"presence_penalty": -1},
        {"logit_bias": {"5": 1}},
        {"repetition_penalty": 1.1},
        {"guided_choice": ["a"]},
        {"guided_grammar": "root ::= 'a'"},
        {"guided_json": {}, "guided_regex": "a+"},
        {"structured_outputs": {"choice": ["a"]}},
        {"bad_words": ["a"]},
        {"allowed_token_ids": [1]},
        {"truncate_prompt_tokens": 4},
        {"include_stop_str_in_output": True},
        {"add_special_tokens": False},
        {"skip_special_tokens": False},
        {"json_schema": "{}"},
        {"stop_regex": "a+"},
        {"max_new_tokens": 4},
        {"stream_interval": 8},
        {"extra_body": {"top_k": 1}},
        {"max_completion_tokens": 4},
        {"messages": HELLO},
    ],
)
def test_a_field_that_would_change_the_answer_but_cannot_be_honoured_is_refused(extra: dict[str, Any]) -> None:
    answer = post(COMPLETIONS, {"model": "parrot", "prompt": "a", **extra})

    assert answer.status == 400
    assert answer.error["param"] == list(extra)[-1]
    assert "not supported" in answer.error["message"]


@pytest.mark.parametrize(
    "extra",
    [
        {"tools": [{"type": "function"}]},
        {"response_format": {"type": "json_object"}},
        {"logprobs": True},
        {"top_logprobs": 2},
        {"tool_choice": "required"},
        {"continue_final_message": True},
        {"add_generation_prompt": False},
        {"add_special_tokens": True},
        {"chat_template": "{{ messages }}"},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"reasoning_effort": "high"},
        {"prompt": "a"},
    ],
)
def test_a_chat_field_that_cannot_be_honoured_is_refused(extra: dict[str, Any]) -> None:
    answer = post(CHAT, {"model": "parrot", "messages": HELLO, **extra})

    assert (answer.status, [answer.error["param"]]) == (400, list(extra))


def test_neutral_values_and_unknown_fields_are_accepted() -> None:
    harmless = {
        "user": "me",
        "metadata": {"a": "b"},
        "echo": False,
        "logprobs": None,
        "suffix": None,
        "best_of": 1,
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "logit_bias": None,
        "seed": None,
        "stop": None,
        "temperature": None,
        "stream": None,
        "no_such_field": 3,
        "guided_json": None,
        "bad_words": [],
        "allowed_token_ids": None,
        "truncate_prompt_tokens": None,
        "include_stop_str_in_output": False,
        "add_special_tokens": True,
        "skip_special_tokens": True,
        "stream_interval": 1,
    }

    assert post(COMPLETIONS, {"model": "parrot", "prompt": "a", **harmless}).status == 200


def test_a_picture_in_a_message_is_refused() -> None:
    parts = [{"type": "text", "text": "what is this?"}, {"type": "image_url", "image_url": {"url": "data:"}}]

    answer = post(CHAT, {"model": "parrot", "messages": [{"role": "user", "content": parts}]})

    assert (answer.status, answer.error["param"]) == (400, "messages[0].content")
    assert "'image_url'" in answer.error["message"]


@pytest.mark.parametrize("extra", [{"tool_calls": [{"id": "1"}]}, {"prefix": True}, {"function_call": {"name": "f"}}])
def test_a_field_of_a_message_that_cannot_be_honoured_is_refused(extra: dict[str, Any]) -> None:
    answer = post(CHAT, {"model": "parrot", "messages": [*HELLO, {"role": "assistant", "content": "x", **extra}]})

    assert (answer.status, answer.error["code"]) == (400, "unsupported_parameter")
    assert answer.error["param"] == f"messages[1].{next(iter(extra))}"


def test_a_message_may_hold_what_asks_for_nothing() -> None:
    message = {"role": "user", "content": "hello", "tool_calls": [], "prefix": False, "audio": None, "name": "me"}

    assert post(CHAT, {"model": "parrot", "messages": [message]}).status == 200


def test_all_fields_at_fault_are_named_together() -> None:
    answer = post(COMPLETIONS, {"prompt": "a", "max_tokens": 0, "top_p": 2})

    for name in ("'model'", "'max_tokens'", "'top_p'"):
        assert name in answer.error["message"]


def test_an_unknown_model_is_told_which_there_are() -> None:
    answer = post(COMPLETIONS, {"model": "gpt-9", "prompt": "a"})

    assert (answer.status, answer.error["code"], answer.error["param"]) == (404, "model_not_found", "model")
    assert "'gpt-9'" in answer.error["message"]
    assert "'parrot'" in answer.error["message"]


def test_a_prompt_longer_than_the_context_is_told_both_numbers() -> None:
    answer = post(COMPLETIONS, {"model": "parrot", "prompt": "a" * (CONTEXT + 1)})

    assert (answer.status, answer.error["code"]) == (400, "context_length_exceeded")
    assert str(CONTEXT + 1) in answer.error["message"]
    assert str(CONTEXT) in answer.error["message"]


def test_more_output_than_fits_is_refused_too() -> None:
    answer = post(COMPLETIONS, {"model": "parrot", "prompt": "aaaa", "max_tokens": CONTEXT})

    assert (answer.status, answer.error["code"]) == (400, "context_length_exceeded")


def test_unknown_routes_and_wrong_methods() -> None:
    async def work(bench: Bench) -> None:
        unknown = await bench.call("GET", "/v2/completions")
        wrong = await bench.call("GET", COMPLETIONS)
        wrong_health = await bench.call("DELETE", "/health")

        assert (unknown.status, unknown.error["code"]) == (404, "unknown_url")
        assert (wrong.status, wrong.headers["allow"]) == (405, "POST")
        assert wrong.error["code"] == "method_not_allowed"
        assert (wrong_health.status, wrong_health.headers["allow"]) == (405, "GET, HEAD")

    in_bench(work)


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_that_is_too_large_is_refused(announced: bool) -> None:
    body = b" " * (MAX_BODY_BYTES + 1)
    headers = {"content-length": str(len(body))} if announced else {}

    answer = in_bench(lambda bench: bench.call("POST", COMPLETIONS, body, headers))

    assert (answer.status, answer.error["code"]) == (413, "body_too_large")
    assert answer.headers["connection"] == "close"


def test_a_full_queue_is_429_and_says_when_to_try_again() -> None:
    async def work(bench: Bench) -> None:
        bench.engine.gate.clear()
        running = bench.start(COMPLETIONS, prompt="a")
        await bench.load(running=1)
        waiting = bench.start(COMPLETIONS, prompt="b")
        await bench.load(running=1, waiting=1)

        refused = await bench.complete(prompt="c")
        bench.engine.gate.set()

        assert (refused.status, refused.error["code"]) == (429, "queue_full")
        assert refused.error["type"] == "rate_limit_error"
        assert int(refused.headers["retry-after"]) >= 1
        assert [(await task).status for _, task in (running, waiting)] == [200, 200]

    in_bench(work, engine=ParrotEngine(slots=1), queue_capacity=1)


def test_of_a_request_with_several_prompts_all_are_queued_or_none() -> None:
    async def work(bench: Bench) -> None:
        bench.engine.gate.clear()
        _, running = bench.start(COMPLETIONS, prompt="a")
        await bench.load(running=1)
        refused = await bench.complete(prompt=["a", "b", "c"])
        bench.engine.gate.set()

        assert refused.status == 429
        assert (await running).status == 200
        await bench.load(running=0)

    in_bench(work, engine=ParrotEngine(slots=1), queue_capacity=2)


def test_more_sequences_than_ever_fit_are_a_bad_request_and_their_prompts_are_not_read() -> None:
    async def work(bench: Bench) -> None:
        bench.stack.tokenizer.encode = lambda text: 1 / 0  # type: ignore[method-assign]
        for fields in ({"prompt": ["a", "b", "c", "d"]}, {"prompt": ["a", "b"], "n": 2}):
            refused = await bench.complete(**fields)

            assert (refused.status, refused.error["param"]) == (400, "n")
            assert "4 sequences" in refused.error["message"]

    in_bench(work, engine=ParrotEngine(slots=1), queue_capacity=2)


def test_before_the_models_are_loaded_requests_are_told_to_come_back() -> None:
    async def work() -> None:
        bench = Bench()
        answer = await bench.complete(prompt="a")

        assert (answer.status, answer.error["code"]) == (503, "loading")
        assert int(answer.headers["retry-after"]) >= 1
        await bench.stack.close()

    asyncio.run(work())


def test_a_draining_server_refuses_but_finishes_what_runs() -> None:
    async def work(bench: Bench) -> None:
        bench.engine.gate.clear()
        _, running = bench.start(COMPLETIONS, prompt="abc", max_tokens=3)
        await bench.load(running=1)
        drain = asyncio.create_task(bench.host.drain(10.0))
        await asyncio.sleep(0)

        refused = await bench.complete(prompt="b")
        bench.engine.gate.set()
        await drain

        assert (refused.status, refused.error["code"]) == (503, "draining")
        assert int(refused.headers["retry-after"]) >= 1
        assert (await running).json["choices"][0]["text"] == "ABC"

    in_bench(work)


def test_what_a_drain_cannot_finish_in_time_ends_with_a_clear_error() -> None:
    async def work(bench: Bench) -> None:
        bench.engine.gate.clear()
        _, whole = bench.start(COMPLETIONS, prompt="abc")
        await bench.load(running=1)

        await bench.host.drain(0.0)
        answer = await whole

        assert (answer.status, answer.error["code"]) == (503, "cancelled")
        assert "shutting down" in answer.error["message"]

    in_bench(work)


def test_a_request_that_misses_its_deadline_is_504() -> None:
    answer = in_bench(lambda bench: bench.complete(prompt="abc"), settings=ServerSettings(request_timeout_s=1e-9))

    assert (answer.status, answer.error["code"]) == (504, "deadline_exceeded")


def test_an_engine_that_fails_is_500_and_unhealthy_from_then_on() -> None:
    async def work(bench: Bench) -> None:
        bench.engine.broken = True
        first = await bench.complete(prompt="a")
        second = await bench.complete(prompt="a")
        health = await bench.call("GET", "/health")
        ready = await bench.call("GET", "/ready")

        assert (first.status, first.error["code"], first.error["type"]) == (500, "engine_error", "server_error")
        assert "parrot" in first.error["message"]
        assert second.status == 500
        assert (health.status, health.json["status"]) == (503, "unhealthy")
        assert (ready.status, ready.json["status"]) == (503, "unhealthy")

    in_bench(work)


def test_a_fault_of_our_own_is_told_short_and_logged_in_full(caplog: pytest.LogCaptureFixture) -> None:
    async def work(bench: Bench) -> None:
        bench.stack.tokenizer.encode = lambda text: 1 / 0  # type: ignore[method-assign]
        answer = await bench.complete(prompt="a")

        assert (answer.status, answer.error["code"]) == (500, "internal")
        assert "division" not in answer.error["message"]

    in_bench(work)

    assert "ZeroDivisionError" in caplog.text


def test_a_client_that_leaves_while_it_sends_gets_no_answer() -> None:
    async def work(bench: Bench) -> None:
        call = Call(bench.app, "POST", COMPLETIONS)
        call._pieces.clear()
        call.hang_up()

        assert (await call.run()).status == 0

    in_bench(work)


@pytest.mark.parametrize("wrong", [1, {"role": 1, "content": 2}, [], None])
def test_of_many_wrong_messages_the_first_is_reported(wrong: Any) -> None:
    answer = post(CHAT, {"model": "parrot", "messages": [*HELLO, *[wrong] * 500]})

    assert answer.status == 400
    assert "messages[1]" in answer.error["message"]
    assert "messages[2]" not in answer.error["message"]
    assert len(answer.body) < 1500


def test_of_many_wrong_fields_the_first_few_are_reported() -> None:
    wrong = dict.fromkeys(("max_tokens", "temperature", "top_p", "top_k", "seed", "n", "stream", "priority"), "x")
    answer = post(COMPLETIONS, {"model": "parrot", "prompt": "a", **wrong})

    assert answer.status == 400
    assert answer.error["message"].count("is invalid") == MAX_PROBLEMS
    assert answer.error["message"].endswith("and 3 more")


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "x" * 100_000},
        {"cache_salt": "x" * 100_000},
        {"temperature": "x" * 100_000},
        {"temperature": ["x" * 100_000]},
        {"temperature": {"x" * 100_000: 1}},
        {"max_tokens": int("9" * 4000)},
        {"prompt": [int("9" * 4000)]},
        {"stop": ["x" * 100_000]},
        {"stop": ["x"] * 100_000},
        {"prompt": ["x"] * 100_000},
    ],
)
def test_a_refusal_repeats_little_of_the_request(fields: dict[str, Any]) -> None:
    body = json.dumps({"model": "parrot", "prompt": "a", **fields}).encode()
    answer = in_bench(lambda bench: bench.call("POST", COMPLETIONS, body))

    assert answer.status in (400, 404)
    assert len(answer.body) < 1500


def test_a_long_path_is_not_repeated() -> None:
    answer = in_bench(lambda bench: bench.call("GET", "/" + "x" * 5000))

    assert (answer.status, answer.error["code"]) == (404, "unknown_url")
    assert len(answer.body) < 1500


@pytest.mark.parametrize(
    ("stop", "status"),
    [
        (["x"] * MAX_STOP_STRINGS, 200),
        (["x"] * (MAX_STOP_STRINGS + 1), 400),
        (["x" * MAX_STOP_CHARACTERS], 200),
        (["x" * MAX_STOP_CHARACTERS, "y"], 400),
    ],
)
def test_number_and_length_of_stop_strings_are_bounded(stop: list[str], status: int) -> None:
    answer = post(COMPLETIONS, {"model": "parrot", "prompt": "a", "max_tokens": 2, "stop": stop})

    assert answer.status == status
    if status == 400:
        assert answer.error["param"] == "stop"


def test_fields_that_are_ignored_do_not_stay_in_memory() -> None:
    request = parse(CompletionRequest, orjson.dumps({"model": "parrot", "prompt": "a", "user": "x" * 100_000}))

    assert not request.model_extra


BODY = orjson.dumps({"model": "parrot", "prompt": "a", "max_tokens": 1})


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"content-type": "application/json"}, 200),
        ({"content-type": "Application/JSON; charset=utf-8", "origin": "http://example.org"}, 200),
        ({"content-type": "application/vnd.api+json"}, 200),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "text/plain;application/json"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"content-type": "multipart/form-data; boundary=x"}, 415),
        ({"content-type": ""}, 415),
        ({"origin": "http://example.org"}, 415),
    ],
)
def test_a_body_must_not_be_said_to_be_anything_but_json(headers: dict[str, str], status: int) -> None:
    """A web page may send text and forms to any address without being asked, but not JSON."""
    answer = in_bench(lambda bench: bench.call("POST", COMPLETIONS, BODY, headers))

    assert answer.status == status
    if status == 415:
        assert answer.error["code"] == "unsupported_media_type"
        assert "'Content-Type: application/json'" in answer.error["message"]
