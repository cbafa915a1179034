"""The executable definition of every results table: its runs, and the flags of each.

    python -m benchmarks.reproduce digits   minutes on a CPU, no download
    python -m benchmarks.reproduce ablation --ds digits --seeds 0 1 2
    python -m benchmarks.reproduce cifar10 --drp DATA --srp OUT   the paper's protocol, on a GPU
    python -m benchmarks.reproduce ablation --ds cifar10 --drp DATA --md ResNet20 --epochs 5   reduced
    python -m benchmarks.reproduce imagenet --protocol imagenet --extra --txtt LIST ...   ImageNet-LT

Prints its plan, skips finished runs, resumes interrupted ones, and writes a small JSON file for each
evaluation in a run directory, for ``python -m benchmarks.table``. Runs are parallel: one per GPU, or
``--jobs`` on a CPU, with one thread each.
"""

import argparse
import json
import os
import re
import shlex
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

import torch

from benchmarks.commands import is_evaluated, require_valid, run_logged
from benchmarks.records import read_run
from benchmarks.rows import EVALUATED, EVALUATIONS, NOT_ON_IMAGENET, ROWS, TABLES
from datasets.registry import BENCHMARKS
from utils import flags
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


def commands(run: Run, args: argparse.Namespace, device: str) -> dict[Path, list[list[str]]]:
    """Returns the command lines that fill each folder of a run: training and evaluation; further ones."""
    script = "_imagenet" if args.ds == "imagenet" else ""
    last = [*args.extra, *(["--drp", str(args.drp)] if args.drp else [])]
    train = [
        f"train{script}.py",
        "--gpu",
        device,
        "--seed",
        str(run.seed),
        "--srp",
        str(run.folder),
        "--resume",
    ]
    train += [] if args.ds == "imagenet" else ["--ds", args.ds]
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
    """Returns the command lines as text, without this machine's folders and device."""
    every = [line for lines in commands(run, args, "GPU").values() for line in lines]
    texts = [" ".join(["python", *line]).replace(str(run.folder), "OUT") for line in every]
    if args.drp:
        texts = [text.replace(f"--drp {args.drp}", "--drp DATA") for text in texts]
    return [re.sub(r"(?<=[ =])[/~.]\S*/", "", text) for text in texts]


def execute(run: Run, args: argparse.Namespace, device: str) -> None:
    """Runs the missing parts of one run, logs to its ``log.txt``, and collects its results.

    Raises:
        InputError: a part fails, or the folder holds something else.
    """
    record, shown = run.folder / "commands.json", portable_commands(run, args)
    by_hand = (run.folder / "args.json").exists() and not record.exists()
    known = json.loads(record.read_text()) if record.exists() else shown
    if by_hand or known[:2] != shown[:2]:
        raise InputError(
            f"{run.folder} holds a run made by other commands; choose another --srp or --protocol"
        )
    run.folder.mkdir(parents=True, exist_ok=True)
    write_text(record, json.dumps(list(dict.fromkeys([*known, *shown])), indent=1) + "\n")
    for folder, lines in commands(run, args, device).items():
        for line in lines:
            status = 0 if is_evaluated(folder) else run_logged(line, run.folder / "log.txt", device)
            if status:
                raise InputError(f"failed with status {status}, see {run.folder / 'log.txt'}")
    collect(run, args.results)


def collect(run: Run, target: Path) -> None:
    """Writes a small JSON file with everything the tables need for each evaluation in a run directory.

    That of ``OUT/NAME/results.json`` is ROW-NAME.
    """
    commands = json.loads((run.folder / "commands.json").read_text())
    for results in sorted([run.folder / "results.json", *run.folder.glob("*/results.json")]):
        folder = results.parent
        row = run.row if folder == run.folder else f"{run.row}-{folder.name}"
        record = {"group": run.group, "row": row, "seed": run.seed, "commands": commands}
        record |= read_run(folder, run.folder)
        del record["name"], record["run"]
        file = target / run.group / f"{row}-seed{run.seed}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(record, indent=1) + "\n")


def execute_all(runs: list[Run], args: argparse.Namespace, devices: list[str]) -> list[str]:
    """Executes runs, one at a time on each device; returns what went wrong, a sentence per failed run."""
    free = SimpleQueue()
    for device in devices:
        free.put(device)

    def work(run):
        device = free.get()
        try:
            execute(run, args, device)
        except (InputError, OSError, ValueError) as error:
            return f"{run.name}: {first_line(error)}"
        finally:
            free.put(device)

    failed = []
    with ThreadPoolExecutor(len(devices)) as pool:
        for run, trouble in zip(runs, pool.map(work, runs), strict=True):
            print(trouble or f"{run.name}: done", flush=True)
            failed += [trouble] if trouble else []
    return failed


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
    for lines in commands(runs[0]._replace(folder=Path(os.devnull)), args, "cpu").values():
        for line in lines:
            require_valid(line)
    done, where = sum(is_evaluated(run.folder) for run in runs), ", ".join(sorted(set(devices)))
    print(f"{args.table}: {len(runs)} runs, {done} finished; {len(devices)} at a time on {where}")
    for run in runs:
        print(
            f"  {run.name}: {shlex.join(['python', *commands(run, args, devices[0])[run.folder][0]])}",
            flush=True,
        )
    if args.plan:
        return
    writable_folder(args.results)
    failed = execute_all(runs, args, devices)
    if failed:
        raise InputError(f"{len(failed)} of {len(runs)} runs failed; the first: {failed[0]}")
    show = ["--show", args.table, protocol, "--rows", *args.rows, "--results", str(args.results)]
    print(f"results in {args.results / protocol}; python -m benchmarks.table {shlex.join(show)}")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    tables = (
        "cifar10, cifar100, imagenet, digits: methods on a benchmark; ablation: the parts of PATT; "
        "departures: those of the authors' release; lambda: both settings of Lambda1 and Lambda2; "
        "calibration-leak: FC fitted on test labels; strength: of FC; defaults: settings on held-out images"
    )
    add("table", choices=tuple(TABLES), help=tables)
    ds = "the data set, for tables not named after one; default cifar10"
    add("--ds", choices=(*BENCHMARKS, "imagenet"), help=ds)
    add("--rows", nargs="+", metavar="ROW", help="only these rows of the table")
    add("--seeds", type=flags.count, nargs="+", default=[0, 1, 2])
    add("--drp", type=flags.path, help="the data folder")
    add("--srp", type=flags.path, default=Path("runs/reproduce"), help="where the run directories go")
    results = "where the small result files go, for benchmarks.table"
    add("--results", type=flags.path, default=Path("runs/results"), help=results)
    add("--epochs", type=flags.positive_int, help="fewer than the paper's: a reduced protocol")
    add("--model", "--md", help="a smaller network than the paper's: a reduced protocol")
    add("--precision", choices=("auto", "fp32", "bf16"))
    add("--dout", nargs="+", help="OOD sets other than the paper's six")
    add("--jobs", type=flags.positive_int, default=1, help="runs at a time on a CPU")
    add("--protocol", help="names the folder of these runs; default: data set, network, epochs, precision")
    add("--plan", action="store_true", help="print the plan only")
    extra = "further flags for both scripts, last on the line"
    add("--extra", nargs=argparse.REMAINDER, default=[], help=extra)
    args = parser.parse_args(argv)
    own = args.table if args.table in (*BENCHMARKS, "imagenet") else None
    if own and args.ds not in (None, own):
        raise InputError(f"the table {own} is about {own}, not --ds {args.ds}")
    args.ds = own or args.ds or "cifar10"
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
