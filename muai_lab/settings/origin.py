"""The origin of a value: the layer that gave it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

LayerName = Literal["default", "file", "environment", "group", "override"]
LAYERS: tuple[LayerName, ...] = get_args(LayerName)
"""The layers, lowest first."""


@dataclass(frozen=True, slots=True)
class Origin:
    """The origin of a value; `str(origin)` is its form for people.

    Attributes:
        layer: The layer that gave the value.
        where: `file:line`, the variable's name, the group choice (`batcher=latency`), `override`, or `default`.
    """

    layer: LayerName
    where: str

    def __str__(self) -> str:
        return self.where


DEFAULT = Origin("default", "default")
OVERRIDE = Origin("override", "override")


def gave_way(to: str) -> Origin:
    """Return the origin of a default that follows the key `to`, which was set."""
    return Origin("default", f"default, gives way to {to}")


@dataclass(frozen=True, slots=True)
class Given:
    """A value that one layer gives, not yet checked."""

    value: object
    origin: Origin


Layer = Mapping[str, Given]
"""The values of one layer, by the dotted path of a key or of an entry of an open mapping."""
