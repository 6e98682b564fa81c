"""Times that a client can see: when tokens have arrived together, and how much of a time may be the client's own."""

from __future__ import annotations

# No server decodes 50,000 tokens per second for one request. Tokens that arrive faster were held back on their way, so
# the time between them is that of the buffer, not of the server. Seconds.
TOGETHER_S_PER_TOKEN = 20e-6

# A figure is marked when the client's own delays can explain more of it than this share or time, whichever is larger.
TOLERATED_SHARE = 0.05
TOLERATED_S = 0.001


def tolerated(figure_s: float, floor_s: float = TOLERATED_S) -> float:
    """Seconds of a figure that may be the client's own before the figure is marked."""
    return max(TOLERATED_SHARE * figure_s, floor_s)
