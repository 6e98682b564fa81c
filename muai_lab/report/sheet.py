"""A result as text: drawn with rich on a terminal, as plain aligned columns everywhere else.

The plain form has no box drawing and no escape codes, for `grep`, `awk` and log files.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True, slots=True)
class Grid:
    """A titled table of texts. align: `l` or `r` for each column (names and units left, numbers right)."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    align: str

    def plain(self) -> str:
        table = [self.columns, *self.rows]
        widths = [max(len(row[column]) for row in table) for column in range(len(self.columns))]
        lines = [
            "  ".join(
                cell.ljust(width) if side == "l" else cell.rjust(width)
                for cell, width, side in zip(row, widths, self.align, strict=True)
            ).rstrip()
            for row in table
        ]
        return "\n".join([self.title, *(f"  {line}" for line in lines)])

    def rich(self) -> RenderableType:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column, side in zip(self.columns, self.align, strict=True):
            table.add_column(column, justify="left" if side == "l" else "right", overflow="fold")
        for row in self.rows:
            table.add_row(*(Text(cell) for cell in row))
        return Group(Text(self.title, style="bold"), table)


@dataclass(frozen=True, slots=True)
class Sheet:
    """Lines of facts, then grids, then notes. verdict: the first line. good: True if it is a good result."""

    verdict: str
    good: bool
    facts: tuple[tuple[str, str], ...] = ()
    grids: tuple[Grid, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def plain(self) -> str:
        """Plain text, without a final newline."""
        width = max((len(name) for name, _ in self.facts), default=0)
        parts = ["\n".join([self.verdict, *(f"{name.ljust(width)}  {value}" for name, value in self.facts)])]
        parts += [grid.plain() for grid in self.grids]
        if self.notes:
            parts.append("\n".join(f"note: {note}" for note in self.notes))
        return "\n\n".join(parts)

    def __rich__(self) -> RenderableType:
        parts: list[RenderableType] = [Text(self.verdict, style="bold green" if self.good else "bold red")]
        facts = Table.grid(padding=(0, 2))
        for name, value in self.facts:
            facts.add_row(Text(name, style="dim"), Text(value))
        parts += [facts, Text()]
        parts += [grid.rich() for grid in self.grids]
        parts += [Text(f"note: {note}", style="yellow") for note in self.notes]
        return Group(*parts)

    def show(self, console: Console) -> None:
        """Print to the console: drawn on a terminal, plain elsewhere."""
        if console.is_terminal:
            console.print(self)
        else:
            console.print(self.plain(), markup=False, highlight=False, emoji=False, soft_wrap=True)
