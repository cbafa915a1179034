"""Memory over a long run: python -m benchmarks.speed.memory

Trains the embedded digits for 300 short epochs and compares resident memory after 50 epochs and at the end.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.runs import ROOT
from benchmarks.speed.common import publish
from utils.errors import InputError, exit_cleanly

FIRST, LAST = 50, 300
SMALL = "--ds digits --gpu cpu --val_fraction 0.9 -b 8 --ob 8 --num_ood_samples 32"
PAGE_MB = 4096 / 1e6


def memory_by_epoch(epochs: int, folder: Path) -> dict[int, float]:
    """Returns the resident memory (MB, Linux) of a training by number of finished epochs, first readings."""
    line = [sys.executable, "train.py", *SMALL.split(), "--epochs", str(epochs), "--srp", str(folder)]
    process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.DEVNULL)
    log, memory = folder / "log.jsonl", {}
    while process.poll() is None:
        done = len(log.read_text().splitlines()) if log.exists() else 0
        pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
        if pages:  # 0: it has just ended
            memory.setdefault(done, pages * PAGE_MB)
        time.sleep(0.02)
    if process.returncode:
        raise InputError(f"the training failed with status {process.returncode}")
    return memory


def main(argv: list[str] | None = None) -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        memory = memory_by_epoch(LAST, Path(folder) / "run")
    after = {
        epoch: memory[max(e for e in memory if e <= epoch)] for epoch in (FIRST, (FIRST + LAST) // 2, LAST)
    }
    rows = [[f"after {epoch} epochs", f"{megabytes:.1f}"] for epoch, megabytes in after.items()]
    rows.append([f"growth from {FIRST} to {LAST}", f"{after[LAST] - after[FIRST]:+.1f}"])
    head = ["a run of short epochs", "resident memory, MB"]
    publish(__spec__.name, "memory", torch.device("cpu"), head, rows, by_epoch=list(memory.values()))


if __name__ == "__main__":
    exit_cleanly(main)
