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
from utils.environment import environment
from utils.text_files import write_text

RESULTS = Path("runs/benchmarks")
LEAST_SECONDS = 0.05  # per repeat, where a call is shorter


class Timing(NamedTuple):
    """Seconds per call: the median, and the smallest and largest as the spread."""

    median: float
    low: float
    high: float

    def __truediv__(self, steps: int) -> "Timing":
        return Timing(*(seconds / steps for seconds in self))


def chosen_device(name: str) -> torch.device:
    """Parses ``--device``: "cpu", "cuda" or "cuda:1".

    A GPU becomes the current one, whose work and memory are measured. Matrix products in fp32 do not use
    TF32.
    """
    torch.set_float32_matmul_precision("highest")
    try:
        chosen = torch.device(name)
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{name!r} is not cpu, cuda or cuda:INDEX") from error
    if chosen.type == "cuda":
        visible = torch.cuda.device_count()
        if (chosen.index or 0) >= visible:
            raise argparse.ArgumentTypeError(f"there is no device {name}; visible CUDA devices: {visible}")
        torch.cuda.set_device(chosen.index or 0)
    return chosen


def timed(function: Callable[[], Any], repeats: int) -> Timing:
    """Times ``function()`` over about ``repeats`` calls, more if they are short, after three untimed ones."""
    timer = Timer("function()", globals={"function": function}, num_threads=torch.get_num_threads())
    once = timer.timeit(1).median
    times = timer.blocked_autorange(min_run_time=repeats * max(once, LEAST_SECONDS)).times
    return Timing(statistics.median(times), min(times), max(times))


def milliseconds(timing: Timing) -> str:
    """Formats ``median (lowest to highest)`` with four digits; a single value if there is one."""
    median, low, high = (f"{ms:,.0f}" if ms >= 1000 else f"{ms:.4g}" for ms in (1e3 * s for s in timing))
    return median if low == median == high else f"{median} ({low} to {high})"


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
