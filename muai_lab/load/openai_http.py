"""A target over HTTP: any OpenAI-compatible server, streaming."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import orjson
from yarl import URL

from muai_lab import __version__
from muai_lab.errors import RunError
from muai_lab.load.completion_stream import CompletionStream, StreamError, error_message
from muai_lab.load.endpoint_address import Api, EndpointAddress, host_header, redirected
from muai_lab.load.http_connection import ConnectionPool, ConnectionProblem
from muai_lab.load.records import RequestRecord, Status
from muai_lab.load.sse import SseParser
from muai_lab.settings.lab import LabSettings
from muai_lab.workload.schedule import Schedule, ScheduledRequest

UsageSupport = Literal["continuous", "final", "none"]

_STREAM_OPTIONS: dict[UsageSupport, dict[str, bool] | None] = {
    "continuous": {"include_usage": True, "continuous_usage_stats": True},
    "final": {"include_usage": True},
    "none": None,
}
_REJECTED = frozenset({429, 503})
# Statuses by which strict servers refuse a request field that they do not know.
_UNKNOWN_FIELD = frozenset({400, 422})
_ERROR_BODY_BYTES = 4096
_PROBE_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Dialect:
    """Which extensions of the OpenAI API the server knows."""

    usage: UsageSupport
    ignore_eos: bool


class _StreamedAnswer:
    """Reads one response into the record of its request."""

    __slots__ = ("_error_body", "_events", "_record", "_stream", "content_type", "location")

    def __init__(self, record: RequestRecord) -> None:
        self.content_type = self.location = ""
        self._record = record
        self._events = SseParser()
        self._stream = CompletionStream(record)
        self._error_body: bytes | None = None

    @property
    def error_body(self) -> bytes:
        """The first bytes of an answer other than 200."""
        return self._error_body or b""

    def connected(self, took_ns: int) -> None:
        self._record.connect_ns = took_ns

    def sent(self, at_ns: int) -> None:
        self._record.sent_ns = at_ns

    def head(self, status: int, content_type: str, location: str) -> None:
        self._record.http_status = status
        self.content_type, self.location = content_type, location
        if status != 200:
            self._error_body = b""

    def body(self, data: bytes, at_ns: int) -> None:
        if self._error_body is not None:
            self._error_body += data[: _ERROR_BODY_BYTES - len(self._error_body)]
            return
        take = self._stream.take
        for payload in self._events.feed(data):
            take(payload, at_ns)

    def end(self, at_ns: int) -> None:
        if self._error_body is not None:
            return
        try:
            self._stream.finish()
        except StreamError as error:
            if "text/event-stream" in self.content_type:
                raise
            kind = self.content_type or "none"
            raise StreamError(f"{error} (content type {kind} instead of text/event-stream)") from error
        self._record.end("ok", at_ns)

    def settle(self) -> None:
        """Count the tokens that came; also of an answer that was cut short."""
        self._stream.settle()


class _WholeAnswer:
    """Keeps one response, for the few questions that are not measured."""

    def __init__(self) -> None:
        self.status = 0
        self.content_type = self.location = ""
        self.content = b""

    def connected(self, took_ns: int) -> None:
        pass

    def sent(self, at_ns: int) -> None:
        pass

    def head(self, status: int, content_type: str, location: str) -> None:
        self.status, self.content_type, self.location = status, content_type, location

    def body(self, data: bytes, at_ns: int) -> None:
        self.content += data

    def end(self, at_ns: int) -> None:
        pass


class HttpTarget:
    """`POST {base_url}/v1/completions` or `/v1/chat/completions`, one streamed answer per request.

    base_url: as `EndpointAddress.of` takes it. model: None asks the server and takes its only one.
    api_key: sent as a bearer token, and nowhere else. cache_salt: requests with another one share no cached prefix with
    these; for servers that know it. clock: monotonic nanoseconds.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api: Api = "completions",
        model: str | None = None,
        temperature: float = 0.0,
        ignore_eos: bool = True,
        api_key: str | None = None,
        cache_salt: str | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._address = EndpointAddress.of(base_url, api)
        self.url = self._address.completions(api)
        self._api = api
        self._model = model
        self._temperature = temperature
        self._ignore_eos = ignore_eos
        self._api_key = api_key
        self._cache_salt = cache_salt
        self._clock = clock
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise RunError(
                "the endpoint's key has characters that HTTP does not allow in a header; look for a line end"
            )
        self._post_head = self._request_head("POST", self.url)
        self._pool: ConnectionPool | None = None
        self._pool_notes: tuple[str, ...] = ()
        self._dialect = Dialect("continuous", ignore_eos)
        self._head: dict[str, Any] = {}
        self._body_head = b""

    @classmethod
    def of(
        cls,
        settings: LabSettings,
        url: str | None = None,
        environ: Mapping[str, str] = os.environ,
        *,
        cache_salt: str | None = None,
    ) -> HttpTarget:
        """The target of the settings; url: address of the server that the run started, None for `target.url`.

        Raises RunError when `environ` lacks the variable that should hold the key.
        """
        target, workload = settings.target, settings.workload
        base_url = url or target.url
        if base_url is None:
            raise RunError("the target has no address; set target.url, such as target.url=http://host:8000/v1")
        api_key = None
        if target.api_key_env is not None:
            api_key = environ.get(target.api_key_env)
            if not api_key:
                raise RunError(
                    f"the environment variable {target.api_key_env} (target.api_key_env) is not set; export it"
                )
        return cls(
            base_url,
            api=workload.api,
            model=target.model if target.kind == "endpoint" else settings.model.name,
            temperature=workload.temperature,
            ignore_eos=workload.ignore_eos,
            api_key=api_key,
            cache_salt=cache_salt,
        )

    @property
    def model(self) -> str | None:
        """Name of the model that is asked for; known once the target is open."""
        return self._model

    @property
    def notes(self) -> tuple[str, ...]:
        """What the server lacks, and what follows for the results."""
        notes = []
        if self._dialect.usage == "final":
            notes.append(
                "the server does not report usage per chunk: tokens per chunk are known only where each is one"
            )
        if self._dialect.usage == "none":
            notes.append(
                "the server reports no usage: each chunk of an answer counts as one token, and prompts have no count"
            )
        if self._ignore_eos and not self._dialect.ignore_eos:
            notes.append("the server does not know ignore_eos: outputs may be shorter than the schedule asks for")
        return (*notes, *(self._pool_notes if self._pool is None else self._pool.notes))

    async def open(self, schedule: Schedule) -> None:
        """Look the server up and send probes of one token until its dialect is known.

        Raises RunError when the server cannot be reached or refuses even the plain request.
        """
        self._pool = ConnectionPool(self.url, self._clock)
        try:
            await self._find_server()
            if self._model is None:
                self._model = await self._only_model()
            await self._find_dialect(schedule.request(0))
        except BaseException:
            await self.close()
            raise

    async def send(self, request: ScheduledRequest, record: RequestRecord) -> None:
        """One request over a kept-alive connection."""
        assert self._pool is not None, "open() comes first"
        body = self._encode(request)
        head = b"%bX-Request-Id: %d\r\nContent-Length: %d\r\n\r\n" % (self._post_head, request.index, len(body))
        answer = _StreamedAnswer(record)
        try:
            await self._pool.exchange(head + body, answer)
        except (StreamError, ConnectionProblem) as error:
            record.end("error", self._clock(), self._without_key(str(error)))
            return
        finally:
            answer.settle()
        if (code := record.http_status) is not None and code != 200:
            status: Status = "rejected" if code in _REJECTED else "error"
            record.end(status, self._clock(), self._error_of(code, answer, answer.error_body))

    async def close(self) -> None:
        """Close all connections."""
        pool, self._pool = self._pool, None
        if pool is not None:
            self._pool_notes = pool.notes
            await pool.close()

    def _encode(self, request: ScheduledRequest) -> bytes:
        """The request as JSON; what all requests share is rendered once."""
        if self._api == "chat":
            prompt = b'"messages":' + orjson.dumps(request.conversation())
        elif request.prompt_ids is not None:
            prompt = b'"prompt":' + orjson.dumps(request.prompt_ids, option=orjson.OPT_SERIALIZE_NUMPY)
        else:
            prompt = b'"prompt":' + orjson.dumps(request.text())
        head, temperature = self._body_head, self._temperature
        extra = {} if request.extra is None else orjson.loads(request.extra)
        if extra:
            head = orjson.dumps({**self._head, **extra})[:-1]
            temperature = extra.get("temperature", temperature)
        drawn = None if temperature == 0 or "seed" in extra else request.seed
        seed = b"" if drawn is None else b',"seed":%d' % drawn
        return b'%b,%b,"max_tokens":%d%b}' % (head, prompt, request.max_tokens, seed)

    def _speak(self, dialect: Dialect) -> None:
        self._dialect = dialect
        head: dict[str, Any] = {"model": self._model, "stream": True, "temperature": self._temperature}
        if (stream_options := _STREAM_OPTIONS[dialect.usage]) is not None:
            head["stream_options"] = stream_options
        if dialect.ignore_eos:
            head["ignore_eos"] = True
        if self._cache_salt is not None:
            head["cache_salt"] = self._cache_salt
        self._head = head
        self._body_head = orjson.dumps(head)[:-1]

    def _dialects(self) -> Iterator[Dialect]:
        """What to try, richest first."""
        for usages in (("continuous", "final"), ("none",)):
            for ignore_eos in (True, False) if self._ignore_eos else (False,):
                for usage in usages:
                    yield Dialect(usage, ignore_eos)

    async def _find_server(self) -> None:
        assert self._pool is not None
        try:
            await self._pool.open()
        except ConnectionProblem as error:
            raise RunError(f"{self.url} cannot be measured: {error}; check target.url") from error

    async def _only_model(self) -> str:
        """Ask `/v1/models`; raises RunError unless the server has exactly one."""
        assert self._pool is not None
        url = self._address.path("models")
        answer = _WholeAnswer()
        try:
            async with asyncio.timeout(_PROBE_TIMEOUT_S):
                await self._pool.exchange(self._request_head("GET", url) + b"\r\n", answer)
            if answer.status != 200:
                said = self._error_of(answer.status, answer, answer.content)
                raise RunError(f"{url} answers {said}; set target.model")
            models = [str(model["id"]) for model in orjson.loads(answer.content)["data"]]
        except (orjson.JSONDecodeError, LookupError, TypeError) as error:
            raise RunError(f"{url} does not answer with a list of models; set target.model") from error
        except (ConnectionProblem, TimeoutError) as error:
            problem = "no answer in time" if isinstance(error, TimeoutError) else self._without_key(str(error))
            raise RunError(f"{url} cannot be asked for its models: {problem}; check target.url") from error
        if len(models) != 1:
            raise RunError(f"{url} lists {len(models)} models ({', '.join(models[:8])}); choose one with target.model")
        return models[0]

    async def _find_dialect(self, request: ScheduledRequest) -> None:
        if request.prompt_ids is not None and self._api == "chat":
            raise RunError("workload.api=chat needs prompts as text, and the schedule holds token ids; draw it again")
        refusal: str | None = None
        for dialect in self._dialects():
            self._speak(dialect)
            probe = await self._probe(request)
            if probe.status == "ok":
                return
            refusal = refusal or probe.error
            if probe.http_status not in _UNKNOWN_FIELD:
                break
        raise RunError(f"{self.url} cannot be measured: {refusal}; check target.url, target.model and the key")

    async def _probe(self, request: ScheduledRequest) -> RequestRecord:
        """Ask for one token of a short prompt."""
        if request.prompt_ids is not None:
            request = replace(request, prompt_ids=request.prompt_ids[:1])
        else:
            request = replace(request, prompt=request.text()[:16], messages=None)
        record = RequestRecord(-1, max_tokens=1)
        try:
            async with asyncio.timeout(_PROBE_TIMEOUT_S):
                await self.send(replace(request, index=-1, max_tokens=1, extra=None), record)
        except TimeoutError:
            record.end("timeout", self._clock(), f"no answer to a first small request within {_PROBE_TIMEOUT_S:g} s")
        return record

    def _error_of(self, status: int, answer: _StreamedAnswer | _WholeAnswer, body: bytes) -> str:
        """What a response other than 200 says, in one line without the key."""
        content_type = answer.content_type
        if answer.location and 300 <= status < 400:
            there = redirected(self.url, answer.location)
            return self._without_key(f"HTTP {status}: redirects to {there}; set target.url to that")
        try:
            detail = error_message(orjson.loads(body))
        except orjson.JSONDecodeError:
            kind = content_type or "no content type"
            detail = f"{kind}: {body[:120].decode('utf-8', 'replace')}" if body else "empty answer"
        return self._without_key(f"HTTP {status}: {detail}")

    def _request_head(self, method: str, url: URL) -> bytes:
        """Request line and the headers that all requests share, without the empty line that ends them."""
        lines = [
            f"{method} {url.raw_path_qs} HTTP/1.1",
            f"Host: {host_header(url)}",
            f"User-Agent: muai-lab/{__version__}",
            "Accept: text/event-stream, application/json",
        ]
        if self._api_key is not None:
            lines.append(f"Authorization: Bearer {self._api_key}")
        if method == "POST":
            lines.append("Content-Type: application/json")
        return "".join(f"{line}\r\n" for line in lines).encode("latin-1")

    def _without_key(self, text: str) -> str:
        return text.replace(self._api_key, "***") if self._api_key else text
