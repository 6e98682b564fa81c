"""The admin call: who may, what it shows, and that a change is made whole or not at all."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from tests.unit.server_fakes import Answer, Bench, in_bench

TOKEN = "open-sesame"
PATH = "/admin/optimization"


async def admin(bench: Bench, method: str = "GET", *, body: Any = None, token: str = TOKEN, **more: Any) -> Answer:
    content = b"" if body is None else orjson.dumps(body)
    path = more.pop("path", PATH)
    return await bench.call(method, path, content, {"authorization": f"Bearer {token}"}, **more)


def answer(*arguments: Any, **more: Any) -> Answer:
    return in_bench(lambda bench: admin(bench, *arguments, **more), admin_token=TOKEN)  # type: ignore[no-any-return]


def change(optimization: Any, model: str = "parrot") -> Answer:
    return answer("PATCH", body={"model": model, "optimization": optimization})


def test_without_a_token_there_is_no_admin_call() -> None:
    assert in_bench(admin).status == 404


@pytest.mark.parametrize("token", ["", "open-sesam", "open-sesame2"])
def test_who_does_not_know_the_token_is_refused(token: str) -> None:
    refused = answer(token=token)

    assert (refused.status, refused.error["code"]) == (401, "invalid_token")
    assert TOKEN not in refused.body.decode()


@pytest.mark.parametrize(
    ("client", "status"), [("127.0.0.1", 200), ("127.9.9.9", 200), ("::1", 200), ("10.1.1.1", 403)]
)
def test_it_answers_only_to_this_machine(client: str, status: int) -> None:
    assert answer(client=client).status == status


def test_it_shows_what_can_be_changed() -> None:
    document = answer(path=f"{PATH}?model=parrot").json

    assert document["model"] == "parrot"
    assert set(document["optimization"]) == {"batcher", "cache", "tuner"}
    assert document["optimization"]["batcher"]["max_batch_size"] == 4


def test_a_change_is_in_force_when_the_call_returns() -> None:
    async def lower(bench: Bench) -> tuple[Answer, int, Answer]:
        changed = await admin(bench, "PATCH", body={"optimization": {"batcher": {"max_batch_size": 2}}})
        return changed, bench.stack.optimization.batcher.max_batch_size, await admin(bench)

    changed, size, shown = in_bench(lower, admin_token=TOKEN)

    assert (changed.status, size) == (200, 2)
    assert changed.json == shown.json


def test_no_request_is_dropped_by_a_change() -> None:
    async def change_under_load(bench: Bench) -> list[Answer]:
        calls = [bench.start("/v1/completions", prompt="ab", max_tokens=9)[1] for _ in range(8)]
        for size in (1, 3, 2, 4):
            await admin(bench, "PATCH", body={"optimization": {"batcher": {"max_batch_size": size}}})
        return await asyncio.gather(*calls)

    answers = in_bench(change_under_load, admin_token=TOKEN)

    assert [answer.json["choices"][0]["text"] for answer in answers] == ["ABABABABA"] * 8


@pytest.mark.parametrize(
    ("optimization", "message"),
    [
        ({"batcher": {"max_batch_size": 5}}, "the engine was opened with 4 slots"),
        ({"batcher": {"max_batch_size": 2, "min_batch_size": 3}}, "min_batch_size (3) is above max_batch_size (2)"),
        ({"batcher": {"max_batch_size": 2, "batch_timeout": 3}}, "batch_timeout: no such key"),
        ({"batcher": {"batch_timeout_ms": 9}, "vllm": {"swap_space": 1}}, "cannot be changed while serving"),
    ],
)
def test_a_change_outside_the_bounds_is_refused_whole(optimization: dict[str, Any], message: str) -> None:
    async def refuse(bench: Bench) -> tuple[Answer, bool]:
        before = bench.stack.optimization
        refused = await admin(bench, "PATCH", body={"optimization": optimization})
        return refused, bench.stack.optimization == before

    refused, same = in_bench(refuse, admin_token=TOKEN)

    assert (refused.status, refused.error["code"], same) == (400, "invalid_settings", True)
    assert message in refused.error["message"]


def test_an_unknown_model_is_404() -> None:
    assert change({}, model="nobody").status == 404


@pytest.mark.parametrize(
    "body", [[], {}, {"optimization": 3}, {"optimization": {}, "modle": "parrot"}, {"model": 3, "optimization": {}}]
)
def test_a_body_of_another_shape_is_400(body: Any) -> None:
    assert answer("PATCH", body=body).status == 400


def test_a_body_that_is_no_json_is_400() -> None:
    async def send(bench: Bench) -> Answer:
        return await bench.call("PATCH", PATH, b"{", {"authorization": f"Bearer {TOKEN}"})

    assert "not JSON" in in_bench(send, admin_token=TOKEN).error["message"]


def test_another_method_is_405_with_those_that_it_takes() -> None:
    refused = answer("DELETE")

    assert (refused.status, refused.error["code"]) == (405, "method_not_allowed")
    assert refused.headers["allow"] == "GET, HEAD, PATCH"
