"""Every benchmark that needs CUDA, in one go within nine minutes: python -m benchmarks.gpu --drp DATA --srp OUT

Criterion, augmentation, the training step, the ImageNet step; then CIFAR10-LT for the full 100 epochs and its test table.
Result files appear as each part ends, so that a short loan of a GPU is not lost.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import torch

from utils.errors import InputError, exit_cleanly

LIMIT_SECONDS = 9 * 60


def plan(drp, srp, dout):
    """The command lines, in order, after "python"."""
    on_cuda = ["--device", "cuda"]
    lines = [["-m", f"benchmarks.{name}", *on_cuda] for name in ("criterion", "augment", "train")]
    lines.append(["-m", "benchmarks.imagenet_step"])
    reproduce = ["-m", "benchmarks.reproduce", "cifar10", "--rows", "patt", "--seeds", "0", "--drp", str(drp), "--srp", str(srp)]
    return [*lines, reproduce + (["--dout", *dout] if dout else [])]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--drp", type=Path, required=True, help="the data folder with CIFAR-10")
    parser.add_argument("--srp", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--dout", nargs="+", help="OOD sets other than the paper's six")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        raise InputError("benchmarks.gpu needs a CUDA device, and there is none here")
    begun = time.monotonic()
    failed = []
    for line in plan(args.drp, args.srp, args.dout):
        left = LIMIT_SECONDS - (time.monotonic() - begun)
        print(f"$ python {' '.join(line)}   ({left:.0f} s left)", flush=True)
        try:
            if subprocess.run([sys.executable, *line], timeout=max(left, 1)).returncode:
                failed.append(line[1])
        except subprocess.TimeoutExpired:
            failed.append(f"{line[1]} (out of time)")
    if failed:
        raise InputError(f"not measured: {', '.join(failed)}")


if __name__ == "__main__":
    exit_cleanly(main)
