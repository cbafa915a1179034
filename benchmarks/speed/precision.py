"""Do bf16 and --compile give fp32's results? python -m benchmarks.speed.precision --drp DATA

Trains PATT on CIFAR10-LT with a small network for a few epochs, in fp32 and in bf16 (with --compiled also in
compiled bf16), with the same seeds, and evaluates the fp32 networks in bf16 as well. Compares accuracy and
AUROC: a difference counts as within the spread if it does not exceed the max-min range of the fp32 seeds.
Finished runs in --srp are kept; its layout is that of benchmarks.reproduce, and runs of its row "patt" are
reused.
"""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean

import torch

from benchmarks.runs import is_evaluated, run_logged
from benchmarks.speed.common import publish
from benchmarks.tabulate import spread
from utils import flags
from utils.errors import InputError, exit_cleanly

TRAINED_IN = {
    "fp32": ["--precision", "fp32"],
    "bf16": ["--precision", "bf16"],
    "bf16 compiled": ["--precision", "bf16", "--compile"],
}
EVALUATED = "fp32, evaluated in bf16"


def commands(way, seed, args):
    """Returns [(command line, the folder of the results that it leads to)]: training and evaluations."""
    name = f"cifar10_{args.md}_e{args.epochs}_{way.replace(' ', '_')}"
    folder = args.srp / name / "patt" / f"seed{seed}"
    shared = ["--gpu", args.gpu, "--drp", str(args.drp)]
    training = [
        "train.py",
        *shared,
        "--ds",
        "cifar10",
        "--md",
        args.md,
        "--epochs",
        str(args.epochs),
        "--seed",
        str(seed),
    ]
    training += ["--srp", str(folder), "--resume", *TRAINED_IN[way]]
    test = ["test.py", *shared, "--ckpt_path", str(folder), "--dout", *args.dout]
    lines = [(training, folder), (test + TRAINED_IN[way][:2], folder)]
    if way == "fp32":
        lines.append(([*test, "--precision", "bf16", "--srp", str(folder / "bf16")], folder / "bf16"))
    return lines


def execute(run, device):
    """Runs the missing parts of ``run``, a list from :func:`commands`; returns the evaluations' results."""
    log = run[0][1] / "log.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    for line, folder in run:
        if not is_evaluated(folder):
            print(f"$ python {' '.join(line)}", flush=True)
            status = run_logged(line, log, device)
            if status:
                raise InputError(f"status {status} from python {' '.join(line)}; its output is in {log}")
    return [json.loads((folder / "results.json").read_text()) for _, folder in run[1:]]


def numbers(results):
    """Returns the compared values of one evaluation, as fractions, with and without feature calibration."""
    values = {}
    for fc, name in ((False, ""), (True, ", FC")):
        values[f"accuracy{name}"] = next(a["all"] for a in results["accuracy"] if a["fc"] == fc)
        energy = next(m for m in results["mean"] if m["fc"] == fc and m["score"] == "energy")
        values[f"AUROC{name}"] = energy["auroc"]
    return values


def compare(measured):
    """Builds table rows from ``measured``: way -> :func:`numbers` per seed; the first way is the
    reference."""
    plain, *others = measured
    rows = []
    for name in measured[plain][0]:
        reference = [values[name] for values in measured[plain]]
        rows.append([name, plain, spread(reference), "", ""])
        allowed = max(reference) - min(reference)
        for way in others:
            values = [values[name] for values in measured[way]]
            difference = mean(values) - mean(reference)
            within = "yes" if abs(difference) <= allowed else "no"
            rows.append(
                [name, way, spread(values), f"{100 * difference:+.2f}", f"{within} ({100 * allowed:.2f})"]
            )
    return rows


def main(argv=None):
    args = benchmark_args(argv)
    ways = [way for way in TRAINED_IN if args.compiled or way != "bf16 compiled"]
    runs = [commands(way, seed, args) for way in ways for seed in args.seeds]
    with ThreadPoolExecutor(args.jobs) as pool:
        results = list(pool.map(lambda run: execute(run, args.gpu), runs))
    measured = {}
    for i, way in enumerate(ways):
        of_way = results[i * len(args.seeds) : (i + 1) * len(args.seeds)]
        measured[way] = [numbers(evaluations[0]) for evaluations in of_way]
        if way == "fp32":
            measured[EVALUATED] = [numbers(evaluations[1]) for evaluations in of_way]
    device = torch.device("cpu" if args.gpu == "cpu" else f"cuda:{args.gpu}")
    head = [
        f"CIFAR10-LT, {args.md}, {args.epochs} epochs",
        f"{len(args.seeds)} seeds",
        "%",
        "difference",
        "within fp32's range",
    ]
    publish(__spec__.name, "precision", device, head, compare(measured), measured=measured)


def benchmark_args(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--drp", type=flags.path, required=True, help="the data folder")
    parser.add_argument(
        "--srp", type=flags.path, default=Path("runs/precision"), help="where the run directories go"
    )
    parser.add_argument("--gpu", default="cpu")
    parser.add_argument("--md", default="ResNet20")
    parser.add_argument("--epochs", type=flags.positive_int, default=1)
    parser.add_argument("--seeds", type=flags.count, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--dout", nargs="+", default=["cifar100", "tin", "texture", "scenes", "mnist"], help="OOD sets"
    )
    parser.add_argument("--compiled", action="store_true", help="also train in bf16 with torch.compile")
    parser.add_argument("--jobs", type=flags.positive_int, default=1, help="parallel runs")
    return parser.parse_args(argv)


if __name__ == "__main__":
    exit_cleanly(main)
