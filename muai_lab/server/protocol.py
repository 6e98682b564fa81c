"""Requests of the OpenAI API, validated.

Unknown fields are ignored, since clients send many (`user`, `metadata`, ...). Known fields that would change the answer
and are not supported are refused (see `muai_lab.server.unsupported`). JSON types are strict: `"16"` is not a number.

The time to read a request grows no faster than its body, and an error reports only the first few problems.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

from jinja2 import TemplateError
from pydantic import (
    BaseModel,
    ConfigDict,
    FailFast,
    Field,
    GetCoreSchemaHandler,
    GetPydanticSchema,
    PlainValidator,
    ValidationError,
)
from pydantic_core import CoreSchema, ErrorDetails, PydanticCustomError
from pydantic_core.core_schema import no_info_after_validator_function

from muai_lab.engines.base import Sampling
from muai_lab.engines.ranges import (
    CHOICES,
    INT64_MAX,
    MAX_TOKENS,
    PRIORITY,
    SEED,
    TEMPERATURE,
    TOP_K_LEAST,
    TOP_P,
    TokenRange,
)
from muai_lab.server.field_values import Prompt, begun_output, prompts, stop_strings
from muai_lab.server.http_error import HttpError, invalid, shown
from muai_lab.server.unsupported import CHAT_FIELDS, COMPLETION_FIELDS, Neutral, first_unsupported, is_neutral

if TYPE_CHECKING:
    from muai_lab.models.tokenizer import ModelTokenizer

DEFAULT_COMPLETION_TOKENS = 16
LONGEST_SALT = 256
MAX_MESSAGES = 4096
TEMPLATE_CHARACTERS = 16  # that a chat template writes around a message, about
MAX_PROBLEMS = 5  # that one error reports

UNSUPPORTED = "unsupported_parameter"


def _within(numbers: TokenRange) -> Any:
    """Return the constraint of a field that holds one of these numbers; infinity and NaN are never among them."""
    if numbers.above:
        return Field(gt=numbers.least, le=numbers.most)
    return Field(ge=numbers.least, le=numbers.most)


def _text(value: Any) -> str:
    """Return the text of a message: a string, or parts that are all text."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value:
        texts = []
        for part in value:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind != "text" or not isinstance(part.get("text"), str):
                raise ValueError(
                    f'holds a part of type {shown(kind)}; only {{"type": "text", "text": ...}} is supported'
                )
            texts.append(part["text"])
        return "".join(texts)
    raise ValueError("must be a string or a list of text parts")


def _nothing(value: Any) -> None:
    """Accept a message field that is not supported only if its value is neutral."""
    if not is_neutral(value, (None, False, [], {})):
        raise PydanticCustomError(UNSUPPORTED, "is not supported by this server: leave it out")


Unsupported = Annotated[None, PlainValidator(_nothing)]


class StreamOptions(BaseModel):
    """Additions to a stream's text; `continuous_usage_stats` is vLLM's: usage so far in every chunk."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class GenerationFields(BaseModel, ABC):
    """The fields that both kinds of request share; null means the default everywhere.

    Extensions, as vLLM has them: `top_k`, `ignore_eos`, `priority` (lower goes first), `cache_salt` (requests share
    cached prefixes only with requests of the same salt) and `return_token_ids` (of whole answers only).
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="allow")

    unsupported: ClassVar[Mapping[str, Neutral]]
    prompt_field: ClassVar[str]

    model: str
    max_tokens: Annotated[int, _within(MAX_TOKENS)] | None = None
    temperature: Annotated[float, _within(TEMPERATURE)] | None = None
    top_p: Annotated[float, _within(TOP_P)] | None = None
    top_k: Annotated[int, Field(ge=TOP_K_LEAST)] | None = None
    seed: Annotated[int, _within(SEED)] | None = None
    n: Annotated[int, _within(CHOICES)] | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None
    stop: Annotated[tuple[str, ...], PlainValidator(stop_strings)] = ()
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = None
    priority: Annotated[int, _within(PRIORITY)] | None = None
    cache_salt: Annotated[str, Field(max_length=LONGEST_SALT)] | None = None
    return_token_ids: bool | None = None

    @property
    def begun(self) -> Sequence[int]:
        """Token ids that the output already has."""
        return ()

    @property
    def choices(self) -> int:
        """Answers wanted per prompt."""
        return self.n or 1

    @property
    def sequences(self) -> int:
        """Answers wanted for all prompts together."""
        return self.choices

    def sampling(self, choice: int) -> Sampling:
        """Return the sampling of one choice; choices of one seeded request differ, and each can be reproduced."""
        seed = None if self.seed is None else (self.seed + choice) & INT64_MAX
        return Sampling(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=max(0, self.top_k or 0),
            seed=seed,
        )

    def token_limit(self) -> int | None:
        """Return the limit of output tokens, None for as many as the context holds."""
        return self.max_tokens

    @property
    @abstractmethod
    def characters(self) -> int:
        """Characters of text that `token_ids` tokenises."""

    @abstractmethod
    def fewest_tokens(self, tokenizer: ModelTokenizer) -> int:
        """Return a lower bound of the tokens of the longest prompt, without tokenising it."""

    @abstractmethod
    def token_ids(self, tokenizer: ModelTokenizer) -> Sequence[list[int]]:
        """Return the request's prompts, as the model reads them."""

    def check(self) -> None:
        """Refuse combinations that the types of the fields cannot exclude.

        Raises:
            HttpError: (400) A combination makes no sense, or a known field is not supported.
        """
        if self.stream_options is not None and not self.stream:
            raise invalid("'stream_options' is only allowed when 'stream' is true", "stream_options")
        if self.return_token_ids and self.stream:
            reason = "'return_token_ids' is not supported by this server when 'stream' is true: leave one of them out"
            raise invalid(reason, "return_token_ids", UNSUPPORTED)
        if self.best_of is not None and self.best_of != self.choices:
            raise invalid("'best_of' is not supported by this server: leave it out, or equal to 'n'", "best_of")
        extra = self.model_extra or {}
        name = first_unsupported(extra, self.unsupported)
        if name is not None:
            raise invalid(f"'{name}' is not supported by this server: leave it out", name, UNSUPPORTED)
        extra.clear()  # perhaps megabytes, and the request lives as long as its answer


class CompletionRequest(GenerationFields):
    """POST /v1/completions.

    Extension of this server: `x_muai_output`, token ids that the output of an encoder-decoder model already has. The
    answer continues after them.
    """

    unsupported = COMPLETION_FIELDS
    prompt_field = "prompt"

    prompt: Annotated[list[Prompt], PlainValidator(prompts)]
    x_muai_output: Annotated[list[int], PlainValidator(begun_output)] = []

    @property
    def begun(self) -> Sequence[int]:
        """See `GenerationFields.begun`."""
        return self.x_muai_output

    @property
    def sequences(self) -> int:
        """See `GenerationFields.sequences`."""
        return len(self.prompt) * self.choices

    def token_limit(self) -> int | None:
        """See `GenerationFields.token_limit`; OpenAI's default for this endpoint is 16."""
        return self.max_tokens or DEFAULT_COMPLETION_TOKENS

    def token_ids(self, tokenizer: ModelTokenizer) -> Sequence[list[int]]:
        """Return the ids of each prompt; text is tokenised, ids are unchanged."""
        return [tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt) for prompt in self.prompt]

    @property
    def characters(self) -> int:
        """See `GenerationFields.characters`."""
        return sum(len(prompt) for prompt in self.prompt if isinstance(prompt, str))

    def fewest_tokens(self, tokenizer: ModelTokenizer) -> int:
        """See `GenerationFields.fewest_tokens`."""
        return max(tokenizer.at_least(one) if isinstance(one, str) else len(one) for one in self.prompt)


class ChatMessage(BaseModel):
    """One turn of a conversation; `developer` is OpenAI's newer name of `system`."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, PlainValidator(_text)]
    tool_calls: Unsupported = None
    function_call: Unsupported = None
    audio: Unsupported = None
    prefix: Unsupported = None  # of other servers: begin the answer with this message

    def plain(self) -> dict[str, str]:
        """Return the form that chat templates take."""
        return {"role": "system" if self.role == "developer" else self.role, "content": self.content}


def _plain(messages: list[ChatMessage]) -> list[dict[str, str]]:
    return [message.plain() for message in messages]


def _conversation(_source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
    # FailFast: the list may hold hundreds of thousands of wrong items.
    validated = handler.generate_schema(Annotated[list[ChatMessage], FailFast(), Field(max_length=MAX_MESSAGES)])
    return no_info_after_validator_function(_plain, validated)


Conversation = Annotated[list[dict[str, str]], GetPydanticSchema(_conversation)]
"""Messages, validated as `ChatMessage`, in the form that chat templates take."""


class ChatRequest(GenerationFields):
    """POST /v1/chat/completions. `max_completion_tokens` has precedence over the deprecated `max_tokens`."""

    unsupported = CHAT_FIELDS
    prompt_field = "messages"

    messages: Conversation
    max_completion_tokens: Annotated[int, _within(MAX_TOKENS)] | None = None

    def token_limit(self) -> int | None:
        """See `GenerationFields.token_limit`."""
        return self.max_completion_tokens or self.max_tokens

    def token_ids(self, tokenizer: ModelTokenizer) -> Sequence[list[int]]:
        """Return one prompt: the conversation in the form of the model's chat template."""
        try:
            return [tokenizer.encode_chat(self.messages)]
        except TemplateError as error:  # some models' templates require alternating roles, or have no system role
            raise invalid(f"the model's chat template refuses these messages: {error}", "messages") from error

    @property
    def characters(self) -> int:
        """See `GenerationFields.characters`; the template of each message counts as well."""
        return sum(len(message["content"]) + TEMPLATE_CHARACTERS for message in self.messages)

    def fewest_tokens(self, tokenizer: ModelTokenizer) -> int:
        """See `GenerationFields.fewest_tokens`."""
        return sum(tokenizer.at_least(message["content"]) for message in self.messages)

    def check(self) -> None:
        """See `GenerationFields.check`; a conversation must have at least one message."""
        super().check()
        if not self.messages:
            raise invalid("'messages' must hold at least one message", "messages")


AnyRequest = TypeVar("AnyRequest", bound=GenerationFields)


def parse(kind: type[AnyRequest], body: bytes) -> AnyRequest:
    """Return the request in `body`, a JSON document.

    Raises:
        HttpError: (400) Malformed JSON, with its position; or a field that is missing, of a wrong type, out of range or
            not supported, with its name; the message names further fields at fault.
    """
    try:
        request = kind.model_validate_json(body)
    except ValidationError as error:
        raise _refusal(error) from error
    request.check()
    return request


def _refusal(error: ValidationError) -> HttpError:
    details = error.errors(include_url=False)
    first = details[0]
    if first["type"] == "json_invalid":
        return invalid(f"the body is not valid JSON: {first['ctx']['error']}", code="invalid_json")
    if not first["loc"]:
        return invalid("the body must be a JSON object")
    problems = list(dict.fromkeys(_describe(detail) for detail in details[:MAX_PROBLEMS]))
    if len(details) > MAX_PROBLEMS:
        problems.append(f"and {len(details) - MAX_PROBLEMS} more")
    code = UNSUPPORTED if first["type"] == UNSUPPORTED else None
    return invalid("; ".join(problems), _path(first["loc"]), code)


def _path(loc: tuple[int | str, ...]) -> str:
    path = ""
    for part in loc:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def _describe(detail: ErrorDetails) -> str:
    kind, param = detail["type"], _path(detail["loc"])
    if kind == "missing":
        return f"'{param}' is required"
    message = detail["msg"].removeprefix("Value error, ")
    if kind in ("value_error", UNSUPPORTED):
        return f"'{param}' {message}"
    return f"'{param}' is invalid: {message[:1].lower()}{message[1:]}, not {shown(detail['input'])}"
