"""The result of a cheap check if an engine can serve here, with a reason that says what to do."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata


@dataclass(frozen=True, slots=True)
class Availability:
    """An engine on this machine with these settings, checked without loading a model.

    reason: why it cannot serve and what to do about it (what to install, which key to change); None if it can.
    version: of the engine's library, None if it is not installed. device: where it would run. dtypes: those that the
    device supports.
    """

    reason: str | None
    version: str | None = None
    device: str | None = None
    dtypes: tuple[str, ...] = ()

    @property
    def available(self) -> bool:
        """True if the engine can serve."""
        return self.reason is None

    @property
    def on_gpu(self) -> bool:
        """True if it would run on a GPU; `device` is then the GPU's name, or only `cuda` or `rocm`."""
        return self.device not in (None, "cpu")


def installed_version(*distributions: str) -> str | None:
    """Return the version of the first of these distributions that is installed; None if none is."""
    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None
