"""Whether an engine can serve here, said cheaply and in words that a person can act on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Availability:
    """What an engine says about this machine and these settings, without loading a model.

    reason: why it cannot serve and what to do about it (what to install, which key to change); None when it can.
    version: of the engine's library, None when it is not installed. device: where it would run. dtypes: those that the
    device can run.
    """

    reason: str | None
    version: str | None = None
    device: str | None = None
    dtypes: tuple[str, ...] = ()

    @property
    def available(self) -> bool:
        """True when nothing stands in the way."""
        return self.reason is None

    @property
    def on_gpu(self) -> bool:
        """True when it would run on a GPU; `device` is then the GPU's name, or only `cuda` or `rocm`."""
        return self.device not in (None, "cpu")
