"""The nearest valid name to a mistyped one. Imports no heavy library: the command line's first error may need it."""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches


def nearest(name: str, valid: Collection[str], *, limit: int = 3) -> list[str]:
    """Return at most `limit` valid names that resemble `name`, the most similar first, regardless of case."""
    by_lower = {candidate.lower(): candidate for candidate in valid}
    return [by_lower[match] for match in get_close_matches(name.lower(), by_lower, n=limit, cutoff=0.6)]


def nearest_path(path: str, valid: Collection[str], *, limit: int = 3) -> list[str]:
    """Return valid dotted paths that resemble `path`: with a missing prefix first, then siblings, then any other.

    `batcher.max_batch_size` finds `optimization.batcher.max_batch_size`; `optimization.batcher.max_size` finds
    `optimization.batcher.max_batch_size` before keys of other sections.
    """
    found = [candidate for candidate in valid if candidate.endswith(f".{path}")]
    section, _, name = path.rpartition(".")
    siblings = {
        candidate.rpartition(".")[2]: candidate for candidate in valid if candidate.rpartition(".")[0] == section
    }
    found += [siblings[match] for match in nearest(name, siblings, limit=limit)]
    found += nearest(path, valid, limit=limit)
    same_name = {candidate: candidate.rpartition(".")[2] for candidate in valid}
    found += [candidate for candidate, last in same_name.items() if last == name]
    return list(dict.fromkeys(found))[:limit]


def did_you_mean(matches: list[str]) -> str:
    """Return `; did you mean a or b?`, or an empty text without matches."""
    return f"; did you mean {' or '.join(matches)}?" if matches else ""
