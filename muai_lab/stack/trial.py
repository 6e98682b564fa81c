"""The binary search for the request that makes an engine's step fail.

After a step that raised, the requests that it computed are suspects. They run group by group, and nothing else runs
meanwhile. A group whose step raises again is halved, until one request is left: the culprit. A search over N suspects
with one culprit takes about 2 log2 N groups, of two steps each.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence


class Trial:
    """The suspects of failed steps, in groups; the first group is under test. Requests are known by their names.

    suspects: all requests that were ever accused. convicted: True once a culprit is found.
    """

    def __init__(self) -> None:
        self.suspects: set[str] = set()
        self.convicted = False
        self._groups: deque[tuple[str, ...]] = deque()

    @property
    def group(self) -> tuple[str, ...]:
        """The requests under test; empty once the trial is over."""
        return self._groups[0] if self._groups else ()

    def accuse(self, name: str) -> None:
        """Test a request by itself, after the present groups: an engine died while it computed the request."""
        self.suspects.add(name)
        self._groups.append((name,))

    def passed(self) -> None:
        """Remove the group under test, which has run well."""
        self._groups.popleft()

    def raised(self, computed: Sequence[str]) -> str | None:
        """Take in that a step raised while it computed these requests. Returns the culprit once it is known.

        During a trial they all belong to the group under test; the rest of that group stays together.
        """
        self.suspects.update(computed)
        rest = self._without(computed)
        if rest:
            self._groups.appendleft(rest)
        if len(computed) == 1:
            self.convicted = True
            return computed[0]
        middle = len(computed) // 2
        self._groups.extendleft(tuple(half) for half in (computed[middle:], computed[:middle]) if half)
        return None

    def _without(self, computed: Collection[str]) -> tuple[str, ...]:
        """Remove the group under test, and return those of it that are not in `computed`."""
        group = self._groups.popleft() if self._groups else ()
        return tuple(name for name in group if name not in computed)
