"""The JSON bodies of requests to an OpenAI-compatible server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from muai_lab.load.dialect import LimitField
from muai_lab.settings.workload import Api
from muai_lab.workload.schedule import ScheduledRequest


class RequestBodies:
    """Renders the bodies of requests in one form; the fields that all of them share are rendered once."""

    def __init__(self, api: Api, fields: Mapping[str, Any], limit: LimitField, temperature: float) -> None:
        """Prepare the shared part.

        Args:
            api: The endpoint.
            fields: Fields of every request.
            limit: Name of the field that limits the length of the answer.
            temperature: Temperature of requests without one of their own; without sampling, no seed is sent.
        """
        self._chat = api == "chat"
        self._temperature = temperature
        self._fields = dict(fields)
        self._head = orjson.dumps(self._fields)[:-1]
        self._limit = f'"{limit}":'.encode()

    def render(self, request: ScheduledRequest) -> bytes:
        """Return the body of a request."""
        if self._chat:
            prompt = b'"messages":' + orjson.dumps(request.conversation())
        elif request.prompt_ids is not None:
            prompt = b'"prompt":' + orjson.dumps(request.prompt_ids, option=orjson.OPT_SERIALIZE_NUMPY)
        else:
            prompt = b'"prompt":' + orjson.dumps(request.text())
        head, temperature = self._head, self._temperature
        extra = {} if request.extra is None else orjson.loads(request.extra)
        if extra:
            head = orjson.dumps({**self._fields, **extra})[:-1]
            temperature = extra.get("temperature", temperature)
        drawn = None if temperature == 0 or "seed" in extra else request.seed
        seed = b"" if drawn is None else b',"seed":%d' % drawn
        return b"%b,%b,%b%d%b}" % (head, prompt, self._limit, request.max_tokens, seed)
