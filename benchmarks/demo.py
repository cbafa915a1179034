"""The method at a glance: PATT beside plain cross-entropy on the embedded digits, a few minutes on a CPU.

python -m benchmarks.demo    trains or resumes both in runs/demo, and prints the results
"""

import argparse
import json
import shlex
from pathlib import Path

from benchmarks.records import Way, evaluation
from benchmarks.rows import ROWS
from benchmarks.runs import is_evaluated, run_logged
from benchmarks.table import text
from benchmarks.tabulate import Table
from utils.errors import InputError, exit_cleanly
from utils.plots import plot_class_accuracy

METHODS = ("ce", "patt")
SEED = 0  # one of the seeds of the digits' results table
LINES = (Way("none", "energy"), Way("fc", "energy"))
FEATURE_SCORE = "combined"
HEAD = ["", "ACC ↑", "many ↑", "medium ↑", "few ↑", "AUROC ↑, energy", f"AUROC ↑, {FEATURE_SCORE}"]


def commands(row: str, folder: Path) -> list[list[str]]:
    """Returns the command lines of one method: its training and its evaluation."""
    training = ["train.py", "--ds", "digits", "--gpu", "cpu", "--seed", str(SEED), *ROWS[row].flags.split()]
    return [
        [*training, "--srp", str(folder), "--resume"],
        ["test.py", "--gpu", "cpu", "--ckpt_path", str(folder)],
    ]


def run(line: list[str], log: Path) -> None:
    """Runs one command; its output goes to ``log``, its progress and errors to the terminal."""
    command = shlex.join(["python", *line])
    print(f"$ {command}", flush=True)
    status = run_logged(line, log, "cpu", errors=None)
    if status:
        raise InputError(f"status {status} from {command}; its output is in {log}")


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def summary(results: dict[str, dict]) -> Table:
    """Tabulates the methods with and without FC, and says what FC did, from each method's results.json."""
    rows, found = [], {}
    for way in LINES:
        for method in METHODS:
            record = {"name": method, "results": results[method]}
            values = found[method, way.calibration] = evaluation(record, way)
            feature = evaluation(record, way._replace(score=FEATURE_SCORE))
            label = ROWS[method].label + (", FC" if way.calibration == "fc" else "")
            shots = [percent(values[shot]) for shot in ("all", "many", "medium", "few")]
            rows.append([label, *shots, percent(values["auroc"]), percent(feature["auroc"])])
    before, after = (percent(found["ce", c]["few"]) for c in ("none", "fc"))
    best, worst = (percent(found["patt", c]["all"]) for c in ("none", "fc"))
    sizes = results["patt"]["class_counts"]
    note = (
        f"Percent. Handwritten digits 0-7 with {sizes[0]} to {sizes[-1]} training images per class.\n"
        "AUROC: how well a score tells digits 8 and 9, patches of a photograph and noise from digits 0-7;\n"
        f"energy is the paper's score, {FEATURE_SCORE} is this project's and reads the features as well.\n"
        "FC, the paper's feature calibration, reweights a trained network's features. Here it takes\n"
        f"the few-shot accuracy of plain cross-entropy from {before} to {after},\n"
        f"and the accuracy of PATT from {best} to {worst}."
    )
    return Table(HEAD, rows, note)


def main(argv: list[str] | None = None) -> None:
    folder = parse_args(argv).srp
    print(f"\n{text(demonstrate(folder))}")
    print(f"accuracy per class: {folder / 'classes.png'}")
    print(f"every set and score: {folder / 'patt' / 'results.md'}, scores.png and roc.png beside it")


def demonstrate(folder: Path) -> Table:
    """Trains and evaluates what is missing in ``folder``, draws ``classes.png`` and returns the table."""
    results = {}
    for method in METHODS:
        run_folder = folder / method
        run_folder.mkdir(parents=True, exist_ok=True)
        for line in commands(method, run_folder):
            if not is_evaluated(run_folder):
                run(line, run_folder / "log.txt")
        results[method] = json.loads((run_folder / "results.json").read_text())
    per_class = {
        ROWS[method].label: next(a for a in results[method]["accuracy"] if a["calibration"] == "none")[
            "per_class"
        ]
        for method in METHODS
    }
    plot_class_accuracy(per_class, results["patt"]["class_counts"], folder / "classes.png")
    return summary(results)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--srp", type=Path, default=Path("runs/demo"), help="where the two runs go")
    return parser.parse_args(argv)


if __name__ == "__main__":
    exit_cleanly(main)
