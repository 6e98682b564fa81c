"""The pace of Python's cyclic garbage collector: rare while a program loads, frequent and brief while it serves.

A collection looks for objects that only refer to each other. The pace belongs to the whole process.
"""

from __future__ import annotations

import gc


def collect_rarely() -> None:
    """Collect after 50,000 new objects, instead of after 700.

    Nearly all objects that an import makes stay, and CPython looks through them again and again meanwhile: with its own
    pace that is two fifths of the time in which torch and transformers are imported.
    """
    gc.set_threshold(50_000, 20, 10)


def collect_briefly() -> None:
    """Collect after 700 new objects, so that a collection of young objects lasts microseconds."""
    gc.set_threshold(700, 10, 10)
