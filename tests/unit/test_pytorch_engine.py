"""The PyTorch engine on tiny models of several architectures: same tokens as Transformers, clear errors."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from muai_lab.engines.base import GREEDY, PrefillChunk, Sampling
from muai_lab.engines.pytorch import attention_kernels
from muai_lab.engines.pytorch.device import choose_device, choose_dtype
from muai_lab.engines.pytorch.engine import PyTorchEngine
from muai_lab.engines.pytorch.linear import PackedLinear, pack_linears, padded_rows
from muai_lab.errors import EngineError
from muai_lab.models.registry import ModelSource
from muai_lab.stack.recovery import recover
from tests.unit.tiny_models import CONTEXT, SERVED, VOCABULARY, built_once, load, prompt, reference

CPU = torch.device("cpu")
DEVICE = os.environ["MUAI_TEST_DEVICE"]  # conftest.py sees to it

Model = Callable[[str], ModelSource]

pytestmark = pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a GPU: there is none")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return built_once(tmp_path_factory.mktemp)


def run(engine: PyTorchEngine, text: list[int], count: int, slot: int = 0, sampling: Sampling = GREEDY) -> list[int]:
    """`count` tokens of one sequence alone."""
    tokens = [engine.prefill([PrefillChunk(slot, text, sampling=sampling)])[0]]
    while len(tokens) < count:
        tokens.append(engine.decode([slot])[0])
    engine.release(slot)
    assert None not in tokens
    return tokens  # type: ignore[return-value]


@pytest.mark.parametrize("name", [*SERVED, "t5"])
def test_ragged_sequences_that_join_and_leave_get_the_tokens_of_transformers(name: str, model: Model) -> None:
    source = model(name)
    engine = load(source, slots=3)
    texts = {0: prompt(3), 1: prompt(40), 2: prompt(11), 3: prompt(130)}
    slot = {0: 0, 1: 1, 2: 2, 3: 1}
    out: dict[int, list[int]] = {}

    def join(*names: int) -> None:
        first = engine.prefill([PrefillChunk(slot[at], texts[at]) for at in names])
        out.update({at: [token] for at, token in zip(names, first, strict=True) if token is not None})

    def decode(steps: int, *names: int) -> None:
        for _ in range(steps):
            for at, token in zip(names, engine.decode([slot[at] for at in names]), strict=True):
                out[at].append(token)

    join(0, 1)
    decode(3, 0, 1)
    join(2)
    decode(4, 2, 0, 1)
    engine.release(slot[1])
    join(3)
    decode(4, 3, 0, 2)

    for at, tokens in out.items():
        assert tokens == reference(source, texts[at], len(tokens)), f"sequence {at}"


@pytest.mark.parametrize("name", SERVED)
def test_heads_that_share_keys_may_be_attended_as_a_gpu_does(
    name: str, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = model(name)
    monkeypatch.setattr(attention_kernels, "_groups_pay", lambda query, keys: query.shape[1] > keys.shape[1])
    monkeypatch.setattr(attention_kernels, "_takes_shared_heads", lambda *_: False)
    engine = load(source)
    texts = {0: prompt(40), 1: prompt(11), 2: prompt(130)}
    engine.prefill([PrefillChunk(2, texts[2][:100], final=False)])
    first = engine.prefill([PrefillChunk(0, texts[0]), PrefillChunk(1, texts[1])])
    third = engine.prefill([PrefillChunk(2, texts[2][100:], start=100)])
    out = [[token] for token in (*first, *third)]

    for _ in range(3):
        for tokens, token in zip(out, engine.decode([0, 1, 2]), strict=True):
            tokens.append(token)

    assert out == [reference(source, texts[slot], 4) for slot in range(3)]


@pytest.mark.parametrize("name", SERVED)
def test_a_prompt_in_chunks_gives_the_tokens_of_a_prompt_at_once(name: str, model: Model) -> None:
    engine = load(model(name))
    text = prompt(50)
    expected = run(engine, text, 6)
    other = [engine.prefill([PrefillChunk(1, prompt(20))])[0]]

    assert engine.prefill([PrefillChunk(0, text[:7], final=False)]) == [None]
    other.append(engine.decode([1])[0])  # the slot with half a prompt only looks on
    assert engine.prefill([PrefillChunk(0, text[7:30], start=7, final=False)]) == [None]
    other.append(engine.decode([1])[0])
    tokens = [engine.prefill([PrefillChunk(0, text[30:], start=30)])[0]]
    tokens += [engine.decode([0])[0] for _ in range(5)]

    assert tokens == expected
    engine.release(1)
    assert other == run(engine, prompt(20), 3, slot=1)


def test_sequences_that_are_not_asked_for_are_left_as_they_were(model: Model) -> None:
    engine = load(model("qwen2"))
    expected = [run(engine, prompt(9, seed), 8) for seed in range(3)]
    out = [[token] for token in engine.prefill([PrefillChunk(seed, prompt(9, seed)) for seed in range(3)])]

    for asked in ([0], [2], [2, 1], [0], [1, 0], [2, 0, 1], [1, 2], [1], [0, 2, 1], [0, 2, 1], [0, 2, 1], [1, 0, 2]):
        for slot, token in zip(asked, engine.decode(asked), strict=True):
            out[slot].append(token)

    assert [tokens[:8] for tokens in out] == expected


def test_one_prefill_may_have_final_and_other_chunks(model: Model) -> None:
    engine = load(model("qwen2"))
    expected = run(engine, prompt(10), 1)

    tokens = engine.prefill(
        [PrefillChunk(0, prompt(30)[:5], final=False), PrefillChunk(1, prompt(10)), PrefillChunk(2, [5], final=False)]
    )

    assert tokens == [None, expected[0], None]


def test_long_prompts_are_computed_in_several_packs(model: Model) -> None:
    engine = load(model("qwen2"), slots=6)
    texts = [prompt(250, seed) for seed in range(6)]

    together = engine.prefill([PrefillChunk(slot, text) for slot, text in enumerate(texts)])
    for slot in range(6):
        engine.release(slot)

    assert together == [run(engine, text, 1)[0] for text in texts]


def test_a_prompt_longer_than_a_pack_is_cut(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    source = model("mistral_window")
    monkeypatch.setattr("muai_lab.engines.pytorch.decoder._PACK_TOKENS", {"cpu": 64, "cuda": 64})
    engine = load(source)
    texts = [prompt(5), prompt(200), prompt(30)]
    expected = [reference(source, text, 2) for text in texts]

    first = engine.prefill([PrefillChunk(slot, text) for slot, text in enumerate(texts)])

    assert list(zip(first, engine.decode([0, 1, 2]), strict=True)) == [tuple(tokens) for tokens in expected]


def test_a_sequence_may_fill_the_whole_context(model: Model) -> None:
    source = model("qwen2")
    engine = load(source)
    text = prompt(CONTEXT - 3)

    tokens = run(engine, text, engine.output_limit(len(text)))

    assert tokens == reference(source, text, 3)


def test_a_seed_gives_the_same_tokens_in_any_company(model: Model) -> None:
    engine = load(model("qwen2"))
    sampling = Sampling(temperature=1.0, top_p=0.9, seed=11)
    alone = run(engine, prompt(12), 10, slot=2, sampling=sampling)

    engine.prefill([PrefillChunk(0, prompt(60), sampling=Sampling(1.0, seed=1)), PrefillChunk(1, prompt(5))])
    tokens = [engine.prefill([PrefillChunk(3, prompt(12), sampling=sampling)])[0]]
    tokens += [engine.decode([0, 3, 1])[1] for _ in range(9)]

    assert tokens == alone
    assert len(set(tokens)) > 1


@pytest.mark.parametrize("name", ["qwen2", "t5"])
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.0, top_p=0.9, seed=11)], ids=["greedy", "seeded"])
def test_a_sequence_that_lost_its_slot_goes_on_as_if_nothing_had_happened(
    name: str, sampling: Sampling, model: Model
) -> None:
    engine = load(model(name))
    text = prompt(12)
    whole = run(engine, text, 10, sampling=sampling)
    so_far = whole[:6]

    again = text if name == "t5" else [*text, *so_far]
    engine.prefill([PrefillChunk(0, prompt(30))])
    tokens = [engine.prefill([PrefillChunk(2, again, sampling=sampling, output=so_far)])[0]]
    tokens += [engine.decode([0, 2])[1] for _ in range(3)]

    assert tokens == whole[6:]


def test_an_engine_recovers_in_the_middle_of_its_work(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load(model("qwen2"))
    engine.prefill([PrefillChunk(slot, prompt(5 + slot)) for slot in range(3)])
    alone = run(engine, prompt(12), 5, slot=3)
    choose = engine._sampler.choose
    monkeypatch.setattr(engine._sampler, "choose", lambda *_: raise_half_way())
    with pytest.raises(RuntimeError, match="half-way"):
        engine.decode([0, 1, 2])
    monkeypatch.setattr(engine._sampler, "choose", choose)

    recover(engine)

    assert run(engine, prompt(12), 5, slot=1) == alone


def raise_half_way() -> list[int]:
    raise RuntimeError("half-way")


def test_no_work_is_no_tokens(model: Model) -> None:
    engine = load(model("qwen2"))

    assert engine.prefill([]) == engine.decode([]) == []


def test_what_serves_is_described(model: Model) -> None:
    info = load(model("llama_tied"), dtype="bf16", max_model_len=100).info

    assert (info.name, info.version, info.dtype) == ("pytorch", torch.__version__, "bf16")
    assert info.device == ("cpu" if DEVICE == "cpu" else torch.cuda.get_device_name(0))
    assert info.max_model_len == 100


def test_low_precision_runs(model: Model) -> None:
    engine = load(model("qwen2"), dtype="bf16")

    assert all(0 <= token < VOCABULARY for token in run(engine, prompt(9), 5))


def test_limits_of_a_decoder_share_one_context(model: Model) -> None:
    engine = load(model("qwen2"), max_model_len=100)

    assert (engine.prompt_limit(), engine.output_limit(60)) == (99, 40)
    assert engine.vocab_size == VOCABULARY
    assert engine.eos_token_ids == {2}


def test_limits_of_an_encoder_decoder_do_not(model: Model) -> None:
    engine = load(model("t5"))

    assert engine.prompt_limit() == engine.output_limit(60) == engine.info.max_model_len


def test_a_closed_engine_says_so_and_may_be_closed_again(model: Model) -> None:
    engine = load(model("qwen2"))
    engine.close()
    engine.close()

    with pytest.raises(EngineError, match="the engine is closed"):
        engine.prefill([PrefillChunk(0, [1])])


# Loading


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gemma2_softcap", "Gemma2ForCausalLM cannot be served by steps over slots: its attention needs 'softcap'"),
        ("bloom", "BloomForCausalLM cannot be served by steps over slots: 0 of its 2 layers attend"),
        ("mamba", "MambaForCausalLM cannot be served by steps over slots: it has layers of type linear_attention"),
        ("bert", "its attention looks ahead"),
        ("bart", "encoder-decoders of type 'bart' are not served, only t5, mt5 are"),
    ],
)
def test_an_architecture_that_cannot_be_served_is_refused_at_load(name: str, reason: str, model: Model) -> None:
    with pytest.raises(EngineError) as caught:
        load(model(name))

    assert reason in caught.value.reason


def copy(source: ModelSource, directory: Path) -> ModelSource:
    assert source.path is not None
    shutil.copytree(source.path, directory)
    return ModelSource(
        name="copy",
        path=directory,
        hub_id=None,
        kind="local",
        content_hash=None,
        encoder_decoder=source.encoder_decoder,
        model_type=source.model_type,
    )


def edit_config(directory: Path, **changes: object) -> None:
    path = directory / "config.json"
    config = json.loads(path.read_text())
    config.pop("layer_types", None)
    path.write_text(json.dumps(config | changes))


def truncate(directory: Path) -> None:
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def fill_with_zeros(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(bytes(1000))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, "cannot load copy from"),
        (fill_with_zeros, "cannot load copy from"),
        (lambda path: (path / "model.safetensors").write_bytes(b""), "cannot load copy from"),
        (lambda path: (path / "model.safetensors").unlink(), "cannot load copy from"),
        (lambda path: (path / "config.json").write_text("{"), "not a valid JSON"),
        (lambda path: edit_config(path, model_type="nonesuch"), "nonesuch"),
        (lambda path: edit_config(path, num_hidden_layers=4), "lack 12 tensors that its config.json asks for"),
        (lambda path: edit_config(path, intermediate_size=48), "other shapes than its config.json says"),
    ],
)
def test_damaged_files_are_a_clear_error(
    damage: Callable[[Path], object], reason: str, model: Model, tmp_path: Path
) -> None:
    source = copy(model("qwen2"), tmp_path / "copy")
    damage(tmp_path / "copy")

    with pytest.raises(EngineError) as caught:
        load(source)

    assert reason in caught.value.reason
    assert "\n" not in caught.value.reason


def test_loading_writes_nothing_on_the_terminal(
    model: Model, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers.utils import logging

    good, bad = model("qwen2"), copy(model("qwen2"), tmp_path / "copy")
    edit_config(tmp_path / "copy", num_hidden_layers=4)
    bars = logging.is_progress_bar_enabled()
    capfd.readouterr()

    load(good)
    with pytest.raises(EngineError):
        load(bad)

    assert capfd.readouterr() == ("", "")
    assert logging.is_progress_bar_enabled() == bars


def test_more_positions_than_the_model_has_are_refused(model: Model) -> None:
    with pytest.raises(EngineError, match=f"max_model_len is 300, but the model has only {CONTEXT} positions"):
        load(model("qwen2"), max_model_len=300)


def test_fp16_on_a_cpu_is_refused(model: Model) -> None:
    with pytest.raises(EngineError, match=r"fp16 does not run on a CPU: set optimization\.pytorch\.dtype"):
        load(model("qwen2"), device="cpu", dtype="fp16")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_refused(model: Model) -> None:
    with pytest.raises(EngineError, match=r"set optimization\.pytorch\.device to auto or cpu"):
        load(model("qwen2"), device="cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_auto_takes_the_cpu_where_there_is_no_gpu() -> None:
    assert choose_device("auto") == CPU
    assert choose_dtype("auto", CPU) == torch.float32


# Packed matrix products


@pytest.mark.parametrize("shape", [(1, 24), (7, 24), (8, 24), (2, 5, 24), (1, 1, 24), (0, 24)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_a_packed_linear_is_the_linear(shape: tuple[int, ...], bias: bool, shared: bool) -> None:
    linear = torch.nn.Linear(24, 40, bias=bias)
    inputs = torch.randn(shape)

    with torch.inference_mode():
        torch.testing.assert_close(PackedLinear(linear, shared=shared)(inputs), linear(inputs), atol=1e-5, rtol=1e-5)


@given(st.integers(1, 20_000))
def test_rows_are_padded_by_little(count: int) -> None:
    assert count <= padded_rows(count) <= max(count + 7, count + count // 4)


def test_traffic_of_any_size_needs_few_kernels() -> None:
    assert len({padded_rows(count) for count in range(1, 1025)}) == 33


def test_a_large_weight_is_not_kept_twice() -> None:
    packed = PackedLinear(torch.nn.Linear(1024, 1024), shared=False)

    assert packed.weight.is_mkldnn
    with torch.inference_mode():
        assert packed(torch.randn(1, 1024)).shape == (1, 1024)


def test_only_plain_linears_are_packed() -> None:
    class Special(torch.nn.Linear):
        pass

    model = torch.nn.ModuleDict(
        {
            "plain": torch.nn.Linear(8, 8),
            "special": Special(8, 8),
            "precise": torch.nn.Linear(8, 8, dtype=torch.float64),
            "norm": torch.nn.LayerNorm(8),
        }
    )

    assert pack_linears(model) == 1
    assert isinstance(model["plain"], PackedLinear)
