"""T5-style encoder-decoder models over slots.

The encoder runs once per prompt (padded batch, the model's own forward). Its keys and values for the cross-attention of
every decoder layer are kept in the slot. The decoder is stepped layer by layer here: T5's relative position bias
depends on the position of each row, and the model's own forward assumes one position for all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)

from muai_lab.engines.base import PrefillChunk, PromptCompute
from muai_lab.engines.pytorch.slots import KVRows, KVShape


class EncoderDecoderModel:
    """A T5 model over slots: `prefill` encodes and computes the decoder's first logits, `decode` appends a token."""

    prompts = PromptCompute.PADDED

    def __init__(self, model: Any, *, slots: int, max_len: int) -> None:
        self._model = model
        config = model.config
        self._device: torch.device = model.device
        self._slots = slots
        self._start: int = config.decoder_start_token_id
        self._scale = output_scale(config)
        # The heads of this process: fewer than the configuration says if the layers are sharded.
        layers = [KVShape(self._first_attention.n_heads, config.d_kv, config.d_kv)] * config.num_decoder_layers
        memory = {"slots": slots, "max_len": max_len, "dtype": model.dtype, "device": self._device}
        self.kv = KVRows(layers, **memory)  # the decoder's own tokens
        self.encoded = KVRows(layers, **memory)  # the prompt, for cross-attention; rows move in step with `kv`
        self._bucket: Callable[..., torch.Tensor] = self._first_attention._relative_position_bucket

    @property
    def most_kv_bytes(self) -> int:
        """Memory that keys and values take if every slot fills all of its positions, in bytes."""
        return self._slots * self.kv.max_len * (self.kv.position_bytes + self.encoded.position_bytes)

    @property
    def _first_attention(self) -> Any:
        return self._model.decoder.block[0].layer[0].SelfAttention

    def prefill(self, chunks: Sequence[PrefillChunk]) -> torch.Tensor:
        """Encode whole prompts and run the decoder's start token. Returns logits `[chunks, vocabulary]`."""
        for chunk in chunks:
            if chunk.start != 0 or not chunk.final:
                raise ValueError("an encoder reads its prompt whole: chunked prefill is for decoders")
        longest = max(len(chunk.tokens) for chunk in chunks)
        ids = torch.zeros((len(chunks), longest), dtype=torch.long)
        mask = torch.zeros((len(chunks), longest), dtype=torch.long)
        for index, chunk in enumerate(chunks):
            ids[index, : len(chunk.tokens)] = torch.tensor(chunk.tokens)
            mask[index, : len(chunk.tokens)] = 1
        encoder = self._model.get_encoder()
        hidden = encoder(input_ids=ids.to(self._device), attention_mask=mask.to(self._device)).last_hidden_state
        rows = []
        for chunk in chunks:
            self.encoded.open(chunk.slot)
            rows.append(self.kv.open(chunk.slot))
        self.encoded.reserve(longest)
        for index, block in enumerate(self._model.decoder.block):
            attention = block.layer[1].EncDecAttention
            keys = split_heads(attention.k(hidden), attention)
            values = split_heads(attention.v(hidden), attention)
            for batch_row, (row, chunk) in enumerate(zip(rows, chunks, strict=True)):
                length = len(chunk.tokens)
                self.encoded.lengths[row] = length
                self.encoded.keys[index][row, :, :length] = keys[batch_row, :, :length]
                self.encoded.values[index][row, :, :length] = values[batch_row, :, :length]
        return self.decode([chunk.slot for chunk in chunks], [self._start] * len(chunks))

    def decode(self, slots: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        """Append `tokens[i]` to the decoder side of `slots[i]`; returns logits `[slots, vocabulary]`."""
        kv, encoded = self.kv, self.encoded
        by_slot = dict(zip(slots, tokens, strict=True))
        live = list(kv.slots)
        positions_list = [min(length, kv.max_len - 1) for length in kv.lengths]
        longest = max(positions_list) + 1
        kv.reserve(longest)
        positions = torch.tensor(positions_list, device=self._device)
        rows = torch.arange(len(live), device=self._device)
        bias = self._self_bias(positions, longest)
        prompt_lengths = torch.tensor(encoded.lengths, device=self._device)
        prompt_longest = max(encoded.lengths)
        behind = torch.arange(prompt_longest, device=self._device) >= prompt_lengths.unsqueeze(1)
        prompt_mask = torch.zeros(behind.shape, dtype=bias.dtype, device=self._device)
        prompt_mask = prompt_mask.masked_fill_(behind, float("-inf"))[:, None, None, :]
        decoder = self._model.decoder
        ids = torch.tensor([by_slot.get(slot, self._start) for slot in live], device=self._device)
        hidden = decoder.embed_tokens(ids).unsqueeze(1)  # [rows, 1, d_model]
        for index, block in enumerate(decoder.block):
            own, cross, feed_forward = block.layer
            attention = own.SelfAttention
            normed = own.layer_norm(hidden)
            kv.keys[index][rows, :, positions] = split_heads(attention.k(normed), attention)[:, :, 0]
            kv.values[index][rows, :, positions] = split_heads(attention.v(normed), attention)[:, :, 0]
            hidden = hidden + self._attend(attention, normed, kv, index, longest, bias)
            normed = cross.layer_norm(hidden)
            hidden = hidden + self._attend(cross.EncDecAttention, normed, encoded, index, prompt_longest, prompt_mask)
            hidden = feed_forward(hidden)
        wanted = [kv.row(slot) for slot in slots]
        for row in wanted:
            kv.lengths[row] += 1
        last = decoder.final_layer_norm(hidden[wanted]) * self._scale
        logits: torch.Tensor = self._model.lm_head(last)  # [rows, 1, vocabulary]: a sharded head takes no less
        return logits[:, 0]

    def release(self, slot: int) -> None:
        """Free the slot on both sides."""
        self.kv.release(slot)
        self.encoded.release(slot)

    def _attend(
        self, attention: Any, hidden: torch.Tensor, memory: KVRows, layer: int, longest: int, mask: torch.Tensor
    ) -> torch.Tensor:
        """Return the attention output `[rows, 1, d_model]` of one new token per row; T5 does not scale its scores."""
        rows = hidden.shape[0]
        attended = F.scaled_dot_product_attention(
            split_heads(attention.q(hidden), attention),
            memory.keys[layer][:rows, :, :longest],
            memory.values[layer][:rows, :, :longest],
            attn_mask=mask,
            scale=1.0,
        )
        output: torch.Tensor = attention.o(attended.transpose(1, 2).reshape(rows, 1, attention.inner_dim))
        return output

    def _self_bias(self, positions: torch.Tensor, longest: int) -> torch.Tensor:
        """Return the relative position bias `[rows, heads, 1, longest]`, -inf after each row's position."""
        attention = self._first_attention
        columns = torch.arange(longest, device=self._device)
        relative = columns.unsqueeze(0) - positions.unsqueeze(1)
        buckets = self._bucket(
            relative,
            bidirectional=False,
            num_buckets=attention.relative_attention_num_buckets,
            max_distance=attention.relative_attention_max_distance,
        )
        bias = attention.relative_attention_bias(buckets).permute(0, 2, 1).unsqueeze(2)
        behind = (relative > 0)[:, None, None, :]
        masked: torch.Tensor = bias.masked_fill(behind, float("-inf"))
        return masked


def split_heads(projected: torch.Tensor, attention: Any) -> torch.Tensor:
    """Reshape `[rows, tokens, heads × dim]` to `[rows, heads, tokens, dim]`."""
    rows, tokens, _ = projected.shape
    return projected.view(rows, tokens, attention.n_heads, attention.key_value_proj_dim).transpose(1, 2)


def output_scale(config: Any) -> float:
    """Return the factor of the decoder's output before the head: 1/sqrt(d_model) with tied embeddings, else 1."""
    return float(config.d_model**-0.5) if getattr(config, "scale_decoder_outputs", False) else 1.0
