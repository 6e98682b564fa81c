"""Where each request of a scheduler is: in the queue, or in a slot."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence

from muai_lab.stack.sequence import SequenceState
from muai_lab.stack.waiting import WaitingQueue


class Places:
    """Requests by name and by slot.

    Invariant: free slots + running sequences = slots. waiting: without a slot. running: by name, in the order of their
    admission; each is in `prefilling` (its prompt is not complete) or in `decoding`. free: a heap, so that low slots
    are used again first and rows stay dense. released: slots that the engine has not been told to release yet.
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
        """The request of that name, None once it has ended."""
        return self.waiting.get(name) or self.running.get(name)

    def deadline_of(self, name: str) -> float | None:
        """Monotonic seconds; None for a request that has none, or that has ended."""
        sequence = self.find(name)
        return None if sequence is None else sequence.deadline

    def names(self, slots: Iterable[int]) -> list[str]:
        """The requests in these slots; free ones are left out."""
        return [self.by_slot[slot].request.request_id for slot in slots if slot in self.by_slot]

    def enter(self, sequence: SequenceState) -> int:
        """Give a waiting sequence a slot."""
        name = sequence.request.request_id
        self.waiting.pop(name)
        slot = heapq.heappop(self.free)
        sequence.slot = slot
        self.running[name] = self.by_slot[slot] = self.prefilling[slot] = sequence
        return slot

    def leave(self, sequence: SequenceState) -> None:
        """Free the slot of a sequence; one that has none is left alone."""
        if sequence.slot is not None:
            del self.running[sequence.request.request_id]
            del self.by_slot[sequence.slot]
            if self.decoding.pop(sequence.slot, None) is None:
                del self.prefilling[sequence.slot]
            heapq.heappush(self.free, sequence.slot)
            self.released.append(sequence.slot)
            sequence.slot = None

    def withdraw(self, name: str) -> SequenceState | None:
        """Take a request out, wherever it is; None if it has ended."""
        sequence = self.waiting.pop(name) or self.running.get(name)
        if sequence is not None:
            self.leave(sequence)
        return sequence

    def put_back(self, sequences: Sequence[SequenceState], *, in_prompt: bool) -> None:
        """Have running sequences wait for a slot again, in which all that they had is computed anew.

        in_prompt: see `SequenceState.begin_again`.
        """
        for sequence in sequences:
            self.leave(sequence)
            sequence.begin_again(in_prompt=in_prompt)
        self.waiting.put_back((sequence.request.request_id, sequence) for sequence in sequences)

    def take_released(self) -> tuple[int, ...]:
        """Slots that the engine is to release now."""
        released = tuple(self.released)
        self.released.clear()
        return released
