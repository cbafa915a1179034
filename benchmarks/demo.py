"""The method at a glance: PATT beside plain cross-entropy on the embedded digits, a few minutes on a CPU.

python -m benchmarks.demo    trains or resumes both in runs/demo, and prints the results
"""

import argparse
import json
import shlex
from pathlib import Path

from benchmarks.commands import is_evaluated, run_logged
from benchmarks.formats import Table, text
from benchmarks.records import Way, metrics
from benchmarks.rows import ROWS
from benchmarks.tabulate import spread
from utils import flags
from utils.errors import InputError, exit_cleanly
from utils.plots import plot_class_accuracy

METHODS = ("ce", "patt")
SEED = 0  # one of the seeds of the digits' results table
HEAD = ["", "ACC ↑", "many ↑", "medium ↑", "few ↑", "AUROC ↑, energy", "AUROC ↑, combined"]


def commands(row: str, folder: Path) -> list[list[str]]:
    """Returns the command lines of one method: its training and its evaluation."""
    training = ["train.py", "--ds", "digits", "--gpu", "cpu", "--seed", str(SEED), *ROWS[row].flags.split()]
    evaluation = ["test.py", "--gpu", "cpu", "--ckpt_path", str(folder)]
    return [[*training, "--srp", str(folder), "--resume"], evaluation]


def evaluated(row: str, folder: Path) -> dict:
    """Trains and evaluates one method unless it is done, and returns its results.

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
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def summary(results: dict[str, dict]) -> Table:
    """Tabulates the methods with and without FC, from each method's results."""
    rows, cells = [], {}
    for calibration in ("none", "fc"):
        for method in METHODS:
            energy, combined = (
                metrics({"results": results[method]}, Way(calibration, score))
                for score in ("energy", "combined")
            )
            values = [*(energy[shot] for shot in ("all", "many", "medium", "few")), energy["auroc"]]
            cells[method, calibration] = [spread([value]) for value in (*values, combined["auroc"])]
            label = ROWS[method].label + (", FC" if calibration == "fc" else "")
            rows.append([label, *cells[method, calibration]])
    few, accuracy = ([cells[method, c][i] for c in ("none", "fc")] for method, i in (("ce", 3), ("patt", 0)))
    sizes = results["patt"]["class_counts"]
    note = (
        f"Percent. Handwritten digits 0-7 with {sizes[0]} to {sizes[-1]} training images per class.\n"
        "AUROC: how well a score tells digits 8 and 9, patches of a photograph and noise from digits 0-7;\n"
        "energy is the paper's score, combined is this project's and reads the features as well.\n"
        "FC, the paper's feature calibration, reweights a trained network's features. Here it takes\n"
        f"the few-shot accuracy of plain cross-entropy from {few[0]} to {few[1]},\n"
        f"and the accuracy of PATT from {accuracy[0]} to {accuracy[1]}."
    )
    return Table(HEAD, rows, note)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--srp", type=flags.path, default=Path("runs/demo"), help="where the two runs go")
    folder = parser.parse_args(argv).srp
    results = {method: evaluated(method, folder / method) for method in METHODS}
    per_class = {ROWS[method].label: results[method]["accuracy"][0]["per_class"] for method in METHODS}
    plot_class_accuracy(per_class, results["patt"]["class_counts"], folder / "classes.png")
    print(f"\n{text(summary(results))}")
    print(f"accuracy per class: {folder / 'classes.png'}")
    print(f"every set and score: {folder / 'patt' / 'results.md'}, scores.png and roc.png beside it")


if __name__ == "__main__":
    exit_cleanly(main)
