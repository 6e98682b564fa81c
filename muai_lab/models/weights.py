"""The weights of the embedded models: drawn, not trained, and equal to the last bit on every machine.

Raw 64-bit integers of PCG64 (a stream that numpy guarantees) become odd integers -255..255, are scaled by one float32
multiplication and rounded to the precision of bfloat16 with integer arithmetic. No library function is used whose last
bit could depend on a processor's vector width. Every weight is exact in bfloat16, so a bfloat16 engine and a float32
engine run the same model and differ only by their activations.

The scales make the choice of tokens look like text, and behave like that of a real model under test.
- Attention scores spread widely, so each head selects a few places of the context, and together the layers add more to
  the residual stream than the embedding. The next token therefore depends on the whole context and its positions:
  greedy output does not repeat itself, and an engine that confuses its key/value cache is detected. A wider spread
  would vary the output more, but also amplify rounding errors until engines disagree.
- Hidden dimension 0 holds the same constant for every token, and no layer writes to it. The output head's weight on it
  is a bias per token (neither architecture has such a bias). Words are preferred, the end token is rare, and tokens
  that cannot be printed never occur.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Tensor = NDArray[np.float32]

_ODD_STD = 147.8014  # standard deviation of the odd integers -255..255: sqrt((256 ** 2 - 1) / 3)


@dataclass(frozen=True, slots=True)
class Scales:
    """Target standard deviations of the activations.

    score: attention scores before the softmax. write: the contribution of one attention or feed-forward block to the
    residual stream; the embedding has 1. cross: the same for attention to an encoder's output, so that even the first
    tokens depend on the text. logit: output logits. constant: value of hidden dimension 0 in the embedding.
    """

    score: float
    write: float
    cross: float = 0.0
    logit: float = 2.5
    constant: float = 4.0


def draw(seed: str, shape: tuple[int, ...], std: float) -> Tensor:
    """Draw uniform float32 values of standard deviation `std`, exact in bfloat16, the same for the same `seed`."""
    import numpy as np

    count = int(np.prod(shape))
    state = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:16], "little")
    raw = np.random.PCG64(np.random.SeedSequence(state)).random_raw((count + 7) // 8)
    odd = raw.astype("<u8").view(np.int8)[:count].astype(np.int16) * 2 + 1
    return round_to_bfloat16((odd.astype(np.float32) * np.float32(std / _ODD_STD)).reshape(shape))


def round_to_bfloat16(values: Tensor) -> Tensor:
    """Round float32 values to the nearest values of bfloat16 (ties to even)."""
    import numpy as np

    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return rounded.astype(np.uint32).view(np.float32)


def qwen2_weights(seed: str, config: dict[str, object], bias: Tensor, scales: Scales) -> dict[str, Tensor]:
    """Return the tensors of a `Qwen2ForCausalLM` by name; `bias` is added to the logits, one value per token."""
    import numpy as np

    hidden, inner, layers, vocab, heads, kv_heads = (
        _int(config, key)
        for key in (
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "vocab_size",
            "num_attention_heads",
            "num_key_value_heads",
        )
    )
    head_dim = hidden // heads
    fan_in = 1 / sqrt(hidden)  # one input of unit variance per hidden dimension
    score = sqrt(scales.score) * fan_in  # queries and keys share the spread; the model divides by sqrt(head_dim)
    tensors: dict[str, Tensor] = {"model.norm.weight": np.ones(hidden, np.float32)}

    def put(name: str, shape: tuple[int, ...], std: float) -> None:
        tensors[name] = draw(f"{seed}/{name}", shape, std)

    put("model.embed_tokens.weight", (vocab, hidden), 1.0)
    for layer in range(layers):
        at = f"model.layers.{layer}"
        tensors[f"{at}.input_layernorm.weight"] = np.ones(hidden, np.float32)
        tensors[f"{at}.post_attention_layernorm.weight"] = np.ones(hidden, np.float32)
        put(f"{at}.self_attn.q_proj.weight", (hidden, hidden), score)
        put(f"{at}.self_attn.q_proj.bias", (hidden,), score)
        put(f"{at}.self_attn.k_proj.weight", (kv_heads * head_dim, hidden), score)
        put(f"{at}.self_attn.k_proj.bias", (kv_heads * head_dim,), score)
        put(f"{at}.self_attn.v_proj.weight", (kv_heads * head_dim, hidden), fan_in)
        put(f"{at}.self_attn.v_proj.bias", (kv_heads * head_dim,), fan_in)
        put(f"{at}.self_attn.o_proj.weight", (hidden, hidden), scales.write * fan_in)
        put(f"{at}.mlp.gate_proj.weight", (inner, hidden), 1.5 * fan_in)
        put(f"{at}.mlp.up_proj.weight", (inner, hidden), fan_in)
        put(f"{at}.mlp.down_proj.weight", (hidden, inner), scales.write / sqrt(inner))
        tensors[f"{at}.self_attn.o_proj.weight"][0] = 0
        tensors[f"{at}.mlp.down_proj.weight"][0] = 0
    tensors["model.embed_tokens.weight"][:, 0] = scales.constant
    variance = 1 + 2 * layers * scales.write * scales.write
    tensors["lm_head.weight"] = _output_head(seed, bias, scales, hidden=hidden, variance=variance)
    return tensors


def t5_weights(seed: str, config: dict[str, object], bias: Tensor, scales: Scales) -> dict[str, Tensor]:
    """Return the tensors of a `T5ForConditionalGeneration` (v1.1 layout) by name; `bias` is added to the logits."""
    import numpy as np

    hidden, inner, head_dim, heads, vocab, buckets = (
        _int(config, key)
        for key in ("d_model", "d_ff", "d_kv", "num_heads", "vocab_size", "relative_attention_num_buckets")
    )
    width = head_dim * heads
    fan_in = 1 / sqrt(hidden)
    score = sqrt(scales.score / sqrt(head_dim)) * fan_in  # T5 does not divide scores by sqrt(head_dim)
    tensors: dict[str, Tensor] = {}

    def put(name: str, shape: tuple[int, ...], std: float) -> None:
        tensors[name] = draw(f"{seed}/{name}", shape, std)

    def put_norm(name: str) -> None:
        tensors[name] = np.ones(hidden, np.float32)

    def put_write(name: str, shape: tuple[int, int], std: float) -> None:
        put(name, shape, std)
        tensors[name][0] = 0

    def put_attention(at: str, write: float) -> None:
        put(f"{at}.q.weight", (width, hidden), score)
        put(f"{at}.k.weight", (width, hidden), score)
        put(f"{at}.v.weight", (width, hidden), fan_in)
        put_write(f"{at}.o.weight", (hidden, width), write / sqrt(width))

    put("shared.weight", (vocab, hidden), 1.0)
    tensors["shared.weight"][:, 0] = scales.constant
    for stack, layers in (("encoder", _int(config, "num_layers")), ("decoder", _int(config, "num_decoder_layers"))):
        put(f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight", (buckets, heads), scales.score)
        for layer in range(layers):
            at = f"{stack}.block.{layer}.layer"
            put_attention(f"{at}.0.SelfAttention", scales.write)
            put_norm(f"{at}.0.layer_norm.weight")
            feed_forward = 1
            if stack == "decoder":
                put_attention(f"{at}.1.EncDecAttention", scales.cross)
                put_norm(f"{at}.1.layer_norm.weight")
                feed_forward = 2
            put(f"{at}.{feed_forward}.DenseReluDense.wi_0.weight", (inner, hidden), 1.5 * fan_in)
            put(f"{at}.{feed_forward}.DenseReluDense.wi_1.weight", (inner, hidden), fan_in)
            put_write(f"{at}.{feed_forward}.DenseReluDense.wo.weight", (hidden, inner), scales.write / sqrt(inner))
            put_norm(f"{at}.{feed_forward}.layer_norm.weight")
        put_norm(f"{stack}.final_layer_norm.weight")
    decoder_layers = _int(config, "num_decoder_layers")
    variance = 1 + decoder_layers * (2 * scales.write * scales.write + scales.cross * scales.cross)
    tensors["lm_head.weight"] = _output_head(seed, bias, scales, hidden=hidden, variance=variance)
    return tensors


def _output_head(seed: str, bias: Tensor, scales: Scales, *, hidden: int, variance: float) -> Tensor:
    """Return rows of random direction, plus `bias` through the constant dimension.

    variance: of the residual stream, which the final norm divides by. A row with a positive or a large negative bias
    holds nothing else: the end token never wins by chance, and an unprintable token never occurs.
    """
    import numpy as np

    head = draw(f"{seed}/lm_head.weight", (len(bias), hidden), scales.logit / sqrt(hidden))
    head[(bias > 0) | (bias < -10)] = 0
    head[:, 0] = round_to_bfloat16(bias * np.float32(sqrt(variance) / scales.constant))
    return head


def _int(config: dict[str, object], key: str) -> int:
    value = config[key]
    if not isinstance(value, int):
        raise TypeError(f"{key} must be an integer, not {value!r}")
    return value
