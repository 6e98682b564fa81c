"""What `benchmarks.gpu` measures on a device: its own peaks, then decoding and prefill of a Qwen2-shaped model."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.gpu_facts import Row, dtype_of, state, vendor_peak

if TYPE_CHECKING:
    from muai_lab.engines.pytorch.slot_engine import SlotEngine

Left = Callable[[], float]  # seconds that a part may still take


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large everything is. model: keywords of Qwen2Config; prompts: (sequences, tokens of each)."""

    copy_bytes: int
    product: int
    model: dict[str, Any]
    streams: Sequence[int]
    prompt_tokens: int
    decode_steps: int
    prompts: Sequence[tuple[int, int]]
    repeats: int


# The shape of Qwen2-0.5B: 494 million parameters, of which 136 million are the embeddings, tied to the output.
WHOLE = Sizes(
    copy_bytes=2**31,
    product=8192,
    model={
        "vocab_size": 151936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
    },
    streams=(1, 32, 128),
    prompt_tokens=128,
    decode_steps=64,
    prompts=((1, 512), (1, 2048), (1, 8192), (8, 512), (8, 1024)),
    repeats=5,
)
SMALL = Sizes(
    copy_bytes=2**20,
    product=64,
    model={
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
    },
    streams=(1, 3),
    prompt_tokens=16,
    decode_steps=3,
    prompts=((1, 24), (2, 16)),
    repeats=2,
)
SLOTS_LEN = 16384
WARM_UP_STEPS = 8


@dataclass(slots=True)
class Peaks:
    """What the device reached here, None until it was measured: bytes per second of a copy, operations per second."""

    copy: float | None = None
    product: float | None = None


def seconds(device: torch.device, work: Callable[[], object], repeats: int, left: Left) -> list[float]:
    """Seconds of each of `repeats` calls after one that warms up; fewer if the time runs out, but one at least."""
    work()
    taken: list[float] = []
    while len(taken) < repeats and (not taken or left() > 0):
        _wait(device)
        began = time.perf_counter()
        work()
        _wait(device)
        taken.append(time.perf_counter() - began)
    return taken


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peaks(device: torch.device, sizes: Sizes, left: Left, found: Peaks) -> list[Row]:
    """Bandwidth of a copy within the device's memory, and speed of a large product in 16 bits."""
    return [*_copy(device, sizes, left, found), *_product(device, sizes, left, found), *state(device, "after products")]


def _copy(device: torch.device, sizes: Sizes, left: Left, found: Peaks) -> list[Row]:
    size = sizes.copy_bytes
    if device.type == "cuda":
        size = min(size, torch.cuda.mem_get_info(device)[0] // 8)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    taken = seconds(device, lambda: target.copy_(source), 4 * sizes.repeats, left)
    found.copy = 2 * size / statistics.median(taken)
    note = f"median of {len(taken)}, {size / 2**20:.0f} MiB"
    rows = [Row("copy, bytes read and written", found.copy / 1e9, "GB/s", note)]
    vendor = vendor_peak(device)
    if vendor is not None:
        rows.append(_share("copy, of the vendor's peak", found.copy, vendor.tb_per_s * 1e12))
    return rows


def _product(device: torch.device, sizes: Sizes, left: Left, found: Peaks) -> list[Row]:
    dtype, side = dtype_of(device), sizes.product
    a, b = (torch.randn((side, side), device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    inner = 4 if device.type == "cuda" else 1  # the wait at the end counts less
    taken = seconds(device, lambda: [torch.matmul(a, b, out=out) for _ in range(inner)], 2 * sizes.repeats, left)
    found.product = inner * 2 * side**3 / statistics.median(taken)
    note = f"median of {len(taken)}, {side}×{side}×{side}, {str(dtype).removeprefix('torch.')}, random numbers"
    rows = [Row("matrix product", found.product / 1e12, "TFLOP/s", note)]
    vendor = vendor_peak(device)
    if vendor is not None:
        rows.append(_share("matrix product, of the vendor's peak", found.product, vendor.tflops * 1e12))
    return rows


def _share(name: str, reached: float, peak: float | None) -> Row:
    if peak is None:
        return Row(name, None, "%", "the peak was not measured")
    return Row(name, 100 * reached / peak, "%")


def build_model(device: torch.device, sizes: Sizes) -> Any:
    """A Qwen2 with random weights, made on the device itself: nothing is read, written or copied there."""
    import transformers

    from muai_lab.engines.pytorch.attention import ATTENTION_NAME, slot_attention

    transformers.AttentionInterface.register(ATTENTION_NAME, slot_attention)
    config = transformers.Qwen2Config(**sizes.model)
    torch.manual_seed(0)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(
            config, dtype=dtype_of(device), attn_implementation=ATTENTION_NAME
        )
    return model.eval()


def build_engine(model: Any, sizes: Sizes) -> SlotEngine:
    """The PyTorch engine over a model that is in memory already."""
    from muai_lab.engines.base import EngineInfo
    from muai_lab.engines.pytorch.slot_engine import SlotEngine, over_slots

    slots = max(*sizes.streams, *(count for count, _ in sizes.prompts))
    max_len = min(model.config.max_position_embeddings, SLOTS_LEN)
    return SlotEngine(
        over_slots(model, encoder_decoder=False, slots=slots, max_len=max_len, engine="pytorch"),
        EngineInfo("pytorch", torch.__version__, str(model.device), str(model.dtype), max_len),
        slots=slots,
        eos_token_ids=frozenset(),
        vocab_size=model.config.vocab_size,
        encoder_decoder=False,
        prefix_refusal=None,
    )


def serving(device: torch.device, sizes: Sizes, left: Left, found: Peaks) -> list[Row]:
    """Decoding at each number of streams, then prefill, of the model that `sizes` describes."""
    began = time.perf_counter()
    model = build_model(device, sizes)
    engine = build_engine(model, sizes)
    _wait(device)
    weights = sum(parameter.numel() for parameter in model.parameters())
    rows = [
        Row("parameters", weights / 1e6, "million", str(model.dtype).removeprefix("torch.")),
        Row("model made and proved in", time.perf_counter() - began, "s"),
    ]
    try:
        for streams in sizes.streams:
            if left() <= 0:
                rows.append(Row(f"decode, {streams} streams", None, note="no time was left"))
                continue
            rows += _decoding(device, sizes, engine, model, streams, left, found)
        for count, tokens in sizes.prompts:
            if left() <= 0:
                rows.append(Row(f"prefill, {count} × {tokens} tokens", None, note="no time was left"))
                continue
            rows += _prefilling(device, sizes, engine, model, count, tokens, left, found)
        if device.type == "cuda":
            rows.append(Row("PyTorch's memory, most", torch.cuda.max_memory_allocated(device) / 2**30, "GiB"))
        return [*rows, *state(device, "after serving")]
    finally:
        engine.close()


def _decoding(
    device: torch.device, sizes: Sizes, engine: SlotEngine, model: Any, streams: int, left: Left, found: Peaks
) -> list[Row]:
    from muai_lab.engines.base import PrefillChunk

    slots = list(range(streams))
    for slot in slots:
        engine.prefill([PrefillChunk(slot, _prompt(model, sizes.prompt_tokens, slot))])
    for _ in range(WARM_UP_STEPS):
        engine.decode(slots)
    taken: list[float] = []
    while len(taken) < sizes.decode_steps and (not taken or left() > 0):
        began = time.perf_counter()
        engine.decode(slots)  # returns the tokens, so the device is done
        taken.append(time.perf_counter() - began)
    positions = sizes.prompt_tokens + WARM_UP_STEPS + len(taken) // 2
    busy = _busy_seconds(device, lambda: engine.decode(slots))
    for slot in slots:
        engine.release(slot)
    step_s = statistics.median(taken)
    moved = step_bytes(model, streams, positions, engine.position_bytes())
    name = f"decode, {streams} streams"
    note = f"median of {len(taken)} steps at {positions} positions, {moved / 1e6:,.0f} MB to read a step"
    vendor = vendor_peak(device)
    rows = [
        Row(f"{name}: step", step_s * 1e3, "ms", note),
        Row(f"{name}: rate", streams / step_s, "tokens/s"),
        Row(f"{name}: bandwidth", moved / step_s / 1e9, "GB/s"),
        _share(f"{name}: bandwidth, of the measured copy", moved / step_s, found.copy),
    ]
    if vendor is not None:
        rows.append(_share(f"{name}: bandwidth, of the vendor's peak", moved / step_s, vendor.tb_per_s * 1e12))
    if device.type == "cuda":
        share = None if busy is None else 100 * busy / step_s
        why = "" if busy is not None else "PyTorch's profiler recorded no kernels"
        rows.append(Row(f"{name}: device computes", share, "% of the step", why))
    return rows


def step_bytes(model: Any, streams: int, positions: int, position_bytes: int) -> int:
    """Bytes that one decode step cannot but read: each weight once, and every stream's keys and values.

    Of embeddings that are not tied to the output only the rows of the tokens are read.
    """
    embeddings = model.get_input_embeddings().weight
    tied = model.get_output_embeddings().weight is embeddings
    weights = sum(parameter.nbytes for parameter in model.parameters())
    if not tied:
        weights -= embeddings.nbytes - streams * embeddings.shape[1] * embeddings.itemsize
    return weights + streams * positions * position_bytes


def prefill_operations(model: Any, count: int, tokens: int) -> int:
    """Operations of a prefill: two for each weight and token, and of attention for each pair that causality leaves.

    Embeddings are looked up; the output's product is made of the last token of each prompt only.
    """
    config = model.config
    output = model.get_output_embeddings().weight.numel()
    inner = sum(parameter.numel() for parameter in model.parameters()) - model.get_input_embeddings().weight.numel()
    if model.get_output_embeddings().weight is not model.get_input_embeddings().weight:
        inner -= output
    pairs = tokens * (tokens + 1) // 2
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = 4 * config.num_hidden_layers * config.num_attention_heads * head_dim * pairs
    return count * (2 * inner * tokens + 2 * output + attention)


def _prefilling(
    device: torch.device,
    sizes: Sizes,
    engine: SlotEngine,
    model: Any,
    count: int,
    tokens: int,
    left: Left,
    found: Peaks,
) -> list[Row]:
    from muai_lab.engines.base import PrefillChunk

    chunks = [PrefillChunk(slot, _prompt(model, tokens, slot)) for slot in range(count)]

    def work() -> None:
        engine.prefill(chunks)
        for slot in range(count):
            engine.release(slot)

    taken = seconds(device, work, sizes.repeats, left)
    median = statistics.median(taken)
    reached = prefill_operations(model, count, tokens) / median
    name = f"prefill, {count} × {tokens} tokens"
    vendor = vendor_peak(device)
    rows = [
        Row(f"{name}: time", median * 1e3, "ms", f"median of {len(taken)}"),
        Row(f"{name}: rate", count * tokens / median, "tokens/s"),
        Row(f"{name}: speed", reached / 1e12, "TFLOP/s"),
        _share(f"{name}: of the measured product", reached, found.product),
    ]
    if vendor is not None:
        rows.append(_share(f"{name}: of the vendor's peak", reached, vendor.tflops * 1e12))
    return rows


def _prompt(model: Any, tokens: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    drawn: list[int] = torch.randint(0, model.config.vocab_size, (tokens,), generator=generator).tolist()
    return drawn


def _busy_seconds(device: torch.device, work: Callable[[], object]) -> float | None:
    """Seconds in which the device computes during one call: the sum of its kernels, by PyTorch's profiler."""
    if device.type != "cuda":
        return None
    from torch.profiler import ProfilerActivity, profile

    try:
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            work()
            _wait(device)
        total = sum(event.self_device_time_total for event in seen.key_averages())
    except (RuntimeError, AttributeError):  # a build without it, or counters that this machine does not give out
        return None
    return total / 1e6 if total else None
