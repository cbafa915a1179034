"""Shared by all benchmarks: repeated timing, and the table and results file of a claim."""

import argparse
import json
import re
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch

from utils.environment import environment
from utils.text_files import write_text

RESULTS = Path("runs/benchmarks")


class Timing(NamedTuple):
    """Seconds per call over the repeats: the median, and the smallest and largest as the spread."""

    median: float
    low: float
    high: float


def chosen_device(text: str) -> torch.device:
    """Parses ``--device``: "cpu", "cuda" or "cuda:1".

    A GPU becomes the current one; its work and memory are measured.
    """
    try:
        chosen = torch.device(text)
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not cpu, cuda or cuda:INDEX") from error
    if chosen.type == "cuda":
        visible = torch.cuda.device_count()
        if (chosen.index or 0) >= visible:
            raise argparse.ArgumentTypeError(f"there is no device {text}; visible CUDA devices: {visible}")
        torch.cuda.set_device(chosen.index or 0)
    return chosen


def timed(fn, repeats, warmup=1):
    """Times ``fn()`` over ``repeats`` calls, after ``warmup`` untimed ones; waits for the current GPU."""
    synchronise = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for _ in range(warmup):
        fn()
    seconds = []
    for _ in range(repeats):
        synchronise()
        start = time.perf_counter()
        fn()
        synchronise()
        seconds.append(time.perf_counter() - start)
    return Timing(statistics.median(seconds), min(seconds), max(seconds))


def milliseconds(timing):
    """Formats ``median (lowest to highest)`` with four digits; a single value for a single repeat."""
    median, low, high = (
        f"{t:,.0f}" if t >= 1000 else f"{t:.4g}" for t in (1e3 * seconds for seconds in timing)
    )
    return median if low == median == high else f"{median} ({low} to {high})"


def publish(module, claim, device, head, rows, **measurements):
    """Prints a table and writes it, with its data, to ``runs/benchmarks/<claim>-<device>.json``. A copy in
    ``benchmarks/results`` is what the documents show.

    Args:
        module: the caller's ``__spec__.name``. claim: the benchmark's name.
        device: where it ran; the file name has "cpu" or the GPU's name in lower case.
        head, rows: the table's cells, as text.
        measurements: the plain values behind the table.
    """
    where = environment(device)
    name = "cpu" if device.type == "cpu" else re.sub(r"[^a-z0-9]+", "-", where["device"].lower())
    words = [
        Path(word).name if word.startswith("/") else word for word in sys.argv[1:]
    ]  # no folders of this machine
    command = " ".join(["python -m", module, *words])
    for row in [head, *rows]:
        print("  ".join(str(cell).ljust(24) for cell in row), flush=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{claim}-{name}.json"
    record = {"command": command, "environment": where, "table": {"head": head, "rows": rows}} | measurements
    write_text(path, json.dumps(record, indent=1) + "\n")
    print(f"written: {path}", flush=True)
