"""From the SSE payloads of an OpenAI completion stream to the record of a request."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterable
from typing import Any

from muai_lab.load.foreign_values import nanoseconds, parse_object, says_something, word
from muai_lab.load.stated_usage import (
    BEYOND_TOTAL,
    NO_CLAIM,
    cached_tokens,
    claimed_tokens,
    exceeds_its_parts,
    prompt_tokens,
    reasoning_tokens,
    usage_of,
)
from muai_lab.load.token_counts import TokenCounts, infer_counts
from muai_lab.load.usual_events import NotUsual, decode_usual
from muai_lab.request_record import RequestRecord

# Fields of a chat delta that carry generated tokens; reasoning models stream their reasoning in some of them.
_DELTA_CONTENT = ("content", "reasoning_content", "reasoning", "tool_calls", "function_call", "refusal", "audio")
_DELTA_SILENT = frozenset({"role", "name", "id", "type", "annotations", "provider_specific_fields", *_DELTA_CONTENT})
_ERRORS = ("error", "errors", "detail", "message", "error_message", "error_msg", "fault", "exception")
# Parts of finish reasons by which servers report that an answer is not the model's own.
_FAILED_ENDINGS = (
    "error", "abort", "cancel", "fail", "filter", "timeout", "timed_out", "overload", "unavailable", "insufficient",
    "sensitive", "safety", "recitation", "malformed", "blocklist", "prohibited", "spii", "interrupt", "disconnect",
)  # fmt: skip
_NO_REASONS = ("null", "none")  # an absent reason as text
_USUAL_ENDINGS = frozenset({"stop", "length", "tool_calls", "eos_token"})
_LENGTH_ENDINGS = ("length", "max_tokens", "max_output_tokens", "model_length")


class StreamError(Exception):
    """The stream is no OpenAI-compatible one, or carries the server's error; str() gives the reason."""


class CompletionStream:
    """Reads the events of one response into its record; `/v1/completions` and `/v1/chat/completions` alike.

    An event is an arrival of tokens if it has content, or if the server's token count grew with it: its tokens are then
    in a field that the client does not know. `token_counts` infers the number of tokens of each. Tokens that only a
    later count reveals, without a chunk, are kept apart: the client did not see them arrive.
    """

    __slots__ = (
        "_claims",
        "_counted",
        "_done",
        "_events",
        "_final",
        "_finish",
        "_grown",
        "_highest",
        "_index",
        "_keeps_text",
        "_record",
        "_settled",
        "_silent",
        "_stray",
        "_text",
        "_usage",
    )

    def __init__(self, record: RequestRecord) -> None:
        record.tokens_known = False
        self._record = record
        self._keeps_text = record.answer is not None or record.texts is not None
        self._usage: dict[str, Any] | None = None  # the latest, or else:
        self._counted: bytes | None = None  # the payload of the usual event with it
        self._claims: list[int] = []  # the server's count that came with each arrival
        self._silent: list[int] = []  # the arrivals without content: only the count grew
        self._final: int | None = None  # a count that came after the last arrival
        self._highest = 0
        self._grown = 0  # when a later count last grew, in nanoseconds
        self._events = 0
        self._done = False
        self._settled = False
        self._index = 0  # of the choice at hand
        self._stray = ""  # the fields of an event that has no choices
        self._text = ""  # of the event at hand

    def take(self, payloads: Iterable[bytes], at_ns: int) -> None:
        """Process the events of one read at `at_ns`; raises StreamError."""
        append_claim = self._claims.append
        usual, counted = 0, None
        for payload in payloads:
            try:
                event = decode_usual(payload)
                (choice,) = event.choices
                if choice.index == self._index and (choice.text or choice.delta):
                    if event.usage is None:
                        append_claim(NO_CLAIM)
                    else:
                        append_claim(event.usage.completion_tokens)
                        counted = payload
                    if self._keeps_text:
                        self._keep_usual(event.text)
                    if choice.finish_reason is not None:
                        self._record.finish_reason = choice.finish_reason
                    usual += 1
                    continue
            except NotUsual:
                pass
            self._note_usual(usual, counted, at_ns)
            usual, counted = 0, None
            self._take_any(payload, at_ns)
        self._note_usual(usual, counted, at_ns)

    def _note_usual(self, arrived: int, counted: bytes | None, at_ns: int) -> None:
        """Record the last arrivals, which were usual events; counted: the last of them with a count."""
        if not arrived:
            return
        self._events += arrived
        self._record.chunk_t_ns.extend([at_ns] * arrived)
        self._final = None
        if counted is not None:
            self._counted = counted
            self._highest = max(self._highest, *self._claims[-arrived:])

    def _keep_usual(self, text: str) -> None:
        record = self._record
        if record.answer is not None:
            record.answer.append(text)
        if record.texts is not None:
            record.texts.append(text)

    def _take_any(self, payload: bytes, at_ns: int) -> None:
        if payload.strip() in (b"", b"[DONE]"):  # an empty event keeps the connection alive
            self._done |= bool(payload.strip())
            return
        event = parse_object(payload)
        self._events += 1
        if event is None:
            raise StreamError(f"event {self._events} of the stream is not a completion: {_excerpt(payload)}")
        if event.get("error"):
            raise StreamError(f"the server ended the stream with an error: {error_message(event)}")
        claim = self._claim(usage) if (usage := usage_of(event)) else NO_CLAIM
        record = self._record
        shown, ends = self._take_choices(event, payload)
        if shown:
            record.chunk_t_ns.append(at_ns)
            self._claims.append(claim)
            self._final = None
            if record.texts is not None:
                record.texts.append(self._text)
                self._text = ""
        elif claim != NO_CLAIM:
            self._take_count(claim, at_ns, seen=not ends and bool(event.get("choices")))
        if claim > self._highest:
            self._highest = claim

    def _take_count(self, claim: int, at_ns: int, *, seen: bool) -> None:
        """Record a count without content. seen: it came with a chunk of its own, not with the end of the answer."""
        grew = claim > self._highest
        if grew and seen:
            self._silent.append(len(self._claims))
            if self._record.texts is not None:
                self._record.texts.append("")
            self._record.chunk_t_ns.append(at_ns)
            self._claims.append(claim)
            self._final = None
            return
        self._final = claim
        if grew:
            self._grown = at_ns

    def _claim(self, usage: dict[str, Any]) -> int:
        claim = claimed_tokens(usage)
        if claim != NO_CLAIM or (self._usage is None and self._counted is None):
            self._usage, self._counted = usage, None
        return claim

    def _take_choices(self, event: dict[str, Any], payload: bytes) -> tuple[bool, bool]:
        """Return two flags: the event has content, and it belongs to the end of the answer."""
        choices = event.get("choices")
        if not choices:
            self._take_other(event)
            return False, True
        if type(choices) is not list or type(choices[0]) is not dict:
            raise StreamError(f"event {self._events} of the stream is not a completion: {_excerpt(payload)}")
        choice = choices[0]
        content = self._content(choice)
        if len(choices) > 1 or choice.get("index") != self._index:
            self._check_single(choices, content)
        if (reason := word(choice.get("finish_reason"))) and reason.lower() not in _NO_REASONS:
            self._finish_with(reason, choice)
        elif not content and choice.get("error"):
            raise StreamError(f"the server ended the answer with an error: {error_message(choice)}")
        return content, self._record.finish_reason is not None

    def _check_single(self, choices: list[Any], content: bool) -> None:
        """Raise StreamError if the answer holds several choices: their tokens arrive between each other."""
        index = choices[0].get("index")
        if type(index) is not int:
            index = self._index
        elsewhere = index != self._index and content and self._record.finish_reason is not None
        if index < self._index or elsewhere or len(choices) > 1:
            raise StreamError(
                "the answer holds several choices, and only one per request is measured; take n (best_of) out of "
                "target.extra_body or the workload"
            )
        self._index = index  # a server that numbers its events with it

    def _content(self, choice: dict[str, Any]) -> bool:
        """True if the choice carries generated tokens; its text goes to the record if that keeps texts."""
        delta = choice.get("delta")
        if delta is None:
            if text := choice.get("text"):
                self._keep(text)
                return True
            if choice.get("message"):
                self._record.note = "events carry choices[0].message, which belongs to an answer that is not streamed"
            return False
        if type(delta) is not dict:
            raise StreamError(f"event {self._events} of the stream has a delta that is no object")
        if (text := delta.get("content")) and says_something(text):
            self._keep(text)
            return True
        found = [value for name in _DELTA_CONTENT if says_something(value := delta.get(name))]
        if found:
            self._text = "".join(value if isinstance(value, str) else "" for value in found)
            return True
        self._note_unknown(delta)
        return False

    def _keep(self, content: Any) -> None:
        record = self._record
        if record.answer is None and record.texts is None:
            return
        parts = content if isinstance(content, list) else [content]
        texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
        self._text = "".join(text for text in texts if isinstance(text, str))
        if record.answer is not None and self._text:
            record.answer.append(self._text)

    def _note_unknown(self, delta: dict[str, Any]) -> None:
        unknown = [name for name, value in delta.items() if value and name not in _DELTA_SILENT]
        if unknown:
            self._record.note = f"the stream has a field that is not known: delta.{unknown[0][:40]}"

    def _take_other(self, event: dict[str, Any]) -> None:
        """Process an event without a choice: the phases of our server, a final usage, a ping, or an error."""
        phases = event.get("x_muai")
        if type(phases) is dict:
            self._record.server_queue_ns = nanoseconds(phases.get("queue_ms"))
            self._record.server_prefill_ns = nanoseconds(phases.get("prefill_ms"))
        elif event.get("choices") is None and any(event.get(name) for name in _ERRORS):
            raise StreamError(f"the server ended the stream with an error: {error_message(event)}")
        elif event.get("choices") is None and not self._claims and usage_of(event) is None:
            self._stray = _excerpt(json.dumps(event).encode())

    def _finish_with(self, reason: str, choice: dict[str, Any]) -> None:
        self._record.finish_reason = reason
        if reason in _USUAL_ENDINGS:
            return
        lowered = reason.lower()
        if any(part in lowered for part in _FAILED_ENDINGS):
            said = choice.get("error") or choice.get("message")
            detail = f": {error_message(said)}" if said else ""
            raise StreamError(f"the server ended the answer with finish_reason {reason}{detail}")

    @property
    def usage_per_chunk(self) -> bool:
        """True if the server counted the tokens of every chunk so far."""
        return bool(self._claims) and NO_CLAIM not in self._claims

    def finish(self) -> None:
        """Fill in the token counts at the end of the response; raises StreamError if the answer is no success."""
        record = self._record
        if not self._events and not self._done:
            raise StreamError("the answer holds no event of a stream")
        if not self._done and record.finish_reason is None:
            stray = f"; an event without choices: {self._stray}" if self._stray and not self._claims else ""
            raise StreamError(
                f"the stream broke off after {self._events} events: neither finish_reason nor [DONE]{stray}"
            )
        self.settle()
        if not record.chunk_t_ns and not record.output_tokens:
            raise StreamError(self._nothing_came())

    def settle(self) -> None:
        """Fill in the token counts, as far as the events so far give them; a second call changes nothing."""
        if self._settled:
            return
        self._settled = True
        if self._counted is not None:
            self._usage = usage_of(parse_object(self._counted) or {})
        record, usage = self._record, self._usage or {}
        if self._silent:
            self._drop_silent(self._premature())
        found = self._infer()
        if self._silent and (found.per_chunk is None or NO_CLAIM in self._claims):
            self._drop_silent(self._silent)  # the counts that made them arrivals are not used
            found = self._infer()
        record.output_tokens = found.total
        if found.total is not None and exceeds_its_parts(usage):
            record.note = BEYOND_TOTAL
        elif found.note is not None:
            record.note = found.note
        if found.unseen and self._grown:
            record.unseen_tokens, record.unseen_ns = found.unseen, self._grown
        record.fill_chunks(found.per_chunk)
        record.prompt_tokens = prompt_tokens(usage)
        record.cached_prompt_tokens = cached_tokens(usage)

    def _infer(self) -> TokenCounts:
        record = self._record
        stopped = record.finish_reason is not None and record.finish_reason.lower() not in _LENGTH_ENDINGS
        return infer_counts(
            self._claims,
            self._final,
            ended_by_stop=stopped,
            reasoning=reasoning_tokens(self._usage or {}),
            limit=record.max_tokens,
        )

    def _premature(self) -> list[int]:
        """Return the arrivals without content whose count was that of the next content: it did not grow with it."""
        claims = self._claims
        return [at for at in self._silent if at + 1 < len(claims) and claims[at + 1] == claims[at]]

    def _drop_silent(self, positions: list[int]) -> None:
        for position in reversed(positions):
            del self._record.chunk_t_ns[position]
            del self._claims[position]
            if self._record.texts is not None:
                del self._record.texts[position]
        kept = [position for position in self._silent if position not in positions]
        self._silent = [position - bisect_left(positions, position) for position in kept]

    def _nothing_came(self) -> str:
        record = self._record
        facts = [f"{record.max_tokens} asked"]
        if record.finish_reason is not None:
            facts.append(f"finish_reason {record.finish_reason}")
        if self._final is not None:
            facts.append(f"completion_tokens {self._final}")
        if record.note is not None:
            facts.append(record.note)
        elif self._stray:
            facts.append(f"an event without choices: {self._stray}")
        return f"the answer holds no token ({', '.join(facts)})"


def error_message(body: Any) -> str:
    """Return the message inside OpenAI's error object (`{"error": {"message": ...}}`) or one of its common variants."""
    error: Any = body
    if isinstance(error, dict):
        error = next((error[name] for name in ("error", "errors", "fault") if error.get(name)), error)
    if isinstance(error, list) and error:
        error = error[0]
    if isinstance(error, dict):
        named = ("message", "detail", "error_message", "error_msg", "msg", "faultstring", "exception")
        found = next((error[name] for name in named if error.get(name)), None)
        error = error if found is None else found
    return error if isinstance(error, str) else json.dumps(error)


def _excerpt(payload: bytes) -> str:
    return payload[:80].decode("utf-8", "replace")
