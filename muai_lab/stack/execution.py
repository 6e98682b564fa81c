"""Plans carried out on a step engine: the copies, releases, decode and prefill of one step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from muai_lab.engines.base import PrefillChunk, SlotFaults, StepEngine
from muai_lab.stack.caching import caches
from muai_lab.stack.plan import Plan
from muai_lab.stack.step import CopiedOut, StepOutcome


class StepRaised(Exception):
    """The engine raised while it carried out a plan that began at `began` (seconds); its error is the cause.

    computed: slots that the failing call computed; none if a copy or a release failed.
    """

    def __init__(self, plan: Plan, computed: Sequence[int], began: float, error: Exception) -> None:
        self.plan = plan
        self.computed = computed
        self.began = began
        self.error = error
        super().__init__(str(error))

    @property
    def in_release(self) -> bool:
        """True if a release failed: nothing was computed, and the plan has no copy that could have failed."""
        return not (self.computed or self.plan.copy_out or self.plan.copy_in)


class Execution:
    """Carries out plans on one engine.

    plan: the present or the last one. began: when the present step began, in seconds; None between steps. faults: by
    slot, the errors of the last step that belong to one slot.
    """

    def __init__(self, engine: StepEngine, clock: Callable[[], float]) -> None:
        self.plan = Plan()
        self.began: float | None = None
        self.faults: dict[int, Exception] = {}
        self._engine = engine
        self._copying = engine if caches(engine) else None
        self._clock = clock
        self._computed: Sequence[int] = ()

    @property
    def slots(self) -> tuple[int, ...]:
        """Slots that the present step computes."""
        return (*self.plan.decode, *(chunk.slot for chunk in self.plan.prefill))

    def carry_out(self, plan: Plan, copied_out: CopiedOut) -> StepOutcome:
        """Carry out a plan; see `muai_lab.stack.step.CarryOut`. Raises StepRaised for any error of the engine."""
        began = self._clock()
        self.plan, self.began, self.faults, self._computed = plan, began, {}, ()
        try:
            self._copy_and_release(plan, copied_out)
            tokens = self._compute(plan)
        except Exception as error:
            raise StepRaised(plan, self._computed, began, error) from error
        return tokens, began, self._clock()

    def end(self) -> None:
        """Record that the step is over, with all that followed from it."""
        self.began = None

    def _copy_and_release(self, plan: Plan, copied_out: CopiedOut) -> None:
        copying = self._copying
        if copying is not None:
            for out in plan.copy_out:
                begin, size = out.store.begin, out.store.block_tokens
                end = begin + len(out.store.blocks) * size
                copied_out(out, copying.copy_out(out.slot, begin, end, size))
        for slot in plan.release:
            self._engine.release(slot)
        if copying is not None:
            for copy in plan.copy_in:
                copying.copy_in(copy.slot, copy.payloads)

    def _compute(self, plan: Plan) -> dict[int, int]:
        tokens: dict[int, int] = {}
        # Decode first: sequences that join would only look on. Both results are handed over at the end of the step.
        if plan.decode:
            self._computed = plan.decode
            tokens.update(self._decode(plan.decode))
        if plan.prefill:
            self._computed = [chunk.slot for chunk in plan.prefill]
            tokens.update(self._prefill(plan.prefill))
        return tokens

    def _decode(self, slots: Sequence[int]) -> Mapping[int, int]:
        """Return tokens by slot; slots that failed are added to `faults`."""
        try:
            return dict(zip(slots, self._engine.decode(slots), strict=True))
        except SlotFaults as partly:
            self.faults.update(partly.faults)
            return partly.tokens

    def _prefill(self, chunks: Sequence[PrefillChunk]) -> Mapping[int, int]:
        """Return the same for prompts; a prompt that is not complete has no token."""
        try:
            tokens = self._engine.prefill(chunks)
        except SlotFaults as partly:
            self.faults.update(partly.faults)
            return partly.tokens
        paired = zip(chunks, tokens, strict=True)
        return {chunk.slot: token for chunk, token in paired if token is not None}
