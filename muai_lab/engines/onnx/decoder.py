"""A decoder graph over slots: keys and values are appended in place, nothing is copied from step to step.

Past and present of the graph's attention are bound to the same memory `[rows, kv_heads, positions, head_dim]`. Each row
has its own length, so rows of any lengths decode together. A row's result does not depend on the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from muai_lab.engines.base import PrefillChunk, PromptCompute
from muai_lab.engines.onnx.decoder_graph import LAST_POSITIONS, LONGEST
from muai_lab.engines.onnx.recipe import GraphFacts
from muai_lab.engines.onnx.session import Binding
from muai_lab.engines.pytorch import kv_blocks
from muai_lab.engines.pytorch.kv_blocks import TensorBlock
from muai_lab.engines.pytorch.slots import KVRows, KVShape

# Most prompt tokens in one run: the scratch memory of attention is heads × tokens × positions.
_RUN_TOKENS = 512


class DecoderGraph:
    """One session over slots: prompts one by one, without padding, then one token per row and step."""

    prompts = PromptCompute.PIECES

    def __init__(
        self, session: object, facts: GraphFacts, *, slots: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._session = session
        self._facts = facts
        self._device = device
        layers = [KVShape(facts.kv_heads, facts.head_dim, facts.head_dim)] * facts.layers
        self._kv = KVRows(layers, slots=slots, max_len=facts.max_len, dtype=dtype, device=device)
        self._names = [
            (f"past_key_values.{layer}.{part}", f"present.{layer}.{part}")
            for part in ("key", "value")
            for layer in range(facts.layers)
        ]
        # The builder's bf16 graphs have fp32 logits.
        self._logits_dtype = torch.float16 if dtype is torch.float16 else torch.float32
        self._step: Binding | None = None  # of all rows; None after a row was added, removed or moved

    @property
    def kv_bytes(self) -> int:
        """Memory that keys and values take, in bytes."""
        return self._kv.bytes

    def prefill(self, chunks: Sequence[PrefillChunk]) -> torch.Tensor:
        """Compute the chunks' tokens. Returns each final chunk's last logits `[final chunks, vocabulary]`."""
        kv = self._kv
        self._step = None
        for chunk in chunks:
            kv.open(chunk.slot)
        kv.reserve(max(chunk.start + len(chunk.tokens) for chunk in chunks))
        logits = [self._prefill_chunk(chunk) for chunk in chunks]
        final = [found for found, chunk in zip(logits, chunks, strict=True) if chunk.final]
        return torch.cat(final) if final else torch.empty((0, self._facts.vocab_size))

    def decode(self, slots: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        """Append `tokens[i]` to `slots[i]`. Returns the logits that follow them `[slots, vocabulary]`.

        Rows of other slots are computed too, so that the rows stay one block of memory; their results are dropped. They
        write after their own end, where their next real token will go.
        """
        kv = self._kv
        rows = [kv.row(slot) for slot in slots]
        for row in rows:
            if kv.lengths[row] >= kv.max_len:
                raise ValueError(f"slot {kv.slots[row]} is full: it holds {kv.max_len} positions")
        ids = [0] * kv.rows
        for row, token in zip(rows, tokens, strict=True):
            ids[row] = token
        positions = [min(length, kv.max_len - 1) for length in kv.lengths]
        if max(positions) >= kv.positions:
            kv.reserve(max(positions) + 1)
            self._step = None
        if self._step is None:
            self._step = self._bind(range(kv.rows))
        logits = self._run(self._step, ids, positions, rows=kv.rows)
        for row in rows:
            kv.lengths[row] += 1
        return logits if rows == list(range(kv.rows)) else logits[rows]

    def release(self, slot: int) -> None:
        """Free the slot."""
        self._step = None
        self._kv.release(slot)

    @property
    def position_bytes(self) -> int:
        """See `PrefixModel.position_bytes`."""
        return self._kv.position_bytes

    def copy_out(self, slot: int, begin: int, end: int, block: int) -> list[TensorBlock]:
        """See `PrefixEngine.copy_out`."""
        return kv_blocks.copy_out(self._kv, self._kv.row(slot), begin, end, block)

    def copy_in(self, slot: int, blocks: Sequence[TensorBlock]) -> None:
        """See `PrefixEngine.copy_in`."""
        self._step = None
        row = self._kv.open(slot)
        self._kv.reserve(kv_blocks.positions(blocks))
        kv_blocks.copy_in(self._kv, row, blocks)

    def _prefill_chunk(self, chunk: PrefillChunk) -> torch.Tensor:
        kv = self._kv
        row = kv.row(chunk.slot)
        if kv.lengths[row] < chunk.start:
            raise ValueError(f"slot {chunk.slot} holds {kv.lengths[row]} positions, the chunk begins at {chunk.start}")
        binding = self._bind(range(row, row + 1))
        logits = torch.empty(0)
        for begin, tokens in _runs(chunk):
            stop = begin + len(tokens)
            logits = self._run(binding, tokens, [stop - 1], rows=1)
            kv.lengths[row] = stop
        return logits

    def _bind(self, rows: range) -> Binding:
        binding = Binding(self._session)
        for (past, present), memory in zip(self._names, (*self._kv.keys, *self._kv.values), strict=True):
            view = memory[rows.start : rows.stop]
            binding.input(past, view)
            binding.output(present, view)
        return binding

    def _run(
        self, binding: Binding, tokens: Sequence[int], last_positions: Sequence[int], *, rows: int
    ) -> torch.Tensor:
        ids = torch.tensor(tokens, dtype=torch.int64, device=self._device).view(rows, -1)
        lasts = torch.tensor(last_positions, dtype=torch.int32, device=self._device)
        longest = torch.tensor(max(last_positions) + 1, dtype=torch.int32)
        logits = torch.empty((rows, 1, self._facts.vocab_size), dtype=self._logits_dtype, device=self._device)
        binding.input("input_ids", ids)
        binding.input(LAST_POSITIONS, lasts)
        binding.input(LONGEST, longest)
        binding.output("logits", logits)
        binding.run()
        return logits[:, 0]


def _runs(chunk: PrefillChunk) -> Iterator[tuple[int, Sequence[int]]]:
    """Yield the chunk's tokens in runs of at most `_RUN_TOKENS`, each with the position of its first token."""
    for begin in range(0, len(chunk.tokens), _RUN_TOKENS):
        yield chunk.start + begin, chunk.tokens[begin : begin + _RUN_TOKENS]
