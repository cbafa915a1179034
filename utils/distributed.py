"""Where the computation runs: one CPU or GPU, several GPUs in one process (DataParallel), or several
processes (torchrun); and what a result says about it."""

import ctypes
import datetime
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torchvision
from torch import Tensor, nn

from utils.errors import InputError, say

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # numbers of mallopt's parameters in glibc


class Compute(NamedTuple):
    """Where this process computes; ``gpus`` are the CUDA indices of DataParallel."""

    device: torch.device
    gpus: tuple[int, ...] = ()
    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Tells whether this process writes files and prints."""
        return self.rank == 0


def start(gpu: str) -> Compute:
    """Chooses the device(s) of ``--gpu``, and joins the process group if torchrun started this process. Under
    it each process uses one GPU: for "0", the one of its local rank, else the one at that place in the list.
    Raises InputError if a GPU does not exist, or the value is not a list of indices, or has too few."""
    _keep_freed_memory()
    indices = () if gpu == "cpu" else _gpu_indices(gpu)
    if indices and not torch.cuda.is_available():
        indices = ()
        if is_first_process():
            say(f"no CUDA device here: --gpu {gpu} runs on the CPU")
    device = torch.device("cpu")
    under_torchrun = "LOCAL_RANK" in os.environ and "WORLD_SIZE" in os.environ
    if indices:
        if under_torchrun:
            local_rank = int(os.environ["LOCAL_RANK"])
            indices = (local_rank,) if indices == (0,) else indices[local_rank : local_rank + 1]
        visible = torch.cuda.device_count()
        if not indices or max(indices) >= visible:
            raise InputError(f"--gpu {gpu}: no such GPU, or too few for the processes; {visible} visible")
        device = torch.device("cuda", indices[0])
        torch.cuda.set_device(device.index)
        # Explicitly: containers may set other defaults.
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = True
    if not under_torchrun:
        return Compute(device, indices)
    dist.init_process_group("nccl" if indices else "gloo")
    return Compute(device, (), dist.get_rank(), dist.get_world_size())


def _keep_freed_memory():
    """Has glibc keep freed memory for the next step: returning it costs a twelfth of a CPU's step."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(MMAP_THRESHOLD, 2**30)
            libc.mallopt(TRIM_THRESHOLD, 2**31 - 1)


def seed_everything(seed: int, deterministic: bool) -> None:
    """Seeds initialisation (data order and views have their own seeds)."""
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS needs this
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not deterministic


def is_first_process() -> bool:
    """Tells whether this process is the only or first one, also before :func:`start`."""
    return os.environ.get("RANK", "0") == "0"


def finish() -> None:
    """Leaves the process group, if there is one."""
    if in_process_group():
        dist.destroy_process_group()


def _gpu_indices(text):
    try:
        indices = tuple(int(part) for part in text.split(","))
    except ValueError:
        indices = ()
    if not indices or min(indices) < 0 or len(set(indices)) < len(indices):
        raise InputError(f"--gpu takes indices such as 0 or 0,1, or cpu, not {text!r}")
    return indices


def resolved_precision(device: torch.device, precision: str) -> str:
    """Returns ``--precision`` with "auto" resolved: bf16 if the GPU does not just emulate it, else fp32."""
    if precision != "auto":
        return precision
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if has_bf16 else "fp32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Returns the autocast context of ``--precision``."""
    bf16 = resolved_precision(device, precision) == "bf16"
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)


class InPrecision(nn.Module):
    """A network with its own autocast, which is set per thread: DataParallel's threads know only float16."""

    def __init__(self, module, precision):
        super().__init__()
        self.module, self.precision = module, precision

    def forward(self, images):
        with autocast(images.device, self.precision):
            return self.module(images)


class InterleavedDataParallel(nn.DataParallel):
    """DataParallel whose k replicas see much the same mix of views and outliers: images i, i + k ...

    A batch is ordered by view: contiguous shares would give one replica, and its BatchNorm, outliers alone.
    """

    def forward(self, images):
        numbers, replicas = torch.arange(len(images), device=images.device), len(self.device_ids)
        order = torch.cat([numbers[i::replicas] for i in range(replicas)])
        output = super().forward(images[order])
        back = torch.argsort(order)
        return type(output)(*(t[back] for t in output))


def parallelize(
    model: nn.Module, compute: Compute, precision: str = "auto", sync_bn: bool = False
) -> nn.Module:
    """Returns the network for the training step; ``precision`` and ``sync_bn`` are the flags."""
    if compute.world_size > 1:
        if sync_bn:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        ids = [compute.device.index] if compute.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=ids)
    return over_gpus(model, compute, precision)


def over_gpus(model: nn.Module, compute: Compute, precision: str) -> nn.Module:
    """Returns the network on all GPUs of this process; unchanged if there is only one device."""
    if len(compute.gpus) > 1:
        return InterleavedDataParallel(InPrecision(model, precision), device_ids=list(compute.gpus))
    return model


def share_buffers(model: nn.Module) -> None:
    """Gives every process rank 0's buffers (BatchNorm's running statistics)."""
    if in_process_group():
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def from_main(value: Any) -> Any:
    """Returns rank 0's plain value in every process."""
    if not in_process_group():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def to_main(value: Any) -> list:
    """Returns the plain values of all processes, by rank, in the main process; no values in the others."""
    if not in_process_group():
        return [value]
    values = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(value, values)
    return values or []


def in_main(compute: Compute, function: Callable[[], Any]) -> Any:
    """Calls ``function`` in the main process; the others get None. Its InputError ends them too, silently."""
    result, refusal = None, None
    if compute.is_main:
        try:
            result = function()
        except InputError as error:
            refusal = error
    if from_main(refusal is not None):
        raise refusal if compute.is_main else SystemExit(2)
    return result


def in_process_group() -> bool:
    """Tells whether several processes (or one, under torchrun) compute together."""
    return dist.is_available() and dist.is_initialized()


def sum_over_processes(tensor: Tensor) -> Tensor:
    """Sums the tensor in place over the processes of the group, if there is one, and returns it."""
    if in_process_group():
        dist.all_reduce(tensor)
    return tensor


def cpu_cores() -> int:
    """Returns how many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment(device: torch.device) -> dict:
    """Returns versions, device, commit and date, for ``args.json`` and result files."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "numpy": np.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor_name(),
        "cpu_cores": cpu_cores(),
        "commit": _commit(),
        "date": datetime.date.today().isoformat(),
    }


def resumed_in(before: dict, now: dict) -> dict:
    """Returns the environment of a resumed run: ``now``, with earlier values of what has changed."""
    merged = dict(now)
    for name in now.keys() & before.keys() - {"cpu_cores", "date"}:
        known = str(before[name]).split(", then ")[-1] == str(now[name])
        merged[name] = before[name] if known else f"{before[name]}, then {now[name]}"
    return merged


def _processor_name():
    try:
        return re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text()).group(1).strip()
    except (OSError, AttributeError):
        return f"{platform.machine()} CPU"


def _commit():
    """Returns the commit of this code, with "-dirty" if files differ; None outside its own checkout."""
    project = Path(__file__).resolve().parent.parent
    command = ["git", f"--git-dir={project / '.git'}", f"--work-tree={project}", "describe", "--always"]
    command += ["--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
