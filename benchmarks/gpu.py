"""Everything that needs CUDA, on one GPU within ten minutes: python -m benchmarks.gpu --drp DATA --srp OUT

In the order of worth: whether the device computes what the CPU computes; the training step and epoch on
CIFAR10-LT, as it is and compiled; CIFAR10-LT for the full 100 epochs and its test table; the ImageNet step;
the criterion. Each part has a limit, and is left out if its time is up; result files appear as each ends.
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

LIMIT_SECONDS = 10 * 60
GRACE_SECONDS = 10  # for a training that runs out of time to write its checkpoint
LEAST_SECONDS = 15  # a part with less is not begun


def plan(drp, srp, dout):
    """The parts in order: the words after "python", and the most seconds that each may take."""
    speed = "benchmarks.speed"
    reproduce = ["benchmarks.reproduce", "cifar10", "--rows", "patt", "--seeds", "0"]
    reproduce += ["--drp", str(drp), "--srp", str(srp)]
    on_cuda = ["--device", "cuda"]
    parts = [
        (["benchmarks.correctness", *on_cuda], 60),
        ([f"{speed}.train", *on_cuda], 90),
        ([f"{speed}.train", *on_cuda, "--compile"], 150),
        (reproduce + (["--dout", *dout] if dout else []), 300),
        ([f"{speed}.imagenet_step", *on_cuda], 90),
        ([f"{speed}.criterion", *on_cuda], 60),
    ]
    return [(["-m", *words], seconds) for words, seconds in parts]


def run_all(parts, seconds, clock=time.monotonic):
    """Runs the parts one after another within ``seconds``; returns what was not measured, and why."""
    end, failed = clock() + seconds - GRACE_SECONDS, []
    for line, most in parts:
        command, left = f"python {' '.join(line)}", end - clock()
        if left < LEAST_SECONDS:
            failed.append(f"{command} (no time left)")
            continue
        print(f"$ {command}   ({left:.0f} s left)", flush=True)
        trouble = run_within(line, min(left, most))
        if trouble:
            failed.append(f"{command} ({trouble})")
    return failed


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
    parser.add_argument(
        "--drp", type=flags.path, required=True, help="CIFAR-10, the outliers and the OOD sets"
    )
    parser.add_argument("--srp", type=flags.path, default=Path("runs/gpu"))
    parser.add_argument("--dout", nargs="+", help="OOD sets other than the paper's six")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        raise InputError("benchmarks.gpu needs a CUDA device, and there is none here")
    failed = run_all(plan(args.drp, args.srp, args.dout), LIMIT_SECONDS)
    if failed:
        raise InputError(f"not measured: {'; '.join(failed)}")


if __name__ == "__main__":
    exit_cleanly(main)
