"""Everything that needs CUDA, on one GPU within ten minutes: python -m benchmarks.gpu --drp DATA --srp OUT

In the order of worth: whether the device computes what the CPU computes; the training step and epoch on
CIFAR10-LT, as it is and compiled; CIFAR10-LT for the full 100 epochs and its test table; the criterion. Each
part has a limit, and is left out if its time is up; result files appear as each ends.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from utils import flags
from utils.errors import InputError, exit_cleanly

PLANNED_SECONDS = 9 * 60  # of ten minutes
GRACE_SECONDS = 10  # for a training that runs out of time to write its checkpoint
LEAST_SECONDS = 15  # a part with less is not begun

Part = tuple[list[str], float]  # the words after "python", and the most seconds that they may take


def plan(drp: Path, srp: Path, dout: list[str] | None) -> list[Part]:
    """Returns the parts in order."""
    speed, on_cuda = "benchmarks.speed", ["--device", "cuda"]
    reproduce = ["benchmarks.reproduce", "cifar10", "--rows", "patt", "--seeds", "0"]
    reproduce += ["--drp", str(drp), "--srp", str(srp), *(["--dout", *dout] if dout else [])]
    parts = [
        (["benchmarks.correctness", *on_cuda], 60),
        ([f"{speed}.train", *on_cuda], 90),
        ([f"{speed}.train", *on_cuda, "--compile"], 150),
        (reproduce, 300),
        ([f"{speed}.criterion", *on_cuda], 60),
    ]
    return [(["-m", *words], seconds) for words, seconds in parts]


def run_all(parts: list[Part], seconds: float, clock: Callable[[], float] = time.monotonic) -> list[str]:
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


def run_within(line: list[str], seconds: float) -> str | None:
    """Runs ``python line`` and says what went wrong. Out of time, it ends with all that it started."""
    process = subprocess.Popen([sys.executable, *line], start_new_session=True)
    try:
        status = process.wait(seconds)
        return f"status {status}" if status else None
    except subprocess.TimeoutExpired:
        return "out of time"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
            time.sleep(GRACE_SECONDS)
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    data = "CIFAR-10, the outliers and the OOD sets"
    parser.add_argument("--drp", type=flags.path, required=True, help=data)
    parser.add_argument("--srp", type=flags.path, default=Path("runs/gpu"))
    parser.add_argument("--dout", nargs="+", help="OOD sets other than the paper's six")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        raise InputError("benchmarks.gpu needs a CUDA device, and there is none here")
    failed = run_all(plan(args.drp, args.srp, args.dout), PLANNED_SECONDS)
    if failed:
        raise InputError(f"not measured: {'; '.join(failed)}")


if __name__ == "__main__":
    exit_cleanly(main)
