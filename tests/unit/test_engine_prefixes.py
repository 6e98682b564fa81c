"""Beginnings of sequences, copied out of one slot and into another."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from muai_lab.engines.base import PrefillChunk
from muai_lab.engines.prefixes import prefix_refusal
from muai_lab.engines.pytorch import kv_blocks
from muai_lab.engines.pytorch.engine import PyTorchEngine
from muai_lab.engines.pytorch.slots import KVRows, KVShape
from muai_lab.models.registry import ModelSource
from tests.unit.tiny_models import SERVED, built_once, load, prompt

BLOCK = 8

Model = Callable[[str], ModelSource]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return built_once(tmp_path_factory.mktemp)


def run(engine: PyTorchEngine, text: list[int], count: int, slot: int = 0, start: int = 0) -> list[int | None]:
    """`count` tokens of one sequence, whose first `start` tokens are in the slot."""
    tokens = engine.prefill([PrefillChunk(slot, text[start:], start=start)])
    while len(tokens) < count:
        tokens += engine.decode([slot])
    return tokens


@pytest.mark.parametrize("name", SERVED)
def test_a_prompt_that_begins_with_a_copy_gives_the_tokens_of_one_that_is_computed(name: str, model: Model) -> None:
    engine = load(model(name))
    first, second = prompt(45), [*prompt(45)[:40], *prompt(20, 1)]
    expected = run(engine, second, 6, slot=3)
    engine.release(3)
    run(engine, prompt(30, 2), 1, slot=2)  # company, so that rows differ from slots
    run(engine, first, 4, slot=0)
    blocks = engine.copy_out(0, 0, 40, BLOCK)
    engine.release(0)
    run(engine, prompt(45, 3), 2, slot=0)  # what overwrites the first sequence's row changes no copy

    engine.copy_in(1, blocks)
    tokens = run(engine, second, 6, slot=1, start=40)

    assert tokens == expected


def test_a_decoded_sequence_can_be_the_beginning_of_the_next_turn(model: Model) -> None:
    engine = load(model("qwen2"))
    turn = prompt(20)
    output = run(engine, turn, 30)
    said = [*turn, *output]
    blocks = [*engine.copy_out(0, 0, 16, BLOCK), *engine.copy_out(0, 16, 48, BLOCK)]
    engine.release(0)
    following = [*said, *prompt(9, 1)]
    expected = run(engine, following, 5)
    engine.release(0)

    engine.copy_in(1, blocks)

    assert run(engine, following, 5, slot=1, start=48) == expected


def test_a_slot_that_holds_only_a_copy_is_left_alone_while_others_decode(model: Model) -> None:
    engine = load(model("qwen2"))
    expected = run(engine, prompt(21), 4)
    blocks = engine.copy_out(0, 0, 16, BLOCK)
    engine.release(0)
    run(engine, prompt(33, 1), 1, slot=1)

    engine.copy_in(0, blocks)
    for _ in range(3):
        engine.decode([1])

    assert run(engine, prompt(21), 4, start=16) == expected


def test_copies_are_as_large_as_announced_and_share_no_memory(model: Model) -> None:
    engine = load(model("gemma3_mixed_windows"))
    run(engine, prompt(32), 1)

    blocks = engine.copy_out(0, 0, 32, BLOCK)

    assert len(blocks) == 4
    assert all(block.nbytes == BLOCK * engine.position_bytes() > 0 for block in blocks)
    tensors = [tensor for block in blocks for tensor in block.tensors]  # type: ignore[attr-defined]
    memories = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    assert len(memories) == len(tensors)
    assert sum(tensor.untyped_storage().nbytes() for tensor in tensors) == sum(block.nbytes for block in blocks)


def test_layers_of_different_shapes_come_back_each_to_its_own() -> None:
    layers = [KVShape(2, 4, 4), KVShape(1, 4, 6), KVShape(2, 4, 4)]
    rows = KVRows(layers, slots=2, max_len=16, dtype=torch.float32, device=torch.device("cpu"))
    rows.open(0)
    rows.reserve(16)
    rows.lengths[0] = 6
    for memory in (*rows.keys, *rows.values):
        memory[0] = torch.randn(memory.shape[1:])

    blocks = kv_blocks.copy_out(rows, 0, 0, 6, 2)
    other = rows.open(1)
    rows.reserve(6)
    kv_blocks.copy_in(rows, other, blocks)

    assert blocks[0].nbytes == 2 * rows.position_bytes
    assert rows.lengths[other] == 6
    for memory in (*rows.keys, *rows.values):
        assert torch.equal(memory[other, :, :6], memory[0, :, :6])


def test_long_prefixes_are_copied_in_several_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_blocks, "_PASS_POSITIONS", 4)
    test_layers_of_different_shapes_come_back_each_to_its_own()


@pytest.mark.parametrize(("begin", "end"), [(0, 7), (0, 40), (8, 0)], ids=["no-whole-block", "not-there", "backwards"])
def test_what_a_slot_does_not_hold_is_not_copied(model: Model, begin: int, end: int) -> None:
    engine = load(model("qwen2"))
    run(engine, prompt(20), 1)

    with pytest.raises(ValueError, match=f"positions {begin} to {end}"):
        engine.copy_out(0, begin, end, BLOCK)


def test_an_encoder_decoder_says_why_it_has_no_prefixes(model: Model) -> None:
    engine = load(model("t5"))

    assert "an encoder reads its prompt whole" in str(engine.prefix_refusal())
    assert engine.position_bytes() == 0
    with pytest.raises(NotImplementedError, match="an encoder"):
        engine.copy_out(0, 0, 8, BLOCK)


@pytest.mark.parametrize(
    ("changed", "refused"),
    [
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, True),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, True),
        ({"rope_parameters": {"full_attention": {"rope_type": "dynamic"}, "sliding_attention": {}}}, True),
        ({"text_config": {"rope_scaling": {"rope_type": "longrope"}}}, True),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, False),
        ({"rope_scaling": None, "quantization": {"type": "dynamic"}}, False),
    ],
    ids=["dynamic", "longrope", "a-kind-of-layer", "nested", "yarn", "not-rope"],
)
def test_positions_that_depend_on_the_length_cannot_be_reused(
    model: Model, tmp_path: Path, changed: dict[str, object], refused: bool
) -> None:
    source = model("llama_tied")
    assert source.path is not None
    config = json.loads((source.path / "config.json").read_text()) | changed
    (tmp_path / "config.json").write_text(json.dumps(config))

    reason = prefix_refusal(ModelSource("changed", tmp_path, None, "local", None, False, "llama"))

    assert (reason is not None) is refused
