"""The executable definition of every results table: its runs, and the flags of each.

    python -m benchmarks.reproduce digits   minutes on a CPU, no download
    python -m benchmarks.reproduce ablation --ds digits --seeds 0 1 2
    python -m benchmarks.reproduce cifar10 --drp DATA --srp OUT   the paper's protocol, on a GPU
    python -m benchmarks.reproduce ablation --ds cifar10 --drp DATA --md ResNet20 --epochs 5   reduced
    python -m benchmarks.reproduce imagenet --protocol imagenet --extra --txtt LIST ...   ImageNet-LT

Prints its plan, skips finished runs, resumes interrupted ones, and writes one small JSON file per run for
``python -m benchmarks.table``. Runs are parallel: one per GPU, or ``--jobs`` on a CPU, with one thread each.
"""

import argparse
import json
import os
import shlex
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

import torch

from benchmarks.rows import EVALUATED, EVALUATIONS, NOT_ON_IMAGENET, ROWS, TABLES
from benchmarks.runs import LOCAL_FLAGS, is_evaluated, read_run, require_valid, run_logged
from datasets.registry import BENCHMARKS
from utils import flags
from utils.checkpoint import DATA_FLAGS
from utils.errors import InputError, exit_cleanly, first_line
from utils.text_files import writable_folder, write_text


class Run(NamedTuple):
    """One training and its evaluation(s): ``group`` names the protocol, ``folder`` the run directory."""

    group: str
    row: str
    seed: int
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.group}/{self.row} seed {self.seed}"


def commands(run: Run, args: argparse.Namespace, device: str) -> list[list[str]]:
    """Returns the command lines of a run: training, evaluation, and further evaluations of the table."""
    script = "_imagenet" if args.ds == "imagenet" else ""
    data = [] if args.drp is None or args.ds == "imagenet" else ["--drp", str(args.drp)]
    where = ["--gpu", device, "--seed", str(run.seed), "--srp", str(run.folder)]
    train = [f"train{script}.py", *where, "--resume", *data]
    train += [] if args.ds == "imagenet" else ["--ds", args.ds]
    train += ROWS[run.row].flags.split()
    for flag, value in (("--md", args.model), ("--epochs", args.epochs), ("--precision", args.precision)):
        train += [] if value is None else [flag, str(value)]
    test = [f"test{script}.py", "--gpu", device, "--ckpt_path", str(run.folder), *data]
    test += ["--dout", *args.dout] if args.dout else []
    test += ["--precision", args.precision] if args.precision else []
    lines = [train + args.extra, test + args.extra]
    for name in EVALUATED.get(args.table, ()):
        where = ["--srp", str(run.folder / name)]
        lines.append([*test, *EVALUATIONS[name].flags.split(), *where, *args.extra])
    return lines


def portable_commands(run: Run, args: argparse.Namespace) -> list[str]:
    """Returns the command lines as text, without this machine's folders and device."""
    shown = argparse.Namespace(**vars(args) | {"drp": None, "extra": without_folders(args.extra)})
    data = [] if args.drp is None else ["--drp", "DATA"]
    return [
        " ".join(["python", *line, *data]).replace(str(run.folder), "OUT")
        for line in commands(run, shown, "GPU")
    ]


def without_folders(words: list[str]) -> list[str]:
    """Returns the words of a command line without folders: of a list its name, of a folder its flag's."""
    shown, flag = [], ""
    for word in (part for w in words for part in (w.split("=", 1) if w.startswith("--") else [w])):
        if word.startswith("-"):
            flag = word.lstrip("-")
            shown.append(word)
        elif flag in DATA_FLAGS and flag.startswith("txt"):
            shown.append(Path(word).name)
        else:
            shown.append(flag.upper() if flag in LOCAL_FLAGS else word)
    return shown


def execute(run: Run, args: argparse.Namespace, device: str) -> tuple[bool, str]:
    """Runs the missing parts of one run, logs to its ``log.txt``, and collects its results.

    Returns:
        (whether it succeeded, a line about it).
    """
    record, shown = run.folder / "commands.json", portable_commands(run, args)
    known = shown
    if record.exists():
        known = json.loads(record.read_text())
    elif (run.folder / "args.json").exists():  # a run that was started by hand
        known = []
    if known[:2] != shown[:2]:
        advice = "choose another --srp or --protocol"
        return False, f"{run.name}: {run.folder} holds a run made by other commands; {advice}"
    run.folder.mkdir(parents=True, exist_ok=True)
    every = [*known, *(line for line in shown if line not in known)]
    write_text(record, json.dumps(every, indent=1) + "\n")
    further = (run.folder / name for name in EVALUATED.get(args.table, ()))
    made = [run.folder, run.folder, *further]  # what each command completes
    begun, log = time.monotonic(), run.folder / "log.txt"
    for line, folder in zip(commands(run, args, device), made, strict=False):
        status = 0 if is_evaluated(folder) else run_logged(line, log, device)
        if status:
            return False, f"{run.name}: failed with status {status}, see {log}"
    try:
        collect(run, args.results)
    except (InputError, OSError) as error:
        return False, f"{run.name}: its results could not be collected: {first_line(error)}"
    return True, f"{run.name}: done after {time.monotonic() - begun:.0f} s"


def collect(run: Run, target: Path) -> None:
    """Writes a small JSON file with everything the tables need, and one for each further evaluation."""
    commands = json.loads((run.folder / "commands.json").read_text())
    further = [(f"-{name}", run.folder / name) for name in EVALUATIONS]
    for suffix, evaluation in [("", run.folder), *further]:
        if not (evaluation / "results.json").exists():
            continue
        record = {"group": run.group, "row": run.row + suffix, "seed": run.seed, "commands": commands}
        record |= read_run(run.folder, evaluation)
        del record["name"]
        file = target / run.group / f"{run.row}{suffix}-seed{run.seed}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(record, indent=1) + "\n")


def expected_seconds(runs: list[Run], args: argparse.Namespace) -> float | None:
    """Estimates the time of the unfinished runs from logged epochs of the same protocol; None without any."""
    logs = [r.folder / "log.jsonl" for r in runs if (r.folder / "log.jsonl").exists()]
    epochs = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
    if not epochs or args.epochs is None and not (logs[0].parent / "args.json").exists():
        return None
    total = args.epochs or json.loads((logs[0].parent / "args.json").read_text())["epochs"]
    left = sum(not is_evaluated(r.folder) for r in runs)
    return left * total * sum(e["seconds"] for e in epochs) / len(epochs)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    devices = [str(i) for i in range(torch.cuda.device_count())] or ["cpu"] * args.jobs
    parts = [args.ds, args.model or "default", f"e{args.epochs}" if args.epochs else "", args.precision or ""]
    protocol = args.protocol or "_".join(part for part in parts if part)
    runs = [
        Run(protocol, row, seed, args.srp / protocol / row / f"seed{seed}")
        for seed in args.seeds
        for row in args.rows
    ]
    for line in commands(runs[0]._replace(folder=Path(os.devnull)), args, "cpu"):
        require_valid(line)
    done = [r for r in runs if is_evaluated(r.folder)]
    seconds = expected_seconds(runs, args)
    where = ", ".join(sorted(set(devices)))
    print(f"{args.table}: {len(runs)} runs, {len(done)} finished; {len(devices)} at a time on {where}")
    known = seconds is not None
    print(
        "expected:",
        f"{seconds / len(devices) / 60:.0f} minutes" if known else "unknown before an epoch",
    )
    for run in runs:
        print(f"  {run.name}: python {' '.join(commands(run, args, devices[0])[0])}", flush=True)
    if args.plan:
        return
    writable_folder(args.results)
    free = SimpleQueue()
    for device in devices:
        free.put(device)

    def work(run):
        device = free.get()
        try:
            return execute(run, args, device)
        finally:
            free.put(device)

    with ThreadPoolExecutor(len(devices)) as pool:
        outcomes = []
        for outcome in pool.map(work, runs):
            print(outcome[1], flush=True)
            outcomes.append(outcome)
    failed = [text for succeeded, text in outcomes if not succeeded]
    if failed:
        raise InputError(f"{len(failed)} of {len(runs)} runs failed; the first: {failed[0]}")
    show = ["--show", args.table, protocol, "--rows", *args.rows, "--results", str(args.results)]
    print(f"results in {args.results / protocol}; python -m benchmarks.table {shlex.join(show)}")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "table",
        choices=tuple(TABLES),
        help="cifar10, cifar100, imagenet, digits: methods on a benchmark; ablation: the parts of PATT; "
        "departures: those of the authors' release; lambda: both settings of Lambda1 and Lambda2; "
        "calibration-leak: FC fitted on test labels; strength: of FC; defaults: settings on held-out images",
    )
    parser.add_argument(
        "--ds",
        choices=(*BENCHMARKS, "imagenet"),
        help="the data set, for tables not named after one; default cifar10",
    )
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="only these rows of the table")
    parser.add_argument("--seeds", type=flags.count, nargs="+", default=[0, 1, 2])
    parser.add_argument("--drp", type=flags.path, help="the data folder")
    parser.add_argument(
        "--srp", type=flags.path, default=Path("runs/reproduce"), help="where the run directories go"
    )
    parser.add_argument(
        "--results",
        type=flags.path,
        default=Path("runs/results"),
        help="where the small result files go, for benchmarks.table",
    )
    parser.add_argument(
        "--epochs", type=flags.positive_int, help="fewer than the paper's: a reduced protocol"
    )
    parser.add_argument("--model", "--md", help="a smaller network than the paper's: a reduced protocol")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"))
    parser.add_argument("--dout", nargs="+", help="OOD sets other than the paper's six")
    parser.add_argument("--jobs", type=flags.positive_int, default=1, help="runs at a time on a CPU")
    parser.add_argument(
        "--protocol",
        help="a name for the folder of these runs; default: data set, network, epochs, precision",
    )
    parser.add_argument("--plan", action="store_true", help="print the plan only")
    parser.add_argument(
        "--extra",
        nargs=argparse.REMAINDER,
        default=[],
        help="further flags for both scripts, last on the line",
    )
    args = parser.parse_args(argv)
    own = args.table if args.table in ("cifar10", "cifar100", "digits", "imagenet") else None
    if own and args.ds not in (None, own):
        raise InputError(f"the table {own} is about {own}, not {args.ds}")
    args.ds = own or args.ds or "cifar10"
    if args.table == "calibration-leak" and args.ds == "imagenet":
        raise InputError(
            "calibration-leak is about CIFAR and the digits; test_imagenet.py calibrates on the "
            "training list alone"
        )
    if args.table == "calibration-leak" and args.ds == "digits" and "--rho" not in args.extra:
        raise InputError(
            "the digits have too few test images for a leak at their default tail; add --protocol "
            "digits_rho0.1 --extra --rho 0.1"
        )
    if args.extra and not args.protocol:
        raise InputError(
            "--extra needs a --protocol, a name that keeps these runs apart from those without it"
        )
    if args.ds == "imagenet" and (args.drp or args.dout):
        raise InputError("--drp and --dout are not for ImageNet-LT; give its lists and folders with --extra")
    there = [row for row in TABLES[args.table] if args.ds != "imagenet" or row not in NOT_ON_IMAGENET]
    unknown = set(args.rows or ()) - set(there)
    if unknown:
        raise InputError(f"the table {args.table} has no row {min(unknown)}; it has {', '.join(there)}")
    args.rows = args.rows or there
    return args


if __name__ == "__main__":
    exit_cleanly(main)
