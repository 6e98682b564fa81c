"""Prompts that no server has seen: the first words or tokens of each prompt are replaced by ones of this run.

A server that caches prefixes answers prompts of an earlier run faster. The salt changes the schedule after it was
drawn: its hash and the numbers of prompt tokens stay the same, and prompts that share a prefix still share one.
`Schedule.write` saves the drawn schedule; the manifest has the salt.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from muai_lab.workload.schedule import Schedule, ScheduledRequest

_WORDS = 3
_TOKENS = 4
_TRIES = 64
_HEAD = re.compile(rf"\s*(?:\S+\s+){{1,{_WORDS}}}")


class SaltTokenizer(Protocol):
    """The tokenizer of a salt."""

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text."""

    @property
    def ordinary_token_ids(self) -> list[int]:
        """Ids of the tokens that stand for text."""


@dataclass(frozen=True, slots=True)
class SaltedSchedule:
    """The schedule to send.

    Attributes:
        schedule: The changed requests.
        unsalted: Number of prompts that are too short to be changed.
        other_length: Number of prompts whose token count changed.
    """

    schedule: Schedule
    unsalted: int = 0
    other_length: int = 0


def new_salt() -> str:
    """Return a new salt: 16 random hexadecimal digits."""
    return secrets.token_hex(8)


def salted(schedule: Schedule, salt: str, tokenizer: SaltTokenizer) -> SaltedSchedule:
    """Replace the beginning of every prompt that starts a conversation; equal beginnings become equal ones."""
    starts = set(schedule.starts)
    work = _Salt(salt, tokenizer, [text for text in map(_text_of, schedule) if text is not None])
    requests = [work.changed(request) if row in starts else request for row, request in enumerate(schedule)]
    return SaltedSchedule(Schedule.of(requests, notes=schedule.notes), work.unsalted, work.other_length)


def repeated_share(schedule: Schedule) -> float:
    """Return the largest share of prompt text that a prefix cache can have from earlier prompts of the run, 0 to 1.

    Each prompt is compared with its neighbours in sorted order, one of which shares its longest prefix.
    """
    prompts = sorted(_whole(request) for request in schedule)
    total = sum(map(len, prompts))
    shared = sum(_shared_characters(before, prompt) for before, prompt in pairwise(prompts))
    return shared / total if total else 0.0


def _shared_characters(a: str, b: str) -> int:
    """Return length of the longest common prefix, by bisection: comparing slices is fast."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[:middle] == b[:middle]:
            low = middle
        else:
            high = middle - 1
    return low


class _Salt:
    """Replaces beginnings; equal ones by equal ones."""

    def __init__(self, salt: str, tokenizer: SaltTokenizer, texts: Sequence[str]) -> None:
        self.unsalted = 0
        self.other_length = 0
        self._rng = np.random.Generator(np.random.PCG64(int(salt, 16)))
        self._tokenizer = tokenizer
        self._words = sorted({word for text in texts[:500] for word in text.split()[:40]})
        self._heads: dict[str, str] = {}
        ordinary = tokenizer.ordinary_token_ids
        self._ids = self._rng.choice(np.asarray(ordinary, dtype=np.int32), size=_TOKENS)

    def changed(self, request: ScheduledRequest) -> ScheduledRequest:
        """Return the request with another beginning."""
        if request.prompt_ids is not None:
            ids = request.prompt_ids.copy()
            ids[:_TOKENS] = self._ids[: len(ids)]
            return replace(request, prompt_ids=ids)
        if request.messages is None:
            return replace(request, prompt=self._changed_text(request.prompt or ""))
        messages = json.loads(request.messages)
        first = next((message for message in messages if isinstance(message.get("content"), str)), None)
        if first is None:
            self.unsalted += 1
            return request
        first["content"] = self._changed_text(first["content"])
        return replace(request, messages=json.dumps(messages, ensure_ascii=False))

    def _changed_text(self, text: str) -> str:
        if (found := _HEAD.match(text)) is None or not self._words:
            self.unsalted += 1
            return text
        head, rest = found.group(), text[found.end() :]
        wanted = len(self._tokenizer.encode(text))
        known = self._heads.get(head)
        if known is not None and len(self._tokenizer.encode(known + rest)) == wanted:
            return known + rest
        for candidate in self._candidates(head):
            if len(self._tokenizer.encode(candidate + rest)) == wanted:
                return self._heads.setdefault(head, candidate) + rest
        self.other_length += 1
        return self._heads.setdefault(head, candidate) + rest

    def _candidates(self, head: str) -> Iterator[str]:
        """Yield other words between the same spaces."""
        parts = re.split(r"(\s+)", head)
        places = [place for place, part in enumerate(parts) if part and not part.isspace()]
        for number in range(_TRIES):
            for place in places:
                # With few different words there are few beginnings: use random letters then.
                parts[place] = (
                    str(self._rng.choice(self._words))
                    if len(self._words) >= _TRIES and number < _TRIES // 2
                    else self._letters(len(parts[place]))
                )
            yield "".join(parts)

    def _letters(self, length: int) -> str:
        return "".join(chr(letter) for letter in self._rng.integers(ord("a"), ord("z") + 1, size=max(length, 2)))


def _text_of(request: ScheduledRequest) -> str | None:
    return None if request.prompt_ids is not None else request.text()


def _whole(request: ScheduledRequest) -> str:
    """Return the prompt as text for comparisons; each token id as one character."""
    ids: Any = request.prompt_ids
    return request.text() if ids is None else "".join(chr(int(token) % 0x10000 + 0x10000) for token in ids)
