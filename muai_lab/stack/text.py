"""From tokens to text: incremental detokenisation that respects stop strings."""

from __future__ import annotations

from typing import Protocol


class TokenDecoder(Protocol):
    """Turns token ids into text, one at a time (see `muai_lab.models.tokenizer.StreamDecoder`)."""

    def push(self, token_id: int) -> str:
        """New text, empty while the tokens do not yet form whole characters."""

    def flush(self) -> str:
        """What is still held back at the end."""


class OutputText:
    """The text of one output.

    Text that might be the beginning of a stop string is held back until it is clear, so that no part of a stop string
    is ever sent. The output ends just before the match that is complete first, however the text is cut into tokens.
    """

    def __init__(self, decoder: TokenDecoder, stop: tuple[str, ...]) -> None:
        self._decoder = decoder
        self._stop = tuple(text for text in stop if text)
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Text that may be sent after this token; sets `stopped` when a stop string was met."""
        text = self._decoder.push(token)
        return self._filter(text) if self._stop and not self.stopped else ("" if self.stopped else text)

    def end(self) -> str:
        """The rest of the text, when the output ended otherwise than by a stop string."""
        if self.stopped:
            return ""
        text = self._decoder.flush()
        if not self._stop:
            return text
        sent = self._filter(text)
        rest, self._held = ("" if self.stopped else self._held), ""
        return sent + rest

    def _filter(self, text: str) -> str:
        candidate = self._held + text
        matches = [(at + len(stop), at) for stop in self._stop if (at := candidate.find(stop)) >= 0]
        if matches:
            self.stopped, self._held = True, ""
            return candidate[: min(matches)[1]]
        keep = max(_overlap(candidate, stop) for stop in self._stop)
        self._held = candidate[len(candidate) - keep :]
        return candidate[: len(candidate) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop` (and not all of it)."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
