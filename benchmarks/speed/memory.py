"""Memory over a long run: python -m benchmarks.speed.memory

Trains the embedded digits for 300 short epochs in this process and compares the resident memory after 50
epochs with that at the end.
"""

import argparse
import tempfile
from pathlib import Path

import torch

import train
from benchmarks.speed.common import publish
from utils.run import run

FIRST, LAST = 50, 300


def resident_mb():
    """This process's resident memory (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def main():
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    memory = []
    original = run.describe

    def noting(record, epochs):
        memory.append(resident_mb())
        return original(record, epochs)

    run.describe = noting  # called once an epoch, after its checkpoint
    small = "--ds digits --gpu cpu --val_fraction 0.9 -b 8 --ob 8 --num_ood_samples 32 --epochs"
    with tempfile.TemporaryDirectory() as folder:
        train.main([*small.split(), str(LAST), "--srp", f"{folder}/run"])
    growth = memory[LAST - 1] - memory[FIRST - 1]
    rows = [
        [f"after {epoch} epochs", f"{memory[epoch - 1]:.1f}"] for epoch in (FIRST, (FIRST + LAST) // 2, LAST)
    ]
    rows.append([f"growth from {FIRST} to {LAST}", f"{growth:+.1f}"])
    publish(
        "memory", torch.device("cpu"), ["a run of short epochs", "resident memory, MB"], rows, by_epoch=memory
    )


if __name__ == "__main__":
    main()
