"""From the bytes of a request to the token ids of its prompts, without blocking the event loop.

Light work is done at once. A heavy body is parsed in a process of its own, and long texts are tokenised in threads: the
tokenizer, unlike the JSON parser, releases the interpreter lock while it works.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from starlette.types import Receive, Scope

from muai_lab.errors import InvalidRequest
from muai_lab.server.body import Bodies, Body
from muai_lab.server.parse_process import ParseProcess
from muai_lab.server.protocol import AnyRequest, GenerationFields, parse

if TYPE_CHECKING:
    from muai_lab.models.tokenizer import ModelTokenizer

SHORT_TEXT = 4096  # characters that are tokenised on the event loop, in at most a few milliseconds
TOKENIZE_THREADS = 2


class RequestReader:
    """Reads the requests of one server. Belongs to one event loop; close it when the server has stopped."""

    def __init__(self) -> None:
        self._bodies = Bodies()
        self._parser = ParseProcess()
        self._parsing = ThreadPoolExecutor(1, "parse")
        self._tokenizing = ThreadPoolExecutor(TOKENIZE_THREADS, "tokenize")

    def hold(self) -> AbstractContextManager[Body]:
        """Return a context that holds the body of one request; see `Bodies.hold`."""
        return self._bodies.hold()

    async def parse(self, kind: type[AnyRequest], body: Body, scope: Scope, receive: Receive) -> AnyRequest:
        """Receive the body and parse it. Raises as `Bodies.receive` and `muai_lab.server.protocol.parse`."""
        await self._bodies.receive(body, scope, receive)
        if body.light:
            return parse(kind, body.joined())
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._parsing, self._parser.parse, kind, body.parts)

    async def tokenize(
        self, request: GenerationFields, tokenizer: ModelTokenizer, most_tokens: int
    ) -> Sequence[list[int]]:
        """Return token ids of the prompts of a request.

        Raises:
            InvalidRequest: A prompt certainly has more than `most_tokens` tokens; it is then not tokenised.
            HttpError: The model's chat template refuses the conversation.
        """
        tokens = request.fewest_tokens(tokenizer)
        if tokens > most_tokens:
            raise InvalidRequest(
                f"the prompt has at least {tokens} tokens, and the model's context is {most_tokens} tokens",
                param=request.prompt_field,
                code="context_length_exceeded",
            )
        if request.characters <= SHORT_TEXT:
            return request.token_ids(tokenizer)
        return await asyncio.get_running_loop().run_in_executor(self._tokenizing, request.token_ids, tokenizer)

    def close(self) -> None:
        """End the threads and the process; no request can be read afterwards."""
        self._tokenizing.shutdown(wait=False, cancel_futures=True)
        self._parsing.shutdown(wait=False, cancel_futures=True)
        self._parser.close()
