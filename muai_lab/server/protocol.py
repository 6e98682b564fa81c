"""Requests of the OpenAI API, validated.

Fields that nobody here knows are ignored, as clients send many (`user`, `metadata`, ...). Fields that are known and
would change the answer, but that this server cannot honour, are refused unless they hold their neutral value. JSON
types are strict: `"16"` is not a number.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from jinja2 import TemplateError
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError

from muai_lab.engines.base import Sampling
from muai_lab.server.http_error import HttpError, invalid

if TYPE_CHECKING:
    from muai_lab.models.tokenizer import ModelTokenizer

DEFAULT_COMPLETION_TOKENS = 16
MAX_CHOICES = 128
MAX_PRIORITY = 1000
LONGEST_SALT = 256
INT64_MAX = 2**63 - 1
LONGEST_SHOWN = 60  # characters of an offending value that an error repeats

Prompt = str | list[int]

NOTHING = (None, False)
# Known fields that change the answer -> the values that ask for nothing.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "audio": (None,),
    "echo": NOTHING,
    "frequency_penalty": (None, 0, 0.0),
    "function_call": (None, "none"),
    "functions": (None, []),
    "guided_json": (None,),
    "guided_regex": (None, ""),
    "length_penalty": (None, 1, 1.0),
    "logit_bias": (None, {}),
    "logprobs": NOTHING,
    "min_p": (None, 0, 0.0),
    "min_tokens": (None, 0),
    "modalities": (None, ["text"]),
    "presence_penalty": (None, 0, 0.0),
    "prompt_logprobs": (None,),
    "repetition_penalty": (None, 1, 1.0),
    "response_format": (None, {"type": "text"}),
    "stop_token_ids": (None, []),
    "suffix": (None, ""),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "top_logprobs": (None, 0),
    "use_beam_search": NOTHING,
}


def _is_id_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int and item >= 0 for item in value)


def _prompts(value: Any) -> list[Prompt]:
    """One prompt or several, each text or token ids, in the form of a list of prompts."""
    if isinstance(value, str):
        return [value]
    if _is_id_list(value):
        return [value]
    if isinstance(value, list) and value:
        if all(isinstance(item, str) for item in value):
            return list(value)
        if all(_is_id_list(item) for item in value):
            return list(value)
    raise ValueError("must be a string, a list of strings, a list of token ids or a list of such lists, and not empty")


def _stop_strings(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, list) or not all(isinstance(item, str) for item in strings):
        raise ValueError("must be a string or a list of strings")
    if not all(strings):
        raise ValueError("must not hold an empty string")
    return tuple(strings)


def _text(value: Any) -> str:
    """The text of a message: a string, or parts of which all are text."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value:
        texts = []
        for part in value:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind != "text" or not isinstance(part.get("text"), str):
                raise ValueError(f'holds a part of type {kind!r}; only {{"type": "text", "text": ...}} is supported')
            texts.append(part["text"])
        return "".join(texts)
    raise ValueError("must be a string or a list of text parts")


class StreamOptions(BaseModel):
    """What a stream carries beside text; `continuous_usage_stats` is vLLM's: usage so far in every chunk."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class GenerationFields(BaseModel, ABC):
    """What both kinds of request share; null means the default everywhere.

    Extensions, as vLLM has them: `top_k`, `ignore_eos`, `priority` (lower goes first) and `cache_salt` (requests share
    cached prefixes only with requests of the same salt).
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="allow")

    model: str
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    seed: Annotated[int, Field(ge=-INT64_MAX - 1, le=INT64_MAX)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None
    stop: Annotated[tuple[str, ...], PlainValidator(_stop_strings)] = ()
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = None
    priority: Annotated[int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] | None = None
    cache_salt: Annotated[str, Field(max_length=LONGEST_SALT)] | None = None

    @property
    def choices(self) -> int:
        """Answers wanted per prompt."""
        return self.n or 1

    def sampling(self, choice: int) -> Sampling:
        """Sampling of one choice; choices of one seeded request differ, and each can be had again."""
        seed = None if self.seed is None else (self.seed + choice) & INT64_MAX
        return Sampling(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=max(0, self.top_k or 0),  # -1 is vLLM's way to say "all"
            seed=seed,
        )

    def token_limit(self) -> int | None:
        """Most output tokens, None for as many as the context holds."""
        return self.max_tokens

    @abstractmethod
    def token_ids(self, tokenizer: ModelTokenizer) -> Sequence[list[int]]:
        """The request's prompts, as the model reads them."""

    def check(self) -> None:
        """Refuse what the fields' types cannot rule out.

        Raises:
            HttpError: (400) a combination makes no sense, or a known field cannot be honoured.
        """
        if self.stream_options is not None and not self.stream:
            raise invalid("'stream_options' is only allowed when 'stream' is true", "stream_options")
        if self.best_of is not None and self.best_of != self.choices:
            raise invalid("'best_of' is not supported by this server: leave it out, or equal to 'n'", "best_of")
        for name, value in (self.model_extra or {}).items():
            neutral = UNSUPPORTED.get(name)
            if neutral is not None and not any(type(value) is type(item) and value == item for item in neutral):
                raise invalid(f"'{name}' is not supported by this server: leave it out", name, "unsupported_parameter")


class CompletionRequest(GenerationFields):
    """POST /v1/completions."""

    prompt: Annotated[list[Prompt], PlainValidator(_prompts)]

    def token_limit(self) -> int | None:
        """OpenAI's default for this endpoint is 16."""
        return self.max_tokens or DEFAULT_COMPLETION_TOKENS

    def token_ids(self, tokenizer: ModelTokenizer) -> Sequence[list[int]]:
        """Text is tokenised, ids are taken as they are."""
        return [tokenizer.encode(prompt) if isinstance(prompt, str) else prompt for prompt in self.prompt]


class Message(BaseModel):
    """One turn of a conversation; `developer` is OpenAI's newer name of `system`."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, PlainValidator(_text)]

    def plain(self) -> dict[str, str]:
        """The form that chat templates take."""
        return {"role": "system" if self.role == "developer" else self.role, "content": self.content}


class ChatRequest(GenerationFields):
    """POST /v1/chat/completions. `max_completion_tokens` goes before its deprecated elder `max_tokens`."""

    messages: list[Message]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None

    def token_limit(self) -> int | None:
        """As many as the context holds, unless said otherwise."""
        return self.max_completion_tokens or self.max_tokens

    def token_ids(self, tokenizer: ModelTokenizer) -> Sequence[list[int]]:
        """One prompt: the conversation in the form of the model's chat template."""
        try:
            return [tokenizer.encode_chat([message.plain() for message in self.messages])]
        except TemplateError as error:  # the template of some models wants roles to alternate, or knows no system role
            raise invalid(f"the model's chat template refuses these messages: {error}", "messages") from error

    def check(self) -> None:
        """As for every request; and a conversation has at least one message."""
        super().check()
        if not self.messages:
            raise invalid("'messages' must hold at least one message", "messages")


AnyRequest = TypeVar("AnyRequest", bound=GenerationFields)


def parse(kind: type[AnyRequest], body: bytes) -> AnyRequest:
    """The request in `body`, a JSON document.

    Raises:
        HttpError: (400) malformed JSON, with its position; or a field that is missing, of a wrong type, out of range or
            not supported, with its name; further fields at fault are named in the message.
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
    problems = [_describe(detail["type"], _path(detail["loc"]), detail["msg"], detail["input"]) for detail in details]
    return invalid("; ".join(dict.fromkeys(problems)), _path(first["loc"]))


def _path(loc: tuple[int | str, ...]) -> str:
    path = ""
    for part in loc:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def _describe(kind: str, param: str, message: str, value: Any) -> str:
    if kind == "missing":
        return f"'{param}' is required"
    message = message.removeprefix("Value error, ")
    if kind == "value_error":
        return f"'{param}' {message}"
    shown = repr(value)
    if len(shown) > LONGEST_SHOWN:
        shown = shown[:LONGEST_SHOWN] + "..."
    return f"'{param}' is invalid: {message[:1].lower()}{message[1:]}, not {shown}"
