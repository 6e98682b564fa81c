"""Room for requests: the slots that run and the bounded queue in front of them."""

from __future__ import annotations

from muai_lab.errors import InvalidRequest, Overloaded

# Seconds after which a rejected client may try again. A constant: the pace of the queue is not known before it moves.
RETRY_AFTER_S = 1.0


def check_room(sequences: int, open_requests: int, slots: int, capacity: int | None) -> None:
    """Refuse sequences of one request that cannot be queued together.

    Args:
        sequences: Sequences of the request.
        open_requests: Sequences that run or wait.
        slots: Slots of the engine.
        capacity: Most sequences that may wait, None for no bound.

    Raises:
        InvalidRequest: They never fit, however empty the queue is.
        Overloaded: They do not fit now.
    """
    # Counted from the slots, not from the waiting requests: right after a burst, requests wait only until the engine's
    # thread reads its inbox.
    if capacity is None or open_requests - slots + sequences <= capacity:
        return
    if sequences > slots + capacity:
        raise InvalidRequest(
            f"{sequences} sequences are asked for at once, and {slots + capacity} fit: {slots} run and {capacity} "
            "wait; send fewer prompts or a lower n, or raise monitoring.server.queue_capacity",
            param="n",
        )
    raise Overloaded(f"the queue is full ({capacity} requests wait)", retry_after_s=RETRY_AFTER_S)
