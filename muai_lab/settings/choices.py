"""Kinds of choices in force, chosen or implied, and the keys that exist under them."""

from __future__ import annotations

from collections.abc import Mapping, Set

from muai_lab.settings.catalogue import Branch, Key, VariantBranch, catalogue, find_key, sections
from muai_lab.settings.origin import Given, Layer, gave_way


def kind_in(choice: VariantBranch, merged: Mapping[str, Given]) -> object:
    """Return the kind of a choice that is in force."""
    given = merged.get(f"{choice.path}.{choice.discriminator}")
    return choice.default_kind if given is None else given.value


def node_at(path: str, merged: Mapping[str, Given]) -> tuple[Key | Branch | VariantBranch | None, VariantBranch | None]:
    """Return the node at a dotted path under the kinds in force, and the innermost choice on the way to it.

    The node is None if the kind in force has no such child. For an entry of an open mapping, it is the mapping. A kind
    that does not exist is a problem of its own; here the first kind of its choice replaces it.
    """
    node: Key | Branch | VariantBranch = catalogue()
    innermost: VariantBranch | None = None
    for name in path.split("."):
        if isinstance(node, Key):
            return (node, innermost) if node.kind in ("mapping", "sections") else (None, innermost)
        if isinstance(node, VariantBranch):
            innermost = node
            kind = str(kind_in(node, merged))
            node = node.kinds.get(kind, next(iter(node.kinds.values())))
        child = node.children.get(name)
        if child is None:
            return None, innermost
        node = child
    return node, innermost


def applicable_key(path: str, merged: Mapping[str, Given]) -> tuple[Key | None, VariantBranch | None]:
    """Return the key at `path` under the kinds in force, or None with the choice whose kind has no such key."""
    node, choice = node_at(path, merged)
    if isinstance(node, Key):
        return node, choice
    if choice is not None and kind_in(choice, merged) not in choice.kinds:
        return find_key(path), choice
    return None, choice


def implied_kinds(merged: Layer) -> dict[str, Given]:
    """Return the kinds of choices (`workload.kind`) that follow from keys that only one kind has (`workload.groups`).

    A kind that was set stays as it is, even if a key does not fit it.

    Args:
        merged: The values of all layers above the defaults.
    """
    implied: dict[str, Given] = {}
    for path, section in sections().items():  # an outer choice comes before those inside it
        known = {**merged, **implied}
        choice = node_at(path, known)[0] if isinstance(section, VariantBranch) else None
        if isinstance(choice, VariantBranch) and f"{path}.{choice.discriminator}" not in known:
            names = {name.removeprefix(f"{path}.").partition(".")[0] for name in merged if name.startswith(f"{path}.")}
            foreign = sorted(names - choice.kinds[choice.default_kind].children.keys())
            fitting = kinds_with(choice, names)
            if foreign and len(fitting) == 1:
                implied[f"{path}.{choice.discriminator}"] = Given(fitting[0], gave_way(f"{path}.{foreign[0]}"))
    return implied


def kinds_with(choice: VariantBranch, names: Set[str]) -> list[str]:
    """Return the kinds of the choice that have all of these keys."""
    return [kind for kind, group in choice.kinds.items() if names <= group.children.keys()]
