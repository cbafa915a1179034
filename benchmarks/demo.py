"""The method at a glance: PATT beside plain cross-entropy on the embedded digits, a few minutes on a CPU.

python -m benchmarks.demo    trains or resumes both in runs/demo, and prints the results
"""

import argparse
import shlex
from pathlib import Path

from benchmarks import reproduce
from benchmarks.records import Way, read_run
from benchmarks.rows import ROWS
from benchmarks.tabulate import table_by_way
from utils import flags
from utils.errors import exit_cleanly

METHODS = ("ce", "patt")
SEED = 0  # one of the seeds of the digits' results table
WAYS = (Way("none", "energy"), Way("fc", "energy"), Way("none", "combined"))
COLUMNS = ("ACC", "many", "medium", "few", "AUROC")
NOTE = """Percent. Handwritten digits 0-7 with {0} to {1} training images per class. AUROC: how well a
score tells digits 8 and 9, patches of a photograph and noise from digits 0-7. FC, the paper's feature
calibration, reweights a trained network's features. Energy is the paper's score; combined is this project's
and reads the features as well."""


def evaluated(method: str, folder: Path) -> dict:
    folder.mkdir(parents=True, exist_ok=True)
    run, args = reproduce.Run("digits", method, SEED, folder), reproduce.parse_args(["digits"])
    lines = reproduce.commands(run, args, "cpu")[folder]
    if not reproduce.is_evaluated(folder, lines[-1]):
        print(*(f"$ {shlex.join(['python', *line])}" for line in lines), sep="\n", flush=True)
    reproduce.fill(folder, lines, folder / "log.txt", "cpu", errors=None)
    return read_run(folder)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--srp", type=flags.path, default=Path("runs/demo"), help="where the two runs go")
    folder = parser.parse_args(argv).srp
    records = {ROWS[method].label: [evaluated(method, folder / method)] for method in METHODS}
    sizes = records["PATT"][0]["results"]["class_counts"]
    table = table_by_way(records, WAYS, COLUMNS)._replace(note=NOTE.format(sizes[0], sizes[-1]))
    print(f"\n{table.text()}")
    print(f"every class, set and score: {folder / 'patt' / 'results.md'}, scores.png and roc.png beside it")


if __name__ == "__main__":
    exit_cleanly(main)
