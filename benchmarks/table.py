"""Turns result files into tables: those of README.md and docs/, and any others on the terminal.

    python -m benchmarks.table                     rewrites the tables in the documents and all.csv
    python -m benchmarks.table --check             fails if they and the result files differ
    python -m benchmarks.table --show ablation digits_default
    python -m benchmarks.table --runs runs/a runs/b --score energy probe/combined --columns AUROC ACC few

A document's table is between ``<!-- table: NAME ARGUMENT [--rows ...] [--score ...] [--columns ...] -->`` and
``<!-- end -->``. NAME is a table of benchmarks/rows.py or ``scores`` (an OOD metric of every score) with a
folder of benchmarks/results/runs, or ``claim`` with a file of benchmarks/results. Runs that differ only in
the seed share a row. benchmarks/results/all.csv has every number, but for runs that are compared on held-out
images.
"""

import argparse
import os
import re
import shlex
import sys
from pathlib import Path

from benchmarks.records import RESULTS, ROOT, Way
from benchmarks.rows import ROWS
from benchmarks.tabulate import COLUMNS, FULL, WAYS, build, every_number, runs_table
from utils import flags
from utils.errors import InputError, exit_cleanly
from utils.text_files import csv_text, write_text

MARKER = re.compile(r"(<!-- table: (?P<words>[^\n]*?) -->\n).*?(?=<!-- end -->)", re.DOTALL)


def regenerate(document: str, results: Path = RESULTS) -> str:
    """Returns a document with every table between markers rebuilt."""
    parser = argparse.ArgumentParser(prog="a table's marker", add_help=False)
    parser.add_argument("kind")
    parser.add_argument("argument")
    add_selection(parser)

    def anew(marker):
        args = parser.parse_args(shlex.split(marker["words"]))
        return marker[1] + build(args.kind, args.argument, results, args).text(padded=False)

    return MARKER.sub(anew, document)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.show:
        return print(build(*args.show, args.results, args).text(), end="")
    if args.runs:
        return print(runs_table(args.runs, args).text(), end="")
    documents = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    files = {file: regenerate(file.read_text(encoding="utf-8"), args.results) for file in documents}
    files[args.results.parent / "all.csv"] = csv_text(every_number(args.results))
    stale = {f: text for f, text in files.items() if not f.exists() or f.read_text(encoding="utf-8") != text}
    names = ", ".join(os.path.relpath(file, ROOT) for file in stale)
    if stale and args.check:
        raise InputError(f"{names} and the result files differ; run python -m benchmarks.table")
    for file, text in stale.items():
        write_text(file, text)
    print(f"{len(files)} files agree with the result files; rewritten: {names or 'none'}", file=sys.stderr)


def add_selection(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that select what a table shows, both for markers and for the command line."""
    add = parser.add_argument
    add("--rows", nargs="+", choices=tuple(ROWS), metavar="ROW", help="only these rows")
    ways = "how the networks are used, such as probe/combined; default: energy fc/energy"
    add("--score", nargs="+", type=Way.parse, default=WAYS, metavar="[CALIBRATION/]SCORE", help=ways)
    columns = f"default: {', '.join(FULL)}, or for the table scores AUROC; near OOD sets are like the classes"
    add("--columns", nargs="+", choices=COLUMNS, metavar="NAME", help=columns)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=flags.HelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="only compare; fail if documents and files differ")
    what.add_argument("--show", nargs=2, metavar=("NAME", "ARGUMENT"), help="print one, named as in a marker")
    runs = "print a table of run directories, or of evaluations that test.py --srp put elsewhere"
    what.add_argument("--runs", nargs="+", type=flags.path, metavar="DIR", help=runs)
    parser.add_argument("--results", type=flags.path, default=RESULTS, help="the folder of the result files")
    add_selection(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    exit_cleanly(main)
