"""Correctness on a device with no more than PyTorch and Transformers: small models, held against the CPU.

The conformance tests say more; they need the packages that the tests need. These say the same of tokens: those of
Transformers on the CPU, in company and alone, with copied prefixes, and with seeds.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.gpu_facts import Row

if TYPE_CHECKING:
    from muai_lab.engines.pytorch.slot_engine import SlotEngine

VOCABULARY = 300
LENGTHS = (5, 40, 130, 17)
TOKENS = 24
TIE = 1e-3  # logits closer than this may change places between devices

_SHARED = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,  # small random weights repeat one token
}


def checks(device: torch.device) -> list[Row]:
    """One line for each check. Raises AssertionError with the first difference."""
    import transformers as tf

    rows = []
    decoders = {
        "Qwen2": tf.Qwen2Config(**_SHARED),
        "Mistral with a window": tf.MistralConfig(**_SHARED, sliding_window=16),
    }
    for name, config in decoders.items():
        model = _random(tf.AutoModelForCausalLM, config)
        engine = _engine(model, device, encoder_decoder=False)
        for what, check in (("tokens", _tokens), ("prefixes", _prefixes), ("seeds", _seeds)):
            rows.append(Row(f"{name}, fp32: {what}", check(engine, model)))
        engine.close()
    t5 = tf.T5Config(
        vocab_size=VOCABULARY, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    model = _random(tf.AutoModelForSeq2SeqLM, t5)
    engine = _engine(model, device, encoder_decoder=True)
    rows.append(Row("T5, fp32: tokens", _tokens(engine, model)))
    engine.close()
    return rows


def _random(kind: Any, config: Any) -> Any:
    torch.manual_seed(0)
    return kind.from_config(config, dtype=torch.float32, attn_implementation="sdpa").eval()


def _engine(model: Any, device: torch.device, *, encoder_decoder: bool) -> SlotEngine:
    import transformers

    from muai_lab.engines.base import EngineInfo
    from muai_lab.engines.pytorch.attention import ATTENTION_NAME, slot_attention
    from muai_lab.engines.pytorch.slot_engine import SlotEngine, over_slots

    transformers.AttentionInterface.register(ATTENTION_NAME, slot_attention)
    served = copy.deepcopy(model).to(device)
    if not encoder_decoder:
        served.set_attn_implementation(ATTENTION_NAME)
    slots, max_len = len(LENGTHS), 256
    return SlotEngine(
        over_slots(served, encoder_decoder=encoder_decoder, slots=slots, max_len=max_len, engine="pytorch"),
        EngineInfo("pytorch", torch.__version__, str(device), "fp32", max_len),
        slots=slots,
        eos_token_ids=frozenset(),
        vocab_size=VOCABULARY,
        encoder_decoder=encoder_decoder,
        prefix_refusal="an encoder's prompts share nothing" if encoder_decoder else None,
    )


def _prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in LENGTHS]


def _together(engine: SlotEngine, prompts: list[list[int]], **more: Any) -> list[list[int]]:
    """`TOKENS` tokens of each prompt, which run in one batch."""
    from muai_lab.engines.base import PrefillChunk

    slots = list(range(len(prompts)))
    first = engine.prefill([PrefillChunk(slot, prompt, **more) for slot, prompt in zip(slots, prompts, strict=True)])
    outputs = [[int(token or 0)] for token in first]
    for _ in range(TOKENS - 1):
        for output, token in zip(outputs, engine.decode(slots), strict=True):
            output.append(token)
    for slot in slots:
        engine.release(slot)
    return outputs


@torch.inference_mode()
def _tokens(engine: SlotEngine, model: Any) -> str:
    """Greedy tokens are those of Transformers on the CPU, but for ties."""
    prompts = _prompts()
    ties = 0
    for prompt, output in zip(prompts, _together(engine, prompts), strict=True):
        logits = _logits(model, prompt, output)
        for at, token in enumerate(output):
            best = int(logits[at].argmax())
            if token != best:
                difference = float(logits[at][best] - logits[at][token])
                assert difference < TIE, f"token {at} of the prompt of {len(prompt)}: {token}, not {best}"
                ties += 1
    return f"equal, {len(prompts)} × {TOKENS}" + (f", {ties} ties" if ties else "")


def _logits(model: Any, prompt: list[int], output: list[int]) -> torch.Tensor:
    """Logits before each token of the output `[tokens, vocabulary]`."""
    if model.config.is_encoder_decoder:
        started = torch.tensor([[model.config.decoder_start_token_id, *output[:-1]]])
        found: torch.Tensor = model(input_ids=torch.tensor([prompt]), decoder_input_ids=started).logits[0]
        return found
    whole: torch.Tensor = model(torch.tensor([[*prompt, *output[:-1]]])).logits
    return whole[0, len(prompt) - 1 :]


def _prefixes(engine: SlotEngine, _model: Any) -> str:
    """Behind copied keys and values come the same tokens as behind computed ones."""
    from muai_lab.engines.base import PrefillChunk

    prompt = _prompts()[2]

    def ended(continued: Callable[[], int | None]) -> list[int]:
        tokens = [int(continued() or 0)] + [engine.decode([1])[0] for _ in range(TOKENS)]
        engine.release(1)
        return tokens

    whole = ended(lambda: engine.prefill([PrefillChunk(1, prompt)])[0])
    engine.prefill([PrefillChunk(0, prompt)])
    engine.copy_in(1, engine.copy_out(0, 0, 96, 16))
    engine.release(0)
    copied = ended(lambda: engine.prefill([PrefillChunk(1, prompt[96:], start=96)])[0])
    assert copied == whole, f"behind a copied prefix: {copied}, not {whole}"
    return "equal"


def _seeds(engine: SlotEngine, _model: Any) -> str:
    """A seed gives the same tokens alone and in company."""
    from muai_lab.engines.base import Sampling

    prompts = _prompts()
    sampling = Sampling(temperature=1.0, top_p=0.95, seed=7)
    (alone,) = _together(engine, prompts[:1], sampling=sampling)
    together = _together(engine, prompts, sampling=sampling)[0]
    assert alone == together, f"alone {alone}, in company {together}"
    return "equal"
