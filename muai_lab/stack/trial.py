"""Which request makes an engine's step fail: found by halving the suspects.

After a step that raised, the requests that it computed are suspects. They run group by group, and nothing else runs
meanwhile: a group whose step raises again is halved, as in a binary search, until one request is left, which is the
culprit. A search over N suspects with one culprit takes about 2 log2 N groups, of two steps each.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence


class Trial:
    """The suspects of failed steps, in groups; the first group is under test. Requests are known by their names.

    suspects: all that were ever put in. convicted: True once a culprit was found.
    """

    def __init__(self) -> None:
        self.suspects: set[str] = set()
        self.convicted = False
        self._groups: deque[tuple[str, ...]] = deque()

    @property
    def group(self) -> tuple[str, ...]:
        """The requests under test; empty when the trial is over."""
        return self._groups[0] if self._groups else ()

    def accuse(self, name: str) -> None:
        """Test a request by itself, after those there are: an engine has died while it computed it."""
        self.suspects.add(name)
        self._groups.append((name,))

    def passed(self) -> None:
        """The group under test has run well."""
        self._groups.popleft()

    def raised(self, computed: Sequence[str]) -> str | None:
        """Take in that a step raised while it computed these requests; returns the culprit, once it is known.

        During a trial they all belong to the group under test; those of it that the step did not compute stay together.
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
        """Take the group under test off; what of it is not among `computed`."""
        group = self._groups.popleft() if self._groups else ()
        return tuple(name for name in group if name not in computed)
