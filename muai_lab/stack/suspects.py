"""The search for the request that causes failures, after a step that raised or an engine that died."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from muai_lab.stack.places import Places
from muai_lab.stack.sequence import SequenceState
from muai_lab.stack.trial import Trial

PROOF_TOKENS = 2  # from a prefill and a decode step, after which a suspect is cleared
_MOST_UNEXPLAINED = 3
UNEXPLAINED = f"{_MOST_UNEXPLAINED} engine steps failed that computed this request, and none with it alone"


class Suspects:
    """The requests under test; the others pause meanwhile. Most of the time there is no trial.

    in_prompt: see `SequenceState.begin_again`. trial: None while no step has failed.
    """

    def __init__(self, places: Places, *, in_prompt: bool) -> None:
        self._places = places
        self._in_prompt = in_prompt
        self.trial: Trial | None = None

    def accuse(self, name: str) -> None:
        """Test a request by itself: an engine died while it computed the request."""
        self._begun().accuse(name)

    def step_failed(self, computed: Sequence[str]) -> str | None:
        """Put all running requests back, to test the suspects first. Returns the culprit once it is known.

        computed: requests that the step computed.
        """
        self._places.put_back(list(self._places.running.values()), in_prompt=self._in_prompt)
        self._places.released.clear()  # the engine has released all slots already
        return self._begun().raised(computed) if computed else None

    def under_test(self) -> tuple[str, ...]:
        """Return the running requests of the group under test."""
        group = self.trial.group if self.trial is not None else ()
        return tuple(name for name in group if name in self._places.running)

    def tested(self, slots: Iterable[int]) -> tuple[int, ...]:
        """Return those of the slots whose requests are under test."""
        group, by_slot = self.under_test(), self._places.by_slot
        return tuple(slot for slot in slots if by_slot[slot].request.request_id in group)

    def next(self) -> SequenceState | None:
        """Return the request under test that gets a slot next; None if there is none, or no slot."""
        return next(self._waiting(), None) if self._places.free else None

    def advance(self, *, pausing: bool) -> list[str]:
        """Continue with the next group once the present one has run well, and end the trial after the last one.

        pausing: requests that are not under test keep their slots, and can be put back to make room.

        Returns the requests to fail: they were in `_MOST_UNEXPLAINED` failed steps, and none of the requests in these
        steps failed when it was tested by itself.
        """
        trial = self.trial
        if trial is None:
            return []
        while trial.group and all(self._has_run(name) for name in trial.group):
            trial.passed()
        if trial.group:
            if pausing:
                self._make_room()
            return []
        self.trial = None
        if trial.convicted:
            return []
        found = [self._places.find(name) for name in trial.suspects]
        return [one.request.request_id for one in found if one is not None and _once_more(one) == _MOST_UNEXPLAINED]

    def _make_room(self) -> None:
        """Take the slot of a request that pauses, if the group under test waits for one."""
        places = self._places
        if not places.free and any(self._waiting()):
            still = [sequence for name, sequence in places.running.items() if name not in self.under_test()]
            places.put_back(still[-1:], in_prompt=self._in_prompt)

    def acquit_all(self) -> None:
        """End the trial: the engine is dead, or the stack closes."""
        self.trial = None

    def _begun(self) -> Trial:
        if self.trial is None:
            self.trial = Trial()
        return self.trial

    def _waiting(self) -> Iterator[SequenceState]:
        group = self.trial.group if self.trial is not None else ()
        found = (self._places.waiting.get(name) for name in group)
        return (sequence for sequence in found if sequence is not None)

    def _has_run(self, name: str) -> bool:
        """True if a suspect has made its first steps without a failure, or has ended."""
        if name in self._places.waiting:
            return False
        sequence = self._places.running.get(name)
        return sequence is None or len(sequence.output) - sequence.kept >= PROOF_TOKENS


def _once_more(sequence: SequenceState) -> int:
    """Count another failed step without a culprit; returns how many it was in. The death of an engine is none."""
    if sequence.reruns:
        sequence.unexplained += 1
    return sequence.unexplained
