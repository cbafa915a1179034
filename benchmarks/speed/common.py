"""Shared by the speed benchmarks: timing, and the table and results file of a claim."""

import json
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.benchmark import Timer

from benchmarks.tabulate import Table, text
from utils.distributed import environment
from utils.text_files import write_text

RESULTS = Path("runs/benchmarks")
LEAST_SECONDS = 0.05  # per repeat, where a call is shorter
Times = tuple[float, float, float]  # seconds: median, shortest, longest


def timed(function: Callable[[], Any], repeats: int, steps: int = 1) -> Times:
    """Times one of the ``steps`` of ``function()``, over about ``repeats`` calls; waits for the GPU."""
    timer = Timer("function()", globals={"function": function}, num_threads=torch.get_num_threads())
    once = timer.timeit(1).median
    times = timer.blocked_autorange(min_run_time=repeats * max(once, LEAST_SECONDS)).times
    return statistics.median(times) / steps, min(times) / steps, max(times) / steps


def milliseconds(times: Times) -> str:
    """Formats ``median (shortest to longest)``."""
    return "{:,.2f} ({:,.2f} to {:,.2f})".format(*(1000 * seconds for seconds in times))


def publish(
    module: str, claim: str, device: torch.device, head: list[str], rows: list[list[str]], **measured: Any
) -> None:
    """Prints a table and writes it, with the measured values, to ``runs/benchmarks/<claim>-<device>.json``.
    ``module`` is the caller's ``__spec__.name``."""
    where = environment(device) | {"float32_matmul_precision": torch.get_float32_matmul_precision()}
    name = "cpu" if device.type == "cpu" else re.sub(r"[^a-z0-9]+", "-", where["device"].lower())
    path = RESULTS / f"{claim}-{name}.json"
    print(text(Table(head, rows, f"written: {path}")), flush=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    record = {"command": " ".join(["python -m", module, *sys.argv[1:]]), "environment": where}
    record |= {"table": {"head": head, "rows": rows}} | measured
    write_text(path, json.dumps(record, indent=1) + "\n")
