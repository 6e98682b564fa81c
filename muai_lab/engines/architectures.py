"""The architectures that our own steps over slots serve."""

from __future__ import annotations

ENCODER_DECODERS = ("t5", "mt5")
"""Model types; any other encoder-decoder needs steps of its own."""


def encoder_decoder_refusal(model_type: str) -> str | None:
    """Return why encoder-decoders of this type are not served; None if they are."""
    if model_type in ENCODER_DECODERS:
        return None
    return f"encoder-decoders of type {model_type!r} are not served, only {', '.join(ENCODER_DECODERS)} are"
