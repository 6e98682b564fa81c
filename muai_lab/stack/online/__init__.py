"""The online tuner: pure decisions on what the stack's events showed, applied and remembered at the edge."""
