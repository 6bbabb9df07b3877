"""A table as rows of text, which a terminal and a page both show, and how numbers are written in it.

Knows nothing of what its numbers are.
"""

from __future__ import annotations

from dataclasses import dataclass

WIDEST = 160
"""Of a rule on a terminal: reasons may be longer."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A heading, columns and rows; cells are text."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    left: int = 1
    """Leading columns that hold words and not numbers."""
    best: frozenset[tuple[int, int]] = frozenset()
    """Cells (row, column) to set in bold."""

    def text(self) -> str:
        """For a terminal."""
        lines = [self.columns, *self.rows]
        widths = [max(len(row[i]) for row in lines) for i in range(len(self.columns))]
        shown = [
            "  ".join(
                cell.ljust(width) if i < self.left else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in lines
        ]
        rule = "-" * min(len(shown[0]), WIDEST)
        return "\n".join([self.title, rule, shown[0].rstrip(), rule, *(line.rstrip() for line in shown[1:]), rule]
                         + ([self.note] if self.note else []))  # fmt: skip


def percent(mean: float | None, half: float | None = None) -> str:
    """`81.2 ±1.3`: percent with half the interval's width.

    >>> percent(0.8123, 0.0131)
    '81.2 ±1.3'
    """
    if mean is None:
        return "-"
    return f"{100 * mean:.1f}" + ("" if half is None else f" ±{100 * half:.1f}")


def count(value: float | None) -> str:
    """`12.3k`, `4.5M`: how much, in four characters or so.

    >>> count(1234567), count(80.04), count(None)
    ('1.23M', '80', '-')
    """
    if value is None:
        return "-"
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e4)):
        if abs(value) >= size:
            scale = 1e3 if unit == "k" else size
            return f"{value / scale:.3g}{unit}" if value / scale < 1000 else f"{value / scale:.0f}{unit}"
    return f"{value:.0f}" if value >= 10 or value == int(value) else f"{value:.2g}"
