"""Key/value memory: whatever joins, grows, moves and leaves, each slot finds its own positions again."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from muai_lab.engines.pytorch import slots
from muai_lab.engines.pytorch.slots import KVRows, KVShape, KVSlots

CPU = torch.device("cpu")
LAYERS = [KVShape(heads=2, key_dim=3, value_dim=1), KVShape(heads=1, key_dim=2, value_dim=2)]
SLOTS = 5
LONGEST = 700


def rows(max_len: int = 300, slots: int = SLOTS) -> KVRows:
    return KVRows(LAYERS, slots=slots, max_len=max_len, dtype=torch.float32, device=CPU)


class SlotsMachine(RuleBasedStateMachine):
    """Slots are filled with numbers of their own; a plain dict of lists says what must be there."""

    def __init__(self) -> None:
        super().__init__()
        self.kv = KVSlots(LAYERS, slots=SLOTS, max_len=LONGEST, dtype=torch.float32, device=CPU)
        self.held: dict[int, list[float]] = {}
        self.mark = 0

    @rule(slot=st.integers(0, SLOTS - 1), count=st.integers(1, 300))
    def append(self, slot: int, count: int) -> None:
        before = self.held.get(slot, [])
        count = min(count, LONGEST - len(before))
        self.kv.fit(slot, len(before) + count)
        group, row = self.kv.place(slot)
        for tensor in (*group.keys, *group.values):
            for at in range(count):
                tensor[row, :, len(before) + at] = self.mark + at
        self.held[slot] = before + [float(self.mark + at) for at in range(count)]
        self.kv.set_length(slot, len(self.held[slot]))
        self.mark += count

    @precondition(lambda self: self.held)
    @rule(pick=st.integers(0, SLOTS - 1))
    def release(self, pick: int) -> None:
        slot = sorted(self.held)[pick % len(self.held)]
        self.kv.release(slot)
        del self.held[slot]

    @invariant()
    def everything_is_where_it_was_put(self) -> None:
        assert set(self.kv.slots()) == set(self.held)
        for slot, numbers in self.held.items():
            assert self.kv.length(slot) == len(numbers)
            group, row = self.kv.place(slot)
            for tensor in (*group.keys, *group.values):
                found = tensor[row, :, : len(numbers)]
                assert torch.equal(found, torch.tensor(numbers).view(1, -1, 1).expand_as(found))

    @invariant()
    def groups_are_dense_and_sorted_by_length(self) -> None:
        groups = self.kv.groups()
        assert sorted(slot for group in groups for slot in group.slots) == sorted(self.held)
        assert [group.max_len for group in groups] == sorted(group.max_len for group in groups)
        for group in groups:
            assert all(length <= group.max_len <= group.positions for length in group.lengths)


SlotsMachine.TestCase.settings = settings(max_examples=15, stateful_step_count=15, deadline=None)
TestSlotsUnderAnyTraffic = SlotsMachine.TestCase


def test_one_long_sequence_does_not_widen_the_short_ones() -> None:
    kv = KVSlots(LAYERS, slots=32, max_len=8192, dtype=torch.float32, device=CPU)
    for slot in range(31):
        kv.fit(slot, 100)
    before = kv.bytes

    kv.fit(31, 8000)

    one_position = sum(layer.heads * (layer.key_dim + layer.value_dim) * 4 for layer in LAYERS)
    assert kv.bytes - before == 8192 * one_position


def test_a_sequence_cannot_be_longer_than_the_model_allows() -> None:
    kv = KVSlots(LAYERS, slots=2, max_len=300, dtype=torch.float32, device=CPU)
    kv.fit(0, 300)

    with pytest.raises(ValueError, match="slot 0: 301 positions asked, and a sequence has at most 300"):
        kv.fit(0, 301)


def test_a_short_context_is_one_group() -> None:
    kv = KVSlots(LAYERS, slots=2, max_len=64, dtype=torch.float32, device=CPU)
    kv.fit(0, 64)

    assert [group.max_len for group in kv.groups()] == [64]


def test_the_last_row_moves_into_a_freed_one() -> None:
    memory = rows()
    for slot in (10, 11, 12):
        memory.open(slot)
    memory.reserve(4)
    memory.lengths[2] = 2
    memory.keys[0][2, :, :2] = 7.0

    memory.release(10)

    assert memory.slots == [12, 11]
    assert memory.lengths == [2, 0]
    assert memory.keys[0][0, :, :2].eq(7.0).all()


def test_releasing_an_unknown_slot_is_harmless() -> None:
    memory = rows()
    memory.release(3)

    assert memory.rows == 0


def test_more_sequences_than_slots_are_refused() -> None:
    memory = rows(slots=1)
    memory.open(0)

    with pytest.raises(ValueError, match="slot 1 is one more than the 1 there are"):
        memory.open(1)


def test_new_room_is_zero() -> None:
    memory = rows()
    memory.open(0)
    memory.reserve(300)

    assert all(not tensor.any() for tensor in (*memory.keys, *memory.values))


def test_memory_of_a_crowd_is_given_back_when_it_has_left() -> None:
    memory = rows(max_len=2048, slots=64)
    for slot in range(64):
        memory.open(slot)
        memory.reserve(1)
    crowded = memory.bytes

    for slot in range(64):
        memory.release(slot)

    assert crowded > 0
    assert memory.bytes == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keys_and_values_have_the_dtype_of_the_model(dtype: torch.dtype) -> None:
    memory = KVRows(LAYERS, slots=1, max_len=8, dtype=dtype, device=CPU)
    memory.open(0)
    memory.reserve(8)

    assert {tensor.dtype for tensor in (*memory.keys, *memory.values)} == {dtype}
    assert memory.keys[0].shape == (1, 2, 8, 3)
    assert memory.values[0].shape == (1, 2, 8, 1)


def test_a_growth_for_which_a_gpu_has_no_room_leaves_everything_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    kv = KVSlots(LAYERS, slots=64, max_len=LONGEST, dtype=torch.float32, device=CPU)
    kv.fit(0, 100)
    kv.set_length(0, 100)
    group, row = kv.place(0)
    group.keys[0][row, :, :100] = 7.0
    monkeypatch.setattr(slots, "_free_bytes", lambda _device: 1024.0)

    for _ in range(3):
        with pytest.raises(torch.OutOfMemoryError, match=r"lower optimization\.batcher\.max_batch_size"):
            kv.fit(0, 500)
        with pytest.raises(torch.OutOfMemoryError):
            kv.fit(1, 500)

    assert (kv.slots(), kv.length(0)) == ([0], 100)
    assert [group.slots for group in kv.groups()] == [[0]]
    group, row = kv.place(0)
    assert group.keys[0][row, :, :100].eq(7.0).all()
    monkeypatch.undo()
    kv.fit(0, 500)
    group, row = kv.place(0)
    assert group.keys[0][row, :, :100].eq(7.0).all()


def test_room_that_is_there_already_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    kv = KVSlots(LAYERS, slots=64, max_len=LONGEST, dtype=torch.float32, device=CPU)
    kv.fit(0, 100)
    monkeypatch.setattr(slots, "_free_bytes", lambda _device: 0.0)

    kv.fit(1, 100)

    assert kv.slots() == [0, 1]
