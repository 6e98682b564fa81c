"""The place of each request of a batcher: in the queue, or in a slot."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence

from muai_lab.stack.sequence import SequenceState
from muai_lab.stack.waiting import WaitingQueue


class Places:
    """Requests by name and by slot.

    Invariant: free slots + running sequences = slots. waiting: without a slot. running: by name, in the order of their
    admission; each is in `prefilling` (its prompt is not complete) or in `decoding`. free: a heap, so that low slots
    are reused first and rows stay dense. released: slots that the engine must release next.
    """

    def __init__(self, slots: int) -> None:
        self.waiting: WaitingQueue[SequenceState] = WaitingQueue()
        self.running: dict[str, SequenceState] = {}
        self.by_slot: dict[int, SequenceState] = {}
        self.prefilling: dict[int, SequenceState] = {}
        self.decoding: dict[int, SequenceState] = {}
        self.free = list(range(slots))
        self.released: list[int] = []

    def find(self, name: str) -> SequenceState | None:
        """Return the request of that name, None once it has ended."""
        return self.waiting.get(name) or self.running.get(name)

    def deadline_of(self, name: str) -> float | None:
        """Return a deadline in monotonic seconds; None for a request that has none, or that has ended."""
        sequence = self.find(name)
        return None if sequence is None else sequence.deadline

    def names(self, slots: Iterable[int]) -> list[str]:
        """Return the names of the requests in these slots, without the free ones."""
        return [self.by_slot[slot].request.request_id for slot in slots if slot in self.by_slot]

    def enter(self, sequence: SequenceState) -> int:
        """Give a waiting sequence a slot, and return it."""
        name = sequence.request.request_id
        self.waiting.pop(name)
        slot = heapq.heappop(self.free)
        sequence.slot = slot
        self.running[name] = self.by_slot[slot] = self.prefilling[slot] = sequence
        return slot

    def leave(self, sequence: SequenceState) -> None:
        """Free the slot of a sequence; without a slot nothing happens."""
        if sequence.slot is not None:
            del self.running[sequence.request.request_id]
            del self.by_slot[sequence.slot]
            if self.decoding.pop(sequence.slot, None) is None:
                del self.prefilling[sequence.slot]
            heapq.heappush(self.free, sequence.slot)
            self.released.append(sequence.slot)
            sequence.slot = None

    def withdraw(self, name: str) -> SequenceState | None:
        """Remove a request from the queue or its slot, and return it; None if it has ended."""
        sequence = self.waiting.pop(name) or self.running.get(name)
        if sequence is not None:
            self.leave(sequence)
        return sequence

    def put_back(self, sequences: Sequence[SequenceState], *, in_prompt: bool) -> None:
        """Move running sequences back to the queue; in their next slots everything is computed again.

        in_prompt: see `SequenceState.begin_again`.
        """
        for sequence in sequences:
            self.leave(sequence)
            sequence.begin_again(in_prompt=in_prompt)
        self.waiting.put_back((sequence.request.request_id, sequence) for sequence in sequences)

    def take_released(self) -> tuple[int, ...]:
        """Return the slots that the engine must release now."""
        released = tuple(self.released)
        self.released.clear()
        return released
