"""The HTTP target made from settings: its key, its model, its address."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from muai_lab.errors import RunError
from muai_lab.load.generator import LoadResult, generate
from muai_lab.load.openai_http import HttpTarget
from muai_lab.settings.lab import LabSettings
from tests.integration.http_load import closed_plan, run, schedule_of
from tests.integration.scripted_server import GOOD, HANG_UP, ScriptedServer, status

KEY = "sk-very-secret"


class TestEndpoint:
    def of(self, server: ScriptedServer, **target: Any) -> HttpTarget:
        settings = LabSettings.model_validate({"target": {"kind": "endpoint", "url": server.url, **target}})
        return HttpTarget.of(settings)

    def test_the_key_is_sent_and_appears_in_no_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LAB_TEST_KEY", KEY)
        echo = status(401, b'{"error": {"message": "wrong key: %b"}}' % KEY.encode())

        async def main() -> tuple[ScriptedServer, LoadResult]:
            async with ScriptedServer([GOOD, echo]) as server:
                target = self.of(server, model="m", api_key_env="LAB_TEST_KEY")
                return server, await generate(schedule_of(2), target, closed_plan())

        server, result = run(main())

        assert all(f"Authorization: Bearer {KEY}" in head for head in server.heads)
        assert [record.error for record in result.records] == ["HTTP 401: wrong key: ***"] * 2

    def test_the_key_appears_in_no_refusal_of_the_run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LAB_TEST_KEY", KEY)
        echo = status(401, b'{"error": {"message": "wrong key: %b"}}' % KEY.encode())

        async def main() -> None:
            async with ScriptedServer([echo]) as server:
                target = self.of(server, model="m", api_key_env="LAB_TEST_KEY")
                await generate(schedule_of(2), target, closed_plan())

        with pytest.raises(RunError) as caught:
            run(main())
        assert KEY not in str(caught.value)

    @pytest.mark.parametrize("model", ["m", None])
    @pytest.mark.parametrize(
        ("code", "check"),
        [
            (401, r"check the key that target\.api_key_env or target\.headers_env names"),
            (429, r"ask for a larger one, or let the run wait for it with target\.ready_timeout_s"),
        ],
    )
    def test_a_refusal_names_what_would_mend_it(self, code: int, check: str, model: str | None) -> None:
        async def main() -> None:
            async with ScriptedServer([status(code, b'{"error": {"message": "no"}}')]) as server:
                await generate(schedule_of(2), self.of(server, model=model, ready_timeout_s=0.0), closed_plan())

        with pytest.raises(RunError, match=rf"HTTP {code}: no; .*{check}"):
            run(main())

    def test_a_limit_that_is_used_up_for_a_moment_is_waited_for(self) -> None:
        busy = status(429, b'{"error": {"message": "slow down"}}')

        async def main() -> LoadResult:
            async with ScriptedServer([busy, GOOD]) as server:
                target = self.of(server, model="m", ready_timeout_s=30.0)
                return await generate(schedule_of(2), target, closed_plan())

        assert [record.status for record in run(main()).records] == ["ok", "ok"]

    def test_a_key_variable_that_is_not_set_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("LAB_TEST_KEY", raising=False)

        async def main() -> None:
            async with ScriptedServer([GOOD]) as server:
                self.of(server, model="m", api_key_env="LAB_TEST_KEY")

        with pytest.raises(RunError, match=r"LAB_TEST_KEY \(target\.api_key_env\) is not set; export it"):
            run(main())

    def test_the_only_model_of_an_endpoint_is_taken(self) -> None:
        async def main() -> ScriptedServer:
            async with ScriptedServer([status(200, b'{"data": [{"id": "the-one"}]}'), GOOD]) as server:
                await generate(schedule_of(2), self.of(server), closed_plan())
            return server

        server = run(main())

        assert server.heads[0].startswith("GET /v1/models HTTP/1.1")
        assert {request["model"] for request in server.requests[1:]} == {"the-one"}

    @pytest.mark.parametrize(
        ("answer", "message"),
        [
            (status(200, b'{"data": [{"id": "a"}, {"id": "b"}]}'), r"lists 2 models \(a, b\); choose one"),
            (status(200, b'{"data": []}'), "lists 0 models"),
            (status(404, b"{}"), r"HTTP 404.*set target\.model"),
            (status(200, b"<html>", b"text/html"), r"does not answer with a list of models; set target\.model"),
            (HANG_UP, "cannot be asked for its models"),
        ],
        ids=["two", "none", "404", "HTML", "hangs up"],
    )
    def test_an_endpoint_without_exactly_one_model_wants_a_name(self, answer: bytes, message: str) -> None:
        async def main() -> None:
            async with ScriptedServer([answer]) as server:
                await generate(schedule_of(2), self.of(server), closed_plan())

        with pytest.raises(RunError, match=message):
            run(main())

    def test_a_key_that_no_header_can_carry_is_refused_without_being_shown(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LAB_TEST_KEY", f"{KEY}\r\nX-Evil: 1")
        settings = LabSettings.model_validate(
            {"target": {"kind": "endpoint", "url": "http://host", "api_key_env": "LAB_TEST_KEY"}}
        )

        with pytest.raises(RunError, match="look for a line end") as caught:
            HttpTarget.of(settings)
        assert KEY not in str(caught.value)

    def test_a_name_that_is_unknown_stops_the_run(self) -> None:
        target = HttpTarget("http://no-such-host.invalid:8000", model="m")

        with pytest.raises(RunError, match=r"no-such-host.*cannot connect: .*check target\.url"):
            run(generate(schedule_of(1), target, closed_plan()))

    def test_plain_http_on_a_tls_address_is_told(self) -> None:
        async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1)
            writer.write(status(400, b"no"))
            writer.close()

        async def main() -> None:
            async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
                port = server.sockets[0].getsockname()[1]
                await generate(schedule_of(1), HttpTarget(f"https://127.0.0.1:{port}", model="m"), closed_plan())

        with pytest.raises(RunError, match=r"no TLS with this server .*is it an http:// address"):
            run(main())

    def test_a_redirect_is_named_with_where_it_leads(self) -> None:
        moved = b"HTTP/1.1 307 Moved\r\nLocation: /api/v1/completions\r\nContent-Length: 0\r\n\r\n"

        async def main() -> None:
            async with ScriptedServer([moved]) as server:
                await generate(schedule_of(1), HttpTarget(server.url, model="m"), closed_plan())

        with pytest.raises(RunError, match=r"HTTP 307: redirects to http://127.*/api/v1/completions; set target\.url"):
            run(main())
