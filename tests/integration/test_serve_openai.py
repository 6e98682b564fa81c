"""The unmodified `openai` client against a real server process on the embedded chat model."""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import openai
import psutil
import pytest

from tests.integration.serving import Served, serving

MODEL = "qwen_chat"
IGNORE_EOS = {"ignore_eos": True}
RUNNING = 'muai_running_sequences{engine="pytorch",model="qwen_chat"}'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("server")) as served:
        yield served


@pytest.fixture
def client(server: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def test_the_ready_line_tells_who_serves(server: Served) -> None:
    (model,) = server.ready["models"]

    assert server.ready["event"] == "ready"
    assert server.ready["pid"] == server.process.pid
    assert (model["name"], model["engine"]["name"], model["source"]["kind"]) == (MODEL, "pytorch", "embedded")
    assert len(model["source"]["content_hash"]) == 64
    assert set(model["engine"]) == {"name", "version", "device", "dtype", "max_model_len", "details"}
    assert "served by pytorch" in server.log


def test_a_completion_whole_and_streamed_is_the_same_text(client: openai.OpenAI) -> None:
    whole = client.completions.create(model=MODEL, prompt="Once upon a time", max_tokens=12, temperature=0)
    stream = client.completions.create(
        model=MODEL,
        prompt="Once upon a time",
        max_tokens=12,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)

    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == whole.choices[0].text
    assert whole.choices[0].text
    assert chunks[-1].usage == whole.usage
    assert whole.usage is not None
    assert whole.usage.completion_tokens <= 12
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason


def test_a_chat_whole_and_streamed_is_the_same_text(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello!"}]
    create = partial(
        client.chat.completions.create, model=MODEL, messages=messages, max_completion_tokens=12, temperature=0
    )
    create()  # from here on the prompt's beginning is in the prefix cache, for both alike
    whole = create()
    chunks = list(create(stream=True, stream_options={"include_usage": True}))

    first = chunks[0].choices[0].delta
    assert (first.role, first.content) == ("assistant", "")
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage


def test_several_prompts_and_several_choices(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model=MODEL, prompt=["One", "Two and three"], n=2, max_tokens=5, temperature=0, extra_body=IGNORE_EOS
    )

    texts = [choice.text for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert texts[0] == texts[1]
    assert texts[2] == texts[3]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 20


def test_a_prompt_may_be_token_ids(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt=[300, 301, 302], max_tokens=3)

    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 3


def test_a_stop_string_is_where_the_text_ends(client: openai.OpenAI) -> None:
    def ask(stop: str | None) -> Any:
        answer = client.completions.create(
            model=MODEL,
            prompt="The weather is",
            max_tokens=24,
            temperature=0,
            stop=stop,
            extra_body=IGNORE_EOS,
        )
        return answer.choices[0]

    whole = ask(None).text
    stop = whole[len(whole) // 2 :][:4]
    stopped = ask(stop)

    assert stopped.text == whole[: whole.index(stop)]
    assert stopped.finish_reason == "stop"


def test_a_seed_gives_the_same_text_again_and_another_seed_another(client: openai.OpenAI) -> None:
    def ask(seed: int) -> str:
        answer = client.completions.create(
            model=MODEL, prompt="Tell me", max_tokens=24, temperature=1.0, seed=seed, extra_body=IGNORE_EOS
        )
        return answer.choices[0].text

    assert ask(1) == ask(1)
    assert ask(1) != ask(2)


def test_the_models_are_listed(client: openai.OpenAI) -> None:
    assert {"qwen_chat", "t5_summarizer"} <= {model.id for model in client.models.list()}
    assert client.models.retrieve(MODEL).id == MODEL


def test_errors_reach_the_client_as_its_own_exceptions(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="gpt-9"):
        client.completions.create(model="gpt-9", prompt="a")
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model=MODEL, prompt="word " * 9000, max_tokens=1)
    assert refused.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as negative:
        client.completions.create(model=MODEL, prompt="a", max_tokens=-1)
    assert negative.value.param == "max_tokens"


def test_a_client_that_hangs_up_frees_its_slot(server: Served, client: openai.OpenAI) -> None:
    stream = client.completions.create(model=MODEL, prompt="Once", max_tokens=4000, stream=True, extra_body=IGNORE_EOS)
    next(iter(stream))
    assert server.metric(RUNNING) == 1

    stream.close()

    _until(lambda: server.metric(RUNNING) == 0)
    cancelled = 'inference_requests_total{engine="pytorch",model="qwen_chat",status="cancelled"}'
    _until(lambda: (server.metric(cancelled) or 0) >= 1)


def test_many_streams_at_once_each_get_their_own_text(client: openai.OpenAI) -> None:
    prompts = [f"Number {index} says" for index in range(16)]
    alone = [
        client.completions.create(model=MODEL, prompt=prompt, max_tokens=8, temperature=0).choices[0].text
        for prompt in prompts
    ]
    together: dict[str, str] = {}

    def ask(prompt: str) -> None:
        stream = client.completions.create(model=MODEL, prompt=prompt, max_tokens=8, temperature=0, stream=True)
        together[prompt] = "".join(chunk.choices[0].text for chunk in stream)

    threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [together[prompt] for prompt in prompts] == alone


def test_health_readiness_and_metrics(server: Served) -> None:
    assert _status(f"{server.url}/health") == 200
    assert _status(f"{server.url}/ready") == 200
    assert _status(server.ready["metrics_url"]) == 200
    assert _status(server.ready["metrics_url"].replace("/metrics", "/")) == 404
    assert _status(f"{server.url}/metrics") == 404
    assert (server.metric('inference_requests_total{engine="pytorch",model="qwen_chat",status="ok"}') or 0) > 0


def test_a_model_that_was_not_preloaded_is_loaded_at_its_first_request(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="t5_summarizer", prompt="summarize: a long story", max_tokens=4)

    assert answer.model == "t5_summarizer"
    assert answer.usage is not None
    assert 1 <= answer.usage.completion_tokens <= 4


def _raw(server: Served, request: bytes) -> bytes:
    """All that the server answers to these bytes, until it ends the connection."""
    address = urlsplit(server.url)
    answer = b""
    with socket.create_connection((address.hostname, address.port), timeout=60) as connection:
        connection.sendall(request)
        while piece := connection.recv(65536):
            answer += piece
    return answer


def _post(body: bytes, *lines: str, version: str = "1.1") -> bytes:
    head = [f"POST /v1/completions HTTP/{version}", "Host: x", f"Content-Length: {len(body)}", *lines, "", ""]
    return "\r\n".join(head).encode() + body


BODY = b'{"model": "qwen_chat", "prompt": "Once", "max_tokens": 2, "stream": true}'


def test_a_client_that_asks_for_http_2_is_served_in_http_1_1(server: Served) -> None:
    answer = _raw(server, _post(BODY, "Connection: Upgrade, HTTP2-Settings, close", "Upgrade: h2c"))

    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"data: [DONE]" in answer


def test_a_client_of_http_1_0_gets_a_stream_without_chunks(server: Served) -> None:
    head, _, body = _raw(server, _post(BODY, version="1.0")).partition(b"\r\n\r\n")

    assert b"transfer-encoding" not in head.lower()
    assert body.startswith(b"data: {")
    assert body.endswith(b"data: [DONE]\n\n")


def test_a_body_that_is_hard_to_parse_is_parsed_outside_of_the_server(server: Served) -> None:
    answer = _raw(server, _post(BODY[:-1] + b', "x": [' + b"[]," * 100_000 + b"1]}", "Connection: close"))

    assert answer.startswith(b"HTTP/1.1 200 ")
    assert len(psutil.Process(server.process.pid).children()) == 1


def _status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def _until(condition: Any, deadline_s: float = 200.0) -> None:
    """Each look is a scrape over HTTP; no need to sleep between them."""
    deadline = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < deadline


HUGE = 1180591620717411303424  # 2^70
HOSTILE = [
    ({"top_k": HUGE}, 200),
    ({"top_k": 10**400}, 200),
    ({"top_k": -2}, 400),
    ({"temperature": 1e300}, 400),
    ({"temperature": 5e-324, "top_p": 5e-324, "seed": -(2**63)}, 200),
    ({"temperature": HUGE}, 400),
    ({"temperature": float("nan")}, 400),
    ({"temperature": float("inf")}, 400),
    ({"temperature": True}, 400),
    ({"top_p": 0}, 400),
    ({"top_p": 1e-300}, 200),
    ({"seed": 2**63 - 1, "n": 3}, 200),
    ({"seed": 2**63}, 400),
    ({"n": HUGE}, 400),
    ({"n": True}, 400),
    ({"max_tokens": HUGE}, 400),
    ({"max_tokens": 2**31 - 1}, 400),
    ({"priority": -HUGE}, 400),
    ({"best_of": HUGE}, 400),
    ({"min_tokens": HUGE}, 400),
    ({"repetition_penalty": 1e300}, 400),
    ({"presence_penalty": float("-inf")}, 400),
    ({"logit_bias": {"0": 1e300}}, 400),
    ({"logprobs": HUGE}, 400),
    ({"stop_token_ids": [HUGE]}, 400),
    ({"prompt": [HUGE]}, 400),
    ({"prompt": [-1]}, 400),
    ({"prompt": [10**6]}, 400),
    ({"prompt": [1.5]}, 400),
]


def test_no_number_of_a_request_harms_the_server_or_the_requests_beside_it(
    server: Served, client: openai.OpenAI
) -> None:
    def completion(**fields: object) -> int:
        body = {"model": MODEL, "prompt": "Tell me", "max_tokens": 4, **IGNORE_EOS, **fields}
        request = urllib.request.Request(f"{server.url}/v1/completions", json.dumps(body).encode())
        request.add_header("content-type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as refusal:
            return refusal.code

    beside = client.completions.create(
        model=MODEL, prompt="Once", max_tokens=400, temperature=0, stream=True, extra_body=IGNORE_EOS
    )
    next(iter(beside))

    for fields, status in HOSTILE:
        assert completion(**fields) == status, fields
        with urllib.request.urlopen(f"{server.url}/health", timeout=60) as health:
            assert health.status == 200
    assert sum(1 for _ in beside) > 100
