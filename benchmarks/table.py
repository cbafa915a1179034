"""Turns result files into tables: those of README.md and docs/, and any others on the terminal.

    python -m benchmarks.table                     rewrites the tables in the documents
    python -m benchmarks.table --check             fails if a document and the result files differ
    python -m benchmarks.table --show ablation digits_default --format latex
    python -m benchmarks.table --runs runs/a runs/b --score energy probe/combined --columns AUROC ACC few

A document's table is between ``<!-- table: NAME ARGUMENT [--rows ...] [--score ...] [--columns ...] -->`` and
``<!-- end -->``. NAME is a table of benchmarks/rows.py with a protocol (a folder of
benchmarks/results/runs), ``scores`` (AUROC of every score) or ``sets`` (AUROC on each OOD set) with a
protocol, ``published`` with a data set, or ``claim`` with a file of benchmarks/results. The table
``defaults`` shows what was measured on held-out training images. Runs that differ only in the seed
share a row: mean and standard deviation.
"""

import argparse
import re
import sys
from pathlib import Path
from typing import NoReturn

from benchmarks.records import Way
from benchmarks.rows import ROWS
from benchmarks.runs import RESULTS, ROOT
from benchmarks.tabulate import COLUMNS, FULL, Table, build, runs_table
from utils import flags
from utils.errors import InputError, exit_cleanly
from utils.text_files import write_text

DOCUMENTS = (
    "README.md",
    *(f"docs/{name}.md" for name in ("results", "departures", "performance")),
)
MARKER = re.compile(r"(<!-- table: (?P<name>[^\n]*?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


class MarkerParser(argparse.ArgumentParser):
    """Reads the words of a marker."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"a table's marker: {message}")


def add_selection(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that select what a table shows, both for markers and for the command line."""
    parser.add_argument("--rows", nargs="+", choices=tuple(ROWS), metavar="ROW", help="only these rows")
    parser.add_argument(
        "--score",
        nargs="+",
        type=Way.parse,
        default=[Way("none", "energy"), Way("fc", "energy")],
        metavar="[CALIBRATION/]SCORE",
        help="how the networks are used, such as energy, fc/energy or probe/combined",
    )
    parser.add_argument(
        "--columns", nargs="+", choices=COLUMNS, default=FULL, metavar="NAME", help=", ".join(COLUMNS)
    )


def markdown(table: Table) -> str:
    lines = [f"| {' | '.join(table.head)} |", "|" + "---|" * len(table.head)]
    lines += [f"| {' | '.join(row)} |" for row in table.rows]
    return "\n".join(lines) + f"\n\n{table.note}\n"


def latex(table: Table) -> str:
    def clean(cell):
        for sign, command in (("↑", r"$\uparrow$"), ("↓", r"$\downarrow$"), ("±", r"$\pm$"), ("`", "")):
            cell = cell.replace(sign, command)
        return re.sub(r"([%&#_])", r"\\\1", cell)

    lines = [f"% {table.note}", rf"\begin{{tabular}}{{l{'r' * (len(table.head) - 1)}}}", r"\toprule"]
    lines += [" & ".join(map(clean, table.head)) + r" \\", r"\midrule"]
    lines += [" & ".join(map(clean, row)) + r" \\" for row in table.rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def text(table: Table) -> str:
    """Formats aligned columns for a terminal."""
    lines = [table.head, *table.rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.head))]
    rows = (
        "  ".join(
            [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    )
    return "\n".join(row.rstrip() for row in rows) + f"\n\n{table.note}\n"


FORMATS = {"text": text, "markdown": markdown, "latex": latex}


def regenerate(document: str, results: Path = RESULTS) -> str:
    """Returns a document with every table between markers rebuilt."""
    parser = MarkerParser(prog="", add_help=False)
    parser.add_argument("kind")
    parser.add_argument("argument")
    add_selection(parser)

    def anew(marker):
        selection = parser.parse_args(marker.group("name").split())
        table = build(selection.kind, selection.argument, selection, results)
        return marker.group(1) + markdown(table) + marker.group(4)

    return MARKER.sub(anew, document)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.show or args.runs:
        table = build(*args.show, args, args.results) if args.show else runs_table(args.runs, args)
        print(FORMATS[args.format](table), end="")
        return
    stale = []
    for name in DOCUMENTS:
        file = ROOT / name
        document = file.read_text(encoding="utf-8")
        new = regenerate(document, args.results)
        if new != document and args.check:
            stale.append(name)
        elif new != document:
            write_text(file, new)
            print(f"rewrote {name}")
    if stale:
        raise InputError(f"{', '.join(stale)} and the result files differ; run python -m benchmarks.table")
    print(f"{len(DOCUMENTS)} documents agree with the result files", file=sys.stderr)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="only compare; fail if documents and files differ")
    what.add_argument(
        "--show", nargs=2, metavar=("NAME", "ARGUMENT"), help="print a table, named as in a marker"
    )
    what.add_argument(
        "--runs", nargs="+", type=flags.path, metavar="DIR", help="print a table of run directories"
    )
    parser.add_argument("--format", choices=tuple(FORMATS), default="text", help="of the printed table")
    parser.add_argument("--results", type=flags.path, default=RESULTS, help="the folder of the result files")
    add_selection(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    exit_cleanly(main)
