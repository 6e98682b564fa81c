"""Reading requests: what is weighed before it is parsed, what leaves the event loop, and what is refused unread."""

from __future__ import annotations

import asyncio
import json
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from muai_lab.errors import InvalidRequest
from muai_lab.server import parse_process
from muai_lab.server.body import LIGHT_BODY_NS, SMALL_BODY_BYTES, Bodies, Body
from muai_lab.server.exchange import ClientGone
from muai_lab.server.field_values import MAX_PROMPTS, MAX_TOKEN_IDS
from muai_lab.server.http_error import HttpError
from muai_lab.server.parse_process import ParseProcess
from muai_lab.server.protocol import MAX_MESSAGES, ChatRequest, CompletionRequest, parse
from muai_lab.server.reading import SHORT_TEXT, RequestReader
from tests.unit.server_fakes import ByteTokenizer


@pytest.fixture(scope="module")
def process() -> Iterator[ParseProcess]:
    parser = ParseProcess()
    yield parser
    parser.close()


def body_of(data: bytes, part: int = 64 * 1024) -> Body:
    body = Body()
    for at in range(0, len(data), part):
        body.add(data[at : at + part])
    return body


def completion(**fields: Any) -> bytes:
    return orjson.dumps({"model": "parrot", "prompt": "a", **fields})


# Weighing


@pytest.mark.parametrize(
    "data",
    [
        completion(prompt="It was a bright cold day in April, and the clocks were striking thirteen. " * 10_000),
        completion(prompt=[300 + number for number in range(8000)]),
        b'{"model": "parrot", "prompt": [' + b"[]," * 1000 + b"1]}",
        b"[" * SMALL_BODY_BYTES,
    ],
)
def test_what_clients_send_every_day_is_light(data: bytes) -> None:
    assert body_of(data).light


@pytest.mark.parametrize("repeated", [b"[],", b"{},", b"1,", b'"a":1,', b'"a",', b"[", b"\\n", b"a"])
def test_whatever_a_body_repeats_it_is_heavy_from_some_length_on(repeated: bytes) -> None:
    assert not body_of(repeated * (4 * 1024 * 1024 // len(repeated))).light


def test_a_heavy_body_is_not_weighed_further() -> None:
    body = body_of(b"[" * 8000)
    heavy = body.cost_ns
    assert heavy > LIGHT_BODY_NS

    body.add(b"[" * 1_000_000)

    assert body.cost_ns == heavy + 1_000_000  # its bytes, but not what they are


# Receiving


class Connection:
    """The messages that an ASGI server hands over."""

    def __init__(self, *parts: bytes, complete: bool = True) -> None:
        self._messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
        if complete:
            self._messages[-1]["more_body"] = False
        self._messages.append({"type": "http.disconnect"})

    async def __call__(self) -> dict[str, Any]:
        return self._messages.pop(0)


def test_what_bodies_take_together_is_bounded_and_given_back() -> None:
    async def work() -> None:
        bodies = Bodies(most_held=10)
        with bodies.hold() as first, bodies.hold() as second:
            await bodies.receive(first, {"headers": []}, Connection(b"12345", b"678"))
            assert bodies.held == 8
            with pytest.raises(HttpError) as refused:
                await bodies.receive(second, {"headers": []}, Connection(b"901"))
        assert (refused.value.status, refused.value.code) == (503, "too_much_at_once")
        assert bodies.held == 0
        assert not first.parts

    asyncio.run(work())


def test_a_client_that_leaves_gives_back_what_it_took() -> None:
    async def work() -> None:
        bodies = Bodies()
        with pytest.raises(ClientGone), bodies.hold() as body:
            await bodies.receive(body, {"headers": []}, Connection(b"123", complete=False))
        assert bodies.held == 0

    asyncio.run(work())


# Parsing in a process


def test_a_request_is_the_same_wherever_it_is_parsed(process: ParseProcess) -> None:
    chat = orjson.dumps({"model": "m", "messages": [{"role": "developer", "content": [{"type": "text", "text": "é"}]}]})

    assert process.parse(ChatRequest, [chat]) == parse(ChatRequest, chat)
    for prompt in ("a", ["a", "b"], [1, 2, 3], [[1, 2], [3]]):
        data = completion(prompt=prompt, stop=["x"], n=2, stream=True, stream_options={"include_usage": True})
        here, there = parse(CompletionRequest, data), process.parse(CompletionRequest, [data[:10], data[10:]])
        tokenizer: Any = ByteTokenizer()
        assert there.token_ids(tokenizer) == here.token_ids(tokenizer)
        assert there.model_copy(update={"prompt": here.prompt}) == here


@pytest.mark.parametrize("data", [b"{", b"[]", completion(top_p=2), completion(echo=True), b'{"a":"' + b"x" * 99_999])
def test_a_refusal_is_the_same_wherever_it_is_parsed(process: ParseProcess, data: bytes) -> None:
    with pytest.raises(HttpError) as there:
        process.parse(CompletionRequest, [data])
    with pytest.raises(HttpError) as here:
        parse(CompletionRequest, data)

    assert (there.value.status, there.value.document()) == (here.value.status, here.value.document())


def test_a_process_that_has_ended_is_replaced() -> None:
    parser = ParseProcess()
    try:
        assert parser.parse(CompletionRequest, [completion()]).prompt == ["a"]
        assert parser._process is not None
        parser._process.kill()
        parser._process.wait()

        assert parser.parse(CompletionRequest, [completion()]).prompt == ["a"]
    finally:
        parser.close()


def test_a_process_that_cannot_be_started_is_a_503(monkeypatch: pytest.MonkeyPatch) -> None:
    def start() -> None:
        raise OSError("no memory")

    monkeypatch.setattr(parse_process, "_start", start)
    with pytest.raises(HttpError) as refused:
        ParseProcess().parse(CompletionRequest, [completion()])

    assert (refused.value.status, refused.value.code) == (503, "parser_failed")


def test_a_body_that_takes_too_long_ends_the_process_and_not_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parse_process, "PARSE_LIMIT_S", 0.05)
    monkeypatch.setattr(
        parse_process, "_start", lambda: subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    )
    parser = ParseProcess()
    process = subprocess.Popen(["sleep", "60"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    parser._process = process

    with pytest.raises(HttpError) as refused:
        parser.parse(CompletionRequest, [completion()])

    assert (refused.value.status, refused.value.code) == (413, "body_too_large")
    assert process.returncode is not None


# What leaves the event loop


class Watched:
    """A tokenizer that notes on which threads it works."""

    def __init__(self) -> None:
        self.threads: list[str] = []

    def at_least(self, text: str) -> int:
        return len(text) // 100

    def encode(self, text: str) -> list[int]:
        self.threads.append(threading.current_thread().name)
        return [1]

    def encode_chat(self, messages: list[dict[str, str]]) -> list[int]:
        return self.encode("")


@pytest.fixture
def reader() -> Iterator[RequestReader]:
    one = RequestReader()
    yield one
    one.close()


@pytest.mark.parametrize(
    ("kind", "fields", "on_loop"),
    [
        (CompletionRequest, {"prompt": "a" * SHORT_TEXT}, True),
        (CompletionRequest, {"prompt": "a" * (SHORT_TEXT + 1)}, False),
        (CompletionRequest, {"prompt": ["a" * (SHORT_TEXT // 2 + 1)] * 2}, False),
        (ChatRequest, {"messages": [{"role": "user", "content": "a" * 100}]}, True),
        (ChatRequest, {"messages": [{"role": "user", "content": "a" * SHORT_TEXT}]}, False),
        (ChatRequest, {"messages": [{"role": "user", "content": ""}] * SHORT_TEXT}, False),
    ],
)
def test_long_texts_are_tokenised_and_long_chats_written_in_a_thread(
    reader: RequestReader, kind: Any, fields: dict[str, Any], on_loop: bool
) -> None:
    tokenizer: Any = Watched()
    request = parse(kind, orjson.dumps({"model": "m", **fields}))

    asyncio.run(reader.tokenize(request, tokenizer, 1_000_000))

    loop_thread = threading.current_thread().name
    assert all((name == loop_thread) == on_loop for name in tokenizer.threads)


@pytest.mark.parametrize(
    ("kind", "fields", "field"),
    [
        (CompletionRequest, {"prompt": ["a", "a" * 1000]}, "prompt"),
        (CompletionRequest, {"prompt": [1] * 10}, "prompt"),
        (ChatRequest, {"messages": [{"role": "user", "content": "a" * 1000}]}, "messages"),
    ],
)
def test_a_prompt_that_is_surely_too_long_is_not_tokenised(
    reader: RequestReader, kind: Any, fields: dict[str, Any], field: str
) -> None:
    tokenizer: Any = Watched()

    with pytest.raises(InvalidRequest, match="at least 10 tokens") as refused:
        asyncio.run(reader.tokenize(parse(kind, orjson.dumps({"model": "m", **fields})), tokenizer, 9))

    assert (refused.value.param, refused.value.code) == (field, "context_length_exceeded")
    assert tokenizer.threads == []


def test_a_heavy_body_is_parsed_in_the_process_and_a_light_one_is_not(
    reader: RequestReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def parse_elsewhere(kind: Any, parts: list[bytes]) -> Any:
        asked.append(sum(map(len, parts)))
        return parse(kind, b"".join(parts))

    monkeypatch.setattr(reader._parser, "parse", parse_elsewhere)
    heavy = completion(ignored=[[]] * 5000)

    async def work(data: bytes) -> None:
        with reader.hold() as body:
            await reader.parse(CompletionRequest, body, {"headers": []}, Connection(data))

    asyncio.run(work(completion()))
    assert asked == []
    asyncio.run(work(heavy))
    assert asked == [len(heavy)]


# Bounds


@pytest.mark.parametrize("prompt", [[1] * (MAX_TOKEN_IDS + 1), [[1] * (MAX_TOKEN_IDS // 2 + 1)] * 2, [2**31], [2**70]])
def test_the_number_and_the_size_of_token_ids_are_bounded(prompt: list[Any]) -> None:
    with pytest.raises(HttpError) as refused:
        parse(CompletionRequest, json.dumps({"model": "m", "prompt": prompt}).encode())

    assert (refused.value.status, refused.value.param) == (400, "prompt")


def test_the_number_of_prompts_and_messages_is_bounded() -> None:
    many = json.dumps({"model": "m", "prompt": ["a"] * (MAX_PROMPTS + 1)}).encode()
    with pytest.raises(HttpError, match=f"one request may hold {MAX_PROMPTS}"):
        parse(CompletionRequest, many)
    message = {"role": "user", "content": "a"}
    with pytest.raises(HttpError, match=f"at most {MAX_MESSAGES}"):
        parse(ChatRequest, json.dumps({"model": "m", "messages": [message] * (MAX_MESSAGES + 1)}).encode())
