"""The executable definition of every results table: its runs, and the flags of each.

    python -m benchmarks.reproduce digits   minutes on a CPU, no download
    python -m benchmarks.reproduce ablation --ds digits --seeds 0 1 2
    python -m benchmarks.reproduce cifar10 --drp DATA --srp OUT   the paper's protocol, on a GPU
    python -m benchmarks.reproduce ablation --ds cifar10 --drp DATA --md ResNet20 --epochs 5   reduced
    python -m benchmarks.reproduce imagenet --protocol imagenet --extra --txtt LIST ...   ImageNet-LT

Prints its plan, skips finished runs, resumes interrupted ones, and writes a small JSON file for each
evaluation, for ``python -m benchmarks.table``. One run per GPU at a time, or ``--jobs`` on a CPU, with one
thread each.
"""

import argparse
import itertools
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.records import ROOT, read_run
from benchmarks.rows import EVALUATED, EVALUATIONS, NOT_ON_IMAGENET, ROWS, TABLES
from datasets.registry import BENCHMARKS
from utils import flags
from utils.checkpoint import is_unfinished, open_checkpoint
from utils.errors import InputError, exit_cleanly, first_line
from utils.run import EXIT_STOPPED
from utils.text_files import writable_folder, write_text


class Run(NamedTuple):
    """One training and its evaluation(s): ``group`` names the protocol, ``folder`` the run directory."""

    group: str
    row: str
    seed: int
    folder: Path


def commands(run: Run, args: argparse.Namespace, device: str) -> dict[Path, list[list[str]]]:
    """Returns the command lines that fill each folder of a run: training and evaluation; further ones."""
    script = "_imagenet" if args.ds == "imagenet" else ""
    last = [*args.extra, *(["--drp", str(args.drp)] if args.drp else [])]
    train = [f"train{script}.py", "--gpu", device, "--seed", str(run.seed), "--srp", str(run.folder)]
    train += ["--resume"] if args.ds == "imagenet" else ["--resume", "--ds", args.ds]
    train += ROWS[run.row].flags.split()
    for flag, value in (("--md", args.model), ("--epochs", args.epochs), ("--precision", args.precision)):
        train += [] if value is None else [flag, str(value)]
    test = [f"test{script}.py", "--gpu", device, "--ckpt_path", str(run.folder)]
    test += ["--dout", *args.dout] if args.dout else []
    test += ["--precision", args.precision] if args.precision else []
    lines = {run.folder: [[*train, *last], [*test, *last]]}
    for name in EVALUATED.get(args.table, ()):
        where = ["--srp", str(run.folder / name)]
        lines[run.folder / name] = [[*test, *EVALUATIONS[name].flags.split(), *where, *last]]
    return lines


def portable_commands(run: Run, args: argparse.Namespace) -> list[str]:
    """Returns them as text, without this machine's folders and device."""
    args = argparse.Namespace(**vars(args) | {"drp": args.drp and "DATA"})
    every = sum(commands(run._replace(folder=Path("OUT")), args, "GPU").values(), [])
    return [re.sub(r"(?<=[ =])[/~.]\S*/", "", " ".join(["python", *line])) for line in every]


def is_evaluated(folder: Path, line: list[str]) -> bool:
    """Tells whether a folder has the results of a finished run, evaluated as by the command line."""
    if not (folder / "results.json").exists():
        return False
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    script, *words = line
    if results.get("flags") != runpy.run_path(str(ROOT / script))["parse_args"](words).asked:
        return False
    if results["epoch"] == results["epochs"]:
        return True
    checkpoint = open_checkpoint(results["checkpoint"])  # --patience may have ended the run
    return results["epoch"] == checkpoint["epoch"] and not is_unfinished(checkpoint)


def fill(folder: Path, lines: list[list[str]], log: Path, device: str, errors: int | None) -> None:
    """Runs commands of this repository, ``python LINE``, until ``folder`` has the results of the last.

    Their output is appended to ``log``; ``errors`` is :mod:`subprocess`'s ``stderr``. On a CPU they have one
    thread: the number of threads changes the order of summation. Raises InputError if a command fails.
    """
    environment = os.environ | ({"OMP_NUM_THREADS": "1"} if device == "cpu" else {})
    for line in lines:
        if is_evaluated(folder, lines[-1]):
            break
        command = shlex.join(["python", *line])
        with open(log, "a") as output:
            print("$", command, file=output, flush=True)
            streams = {"stdout": output, "stderr": errors}
            done = subprocess.run([sys.executable, *line], cwd=ROOT, env=environment, **streams)
        if done.returncode == EXIT_STOPPED:  # and so does every other run
            raise KeyboardInterrupt
        if done.returncode:
            raise InputError(f"status {done.returncode} from {command}; its output is in {log}")


def execute(run: Run, args: argparse.Namespace, device: str) -> None:
    """Runs the missing parts of one run, logs to its ``log.txt``, and collects its results."""
    record, shown = run.folder / "commands.json", portable_commands(run, args)
    known = json.loads(record.read_text()) if record.exists() else shown
    if known[:2] != shown[:2]:
        raise InputError(f"{run.folder} holds a run of other commands; choose another --srp or --protocol")
    run.folder.mkdir(parents=True, exist_ok=True)
    write_text(record, json.dumps(list(dict.fromkeys([*known, *shown])), indent=1) + "\n")
    for folder, lines in commands(run, args, device).items():
        fill(folder, lines, run.folder / "log.txt", device, subprocess.STDOUT)
    collect(run, args.results)


def collect(run: Run, target: Path) -> None:
    """Writes what the tables need of each evaluation in a run directory; that in OUT/NAME is ROW-NAME."""
    commands = json.loads((run.folder / "commands.json").read_text())
    for folder in (run.folder, *sorted(path.parent for path in run.folder.glob("*/results.json"))):
        row = run.row if folder == run.folder else f"{run.row}-{folder.name}"
        record = {"group": run.group, "row": row, "seed": run.seed, "commands": commands}
        record |= read_run(folder, run.folder)
        if folder == run.folder and record["results"].get("calibration_split") == "test":
            raise InputError(f"{folder} was calibrated on test images: remove its results.json, and repeat")
        del record["name"], record["run"]
        file = writable_folder(target / run.group) / f"{row}-seed{run.seed}.json"
        write_text(file, json.dumps(record, indent=1) + "\n")


def execute_all(runs: list[Run], args: argparse.Namespace, devices: list[str]) -> list[str]:
    """Executes runs, one at a time on each device; returns what went wrong, a sentence per failed run."""
    waiting, failed = iter(runs), []

    def work(device):
        for run in waiting:  # which all devices share
            try:
                execute(run, args, device)
                print(f"{run.folder}: done", flush=True)
            except (InputError, OSError, ValueError) as error:  # the other runs go on
                failed.append(f"{run.folder}: {first_line(error)}")
                print(failed[-1], flush=True)

    with ThreadPoolExecutor(len(devices)) as pool:
        list(pool.map(work, devices))
    return failed


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    devices = [str(i) for i in range(torch.cuda.device_count())] or ["cpu"] * args.jobs
    parts = [args.ds, args.model or "default", args.epochs and f"e{args.epochs}", args.precision]
    protocol = args.protocol or "_".join(part for part in parts if part)
    pairs = itertools.product(args.seeds, args.rows)
    runs = [Run(protocol, row, seed, args.srp / protocol / row / f"seed{seed}") for seed, row in pairs]
    for script, *words in sum(commands(runs[0]._replace(folder=Path(os.devnull)), args, "cpu").values(), []):
        words = [word for word in words if word != "--resume"]
        runpy.run_path(str(ROOT / script))["parse_args"](words)  # a wrong flag costs no training
    done = sum(is_evaluated(run.folder, commands(run, args, "cpu")[run.folder][-1]) for run in runs)
    print(f"{args.table}: {len(runs)} runs, {done} finished; {len(devices)} at a time")
    for run in runs:
        print(f"  {shlex.join(['python', *commands(run, args, devices[0])[run.folder][0]])}", flush=True)
    if args.plan:
        return
    writable_folder(args.results)
    failed = execute_all(runs, args, devices)
    if failed:
        raise InputError(f"{len(failed)} of {len(runs)} runs failed; the first: {failed[0]}")
    show = ["--show", args.table, protocol, "--rows", *args.rows, "--results", str(args.results)]
    print(f"results in {args.results / protocol}; python -m benchmarks.table {shlex.join(show)}")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=flags.HelpFormatter)
    add = parser.add_argument
    add("table", choices=tuple(TABLES), help="its rows are in benchmarks/rows.py")
    add("--ds", choices=(*BENCHMARKS, "imagenet"), help="of tables not named after one; default cifar10")
    add("--rows", nargs="+", metavar="ROW", help="only these rows of the table")
    add("--seeds", type=flags.count, nargs="+", default=[0, 1, 2])
    add("--drp", type=flags.path, help="the data folder")
    add("--srp", type=flags.path, default=Path("runs/reproduce"), help="where the run directories go")
    add("--results", type=flags.path, default=Path("runs/results"), help="where the result files go")
    add("--epochs", type=flags.positive_int, help="fewer than the paper's: a reduced protocol")
    add("--model", "--md", help="a smaller network than the paper's: a reduced protocol")
    add("--precision", choices=("auto", "fp32", "bf16"))
    add("--dout", nargs="+", help="OOD sets other than the paper's six")
    add("--jobs", type=flags.positive_int, default=1, help="runs at a time on a CPU")
    add("--protocol", help="names the folder of these runs; default: data set, network, epochs, precision")
    add("--plan", action="store_true", help="print the plan only")
    add("--extra", nargs=argparse.REMAINDER, default=[], help="last: flags for both scripts")
    args = parser.parse_args(argv)
    own = args.table if args.table in (*BENCHMARKS, "imagenet") else None
    if own and args.ds not in (None, own):
        parser.error(f"the table {own} is about {own}, not --ds {args.ds}")
    args.ds = own or args.ds or "cifar10"
    if args.extra and not args.protocol:
        parser.error("--extra needs a --protocol, a name that keeps these runs apart from those without it")
    there = [row for row in TABLES[args.table] if args.ds != "imagenet" or row not in NOT_ON_IMAGENET]
    if unknown := set(args.rows or ()) - set(there):
        parser.error(f"the table {args.table} has no row {min(unknown)}; it has {', '.join(there)}")
    args.rows = args.rows or there
    return args


if __name__ == "__main__":
    exit_cleanly(main)
