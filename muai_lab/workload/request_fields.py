"""Fields of a row that go unchanged into the body of the request."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import orjson

from muai_lab.settings.workload import Api
from muai_lab.workload.fields import OUTPUT_LIMITS, OUTPUT_TOKENS, Row, squeezed
from muai_lab.workload.reading import exact

_SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "typical_p", "seed", "stop", "stop_token_ids", "min_tokens",
    "ignore_eos", "frequency_penalty", "presence_penalty", "repetition_penalty", "length_penalty", "logit_bias",
    "logprobs", "top_logprobs", "bad_words", "allowed_token_ids", "skip_special_tokens",
    "include_stop_str_in_output",
)  # fmt: skip
_CONTENT = (
    "tools", "tool_choice", "parallel_tool_calls", "response_format", "reasoning_effort", "chat_template_kwargs",
    "guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs",
)  # fmt: skip
_ANYWHERE = frozenset(_SAMPLING + _CONTENT)
"""Names of request fields in every place; other names are request fields only inside a body."""

_CHAT_ONLY = frozenset({"tools", "tool_choice", "parallel_tool_calls", "functions", "function_call"})
# The load generator sets these itself. Several choices (n, best_of), or a repeated prompt (echo), would count as one
# answer.
_OWN = frozenset({"model", "stream", "stream_options", "n", "best_of", "echo", "prompt", "messages", "suffix"})
_AS_SET = {"stream": True, "n": 1, "best_of": 1, "echo": False}
_TEXTS = frozenset({"stop", "tool_choice", "reasoning_effort", "guided_regex", "guided_grammar"})

_STRUCTURED = frozenset({"tools", "functions", "response_format", "logit_bias", "chat_template_kwargs"})
"""Fields whose values are lists or objects; some data sets keep them as JSON texts."""

BODIES = ("body", "payload")
"""Fields that hold a whole request; all its fields are sent, except those that the load generator sets itself."""
_WHOLE = ("extra", "extra_body")
PARAMETERS = ("sampling_params", "parameters", "generation_config", *_WHOLE)
"""Fields that hold parameters of the request and no prompt."""
_SEEN = frozenset({*_ANYWHERE, *_AS_SET, *PARAMETERS})


def request_fields(rows: Iterable[Row], api: Api) -> str | None:
    """Return the fields to send, as the schedule keeps them (JSON), and mark them as used; None if there are none.

    rows: from outermost to innermost; fields of an inner row replace those of an outer one. Raises ValueError if JSON
    cannot hold a value.
    """
    fields: dict[str, Any] = {}
    for row in rows:
        if row.name not in BODIES and not row.among(_SEEN):
            continue
        fields |= _taken(row, api, whole=row.name in BODIES)
        for name in PARAMETERS:
            if (inner := row.inner(name)) is not None:
                fields |= _taken(inner, api, whole=name in _WHOLE)
    if not fields:
        return None
    try:
        return orjson.dumps(fields, option=orjson.OPT_SORT_KEYS).decode()
    except (orjson.JSONEncodeError, UnicodeError) as error:
        raise ValueError(f"fields of the request cannot be sent: {error}") from None


def _taken(row: Row, api: Api, *, whole: bool) -> dict[str, Any]:
    fields = {}
    for name, value in list(row.left()):
        if name in _OWN:
            if name in _AS_SET and value == _AS_SET[name]:
                row.take(name)  # the default
        elif _is_sent(name, api, whole=whole):
            value = exact(_parsed(name, value) if row.texts or name in _STRUCTURED else value, row.named(name))
            if name in _STRUCTURED and not value:
                continue  # servers refuse an empty list of tools
            row.take(name)
            fields[name] = value
    return fields


def _is_sent(name: str, api: Api, *, whole: bool) -> bool:
    if name in _CHAT_ONLY and api != "chat":
        return False
    return name in _ANYWHERE or (whole and squeezed(name) not in OUTPUT_LIMITS + OUTPUT_TOKENS)


def _parsed(name: str, value: Any) -> Any:
    """Return the value that the text of a CSV field stands for."""
    if not isinstance(value, str) or (name in _TEXTS and value.lstrip()[:1] not in ("{", "[")):
        return value
    try:
        return json.loads(value.lower() if value in ("True", "False") else value)
    except ValueError:
        return value
