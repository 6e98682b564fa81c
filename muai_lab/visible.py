"""Times that a client can see: the limit below which tokens count as having arrived together."""

from __future__ import annotations

# No server decodes 50,000 tokens per second for one request. Tokens that arrive faster were held back on their way, so
# the time between them is that of the buffer, not of the server. Seconds.
TOGETHER_S_PER_TOKEN = 20e-6
