"""The ONNX Runtime engine on the embedded models: exported for real, compared with PyTorch."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from muai_lab.engines.base import PrefillChunk, Sampling, StepEngine
from muai_lab.engines.onnx.decoder import DecoderGraph
from muai_lab.engines.onnx.engine import OnnxEngine
from muai_lab.engines.onnx.graph_cache import graph_directory, read_facts
from muai_lab.engines.onnx.int8_product import choose_product
from muai_lab.engines.onnx.loading import open_graph
from muai_lab.engines.onnx.recipe import Recipe
from muai_lab.engines.pytorch.engine import PyTorchEngine
from muai_lab.errors import EngineError
from muai_lab.models.registry import ModelSource, resolve_model
from muai_lab.settings.schema import OnnxSettings, OptimizationSettings

CPU = ("CPUExecutionProvider",)
SLOTS = 8


def settings(**onnx: object) -> OptimizationSettings:
    return OptimizationSettings(onnx=OnnxSettings(**{"execution_providers": CPU, **onnx}))  # type: ignore[arg-type]


@pytest.fixture(scope="module", autouse=True)
def _shared_cache(session_cache: Path) -> None:
    """A cache that begins empty: what is tested is the export too."""


@pytest.fixture(scope="module")
def chat() -> Iterator[OnnxEngine]:
    engine = OnnxEngine(resolve_model("qwen_chat"), settings(), slots=SLOTS)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def summarizer() -> Iterator[OnnxEngine]:
    engine = OnnxEngine(resolve_model("t5_summarizer"), settings(), slots=SLOTS)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def small() -> Iterator[OnnxEngine]:
    engine = OnnxEngine(resolve_model("qwen_chat"), settings(enable_quantization=True), slots=SLOTS)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def chat_graph(chat: OnnxEngine) -> DecoderGraph:
    """The chat model's graph without the engine around it, for comparisons of logits."""
    directory = graph_directory(resolve_model("qwen_chat"), Recipe("decoder", "fp32", "cpu"))
    graph = open_graph(directory, "decoder", read_facts(directory), OnnxSettings(), CPU, slots=SLOTS)
    assert isinstance(graph, DecoderGraph)
    return graph


def prompt(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng([length, seed]).integers(300, 2000, length).tolist()


def generate(engine: StepEngine, prompts: Sequence[Sequence[int]], count: int, slots: Sequence[int]) -> list[list[int]]:
    """`count` greedy tokens for each prompt, all prompts at once."""
    first = engine.prefill([PrefillChunk(slot, text) for slot, text in zip(slots, prompts, strict=True)])
    tokens = [[token] for token in first if token is not None]
    for _ in range(count - 1):
        for said, token in zip(tokens, engine.decode(slots), strict=True):
            said.append(token)
    for slot in slots:
        engine.release(slot)
    return tokens


def ragged_traffic(engine: StepEngine) -> dict[int, list[int]]:
    """Sequences of all lengths that join and leave while others run; the tokens of each."""
    prompts = [prompt(length) for length in (3, 40, 17, 128, 1, 77, 300, 9, 130, 64)]
    ends = [40, 9, 31, 17, 60, 12, 25, 33, 50, 5]
    waiting = list(range(len(prompts)))
    running: dict[int, int] = {}  # sequence -> slot
    said: dict[int, list[int]] = {}
    while waiting or running:
        free = [slot for slot in range(4) if slot not in running.values()]
        joining = [waiting.pop(0) for _ in range(min(len(free), len(waiting), 2))]
        if running:
            order = sorted(running, reverse=True)  # in no order of slots
            for sequence, token in zip(order, engine.decode([running[at] for at in order]), strict=True):
                said[sequence].append(token)
        if joining:
            places = dict(zip(joining, free, strict=False))
            tokens = engine.prefill([PrefillChunk(places[at], prompts[at]) for at in joining])
            running |= places
            said |= {at: [token] for at, token in zip(joining, tokens, strict=True) if token is not None}
        for sequence in [at for at in running if len(said[at]) >= ends[at]]:
            engine.release(running.pop(sequence))
    return said


@pytest.mark.parametrize("name", ["chat", "summarizer"])
def test_greedy_tokens_are_pytorch_s_however_sequences_join_and_leave(
    name: str, request: pytest.FixtureRequest
) -> None:
    engine: OnnxEngine = request.getfixturevalue(name)
    model = {"chat": "qwen_chat", "summarizer": "t5_summarizer"}[name]
    reference = PyTorchEngine(resolve_model(model), settings(), slots=SLOTS)

    assert ragged_traffic(engine) == ragged_traffic(reference)


@pytest.mark.parametrize("name", ["chat", "small"])
def test_a_prompt_that_begins_with_a_copy_gives_the_tokens_of_one_that_is_computed(
    name: str, request: pytest.FixtureRequest
) -> None:
    engine: OnnxEngine = request.getfixturevalue(name)
    following = [*prompt(100)[:96], *prompt(33, 1)]
    (expected,) = generate(engine, [following], 20, [0])
    engine.prefill([PrefillChunk(0, prompt(30, 2)), PrefillChunk(1, prompt(100))])
    blocks = engine.copy_out(1, 0, 96, 16)
    engine.release(1)

    engine.copy_in(2, blocks)
    engine.decode([0])  # the slot with half a prompt only looks on
    tokens = engine.prefill([PrefillChunk(2, following[96:], start=96)])
    while len(tokens) < 20:
        tokens += engine.decode([2])

    assert tokens == expected
    assert {block.nbytes for block in blocks} == {16 * engine.position_bytes()}
    for slot in (0, 2):
        engine.release(slot)


@pytest.mark.parametrize("name", ["chat", "summarizer", "small"])
def test_a_sequence_gets_the_same_tokens_alone_and_in_company(name: str, request: pytest.FixtureRequest) -> None:
    engine: OnnxEngine = request.getfixturevalue(name)
    prompts = [prompt(length) for length in (5, 90, 33, 140)]

    together = generate(engine, prompts, 30, [0, 1, 2, 3])

    assert together == [generate(engine, [text], 30, [5])[0] for text in prompts]


def test_logits_of_a_row_are_bit_equal_alone_and_in_company(chat_graph: DecoderGraph) -> None:
    prompts = [prompt(length) for length in (4, 60, 250)]
    forced = prompt(20, seed=1)

    def logits(slots: Sequence[int], texts: Sequence[Sequence[int]]) -> torch.Tensor:
        found = [chat_graph.prefill([PrefillChunk(at, text) for at, text in zip(slots, texts, strict=True)])]
        found += [chat_graph.decode(slots, [token] * len(slots)) for token in forced]
        for slot in slots:
            chat_graph.release(slot)
        return torch.stack(found)

    together = logits([0, 1, 2], prompts)

    for row, text in enumerate(prompts):
        assert torch.equal(together[:, row], logits([7], [text])[:, 0])


@pytest.mark.parametrize("cuts", [[0, 1, 200], [0, 64, 128, 192, 200], [0, 199, 200]])
def test_a_prompt_in_chunks_gives_what_it_gives_whole(chat_graph: DecoderGraph, cuts: list[int]) -> None:
    text = prompt(200)
    whole = chat_graph.prefill([PrefillChunk(0, text)])
    chat_graph.prefill([PrefillChunk(2, prompt(30))])  # a neighbour, so that the chunks' row is not the first

    for begin, end in itertools.pairwise(cuts):
        chunked = chat_graph.prefill([PrefillChunk(1, text[begin:end], begin, final=end == len(text))])

    assert torch.allclose(whole, chunked, atol=1e-4)
    follow = [chat_graph.decode([slot], [7]) for slot in (0, 1)]
    assert torch.allclose(*follow, atol=1e-4)
    for slot in (0, 1, 2):
        chat_graph.release(slot)


def test_a_chunk_that_is_not_final_gives_no_token(chat: OnnxEngine) -> None:
    tokens = chat.prefill([PrefillChunk(0, prompt(20), final=False), PrefillChunk(1, prompt(30))])

    assert tokens[0] is None
    assert tokens[1] is not None
    (last,) = chat.prefill([PrefillChunk(0, prompt(5), 20)])
    assert last is not None
    chat.release(0)
    chat.release(1)


def test_a_sequence_between_two_of_its_chunks_is_not_touched_by_its_neighbours_steps(chat: OnnxEngine) -> None:
    text = prompt(80)
    expected = generate(chat, [text], 10, [0])[0]

    chat.prefill([PrefillChunk(0, prompt(15)), PrefillChunk(1, text[:50], final=False)])
    for _ in range(5):
        chat.decode([0])
    first = chat.prefill([PrefillChunk(1, text[50:], 50)])[0]

    assert [first, *(chat.decode([1])[0] for _ in range(9))] == expected
    chat.release(0)
    chat.release(1)


def test_prompts_longer_than_one_run_are_computed_in_several(chat: OnnxEngine) -> None:
    reference = PyTorchEngine(resolve_model("qwen_chat"), settings(), slots=2)
    text = prompt(1300)

    assert generate(chat, [text, prompt(7)], 6, [0, 1]) == generate(reference, [text, prompt(7)], 6, [0, 1])


def test_memory_grows_with_what_the_slots_hold_not_with_what_they_could(chat_graph: DecoderGraph) -> None:
    chat_graph.prefill([PrefillChunk(slot, prompt(40)) for slot in range(SLOTS)])
    little = chat_graph.kv_bytes
    chat_graph.prefill([PrefillChunk(3, prompt(600))])
    more = chat_graph.kv_bytes
    for slot in range(SLOTS):
        chat_graph.release(slot)

    a_position = 2 * 4 * 2 * 64 * 4  # keys and values × layers × heads × dim × bytes
    assert little <= SLOTS * 256 * a_position
    assert more <= SLOTS * 2048 * a_position


@pytest.mark.parametrize("name", ["chat", "small"])
def test_a_seed_gives_the_same_tokens_whatever_else_runs(name: str, request: pytest.FixtureRequest) -> None:
    engine: OnnxEngine = request.getfixturevalue(name)
    sampling = Sampling(temperature=1.0, top_p=0.9, seed=5)

    def sampled(slot: int) -> list[int | None]:
        tokens = list(engine.prefill([PrefillChunk(slot, prompt(30), sampling=sampling)]))
        tokens += [engine.decode([slot])[0] for _ in range(20)]
        engine.release(slot)
        return tokens

    alone = sampled(0)
    engine.prefill([PrefillChunk(0, prompt(50)), PrefillChunk(1, prompt(9))])

    assert sampled(2) == alone
    engine.release(0)
    engine.release(1)


@pytest.mark.parametrize("level", ["none", "basic", "extended"])
def test_every_optimisation_level_gives_the_same_tokens(chat: OnnxEngine, level: str) -> None:
    engine = OnnxEngine(resolve_model("qwen_chat"), settings(optimization_level=level, threads=1), slots=2)
    prompts = [prompt(20), prompt(64)]

    assert generate(engine, prompts, 20, [0, 1]) == generate(chat, prompts, 20, [0, 1])
    assert engine.info.details["optimization_level"] == level
    assert engine.info.details["threads"] == 1


def test_int8_says_how_often_it_agrees_with_fp32(small: OnnxEngine, chat: OnnxEngine) -> None:
    details = small.info.details

    assert details["quantization"] == "dynamic int8"
    assert details["int8_product"] == choose_product()
    agreement, positions = details["int8_greedy_agreement_with_fp32"], details["int8_agreement_positions"]
    assert isinstance(agreement, float)
    assert 0.85 < agreement < 1.0
    assert isinstance(positions, int)
    assert positions >= 100
    assert "int8_greedy_agreement_with_fp32" not in chat.info.details


def test_t5_in_int8_serves_too() -> None:
    engine = OnnxEngine(resolve_model("t5_summarizer"), settings(enable_quantization=True), slots=2)

    assert len(generate(engine, [prompt(40), prompt(7)], 10, [0, 1])[1]) == 10
    assert engine.info.details["quantization"] == "dynamic int8"
    agreement = engine.info.details["int8_greedy_agreement_with_fp32"]
    assert isinstance(agreement, float)
    assert 0.8 < agreement < 1.0


def test_providers_that_are_missing_are_skipped_and_told(caplog: pytest.LogCaptureFixture) -> None:
    wanted = ("OpenVINOExecutionProvider", "CPUExecutionProvider")
    engine = OnnxEngine(resolve_model("qwen_chat"), settings(execution_providers=wanted), slots=1)

    assert engine.info.details["execution_providers"] == "CPUExecutionProvider"
    assert "OpenVINOExecutionProvider" in str(engine.info.details["skipped_providers"])
    assert "OpenVINOExecutionProvider" in caplog.text


def test_no_provider_left_is_an_error_that_names_the_key() -> None:
    with pytest.raises(EngineError, match=r"optimization\.onnx\.execution_providers"):
        OnnxEngine(resolve_model("qwen_chat"), settings(execution_providers=("OpenVINOExecutionProvider",)), slots=1)


def test_a_closed_engine_says_so() -> None:
    engine = OnnxEngine(resolve_model("qwen_chat"), settings(), slots=1)
    engine.close()
    engine.close()

    with pytest.raises(EngineError, match="closed"):
        engine.prefill([PrefillChunk(0, [500])])


def copied(name: str, target: Path) -> Path:
    source = resolve_model(name).path
    assert source is not None
    shutil.copytree(source, target)
    return target


def graphs(cache: Path) -> set[str]:
    root = cache / "onnx"
    return {path.name for path in root.iterdir() if path.suffix != ".lock"} if root.exists() else set()


def test_truncated_weights_end_in_a_reason_and_leave_no_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = copied("qwen_chat", tmp_path / "model")
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    monkeypatch.setenv("MUAI_CACHE_DIR", str(tmp_path / "cache"))

    with pytest.raises(EngineError, match="cannot load model from"):
        OnnxEngine(resolve_model("model", str(directory)), settings(), slots=1)

    assert graphs(tmp_path / "cache") == set()


def test_weights_that_lack_a_tensor_end_in_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import load_file, save_file

    directory = copied("qwen_chat", tmp_path / "model")
    tensors = load_file(directory / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setenv("MUAI_CACHE_DIR", str(tmp_path / "cache"))

    with pytest.raises(EngineError, match=r"lack 1 tensors .* model\.layers\.1\.mlp\.up_proj\.weight"):
        OnnxEngine(resolve_model("model", str(directory)), settings(), slots=1)

    assert graphs(tmp_path / "cache") == set()


def test_an_architecture_that_is_not_served_is_named(tmp_path: Path) -> None:
    directory = copied("qwen_chat", tmp_path / "model")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))

    with pytest.raises(EngineError, match=r"'mamba' are not served, only .*qwen2"):
        OnnxEngine(resolve_model("model", str(directory)), settings(), slots=1)


EXPORT = """
import os, sys
from pathlib import Path
from muai_lab.engines.onnx.graph_cache import graph_directory, is_intact
from muai_lab.engines.onnx.recipe import Recipe
from muai_lab.models.registry import ModelSource
source = ModelSource("qwen_chat", Path(sys.argv[1]), None, "local", None, False, "qwen2")
assert is_intact(graph_directory(source, Recipe("decoder", "fp32", "cpu")))
"""


def test_two_processes_that_export_at_once_end_with_one_whole_graph_and_say_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source: ModelSource = resolve_model("qwen_chat")
    monkeypatch.setenv("MUAI_CACHE_DIR", str(tmp_path))
    command = [sys.executable, "-c", EXPORT, str(source.path)]

    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)
    ]
    outputs = [process.communicate(timeout=200)[0] for process in processes]

    assert [process.returncode for process in processes] == [0, 0]
    assert outputs == ["", ""]
    assert len(graphs(tmp_path)) == 1
