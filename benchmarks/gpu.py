"""Every benchmark that needs CUDA, in one go within nine minutes: python -m benchmarks.gpu --drp DATA --srp
OUT

Criterion, augmentation, the training step (as it is, and compiled); CIFAR10-LT for the full 100 epochs and
its test table; the ImageNet step. Result files appear as each part ends, so that a short loan of a GPU is not
lost.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from utils import flags
from utils.errors import InputError, exit_cleanly

LIMIT_SECONDS = 9 * 60
GRACE_SECONDS = 10  # for a training that runs out of time to write its checkpoint


def plan(drp, srp, dout):
    """The command lines, in order, after "python"."""
    on_cuda = ["--device", "cuda"]
    lines = [["-m", f"benchmarks.speed.{name}", *on_cuda] for name in ("criterion", "augment", "train")]
    reproduce = [
        "-m",
        "benchmarks.reproduce",
        "cifar10",
        "--rows",
        "patt",
        "--seeds",
        "0",
        "--drp",
        str(drp),
        "--srp",
        str(srp),
    ]
    lines.append(reproduce + (["--dout", *dout] if dout else []))
    lines.append(["-m", "benchmarks.speed.train", *on_cuda, "--compile"])
    lines.append(["-m", "benchmarks.speed.imagenet_step", *on_cuda])
    return lines


def run_within(line, seconds):
    """Runs ``python line``; says what went wrong, or returns None. Out of time it ends with all the processes
    it started."""
    process = subprocess.Popen([sys.executable, *line], start_new_session=True)
    try:
        status = process.wait(max(seconds, 0))
        return f"status {status}" if status else None
    except subprocess.TimeoutExpired:
        return "out of time"
    finally:
        end_group(process)


def end_group(process):
    """Ends what is left of a process group: asks first, then kills."""
    try:
        os.killpg(process.pid, signal.SIGTERM)
        until = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < until:
            process.poll()
            time.sleep(0.05)
            os.killpg(process.pid, 0)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    except ProcessLookupError:
        process.wait()


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--drp", type=flags.path, required=True, help="the data folder with CIFAR-10")
    parser.add_argument("--srp", type=flags.path, default=Path("runs/gpu"))
    parser.add_argument("--dout", nargs="+", help="OOD sets other than the paper's six")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        raise InputError("benchmarks.gpu needs a CUDA device, and there is none here")
    end = time.monotonic() + LIMIT_SECONDS - GRACE_SECONDS
    failed = []
    for line in plan(args.drp, args.srp, args.dout):
        command = f"python {' '.join(line)}"
        print(f"$ {command}   ({end - time.monotonic():.0f} s left)", flush=True)
        trouble = run_within(line, end - time.monotonic())
        if trouble:
            failed.append(f"{command} ({trouble})")
    if failed:
        raise InputError(f"not measured: {'; '.join(failed)}")


if __name__ == "__main__":
    exit_cleanly(main)
