"""Settings of the target: the server under test, and the access to an endpoint."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import AfterValidator, JsonValue

from muai_lab.settings.section import Conflict, GivesWay, Name, PlainUrl, Section, WasSet, setting


def _check_variable_name(value: str) -> str:
    if not value.isascii() or not value.isidentifier():
        raise ValueError("expected the name of an environment variable (not the key itself)")
    return value


def _check_header_value(value: str) -> str:
    if not (value.isascii() and value.isprintable()):
        raise ValueError("expected printable ASCII: HTTP allows nothing else in a header")
    return value


VariableName = Annotated[str, AfterValidator(_check_variable_name)]
HeaderValue = Annotated[str, AfterValidator(_check_header_value)]

_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_SECRET_HEADER = re.compile(r"authorization|cookie|api-?key|secret|token|password|credential", re.I)
_OF_ENDPOINTS = (
    "url", "api_key_env", "metrics_url", "model", "headers", "headers_env", "extra_body", "ca_file", "tokenizer",
)  # fmt: skip
_OWN_HEADERS = frozenset({"host", "content-length", "transfer-encoding", "connection", "content-type", "upgrade"})
_OWN_FIELDS = {
    "model": "target.model",
    "prompt": "workload",
    "messages": "workload",
    "stream": "nothing else, all answers are streamed;",
    "stream_options": "the search for what the server accepts",
    "max_tokens": "workload.output_tokens",
    "max_completion_tokens": "workload.output_tokens",
    "temperature": "workload.temperature",
    "ignore_eos": "workload.ignore_eos",
    "n": "nothing else, each request asks for one answer;",
}


class TargetSettings(Section):
    """The server under test."""

    kind: Literal["server", "inprocess", "endpoint"] = setting(
        "server",
        "server: a server process that the run starts; inprocess: the stack in the runner's process, without sockets; "
        "endpoint: any OpenAI-compatible server at `url`.",
    )
    url: PlainUrl | None = setting(None, "Base address of the endpoint, such as http://host:8000/v1.")
    api_key_env: Annotated[str, AfterValidator(_check_variable_name)] | None = setting(
        None, "Name of the environment variable that holds the endpoint's key.", hide_in_errors=True
    )
    metrics_url: PlainUrl | None = setting(
        None,
        "Address of the endpoint's Prometheus metrics; null tries /metrics beside its API. Metrics of vLLM, SGLang, "
        "TGI and Triton also appear under our names.",
    )
    model: Name | None = setting(None, "Model name at the endpoint; null requests its list and takes the only one.")
    headers: dict[str, HeaderValue] = setting(
        {}, "Further headers of every request, by name. They are recorded: put secrets into `headers_env`."
    )
    headers_env: dict[str, VariableName] = setting(
        {}, "Headers with a secret value: for each name, the environment variable that holds it. Never recorded."
    )
    extra_body: dict[str, JsonValue] = setting(
        {}, "Further fields of every request's body, such as {top_p: 0.9}. Runs with other fields are not comparable."
    )
    ready_timeout_s: float = setting(
        30.0,
        "Longest wait for an endpoint that at first refuses connections or answers 502, 503 or 504.",
        unit="s",
        ge=0,
    )
    ca_file: Name | None = setting(
        None, "PEM file of the authorities that signed the endpoint's certificate, in addition to the system's."
    )
    tokenizer: Name | None = setting(
        None,
        "Hub id or local directory of the endpoint's tokenizer. It makes prompts of exact length, and counts output "
        "tokens if the endpoint does not. null takes model.checkpoint, or else the embedded one, which does not count.",
    )

    def giving_way(self, was_set: WasSet) -> Iterator[GivesWay]:
        if self.url is not None and self.kind != "endpoint" and not was_set("kind"):
            yield GivesWay("kind", "endpoint", "url")

    def conflicts(self) -> Iterator[Conflict]:
        yield from self._field_conflicts()
        if self.kind == "endpoint":
            if self.url is None:
                yield Conflict(
                    ("kind", "url"), "the target endpoint needs target.url, such as target.url=http://host:8000/v1"
                )
            return
        for key in _OF_ENDPOINTS:
            if getattr(self, key):
                yield Conflict((key, "kind"), f"{key} belongs to target=endpoint, but the target is {self.kind}")

    def _field_conflicts(self) -> Iterator[Conflict]:
        for name in self.headers:
            if _SECRET_HEADER.search(name):
                yield Conflict(
                    ("headers",),
                    f"the header {name} looks like a secret, which would be recorded: export it as a variable and set "
                    f"target.headers_env={{{name}: VARIABLE}}",
                )
        for key in ("headers", "headers_env"):
            for name in getattr(self, key):
                if not _HEADER_NAME.fullmatch(name) or name.lower() in _OWN_HEADERS:
                    yield Conflict((key,), f"{name!r} cannot be set as a header of the requests; choose another name")
        for name in self.extra_body:
            if name in _OWN_FIELDS:
                yield Conflict(
                    ("extra_body",), f"the field {name} is set by the load generator; {_OWN_FIELDS[name]} sets it"
                )
