"""A table as rows of text, for a terminal and for a page, and how its numbers are written."""

from __future__ import annotations

from dataclasses import dataclass

WIDEST = 160
"""Most characters of a rule on a terminal; rows may be longer."""


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
        """The table for a terminal, with aligned columns, rules and the note."""
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
    """A fraction in percent, with half the width of its interval; `-` for None.

    >>> percent(0.8123, 0.0131)
    '81.2 ±1.3'
    """
    if mean is None:
        return "-"
    return f"{100 * mean:.1f}" + ("" if half is None else f" ±{100 * half:.1f}")


def count(value: float | None) -> str:
    """A number in about four characters, as in `12.3k` or `4.5M`; `-` for None.

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
