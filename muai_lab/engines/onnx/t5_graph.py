"""T5 encoder-decoders as two graphs, exported by torch.onnx from modules that are written for slots.

`encoder.onnx`: one whole prompt -> keys and values of every decoder layer's cross-attention.
`decoder.onnx`: one new token for every row -> logits, and the token's keys and values, to append to the row. So the
memory of a row is read in place, and only the new positions are copied.

T5 adds a bias to attention scores that depends on distance only, and is constant from a maximum distance on. A short
table holds it (Raffel et al. 2020, https://arxiv.org/abs/1910.10683, section 2.1), and rows may have any length.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import nn

from muai_lab.engines.onnx.recipe import GraphFacts
from muai_lab.engines.pytorch.encoder_decoder import output_scale, split_heads

ENCODER_FILE = "encoder.onnx"
DECODER_FILE = "decoder.onnx"


def cross_names(layers: int) -> list[str]:
    """Return the names of the encoder's outputs and the decoder's inputs for them: keys and values, layer by layer."""
    return [f"cross.{layer}.{part}" for layer in range(layers) for part in ("key", "value")]


def own_names(layers: int) -> list[str]:
    """Return the names of the decoder's inputs for its tokens so far."""
    return [f"past.{layer}.{part}" for layer in range(layers) for part in ("key", "value")]


def new_names(layers: int) -> list[str]:
    """Return the names of the decoder's outputs for its new token."""
    return [f"new.{layer}.{part}" for layer in range(layers) for part in ("key", "value")]


def export_t5(model: Any, directory: Path, *, max_len: int, eos_token_ids: frozenset[int]) -> GraphFacts:
    """Export a Hugging Face model that was loaded in fp32."""
    config = model.config
    layers, heads, dim = config.num_decoder_layers, config.num_heads, config.d_kv
    tokens, rows = torch.export.Dim("tokens"), torch.export.Dim("rows")
    past, prompt = torch.export.Dim("past"), torch.export.Dim("prompt")
    with torch.no_grad():
        _export(
            _Encoder(model),
            (torch.arange(7).unsqueeze(0),),
            directory / ENCODER_FILE,
            inputs=["input_ids"],
            outputs=cross_names(layers),
            shapes=({1: tokens},),
        )
        own = [torch.zeros(3, heads, 11, dim) for _ in range(2 * layers)]
        cross = [torch.zeros(3, heads, 13, dim) for _ in range(2 * layers)]
        _export(
            _DecoderStep(model),
            (torch.tensor([[1], [2], [3]]), torch.tensor([1, 2, 3]), torch.tensor([3, 4, 5]), own, cross),
            directory / DECODER_FILE,
            inputs=["input_ids", "lengths", "prompt_lengths", *own_names(layers), *cross_names(layers)],
            outputs=["logits", *new_names(layers)],
            shapes=(
                {0: rows},
                {0: rows},
                {0: rows},
                [{0: rows, 2: past}] * len(own),
                [{0: rows, 2: prompt}] * len(cross),
            ),
        )
    return GraphFacts(
        layers=layers,
        kv_heads=heads,
        head_dim=dim,
        vocab_size=config.vocab_size,
        max_len=max_len,
        eos_token_ids=tuple(sorted(eos_token_ids)),
        start_token=config.decoder_start_token_id,
    )


def _export(
    module: nn.Module,
    arguments: tuple[Any, ...],
    path: Path,
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    shapes: tuple[Any, ...],
) -> None:
    with redirect_stdout(io.StringIO()):
        program = torch.onnx.export(
            module.eval(),
            arguments,
            dynamo=True,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=shapes,
            optimize=True,
        )
    assert program is not None
    program.save(str(path), external_data=True)


class _Encoder(nn.Module):
    """A whole prompt `[1, tokens]` -> `[1, heads, tokens, dim]`: keys and values, alternating, per decoder layer."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder, self.decoder = model.encoder, model.decoder
        self.bias = _DistanceBias(model.encoder, bidirectional=True)

    def forward(self, input_ids: torch.Tensor) -> list[torch.Tensor]:
        hidden = self.encoder.embed_tokens(input_ids)
        places = torch.arange(input_ids.shape[1])
        bias = self.bias(places.unsqueeze(0) - places.unsqueeze(1)).permute(2, 0, 1)  # [heads, tokens, tokens]
        for block in self.encoder.block:
            layer = block.layer[0]
            attention, normed = layer.SelfAttention, layer.layer_norm(hidden)
            query, key, value = (
                split_heads(part(normed), attention) for part in (attention.q, attention.k, attention.v)
            )
            weights = (query @ key.transpose(-1, -2) + bias).softmax(dim=-1)
            hidden = hidden + attention.o(_joined(weights @ value))
            hidden = block.layer[1](hidden)
        hidden = self.encoder.final_layer_norm(hidden)
        found = []
        for block in self.decoder.block:
            attention = block.layer[1].EncDecAttention
            found += [split_heads(attention.k(hidden), attention), split_heads(attention.v(hidden), attention)]
        return found


class _DecoderStep(nn.Module):
    """One token `[rows, 1]` after `lengths` [rows] own tokens and a prompt of `prompt_lengths` [rows] tokens.

    own, cross: `[rows, heads, positions, dim]`, keys and values alternating, per layer; positions after a row's length
    are ignored. Returns logits `[rows, vocabulary]` and, per layer, the new token's `[rows, heads, 1, dim]`.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.decoder, self.head = model.decoder, model.lm_head
        self.scale = output_scale(model.config)
        self.bias = _DistanceBias(model.decoder, bidirectional=False)

    def forward(
        self,
        input_ids: torch.Tensor,
        lengths: torch.Tensor,
        prompt_lengths: torch.Tensor,
        own: list[torch.Tensor],
        cross: list[torch.Tensor],
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        hidden = self.decoder.embed_tokens(input_ids)
        ends = lengths.unsqueeze(1)
        places = torch.arange(own[0].shape[2]).unsqueeze(0)
        hidden_places = (places >= ends)[:, None, None, :]
        bias = self.bias(places - ends).permute(0, 2, 1).unsqueeze(2).masked_fill(hidden_places, float("-inf"))
        bias_of_new = self.bias(lengths - lengths)[:, :, None, None]
        behind_prompt = (torch.arange(cross[0].shape[2]).unsqueeze(0) >= prompt_lengths.unsqueeze(1))[:, None, None, :]
        new = []
        for index, block in enumerate(self.decoder.block):
            own_layer, cross_layer, feed_forward = block.layer
            attention, normed = own_layer.SelfAttention, own_layer.layer_norm(hidden)
            query, key, value = (
                split_heads(part(normed), attention) for part in (attention.q, attention.k, attention.v)
            )
            new += [key, value]
            past_scores = query @ own[2 * index].transpose(-1, -2) + bias
            new_score = (query * key).sum(dim=-1, keepdim=True) + bias_of_new
            weights = torch.cat([past_scores, new_score], dim=-1).softmax(dim=-1)
            attended = weights[..., :-1] @ own[2 * index + 1] + weights[..., -1:] * value
            hidden = hidden + attention.o(_joined(attended))
            attention, normed = cross_layer.EncDecAttention, cross_layer.layer_norm(hidden)
            scores = split_heads(attention.q(normed), attention) @ cross[2 * index].transpose(-1, -2)
            weights = scores.masked_fill(behind_prompt, float("-inf")).softmax(dim=-1)
            hidden = hidden + attention.o(_joined(weights @ cross[2 * index + 1]))
            hidden = feed_forward(hidden)
        hidden = self.decoder.final_layer_norm(hidden)[:, 0] * self.scale
        return self.head(hidden), new


class _DistanceBias(nn.Module):
    """The bias `[..., heads]` of a key that is `distance` positions away (negative: before the query)."""

    def __init__(self, stack: Any, *, bidirectional: bool) -> None:
        super().__init__()
        attention = stack.block[0].layer[0].SelfAttention
        self.reach: int = attention.relative_attention_max_distance
        buckets = attention._relative_position_bucket(
            torch.arange(-self.reach, self.reach + 1),
            bidirectional=bidirectional,
            num_buckets=attention.relative_attention_num_buckets,
            max_distance=self.reach,
        )
        self.register_buffer("table", attention.relative_attention_bias(buckets).detach())

    def forward(self, distance: torch.Tensor) -> torch.Tensor:
        table: torch.Tensor = self.get_buffer("table")
        return table[distance.clamp(-self.reach, self.reach) + self.reach]


def _joined(attended: torch.Tensor) -> torch.Tensor:
    """Reshape `[rows, heads, tokens, dim]` to `[rows, tokens, heads × dim]`."""
    return attended.transpose(1, 2).flatten(2)
