"""The two graphs of a T5 over slots: a prompt is encoded whole, then one token per row and step.

The decoder reads its memory in place; each step copies only the keys and values of the new tokens to their rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from muai_lab.engines.base import PrefillChunk, PromptCompute
from muai_lab.engines.onnx.recipe import GraphFacts
from muai_lab.engines.onnx.session import Binding
from muai_lab.engines.onnx.t5_graph import cross_names, new_names, own_names
from muai_lab.engines.pytorch.slots import KVRows, KVShape


class EncoderDecoderGraph:
    """Two sessions over slots; the rows of prompts move together with the rows of the decoder."""

    prompts = PromptCompute.WHOLE

    def __init__(
        self, encoder: object, decoder: object, facts: GraphFacts, *, slots: int, device: torch.device
    ) -> None:
        self._encoder, self._decoder = encoder, decoder
        self._facts = facts
        self._device = device
        assert facts.start_token is not None
        self._start = facts.start_token
        layers = [KVShape(facts.kv_heads, facts.head_dim, facts.head_dim)] * facts.layers
        self._own = KVRows(layers, slots=slots, max_len=facts.max_len, dtype=torch.float32, device=device)
        self._encoded = KVRows(layers, slots=slots, max_len=facts.max_len, dtype=torch.float32, device=device)
        self._own_names, self._cross_names = own_names(facts.layers), cross_names(facts.layers)
        self._new_names = new_names(facts.layers)

    @property
    def kv_bytes(self) -> int:
        """Memory that keys and values take, in bytes."""
        return self._own.bytes + self._encoded.bytes

    def prefill(self, chunks: Sequence[PrefillChunk]) -> torch.Tensor:
        """Encode whole prompts and run the decoder's start token. Returns logits `[chunks, vocabulary]`."""
        for chunk in chunks:
            if chunk.start != 0 or not chunk.final:
                raise ValueError("an encoder reads its prompt whole: chunked prefill is for decoders")
        for chunk in chunks:
            self._own.open(chunk.slot)
            self._encoded.open(chunk.slot)
        self._encoded.reserve(max(len(chunk.tokens) for chunk in chunks))
        for chunk in chunks:
            self._encode(chunk)
        return self.decode([chunk.slot for chunk in chunks], [self._start] * len(chunks))

    def decode(self, slots: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        """Append `tokens[i]` to the decoder side of `slots[i]`. Returns logits `[slots, vocabulary]`."""
        own, encoded = self._own, self._encoded
        rows = [own.row(slot) for slot in slots]
        own.reserve(max(own.lengths[row] for row in rows) + 1)
        ids = [self._start] * own.rows
        for row, token in zip(rows, tokens, strict=True):
            ids[row] = token
        binding = Binding(self._decoder)
        vectors = {"lengths": own.lengths, "prompt_lengths": encoded.lengths}
        bound = {name: torch.tensor(values, device=self._device) for name, values in vectors.items()}
        bound["input_ids"] = torch.tensor(ids, device=self._device).unsqueeze(1)
        for names, memory in ((self._own_names, own), (self._cross_names, encoded)):
            bound |= {name: tensor[: own.rows] for name, tensor in zip(names, _tensors(memory), strict=True)}
        for name, tensor in bound.items():
            binding.input(name, tensor)
        facts = self._facts
        logits = torch.empty((own.rows, facts.vocab_size), device=self._device)
        binding.output("logits", logits)
        shape = (own.rows, facts.kv_heads, 1, facts.head_dim)
        new = [torch.empty(shape, device=self._device) for _ in self._new_names]
        for name, tensor in zip(self._new_names, new, strict=True):
            binding.output(name, tensor)
        binding.run()
        wanted = torch.tensor(rows, device=self._device)
        places = torch.tensor([own.lengths[row] for row in rows], device=self._device)
        for memory_tensor, tensor in zip(_tensors(own), new, strict=True):
            memory_tensor[wanted, :, places] = tensor[wanted, :, 0]
        for row in rows:
            own.lengths[row] += 1
        return logits if rows == list(range(own.rows)) else logits[wanted]

    def release(self, slot: int) -> None:
        """Free the slot on both sides."""
        self._own.release(slot)
        self._encoded.release(slot)

    def _encode(self, chunk: PrefillChunk) -> None:
        facts = self._facts
        length = len(chunk.tokens)
        binding = Binding(self._encoder)
        ids = torch.tensor(chunk.tokens, dtype=torch.int64, device=self._device).unsqueeze(0)
        binding.input("input_ids", ids)
        shape = (1, facts.kv_heads, length, facts.head_dim)
        found = [torch.empty(shape, device=self._device) for _ in self._cross_names]
        for name, tensor in zip(self._cross_names, found, strict=True):
            binding.output(name, tensor)
        binding.run()
        row = self._encoded.row(chunk.slot)
        self._encoded.lengths[row] = length
        for memory, tensor in zip(_tensors(self._encoded), found, strict=True):
            memory[row, :, :length] = tensor[0]


def _tensors(memory: KVRows) -> list[torch.Tensor]:
    """Return keys and values, alternating, layer by layer."""
    return [tensor for pair in zip(memory.keys, memory.values, strict=True) for tensor in pair]
