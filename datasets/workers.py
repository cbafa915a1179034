"""Worker processes that make steps ahead: their memory, their signals, and what is known of one that dies."""

import contextlib
import errno
import math
import mmap
import multiprocessing
import os
import re
import signal
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from datasets.checks import os_reason
from datasets.image_list import ImageFiles
from utils.errors import InputError

Result = TypeVar("Result")

STEPS_AHEAD = 2  # that each worker prepares


def slots(num_workers: int, *shape: int, dtype: torch.dtype) -> torch.Tensor:
    """Returns memory that forked processes share, a tensor of ``shape`` for each step under way: those that
    workers prepare, the one in use, and the one before or after it. Step k has ``slots[k % len(slots)]``.

    It takes no room in /dev/shm, which containers keep small, and none at all before it is written to.

    Raises:
        InputError: the machine refuses so much.
    """
    shape = (num_workers * STEPS_AHEAD + 2, *shape)
    size = math.prod(shape) * dtype.itemsize
    try:
        memory = mmap.mmap(-1, size)
    except OSError as error:
        raise InputError(
            f"{size / 1e9:,.1f} GB of memory for batches under way are refused ({os_reason(error)}); "
            "lower --num_workers or the batch sizes"
        ) from error
    return torch.frombuffer(memory, dtype=dtype).view(shape)


class _Items(Dataset):
    """Item k is ``function(k)``, or the InputError it raised: as an exception it would arrive with a
    traceback in it."""

    def __init__(self, function):
        self.function = function

    def __getitem__(self, k):
        try:
            return self.function(k)
        except InputError as error:
            return error


def from_workers(
    function: Callable[[int], Result], order: Sequence[int], num_workers: int
) -> Iterator[Result]:
    """Yields ``function(k)`` for k in ``order``, made by worker processes, or in this one if there are none.

    Workers are forked, so they share the memory that this process made for them. Results travel through
    pipes: give them no tensors, which would travel through /dev/shm.

    Raises:
        InputError: /dev/shm is full; or the function raised it.
    """
    if num_workers:
        _require_semaphores(3 * num_workers + 8)
        workers = dict(
            num_workers=num_workers,
            prefetch_factor=STEPS_AHEAD,
            multiprocessing_context="fork",
            worker_init_fn=_leave_signals_to_the_main_process,
        )
    else:
        workers = {}
    for item in DataLoader(
        _Items(function), sampler=order, batch_size=None, collate_fn=_unchanged, **workers
    ):
        if isinstance(item, InputError):
            raise item
        yield item


def _require_semaphores(count: int) -> None:
    """Tries whether /dev/shm has room for the semaphores of a DataLoader, a page each, which would raise a
    traceback."""
    try:
        [multiprocessing.Lock() for _ in range(count)]
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise InputError(
            f"/dev/shm is full, and worker processes need {4 * count} kB of it: free some, give the "
            "container more (docker run --shm-size=1g), or read without workers (--num_workers 0)"
        ) from error


def _unchanged(item):
    return item


def _leave_signals_to_the_main_process(worker_id):
    """A terminal or a scheduler signals every process; the main one decides what becomes of the run, and
    needs batches until then. Workers end when it asks, or when it is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class ReadingPosition:
    """The file that each worker process is at, in memory that they share: what is left to know of one that
    died."""

    every = weakref.WeakSet()

    def __init__(self, lists: Sequence[ImageFiles], num_workers: int) -> None:
        self.lists = lists
        # For each worker its process, the list and the file.
        self.at = memoryview(mmap.mmap(-1, 3 * 8 * max(1, num_workers))).cast("q")
        self.every.add(self)

    def note(self, which: int, number: int) -> None:
        """Notes that this worker begins with a file of the list ``which``."""
        if (worker := get_worker_info()) is not None:
            for place, value in enumerate((os.getpid(), which, number), 3 * worker.id):
                self.at[place] = value

    def path(self, process: int) -> Path | None:
        """Returns where a worker was, or None."""
        at = self.at.tolist()
        for worker, which, number in zip(at[::3], at[1::3], at[2::3], strict=True):
            if worker == process:
                return self.lists[which].root / self.lists[which].paths[number]
        return None


@contextlib.contextmanager
def naming_files_of_dead_workers() -> Iterator[None]:
    """Turns PyTorch's RuntimeError about a dead worker, raised anywhere in the main process, into a sentence.

    Raises:
        InputError: names the file that the worker was at; but not for a bus error, which is about memory.
    """
    try:
        yield
    except RuntimeError as error:
        found = re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)[^.]*", str(error))
        if not found:
            raise
        if "Bus error" in found[0]:
            raise InputError(
                "a worker process died of a bus error: most likely memory that processes share has run out; "
                "see df -h /dev/shm and the container's memory limit"
            ) from error
        processes = map(int, found[1].split(","))
        paths = [
            path
            for process in processes
            for position in ReadingPosition.every
            if (path := position.path(process))
        ]
        where = f" while it read {paths[0]}" if paths else ""
        raise InputError(f"a worker process died{where}: {found[0]}") from error
