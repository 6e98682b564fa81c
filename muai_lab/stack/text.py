"""From tokens to text: incremental detokenisation that respects stop strings."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Protocol


class TokenDecoder(Protocol):
    """A decoder of token ids into text, one at a time (see `muai_lab.models.tokenizer.StreamDecoder`)."""

    def push(self, token_id: int) -> str:
        """Return new text; empty while the tokens do not form whole characters."""

    def flush(self) -> str:
        """Return the text that is still held back at the end."""


class StopStrings:
    """The stop strings of one request, matched all at once by an automaton (Aho and Corasick 1975).

    Building it takes time in proportion to the characters of all strings. The cost of one character of output does not
    depend on the number of strings. Empty strings are ignored. The automaton never changes: several outputs share it,
    and each keeps its own state, which begins as 0.

    held: by state, how many of the last characters may be the beginning of a stop string. matched: by state, the
    length of the longest stop string that ends there, 0 if none does.
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self.texts = tuple(dict.fromkeys(text for text in texts if text))
        self.held = [0]
        self.matched = [0]
        self._next: list[dict[str, int]] = [{}]
        self._shorter = [0]  # by state, the state of its longest proper suffix that begins a stop string
        for text in self.texts:
            self._insert(text)
        self._link()

    def __bool__(self) -> bool:
        return bool(self.texts)

    def step(self, state: int, character: str) -> int:
        """Return the state after one more character."""
        while state and character not in self._next[state]:
            state = self._shorter[state]
        return self._next[state].get(character, 0)

    def _insert(self, text: str) -> None:
        state = 0
        for depth, character in enumerate(text, start=1):
            following = self._next[state].get(character)
            if following is None:
                following = self._next[state][character] = len(self._next)
                self._next.append({})
                self.held.append(depth)
                self.matched.append(0)
                self._shorter.append(0)
            state = following
        self.matched[state] = len(text)

    def _link(self) -> None:
        """Set `_shorter`, shallow states first, and propagate the matches that end within longer strings."""
        pending = deque(self._next[0].values())
        while pending:
            state = pending.popleft()
            for character, following in self._next[state].items():
                self._shorter[following] = self.step(self._shorter[state], character)
                pending.append(following)
            self.matched[state] = self.matched[state] or self.matched[self._shorter[state]]


NO_STOP_STRINGS = StopStrings()


class OutputText:
    """The text of one output.

    Text that may be the beginning of a stop string is held back until this is decided, so no part of a stop string is
    ever sent. The output ends just before the first complete match, however the text is cut into tokens. If several
    matches end together, the longest counts.
    """

    def __init__(self, decoder: TokenDecoder, stop: StopStrings) -> None:
        self._decoder = decoder
        self._stop = stop
        self._state = 0
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Return the text that may be sent after this token. Sets `stopped` at a stop string."""
        text = self._decoder.push(token)
        return self._filter(text) if self._stop and not self.stopped else ("" if self.stopped else text)

    def end(self) -> str:
        """Return the rest of the text; empty after a stop string."""
        if self.stopped:
            return ""
        text = self._decoder.flush()
        if not self._stop:
            return text
        sent = self._filter(text)
        rest, self._held = ("" if self.stopped else self._held), ""
        return sent + rest

    def _filter(self, text: str) -> str:
        stop, state = self._stop, self._state
        candidate, before = self._held + text, len(self._held)
        for read, character in enumerate(text, start=1):
            state = stop.step(state, character)
            if stop.matched[state]:
                self.stopped, self._held = True, ""
                return candidate[: before + read - stop.matched[state]]
        self._state = state
        keep = len(candidate) - stop.held[state]
        self._held = candidate[keep:]
        return candidate[:keep]
