"""Shared by the speed benchmarks: timing, and the table and results file of a claim."""

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.benchmark import Timer

from benchmarks.formats import Table, text
from utils.distributed import environment
from utils.text_files import write_text

RESULTS = Path("runs/benchmarks")
LEAST_SECONDS = 0.05  # per repeat, where a call is shorter


class Timing(NamedTuple):
    """Seconds per call: the median, and the smallest and largest as the spread."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        """Formats ``median (lowest to highest)`` in milliseconds."""
        median, low, high = (f"{ms:,.0f}" if ms >= 1000 else f"{ms:.4g}" for ms in (1e3 * s for s in self))
        return median if low == median == high else f"{median} ({low} to {high})"


def timed(function: Callable[[], Any], repeats: int, steps: int = 1) -> Timing:
    """Times one of the ``steps`` of ``function()``, over about ``repeats`` calls after three untimed ones.

    Short calls are repeated more often. It waits for the current GPU.
    """
    timer = Timer("function()", globals={"function": function}, num_threads=torch.get_num_threads())
    once = timer.timeit(1).median
    times = timer.blocked_autorange(min_run_time=repeats * max(once, LEAST_SECONDS)).times
    return Timing(*(seconds / steps for seconds in (statistics.median(times), min(times), max(times))))


def chosen_device(name: str) -> torch.device:
    """Parses ``--device``: cpu, cuda or cuda:INDEX; that GPU becomes the current one.

    Matrix products in fp32 are made without TF32.
    """
    torch.set_float32_matmul_precision("highest")
    try:
        device = torch.device(name)
        if device.type == "cuda":
            torch.cuda.set_device(device.index or 0)
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(f"there is no device {name}") from error
    return device


def publish(
    module: str, claim: str, device: torch.device, head: list[str], rows: list[list[str]], **measured: Any
) -> None:
    """Prints a table and writes it, with its data, to ``runs/benchmarks/<claim>-<device>.json``.

    A copy in ``benchmarks/results`` is what the documents show.

    Args:
        module: the caller's ``__spec__.name``. claim: the benchmark's name.
        device: where it ran; the file name has "cpu" or the GPU's name in lower case.
        head, rows: the table's cells. measured: the plain values behind the table.
    """
    where = environment(device) | {"float32_matmul_precision": torch.get_float32_matmul_precision()}
    name = "cpu" if device.type == "cpu" else re.sub(r"[^a-z0-9]+", "-", where["device"].lower())
    words = [Path(word).name if word.startswith("/") else word for word in sys.argv[1:]]
    command = " ".join(["python -m", module, *words])  # without folders of this machine
    path = RESULTS / f"{claim}-{name}.json"
    print(text(Table(head, rows, f"written: {path}")), flush=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    record = {"command": command, "environment": where, "table": {"head": head, "rows": rows}} | measured
    write_text(path, json.dumps(record, indent=1) + "\n")
