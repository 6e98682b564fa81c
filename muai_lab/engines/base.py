"""The contracts of engines: step engines, which our scheduler drives, and streaming engines, which schedule themselves.

A step engine has slots. A slot holds one sequence: its key/value tensors, its length, its last token and its sampling
state. The scheduler plans the work of every slot at every step; the engine computes. An engine is used from one thread
at a time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Sampling:
    """The choice of the next token from the logits.

    temperature: 0 means greedy (argmax); otherwise logits are divided by it.
    top_p: the smallest set of tokens whose probability reaches it is kept (1.0 keeps all).
    top_k: number of most likely tokens kept (0 keeps all).
    seed: the same seed, prompt and sampling give the same tokens in any batch; None draws fresh entropy.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None


GREEDY = Sampling()


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """Prompt tokens of one slot to compute in this step.

    tokens: token ids at positions `start`, `start + 1`, ...; positions before `start` are already in the slot
    (from an earlier chunk or from the prefix cache). final: the prompt is complete, so a first token is sampled.
    output: set on the final chunk of a sequence that lost its slot: the tokens that it had produced. The sampled token
    follows them, with the random number after theirs. An engine that computes prompts in pieces also gets them as the
    end of the prompt; any other engine runs them through its decoder.
    """

    slot: int
    tokens: Sequence[int]
    start: int = 0
    final: bool = True
    sampling: Sampling = GREEDY
    output: Sequence[int] = ()


class SlotFaults(Exception):
    """A step failed for some slots only: their sequences end, and the others continue.

    tokens: the tokens of the other slots, by slot. faults: the error of each failed slot.
    """

    def __init__(self, tokens: Mapping[int, int], faults: Mapping[int, Exception]) -> None:
        self.tokens = tokens
        self.faults = faults
        super().__init__(f"{len(faults)} slots failed")


class PromptCompute(Enum):
    """The way in which an engine computes prompts.

    PIECES: any piece of a prompt at a time. WHOLE: a prompt cannot be cut (an encoder reads all of it). PADDED: like
    WHOLE, and the prompts of one step are padded to the longest, so the cost is their number times its length.
    """

    PIECES = "pieces"
    WHOLE = "whole"
    PADDED = "padded"


class KVBlock(Protocol):
    """A copy of the keys and values at some positions of one sequence, in all layers.

    nbytes: memory that it holds, on all devices together.
    """

    @property
    def nbytes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """The engine that serves, recorded with every result.

    max_model_len: most positions (prompt + output) that one slot can hold. details: engine-specific facts, such as
    the number of layers that DeepSpeed replaced or the ONNX providers in use.
    """

    name: str
    version: str
    device: str
    dtype: str
    max_model_len: int
    details: dict[str, str | int | float | bool | None] = field(default_factory=dict)


class Engine(ABC):
    """An engine with its loaded model. slots: most sequences that may run at once."""

    info: EngineInfo
    slots: int
    vocab_size: int | None = None
    """Number of token ids with an embedding; None: as many as the tokenizer has."""

    def prompt_limit(self) -> int:
        """Return the most prompt tokens of one request (at least one position is left for output)."""
        return self.info.max_model_len - 1

    def output_limit(self, prompt_tokens: int) -> int:
        """Return the most output tokens that fit beside a prompt of `prompt_tokens` tokens."""
        return self.info.max_model_len - prompt_tokens


class StepEngine(Engine):
    """One loaded model with `slots` places for sequences."""

    eos_token_ids: frozenset[int]
    prompts: PromptCompute = PromptCompute.PIECES

    @abstractmethod
    def prefill(self, chunks: Sequence[PrefillChunk]) -> list[int | None]:
        """Compute prompt tokens.

        The prompt of an encoder-decoder model goes through the encoder, always in one chunk. The returned token is then
        the decoder's first.

        Args:
            chunks: Pieces of prompts, at most one per slot.

        Returns:
            The sampled token of each chunk, None for a chunk that is not final.

        Raises:
            SlotFaults: Only some slots failed. After any other error the driver releases all slots and has the engine
                compute a short sequence: if that works, the engine continues to serve.
        """

    @abstractmethod
    def decode(self, slots: Sequence[int]) -> list[int]:
        """Append one token to each slot and return the tokens, in the same order. Raises as `prefill` does."""

    @abstractmethod
    def release(self, slot: int) -> None:
        """Drop the slot's sequence; the slot can be used again at once. For an empty slot nothing happens."""

    def prefix_refusal(self) -> str | None:
        """Return why prefixes cannot be copied between slots; None for a `PrefixEngine` that can copy them."""
        return f"engine {self.info.name} cannot copy them"

    @abstractmethod
    def close(self) -> None:
        """Free memory, threads and processes. The engine is not used afterwards. A second call does nothing."""


class PrefixEngine(StepEngine):
    """A step engine that can copy prefixes, the beginnings of sequences, out of slots and into others.

    It copies none if `prefix_refusal` returns a reason: the architecture of the loaded model may not allow it.
    """

    def prefix_refusal(self) -> str | None:
        """Return why the prefixes of this model cannot be copied; None if they can."""
        return None

    @abstractmethod
    def position_bytes(self) -> int:
        """Return the bytes that the keys and values of one position take in a copy; 0 if nothing is copied."""

    @abstractmethod
    def copy_out(self, slot: int, begin: int, end: int, block: int) -> Sequence[KVBlock]:
        """Copy the keys and values at positions `begin` to `end` of a slot, in blocks of `block` positions each.

        The blocks share no memory with the slot or with each other.
        """

    @abstractmethod
    def copy_in(self, slot: int, blocks: Sequence[KVBlock]) -> None:
        """Begin a sequence in a free slot with the blocks that `copy_out` made of its first positions.

        The rest of its prompt is prefilled from there.
        """


@dataclass(frozen=True, slots=True)
class StreamedTokens:
    """Tokens that a streaming engine has produced since its last report of the same request.

    tokens: ids in order (more than one if reports merged). at: monotonic seconds at which the engine produced the last
    of them, None if the engine records no times. finish_reason: `stop` or `length` on the last report, else None.
    cached_tokens: prompt tokens that the engine's own prefix cache served, None if it has none.
    """

    tokens: Sequence[int]
    at: float | None = None
    finish_reason: str | None = None
    cached_tokens: int | None = None


class StreamingEngine(Engine):
    """One loaded model that schedules its own steps; our batcher only admits requests.

    All coroutines run on one event loop, in the thread of the engine's driver.
    """

    @abstractmethod
    async def start(self) -> None:
        """Load the model on the running loop. Raises EngineError; `info` is valid afterwards."""

    @abstractmethod
    def generate(
        self,
        request_id: str,
        prompt: Sequence[int],
        sampling: Sampling,
        *,
        max_tokens: int,
        ignore_eos: bool,
        cache_salt: str = "",
    ) -> AsyncIterator[StreamedTokens]:
        """Run one request; the iterator ends after the report with a finish reason.

        cache_salt: requests share prefixes in the engine's cache only if their salts are equal. Closing the iterator
        early aborts the request in the engine. Raises EngineError if the engine has died.
        """

    @abstractmethod
    async def check(self) -> None:
        """Raise EngineError with the reason if the engine is dead, or hangs: it has work but makes no step."""

    @abstractmethod
    async def close(self) -> None:
        """End all of the engine's processes and free its memory. A second call does nothing."""
