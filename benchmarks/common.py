"""What every benchmark shares: repeated timing, a description of the machine, and the results file."""
import datetime
import json
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import torch

RESULTS = Path(__file__).parent / "results"


class Timing(NamedTuple):
    """Seconds of one call over the repeats: the median, and the smallest and largest as the spread."""

    median: float
    low: float
    high: float


def timed(fn: Callable[[], object], repeats: int, warmup: int = 1) -> Timing:
    """Seconds that ``fn()`` takes, over ``repeats`` calls after ``warmup`` untimed ones; waits for a GPU's work."""
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


def processor_name() -> str:
    """The CPU's marketing name where the system tells it, else its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def usable_cores() -> int:
    """CPU cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def commit() -> str:
    """The commit that is measured, marked ``-dirty`` when tracked files differ from it; "unknown" outside git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def environment(device: str = "cpu") -> dict[str, object]:
    """Versions, device, cores, date and commit: what a reader needs to judge a measurement on ``device``."""
    packages = ("torch", "torchvision", "numpy", "Pillow")
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else processor_name(),
        "cores": usable_cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {"python": platform.python_version()} | {name: metadata.version(name) for name in packages},
    }


def write_results(claim: str, device: str, payload: dict[str, object]) -> Path:
    """Write ``payload`` with its environment to ``benchmarks/results/<claim>-<device>.json``; returns the path.

    The file name's device is "cpu" or the GPU's name in small letters, such as ``nvidia-h200``.
    """
    name = "cpu" if device == "cpu" else re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(device).lower())
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{claim}-{name}.json"
    path.write_text(json.dumps({"environment": environment(device), **payload}, indent=2) + "\n")
    return path
