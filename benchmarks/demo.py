"""The method at a glance: PATT beside plain cross-entropy on the embedded digits, a few minutes on a CPU.

python -m benchmarks.demo    trains or resumes both in runs/demo, and prints the results
"""

import argparse
import shlex
from pathlib import Path

from benchmarks.commands import is_evaluated, run_logged
from benchmarks.formats import Table, text
from benchmarks.records import Way, read_run
from benchmarks.rows import ROWS
from benchmarks.tabulate import Selection, lines_by_way
from utils import flags
from utils.errors import InputError, exit_cleanly
from utils.plots import plot_class_accuracy

METHODS = ("ce", "patt")
SEED = 0  # one of the seeds of the digits' results table
SHOWN = Selection(
    ways=(Way("none", "energy"), Way("fc", "energy"), Way("none", "combined")),
    columns=("calibration", "score", "ACC", "many", "medium", "few", "AUROC"),
)
NOTE = """Percent. Handwritten digits 0-7 with {0} to {1} training images per class. AUROC: how well a
score tells digits 8 and 9, patches of a photograph and noise from digits 0-7. FC, the paper's feature
calibration, reweights a trained network's features. Energy is the paper's score; combined is this project's
and reads the features as well."""


def commands(row: str, folder: Path) -> list[list[str]]:
    """Returns the command lines of one method: its training and its evaluation."""
    training = ["train.py", "--ds", "digits", "--gpu", "cpu", "--seed", str(SEED), *ROWS[row].flags.split()]
    evaluation = ["test.py", "--gpu", "cpu", "--ckpt_path", str(folder)]
    return [[*training, "--srp", str(folder), "--resume"], evaluation]


def evaluated(row: str, folder: Path) -> dict:
    """Trains and evaluates one method unless it is done, and returns its record.

    The output goes to ``log.txt``, progress and errors to the terminal.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for line in commands(row, folder):
        if is_evaluated(folder):
            break
        command = shlex.join(["python", *line])
        print(f"$ {command}", flush=True)
        status = run_logged(line, folder / "log.txt", "cpu", errors=None)
        if status:
            raise InputError(f"status {status} from {command}; its output is in {folder / 'log.txt'}")
    return read_run(folder)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--srp", type=flags.path, default=Path("runs/demo"), help="where the two runs go")
    folder = parser.parse_args(argv).srp
    records = {method: evaluated(method, folder / method) for method in METHODS}
    sizes = records["patt"]["results"]["class_counts"]
    head, lines = lines_by_way({method: [record] for method, record in records.items()}, SHOWN)
    per_class = {
        ROWS[row].label: record["results"]["accuracy"][0]["per_class"] for row, record in records.items()
    }
    plot_class_accuracy(per_class, sizes, folder / "classes.png")
    print(f"\n{text(Table(head, lines, NOTE.format(sizes[0], sizes[-1])))}")
    print(f"accuracy per class: {folder / 'classes.png'}")
    print(f"every set and score: {folder / 'patt' / 'results.md'}, scores.png and roc.png beside it")


if __name__ == "__main__":
    exit_cleanly(main)
