"""Which device the PyTorch engine takes, and that a step stays on it: told by fakes and by tensors without memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from muai_lab.engines.base import PrefillChunk, Sampling
from muai_lab.engines.pytorch import device as devices
from muai_lab.engines.pytorch.attention import ATTENTION_NAME, slot_attention
from muai_lab.engines.pytorch.decoder import DecoderModel
from muai_lab.engines.pytorch.device import choose_device, choose_dtype, device_failures, memory_warning, runs_on
from muai_lab.engines.pytorch.encoder_decoder import EncoderDecoderModel
from muai_lab.engines.pytorch.probe import availability
from muai_lab.engines.sampling import _pick, _Rules, _SlotState
from muai_lab.errors import EngineError
from muai_lab.gpus import Gpu
from muai_lab.settings.schema import OptimizationSettings
from tests.unit.tiny_models import SERVED, build, load

GPU = torch.device("cuda", 0)
H100 = Gpu("0", "NVIDIA H100", 80 * 2**30, "470.1")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make torch and the driver what a machine has."""

    def make(
        *,
        available: bool = True,
        version: str | None = "13.0",
        capability: tuple[int, int] = (9, 0),
        built: Sequence[str] = ("sm_80", "sm_90", "compute_120"),
        gpus: Sequence[Gpu] = (H100,),
        visible: str | None = None,
    ) -> None:
        monkeypatch.setattr(torch.version, "cuda", version)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device=None: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device=None: "NVIDIA H100")
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: list(built))
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: capability >= (8, 0))
        monkeypatch.setattr(devices, "visible_gpus", lambda: list(gpus))
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    return make


@pytest.mark.parametrize("wanted", ["auto", "cuda"])
def test_the_first_gpu_serves_and_is_named(wanted: str, cuda: Callable[..., None]) -> None:
    cuda()

    assert choose_device(wanted) == GPU
    found = availability(OptimizationSettings.model_validate({"pytorch": {"device": wanted}}))
    assert (found.reason, found.device, found.on_gpu) == (None, "NVIDIA H100", True)
    assert found.dtypes == ("fp32", "fp16", "bf16")


@pytest.mark.parametrize(
    ("machine", "reason"),
    [
        ({"available": False, "version": None}, "is built without CUDA"),
        ({"available": False, "visible": ""}, "sees no CUDA device (CUDA_VISIBLE_DEVICES is '')"),
        ({"available": False, "visible": "7"}, "sees no CUDA device (CUDA_VISIBLE_DEVICES is '7')"),
        ({"available": False}, "does not start CUDA 13.0 with driver 470.1 of NVIDIA H100"),
        ({"available": False, "gpus": ()}, "sees no CUDA device"),
        ({"capability": (7, 0)}, "has no kernels for NVIDIA H100 (compute capability 7.0, built for sm_80, sm_90"),
    ],
)
def test_a_gpu_that_cannot_serve_is_refused_with_the_reason(
    machine: Mapping[str, Any], reason: str, cuda: Callable[..., None]
) -> None:
    cuda(**machine)

    with pytest.raises(EngineError) as caught:
        choose_device("cuda")

    assert f"PyTorch {reason}" in caught.value.reason
    assert "set optimization.pytorch.device to auto or cpu" in caught.value.reason
    assert choose_device("auto") == torch.device("cpu")


@pytest.mark.parametrize(
    ("capability", "built", "runs"),
    [
        ((8, 6), ["sm_80"], True),
        ((8, 0), ["sm_86"], False),
        ((9, 0), ["sm_80"], False),
        ((9, 0), ["sm_80", "compute_80"], True),
        ((9, 0), ["sm_90a"], True),
        ((10, 0), ["sm_90a", "sm_100"], True),
        ((10, 3), ["sm_100a"], False),
        ((10, 3), ["sm_100f"], True),
        ((12, 1), ["sm_90", "compute_120"], True),
        ((7, 5), ["sm_80", "compute_120"], False),
        ((7, 5), [], True),
        ((9, 0), ["gfx942"], True),
    ],
)
def test_a_build_runs_on_the_gpus_that_it_has_code_for(
    capability: tuple[int, int], built: list[str], runs: bool
) -> None:
    assert runs_on(capability, built) == runs


@pytest.mark.parametrize(
    ("capability", "wanted", "dtype"),
    [
        ((8, 0), "auto", torch.bfloat16),
        ((7, 5), "auto", torch.float16),
        ((7, 5), "fp32", torch.float32),
        ((7, 5), "fp16", torch.float16),
    ],
)
def test_auto_takes_bf16_where_the_gpu_has_it(
    capability: tuple[int, int], wanted: str, dtype: torch.dtype, cuda: Callable[..., None]
) -> None:
    cuda(capability=capability)

    assert choose_dtype(wanted, GPU) is dtype


def test_bf16_on_a_gpu_that_only_emulates_it_is_refused(cuda: Callable[..., None]) -> None:
    cuda(capability=(7, 5), built=("sm_75",))

    with pytest.raises(EngineError, match="this GPU has no bf16"):
        choose_dtype("bf16", GPU)
    assert availability(OptimizationSettings()).dtypes == ("fp32", "fp16")


def test_a_cpu_that_serves_beside_an_unused_gpu_is_told(
    cuda: Callable[..., None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = build("qwen2", tmp_path)
    cuda(available=False, version=None)

    with caplog.at_level(logging.WARNING):
        engine = load(source, device="auto")

    told = "the NVIDIA H100 here is not used: PyTorch is built without CUDA"
    assert engine.info.details["unused_gpu"] == told
    assert f"serves on the CPU; {told}" in caplog.text


@pytest.mark.parametrize("machine", [{"available": False, "gpus": ()}, {}])
def test_where_there_is_none_or_it_serves_no_gpu_is_unused(
    machine: Mapping[str, Any], cuda: Callable[..., None]
) -> None:
    cuda(**machine)

    assert devices.unused_gpu("auto", choose_device("auto")) is None
    assert devices.unused_gpu("cpu", torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore"),
            "Tried to allocate 2 GiB): free it",
        ),
        (
            torch.AcceleratorError("CUDA error: device busy\nCompile with"),
            "the GPU fails while m is loaded: CUDA error",
        ),
    ],
)
def test_failures_of_the_device_at_load_are_clear_errors(error: Exception, reason: str) -> None:
    with pytest.raises(EngineError) as caught, device_failures("m", "deepspeed"):
        raise error

    assert reason in caught.value.reason
    assert caught.value.engine == "deepspeed"
    assert "\n" not in caught.value.reason


def test_memory_that_full_slots_would_not_have_is_warned_of() -> None:
    gib = 2**30

    assert memory_warning(6 * gib, 4 * gib, 10 * gib) is None
    told = memory_warning(7 * gib, 4 * gib, 10 * gib)
    assert told is not None
    assert "7.0 GiB for keys and values and 4.0 GiB for the prefix cache, and 10.0 GiB" in told


# A step on the device: meta tensors have a device of their own and no values, so that whatever mixes them with the
# CPU's, or reads a value in the middle of a step, shows.


class OneDevice(TorchDispatchMode):
    """Records operations over tensors of several devices, which a GPU refuses or waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if len({tensor.device.type for tensor in tensors}) > 1:
            self.mixed.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def on_meta(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[str], Any]]:
    import transformers as tf

    tf.AttentionInterface.register(ATTENTION_NAME, slot_attention)
    monkeypatch.setattr(DecoderModel, "_prove", lambda _self: None)  # compares values

    def make(name: str) -> Any:
        source = build(name, tmp_path)
        config = tf.AutoConfig.from_pretrained(source.path)
        kind = tf.AutoModelForSeq2SeqLM if source.encoder_decoder else tf.AutoModelForCausalLM
        attention = "sdpa" if source.encoder_decoder else ATTENTION_NAME
        with torch.device("meta"):
            return kind.from_config(config, dtype=torch.bfloat16, attn_implementation=attention).eval()

    return make


@pytest.mark.parametrize("name", SERVED)
def test_every_tensor_of_a_decoders_step_is_on_its_device(name: str, on_meta: Callable[[str], Any]) -> None:
    model = DecoderModel(on_meta(name), slots=4, max_len=256)

    with OneDevice() as seen, torch.inference_mode():
        first = model.prefill([PrefillChunk(0, (1, 2, 3)), PrefillChunk(1, tuple(range(1, 140)), final=False)])
        model.prefill([PrefillChunk(1, (1, 2), start=139)])
        logits = model.decode([1, 0], [5, 6])
        blocks = model.copy_out(1, 0, 128, 16)
        model.copy_in(2, blocks)
        model.release(0)

    assert (first.device.type, logits.device.type) == ("meta", "meta")
    assert (first.shape[0], logits.shape[0]) == (1, 2)
    assert {tensor.device.type for block in blocks for tensor in block.tensors} == {"meta"}
    assert seen.mixed == []


def test_every_tensor_of_an_encoder_decoders_step_is_on_its_device(
    on_meta: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Transformers looks into the prompts' mask, once for each batch of prompts.
    monkeypatch.setattr("transformers.masking_utils._ignore_bidirectional_mask_sdpa", lambda *_: False)
    model = EncoderDecoderModel(on_meta("t5"), slots=4, max_len=256)

    with OneDevice() as seen, torch.inference_mode():
        model.prefill([PrefillChunk(0, (1, 2, 3)), PrefillChunk(1, (4, 5, 6, 7))])
        logits = model.decode([1, 0], [5, 6])

    assert logits.device.type == "meta"
    assert seen.mixed == []


def test_tokens_are_drawn_on_the_device_of_the_logits() -> None:
    logits = torch.empty((2, 1000), device="meta")
    states = [_SlotState(Sampling(temperature=1.0, top_k=5), None), _SlotState(Sampling(top_p=0.5), None)]

    with OneDevice() as seen:
        tokens, decided = _pick(logits, _Rules.of(states, [0.1, 0.2], logits), head=256)

    assert (tokens.shape, decided.shape) == ((2,), (2,))
    assert (tokens.device.type, decided.device.type) == ("meta", "meta")
    assert seen.mixed == []
