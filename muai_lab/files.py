"""Files that a reader finds whole: after a kill at any moment the old content is there, or the new one."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Give the path of a draft beside `target`, which takes its place when the block ends without an error.

    A link keeps pointing where it points, a file its permissions. What is no regular file (a pipe, `/dev/stdout`)
    cannot be replaced: it is the draft itself. Raises OSError when the draft cannot be written or moved.
    """
    place = target.resolve() if target.is_symlink() else target
    if place.exists() and not place.is_file():
        yield place
        return
    draft = place.with_name(f".{place.name}-{secrets.token_hex(4)}")
    try:
        yield draft
        if place.exists():
            shutil.copymode(place, draft)
        _to_disk(draft)
        os.replace(draft, place)
    except BaseException:
        with suppress(OSError):  # the directory itself may be gone; the first error is the one to report
            draft.unlink(missing_ok=True)
        raise


def write_whole(target: Path, content: str | bytes) -> None:
    """Write a file so that a reader sees all of it or none; a text is written as UTF-8. Raises OSError."""
    with replacing(target) as draft:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)


def _to_disk(path: Path) -> None:
    """Wait until the content is on the disk: a name that outlives a power cut must not lead to an empty file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
