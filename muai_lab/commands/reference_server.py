"""`reference-server`: a server of known latency, the test piece for load generators."""

from __future__ import annotations

from collections.abc import Sequence

SUMMARY = "start a server of known latency, to test load generators with"


def main(argv: Sequence[str]) -> int:
    """Serve until a signal comes; returns the exit status."""
    from muai_lab.load.reference_server import main as serve

    return serve(argv)
