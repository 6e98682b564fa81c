"""The HTTP target against servers that behave, and against servers that do not."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from typing import Any

import numpy as np
import pytest

from muai_lab.errors import RunError
from muai_lab.load.generator import LoadProgress, LoadResult, generate
from muai_lab.load.openai_http import HttpTarget
from muai_lab.load.records import records_table
from muai_lab.load.reference_server import ReferenceOptions, ReferenceServer
from muai_lab.request_record import RequestRecord
from muai_lab.workload.schedule import ScheduledRequest
from tests.integration.http_load import against, closed_plan, measure, one_request, open_plan, run, schedule_of
from tests.integration.scripted_server import GOOD, HANG_UP, SILENCE, ScriptedServer, status, stream, token

SETTINGS = {"model": {"name": "reference"}}


class TestAgainstTheReferenceServer:
    @pytest.mark.parametrize("api", ["completions", "chat"])
    def test_every_request_of_a_closed_loop_is_recorded(self, api: str) -> None:
        result, _ = run(measure(ReferenceOptions(), schedule_of(200), closed_plan(), api=api))

        table = records_table(result.records, result.window)
        assert set(table["status"].to_pylist()) == {"ok"}
        assert table["index"].to_pylist() == list(range(200))
        assert set(table["output_tokens"].to_pylist()) == {4}
        assert set(table["prompt_tokens"].to_pylist()) == {3}
        assert {sum(tokens) for tokens in table["chunk_tokens"].to_pylist()} == {4}  # what one read brings is one chunk
        assert set(table["finish_reason"].to_pylist()) == {"length"}
        assert set(table["http_status"].to_pylist()) == {200}

    @pytest.mark.parametrize("itl_ms", [0.0, 2.0])
    def test_the_clients_times_enclose_what_the_server_stamped(self, itl_ms: float) -> None:
        result, server = run(
            measure(ReferenceOptions(ttft_ms=5.0, itl_ms=itl_ms), schedule_of(40, rate=400.0), open_plan())
        )

        stamps = {stamp.request_id: stamp for stamp in server.take_stamps()}
        for record in result.records:
            stamp = stamps[str(record.index)]
            in_order = [
                record.sent_ns,
                stamp.received_ns,
                stamp.first_token_ns,
                record.first_content_ns,
                record.last_token_ns,
                record.stream_end_ns,
            ]
            assert in_order == sorted(in_order)
            assert stamp.last_token_ns <= record.last_token_ns
            assert stamp.first_token_ns - stamp.received_ns >= 4e6

    def test_a_closed_loop_keeps_one_connection_per_slot(self) -> None:
        async def main() -> int:
            async with ScriptedServer([GOOD]) as server:
                await generate(schedule_of(60), HttpTarget(server.url, model="m"), closed_plan(3))
                return server.connections

        assert run(main()) == 3

    @pytest.mark.parametrize(
        ("usage", "output_tokens", "note"),
        [
            ("continuous", 4, None),
            ("final", 4, "does not report usage per chunk"),
            ("none", None, "reports no usage"),
        ],
    )
    def test_a_server_that_knows_less_is_asked_for_less(
        self, usage: Any, output_tokens: int | None, note: str | None
    ) -> None:
        result, _ = run(measure(ReferenceOptions(usage=usage), schedule_of(8), closed_plan()))

        assert {record.status for record in result.records} == {"ok"}
        assert {record.output_tokens for record in result.records} == {output_tokens}
        if note is not None:
            assert any(note in told for told in result.notes)

    def test_a_server_that_stops_answers_the_rest_with_errors(self) -> None:
        async def main() -> LoadResult:
            server = ReferenceServer(ReferenceOptions(ttft_ms=5.0))
            url = await server.start()
            some_answered = asyncio.Event()

            def progress(moment: LoadProgress) -> None:
                if moment.ok:
                    some_answered.set()

            target = HttpTarget(url, model="reference")
            # A closed loop: on however busy a machine, only few of the requests are answered before the server stops.
            load = asyncio.create_task(generate(schedule_of(400), target, closed_plan(2), progress=progress))
            await some_answered.wait()
            await server.stop()
            return await load

        result = run(main())

        assert len(result.records) == 400
        assert {record.status for record in result.records} == {"ok", "error"}
        # Refused, or reset if the connection was made while the server stopped: which of them is the system's affair.
        failed = [record for record in result.records if record.status == "error"]
        assert all(re.search("cannot connect|reset|closed the connection|broke off", str(one.error)) for one in failed)
        # And once a connection was refused, nothing is answered any more.
        refused = next(record for record in failed if "cannot connect" in str(record.error))
        later = [record for record in result.records if (record.released_ns or 0) >= (refused.stream_end_ns or 0)]
        assert later
        assert {record.status for record in later} == {"error"}


HALF = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


class TestServersThatMisbehave:
    @pytest.mark.parametrize(
        ("answer", "expected", "http_status", "message"),
        [
            pytest.param(
                status(404, b'{"error": {"message": "no such model"}}'),
                "error",
                404,
                "HTTP 404: no such model",
                id="404",
            ),
            pytest.param(
                status(500, b"<html><body>Oops</body></html>", b"text/html"),
                "error",
                500,
                "HTTP 500: text/html: <html><body>Oops",
                id="500 with HTML",
            ),
            pytest.param(status(502, b""), "error", 502, "HTTP 502: empty answer", id="502 and nothing"),
            pytest.param(status(429, b'{"error": "queue full"}'), "rejected", 429, "queue full", id="429"),
            pytest.param(status(503, b'{"error": "draining"}'), "rejected", 503, "draining", id="503"),
            pytest.param(status(307, b""), "error", 307, "HTTP 307", id="redirect"),
            pytest.param(
                stream(b"x", head=b"text/html"),
                "error",
                200,
                "event 1 of the stream is not a completion",
                id="not JSON",
            ),
            pytest.param(
                status(200, b"<html>hello</html>", b"text/html"),
                "error",
                200,
                "no event of a stream (content type text/html instead of text/event-stream)",
                id="200 with HTML",
            ),
            pytest.param(
                status(200, b'{"choices": [{"text": "whole"}]}'),
                "error",
                200,
                "content type application/json",
                id="whole",
            ),
            pytest.param(
                stream(token(1)), "error", 200, "broke off after 1 events", id="half a stream, closed cleanly"
            ),
            pytest.param(
                HALF + b"99\r\ndata: " + HANG_UP,
                "error",
                200,
                "the connection broke off in the middle of the answer",
                id="half a chunk",
            ),
            pytest.param(
                stream(token(1), b'{"error": {"message": "engine died"}}'),
                "error",
                200,
                "engine died",
                id="error event",
            ),
            pytest.param(HANG_UP, "error", None, "closed the connection without an answer", id="hangs up"),
            pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n" + HANG_UP, "error", None, "not an HTTP answer", id="not HTTP"),
        ],
    )
    def test_the_record_says_what_was_wrong(
        self, answer: bytes, expected: str, http_status: int | None, message: str
    ) -> None:
        async def main() -> RequestRecord:
            async with ScriptedServer([GOOD, answer]) as server:
                return await one_request(server)

        record = run(main())

        assert (record.status, record.http_status) == (expected, http_status)
        assert message in (record.error or "")
        assert record.stream_end_ns is not None

    def test_tokens_before_the_break_are_kept(self) -> None:
        async def main() -> RequestRecord:
            async with ScriptedServer([GOOD, stream(token(1), token(3))]) as server:
                return await one_request(server)

        record = run(main())

        assert record.status == "error"
        assert sum(record.chunk_tokens) == 3

    def test_a_server_that_never_answers_is_a_timeout(self) -> None:
        async def main() -> LoadResult:
            async with ScriptedServer([GOOD, SILENCE]) as server:
                plan = closed_plan(timeout_s=0.05)
                return await generate(schedule_of(4), HttpTarget(server.url, model="m"), plan)

        result = run(main())

        assert [record.status for record in result.records] == ["timeout"] * 4
        assert all(record.sent_ns is not None for record in result.records)

    def test_one_bad_answer_does_not_spoil_the_next(self) -> None:
        async def main() -> LoadResult:
            async with ScriptedServer([GOOD, status(500, b"no"), stream(token(1)), HANG_UP, GOOD]) as server:
                return await generate(schedule_of(6), HttpTarget(server.url, model="m"), closed_plan(1))

        assert [record.status for record in run(main()).records] == ["error", "error", "error", "ok", "ok", "ok"]

    def test_an_answer_that_trickles_in_byte_by_byte_is_whole_at_the_end(self) -> None:
        async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while await reader.readuntil(b"\r\n\r\n"):
                for byte in GOOD:
                    writer.write(bytes([byte]))
                    await writer.drain()

        result = run(against(trickle, schedule_of(2)))

        assert [sum(record.chunk_tokens) for record in result.records] == [2, 2]
        assert {record.status for record in result.records} == {"ok"}

    def test_a_connection_that_is_reset_says_so(self) -> None:
        answered = 0

        async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal answered
            while await reader.readuntil(b"\r\n\r\n"):
                answered += 1
                if answered > 1:
                    at_once = struct.pack("ii", 1, 0)
                    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
                    writer.transport.abort()
                    return
                writer.write(GOOD)

        result = run(against(reset, schedule_of(1)))

        assert [(record.status, record.error) for record in result.records] == [
            ("error", "the server reset the connection without an answer")
        ]

    @pytest.mark.parametrize(
        ("answer", "message"),
        [
            (status(404, b'{"error": {"message": "no such model"}}'), r"HTTP 404: no such model; check target\.url"),
            (status(400, b'{"error": {"message": "bad"}}'), "HTTP 400: bad"),
            (status(401, b'{"error": {"message": "wrong key"}}'), "HTTP 401: wrong key"),
            (status(200, b"<html>", b"text/html"), "content type text/html"),
            (HANG_UP, "closed the connection without an answer"),
        ],
        ids=["404", "400", "401", "HTML", "hangs up"],
    )
    def test_a_server_that_refuses_the_first_request_stops_the_run_before_it_begins(
        self, answer: bytes, message: str
    ) -> None:
        async def main() -> None:
            async with ScriptedServer([answer]) as server:
                await generate(schedule_of(4), HttpTarget(server.url, model="m"), closed_plan())

        with pytest.raises(RunError, match=message):
            run(main())

    def test_an_address_where_nothing_listens_stops_the_run(self) -> None:
        async def main() -> None:
            async with ScriptedServer([GOOD]) as server:
                url = server.url
            await generate(schedule_of(4), HttpTarget(url, model="m"), closed_plan())

        with pytest.raises(RunError, match=r"127\.0\.0\.1.*cannot connect: .*check target\.url"):
            run(main())

    @pytest.mark.parametrize("url", ["localhost:8000", "ftp://host/v1", "http://"])
    def test_an_address_that_is_none_is_refused(self, url: str) -> None:
        with pytest.raises(RunError, match="is not an HTTP address"):
            HttpTarget(url, model="m")


class TestWhatIsSent:
    def test_a_text_prompt_with_its_options(self) -> None:
        async def main() -> ScriptedServer:
            async with ScriptedServer([GOOD]) as server:
                await one_request(server)
            return server

        server = run(main())

        assert server.requests[1] == {
            "model": "m",
            "prompt": "one two three",
            "max_tokens": 4,
            "temperature": 0.0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
        assert server.heads[1].startswith("POST /v1/completions HTTP/1.1")
        assert "X-Request-Id: 0" in server.heads[1]

    def test_a_prompt_of_token_ids_and_a_seed_when_sampling(self) -> None:
        request = ScheduledRequest(0, None, None, np.array([5, 600], dtype=np.int32), 2, 4, seed=77)

        async def main() -> ScriptedServer:
            async with ScriptedServer([GOOD]) as server:
                await one_request(server, request, temperature=0.8)
            return server

        sent = run(main()).requests[1]

        assert (sent["prompt"], sent["seed"], sent["temperature"]) == ([5, 600], 77, 0.8)

    def test_further_fields_of_a_request_replace_those_of_the_target(self) -> None:
        fields = '{"temperature":0.7,"stop":["x"],"tools":[{"type":"function"}]}'
        request = ScheduledRequest(0, None, "why", None, 1, 4, seed=77, extra=fields)

        async def main() -> ScriptedServer:
            async with ScriptedServer([GOOD]) as server:
                await one_request(server, request)
            return server

        probe, sent = run(main()).requests[:2]

        assert (sent["temperature"], sent["seed"], sent["stop"]) == (0.7, 77, ["x"])
        assert sent["tools"] == [{"type": "function"}]
        assert "tools" not in probe

    def test_a_chat_prompt_is_a_message_of_the_user(self) -> None:
        async def main() -> ScriptedServer:
            async with ScriptedServer([GOOD]) as server:
                await one_request(server, api="chat")
            return server

        server = run(main())

        assert server.requests[1]["messages"] == [{"role": "user", "content": "one two three"}]
        assert "prompt" not in server.requests[1]
        assert server.heads[1].startswith("POST /v1/chat/completions HTTP/1.1")

    def test_token_ids_cannot_be_sent_as_chat(self) -> None:
        request = ScheduledRequest(0, None, None, np.array([5], dtype=np.int32), 1, 4)

        async def main() -> None:
            async with ScriptedServer([GOOD]) as server:
                await one_request(server, request, api="chat")

        with pytest.raises(RunError, match=r"workload\.api=chat needs prompts as text"):
            run(main())

    def test_a_field_that_the_server_does_not_know_is_left_out_and_noted(self) -> None:
        def strict(request: dict[str, Any]) -> bytes:
            return status(400, b'{"error": {"message": "unknown field"}}') if "ignore_eos" in request else GOOD

        async def main() -> tuple[ScriptedServer, LoadResult]:
            async with ScriptedServer([strict]) as server:
                result = await generate(schedule_of(4), HttpTarget(server.url, model="m"), closed_plan())
            return server, result

        server, result = run(main())

        assert {record.status for record in result.records} == {"ok"}
        assert "ignore_eos" not in server.requests[-1]
        assert server.requests[-1]["stream_options"]["continuous_usage_stats"] is True
        assert any("does not know ignore_eos" in note for note in result.notes)

    @pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
    def test_the_base_address_may_end_in_v1_or_not(self, suffix: str) -> None:
        assert str(HttpTarget(f"http://host:8000{suffix}", model="m").url) == "http://host:8000/v1/completions"
