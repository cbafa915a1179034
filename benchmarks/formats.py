"""A table, and its formats."""

from typing import NamedTuple


class Table(NamedTuple):
    """The cells of a table as text, and the note below it."""

    head: list[str]
    rows: list[list[str]]
    note: str = ""


def text(table: Table) -> str:
    """Formats aligned columns for a terminal."""
    widths = [max(map(len, column)) for column in zip(table.head, *table.rows, strict=True)]
    lines = []
    for first, *others in [table.head, *table.rows]:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines) + f"\n\n{table.note}\n"


def markdown(table: Table) -> str:
    """Formats a Markdown table."""
    head, *rows = (f"| {' | '.join(cells)} |" for cells in [table.head, *table.rows])
    return "\n".join([head, "|" + "---|" * len(table.head), *rows]) + f"\n\n{table.note}\n"


FORMATS = {"text": text, "markdown": markdown}
