"""Room for requests: the slots that run and the bounded queue in front of them."""

from __future__ import annotations

from muai_lab.errors import InvalidRequest, Overloaded

# What a rejected client is asked to wait. A constant, since the queue's own pace is not known before it moves.
RETRY_AFTER_S = 1.0


def check_room(sequences: int, open_requests: int, slots: int, capacity: int | None) -> None:
    """Refuse sequences of one request that cannot be queued together.

    open_requests: sequences that run or wait. capacity: most that may wait, None for no bound.

    Raises:
        InvalidRequest: they never fit, however empty the queue is.
        Overloaded: they do not fit now.
    """
    # Counted from the slots, not by who waits: right after a burst, requests wait only for the engine's thread to look
    # into its inbox.
    if capacity is None or open_requests - slots + sequences <= capacity:
        return
    if sequences > slots + capacity:
        raise InvalidRequest(
            f"{sequences} sequences are asked for at once, and {slots + capacity} fit: {slots} run and {capacity} "
            "wait; send fewer prompts or a lower n, or raise monitoring.server.queue_capacity",
            param="n",
        )
    raise Overloaded(f"the queue is full ({capacity} requests wait)", retry_after_s=RETRY_AFTER_S)
