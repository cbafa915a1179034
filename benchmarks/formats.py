"""A table, and its three formats."""

import re
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


def latex(table: Table) -> str:
    """Formats a table for LaTeX's booktabs, its note as a comment."""

    def clean(cell):
        for sign, command in (("↑", r"$\uparrow$"), ("↓", r"$\downarrow$"), ("±", r"$\pm$"), ("`", "")):
            cell = cell.replace(sign, command)
        return re.sub(r"([%&#_])", r"\\\1", cell)

    head, *rows = (" & ".join(map(clean, cells)) + r" \\" for cells in [table.head, *table.rows])
    begin = rf"\begin{{tabular}}{{l{'r' * (len(table.head) - 1)}}}"
    lines = [f"% {table.note}", begin, r"\toprule", head, r"\midrule", *rows, r"\bottomrule"]
    return "\n".join([*lines, r"\end{tabular}", ""])


FORMATS = {"text": text, "markdown": markdown, "latex": latex}
