"""A target over HTTP: any OpenAI-compatible server, streaming."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any

import orjson
from yarl import URL

from muai_lab.errors import RunError
from muai_lab.load.completion_stream import StreamError
from muai_lab.load.dialect import NOT_ABOUT_FIELDS, Dialect, dialects
from muai_lab.load.endpoint_access import EndpointAccess
from muai_lab.load.endpoint_address import EndpointAddress
from muai_lab.load.endpoint_client import EndpointClient
from muai_lab.load.http_connection import ConnectionProblem, Unreachable
from muai_lab.load.request_body import RequestBodies
from muai_lab.load.streamed_answer import StreamedAnswer, WholeAnswer
from muai_lab.request_record import RequestRecord
from muai_lab.request_status import RequestStatus
from muai_lab.settings.lab import LabSettings
from muai_lab.settings.workload import Api
from muai_lab.workload.schedule import Schedule, ScheduledRequest

_REJECTED = frozenset({429, 503})
# A server that starts up refuses connections or answers with one of these, as does a gateway before it, and a server
# whose request limit was just used up.
_NOT_READY = frozenset({429, 502, 503, 504})
_CHECK_KEY = "check the key that target.api_key_env or target.headers_env names"
_CHECKS = {
    401: _CHECK_KEY,
    402: _CHECK_KEY,
    403: _CHECK_KEY,
    429: "its limit was used up before the load began: ask for a larger one, or let the run wait for it with "
    "target.ready_timeout_s",
}
_READY_INTERVAL_S = 0.5


class HttpTarget:
    """`POST {base_url}/v1/completions` or `/v1/chat/completions`, one streamed answer per request.

    Args:
        base_url: The address, in a form that `EndpointAddress.of` accepts.
        api: The endpoint.
        model: Name of the model; None takes the server's only one.
        temperature: Of requests without one of their own.
        ignore_eos: Answers continue to their limit, if the server supports that.
        access: Key, headers and certificates.
        extra_body: Further fields of every request's body.
        cache_salt: Requests with another salt share no cached prefix with these, if the server supports that.
        ready_timeout_s: Longest time that `open` waits for a server that starts up.
        probe_timeout_s: Longest time for the answer to one small request.
        keep_texts: Keep the text of each chunk if the server does not count its tokens.
        waiting: Called with the reason when `open` waits.
        clock: Monotonic nanoseconds.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api: Api = "completions",
        model: str | None = None,
        temperature: float = 0.0,
        ignore_eos: bool = True,
        access: EndpointAccess | None = None,
        extra_body: Mapping[str, Any] | None = None,
        cache_salt: str | None = None,
        ready_timeout_s: float = 0.0,
        probe_timeout_s: float = 60.0,
        keep_texts: bool = False,
        waiting: Callable[[str], None] = lambda reason: None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._client = EndpointClient(EndpointAddress.of(base_url, api), api, access or EndpointAccess(), clock)
        self.url = self._client.url
        self.waiting = waiting
        self._api = api
        self._model = model
        self._temperature = temperature
        self._extra_body = dict(extra_body or {})
        self._cache_salt = cache_salt
        self._ready_timeout_s = ready_timeout_s
        self._probe_timeout_s = probe_timeout_s
        self._may_keep_texts = keep_texts
        self._clock = clock
        self._wanted = Dialect(ignore_eos=ignore_eos, salted=cache_salt is not None)
        self._dialect = self._wanted
        self._keeps_texts = False
        self._ready_by_ns = 0  # end of the wait for the server
        self._refused = False  # the last failure was that no connection could be made
        self._bodies: RequestBodies | None = None

    @classmethod
    def of(
        cls,
        settings: LabSettings,
        url: str | None = None,
        environ: Mapping[str, str] = os.environ,
        *,
        cache_salt: str | None = None,
    ) -> HttpTarget:
        """Return the target of the settings; url: address of the server that the run started, None for `target.url`.

        Raises RunError if `environ` lacks the variable that should hold the key.
        """
        target, workload = settings.target, settings.workload
        base_url = url or target.url
        if base_url is None:
            raise RunError("the target has no address; set target.url, such as target.url=http://host:8000/v1")
        endpoint = target.kind == "endpoint"
        return cls(
            base_url,
            api=workload.api,
            model=target.model if endpoint else settings.model.name,
            temperature=workload.temperature,
            ignore_eos=workload.ignore_eos,
            access=EndpointAccess.of(target, environ),
            extra_body=target.extra_body,
            cache_salt=cache_salt,
            ready_timeout_s=target.ready_timeout_s if endpoint else 0.0,
            probe_timeout_s=settings.load.request_timeout_s,
            keep_texts=endpoint and (target.tokenizer or settings.model.checkpoint) is not None,
        )

    @property
    def model(self) -> str | None:
        """Name of the requested model; known once the target is open."""
        return self._model

    @property
    def notes(self) -> tuple[str, ...]:
        """The features that the server lacks, with their consequences for the results."""
        return (*self._dialect.notes(self._wanted), *self._client.notes)

    async def open(self, schedule: Schedule) -> None:
        """Look up the server, and send probes of one token until its dialect is known.

        Raises RunError if the server cannot be reached or refuses even the plain request.
        """
        self._ready_by_ns = self._clock() + round(self._ready_timeout_s * 1e9)
        try:
            await self._client.open()
            if self._model is None:
                self._model = await self._only_model()
            await self._find_dialect(schedule.request(0))
        except BaseException:
            await self.close()
            raise

    def send(self, request: ScheduledRequest, record: RequestRecord) -> Coroutine[Any, Any, None]:
        """Send one request over a kept-alive connection; see `Target.send`."""
        if self._keeps_texts:
            record.texts = []
        return self._exchange(request, record, StreamedAnswer(record))

    async def _exchange(self, request: ScheduledRequest, record: RequestRecord, answer: StreamedAnswer) -> None:
        assert self._bodies is not None, "open() comes first"
        body = self._bodies.render(request)
        try:
            await self._client.post(request.index, body, answer)
        except (StreamError, ConnectionProblem) as error:
            self._refused = isinstance(error, Unreachable)
            record.end("error", self._clock(), self._client.without_secrets(str(error)))
            return
        finally:
            answer.settle()
        if (code := record.http_status) is not None and code != 200:
            status: RequestStatus = "rejected" if code in _REJECTED else "error"
            record.end(status, self._clock(), self._client.refusal(code, answer))

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    def _speak(self, dialect: Dialect) -> None:
        self._dialect = dialect
        own = {"model": self._model, "stream": True, "temperature": self._temperature}
        fields = {**own, **self._extra_body, **dialect.fields(self._cache_salt)}
        self._bodies = RequestBodies(self._api, fields, dialect.limit, self._temperature)

    async def _may_wait(self, reason: str) -> bool:
        """Wait a moment for the server to become ready; False once `ready_timeout_s` is over."""
        if self._clock() >= self._ready_by_ns:
            return False
        self.waiting(reason)
        await asyncio.sleep(_READY_INTERVAL_S)
        return True

    async def _ask(self, url: URL) -> WholeAnswer:
        """Return the answer to a GET; waits for a server that refuses connections, until `ready_timeout_s` is over."""
        while True:
            answer = WholeAnswer()
            try:
                async with asyncio.timeout(self._probe_timeout_s):
                    await self._client.get(url, answer)
            except Unreachable as error:
                if await self._may_wait(str(error)):
                    continue
                raise
            return answer

    async def _only_model(self) -> str:
        """Ask `/v1/models`; raises RunError unless the server has exactly one."""
        url = self._client.address("models")
        try:
            answer = await self._ask(url)
            while answer.status in _NOT_READY and await self._may_wait(self._client.refusal(answer.status, answer)):
                answer = await self._ask(url)
            if answer.status != 200:
                check = _CHECKS.get(answer.status, "set target.model")
                raise RunError(f"{url} answers {self._client.refusal(answer.status, answer)}; {check}")
            models = [str(model["id"]) for model in orjson.loads(answer.content)["data"]]
        except (orjson.JSONDecodeError, LookupError, TypeError) as error:
            raise RunError(f"{url} does not answer with a list of models; set target.model") from error
        except (ConnectionProblem, TimeoutError) as error:
            problem = "no answer in time" if isinstance(error, TimeoutError) else str(error)
            raise RunError(f"{url} cannot be asked for its models: {problem}; check target.url") from error
        if len(models) != 1:
            raise RunError(f"{url} lists {len(models)} models ({', '.join(models[:8])}); choose one with target.model")
        return models[0]

    async def _find_dialect(self, request: ScheduledRequest) -> None:
        """Send small requests until one is answered, from the richest dialect to the plainest."""
        if request.prompt_ids is not None and self._api == "chat":
            raise RunError("workload.api=chat needs prompts as text, and the schedule holds token ids; draw it again")
        refusal: str | None = None
        check = "check target.url and target.model"
        for dialect in dialects(self._wanted):
            self._speak(dialect)
            probe, counts = await self._probe(request)
            while self._is_not_ready(probe) and await self._may_wait(str(probe.error)):
                probe, counts = await self._probe(request)
            if probe.status == "ok":
                self._keeps_texts = self._may_keep_texts and not counts
                return
            if refusal is None:
                refusal, check = probe.error, _CHECKS.get(probe.http_status or 0, check)
            if probe.status == "timeout" or probe.http_status is None or probe.http_status in NOT_ABOUT_FIELDS:
                break
        raise RunError(f"{self.url} cannot be measured: {refusal}; {check}")

    async def _probe(self, request: ScheduledRequest) -> tuple[RequestRecord, bool]:
        """Request one token for a short prompt; the flag is True if the server counted the tokens of the chunk."""
        if request.prompt_ids is not None:
            request = replace(request, prompt_ids=request.prompt_ids[:1])
        else:
            request = replace(request, prompt=request.text()[:16], messages=None)
        record = RequestRecord(-1, max_tokens=1)
        answer = StreamedAnswer(record)
        limit_s = self._probe_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                await self._exchange(replace(request, index=-1, max_tokens=1, extra=None), record, answer)
        except TimeoutError:
            record.end("timeout", self._clock(), f"no answer to a first small request within {limit_s:g} s")
        return record, record.status == "ok" and answer.usage_per_chunk

    def _is_not_ready(self, probe: RequestRecord) -> bool:
        """True if the server refused the connection, or answered that it cannot serve yet."""
        return probe.http_status in _NOT_READY or (probe.status == "error" and self._refused)
