"""Where a result was made: versions, device, commit and date."""

import datetime
import os
import platform
import re
import subprocess
from pathlib import Path

import numpy as np
import torch
import torchvision


def environment(device: torch.device) -> dict:
    """Returns versions, device, commit and date, for ``args.json`` and result files."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "numpy": np.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor_name(),
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "commit": _commit(),
        "date": datetime.date.today().isoformat(),
    }


def resumed_in(before: dict, now: dict) -> dict:
    """Returns the environment of a resumed run: where device, versions or commit changed, all of them.

    Args:
        before: the environment that its checkpoint stores. now: that of this process.
    """
    merged = dict(now)
    for name in ("python", "torch", "torchvision", "numpy", "device", "commit"):
        earlier = str(before.get(name, now[name]))
        same = earlier.rpartition(", then ")[2] == str(now[name])
        merged[name] = earlier if same else f"{earlier}, then {now[name]}"
    return merged


def _processor_name():
    """Returns the CPU's name if the system reveals it, else its architecture."""
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found.group(1).strip() if found else f"{platform.machine()} CPU"


def _commit():
    """Returns the commit of this code, with "-dirty" if files differ; None outside its own checkout."""
    project = Path(__file__).resolve().parent.parent
    top = _git(project, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != project:  # unpacked within another repository
        return None
    return _git(project, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")


def _git(folder, *words):
    command = ["git", "-C", str(folder), *words]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
