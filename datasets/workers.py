"""Worker processes that make steps ahead: their memory, their signals, and what is known of one that dies."""

import contextlib
import math
import mmap
import multiprocessing
import os
import re
import signal
import weakref

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from utils.errors import InputError

STEPS_AHEAD = 2  # that each worker prepares


def shared_tensor(*shape: int) -> torch.Tensor:
    """A float32 tensor that forked processes share. It takes no room in /dev/shm, which containers keep
    small."""
    return torch.frombuffer(mmap.mmap(-1, 4 * math.prod(shape)), dtype=torch.float32).view(shape)


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


def from_workers(function, order, num_workers):
    """Iterates over ``function(k)`` for k in ``order``, made by worker processes, or in this one where there
    are none.

    Workers are forked, so that they share the memory that this process made for them.
    """
    if num_workers:
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


def _unchanged(item):
    return item


def _leave_signals_to_the_main_process(worker_id):
    """A terminal or a scheduler signals every process; the main one decides what becomes of the run, and
    needs batches until then. Workers end when it asks, or when it is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class ReadingPosition:
    """The file that each worker process is at, in memory that they share; what is left to know of one that
    died."""

    every = weakref.WeakSet()

    def __init__(self, lists, num_workers):
        self.lists = lists
        self.at = multiprocessing.RawArray(
            "q", 3 * max(1, num_workers)
        )  # of each worker its process, the list and the file
        self.every.add(self)

    def note(self, which, number):
        """A worker begins with a file of the list ``which``."""
        if (worker := get_worker_info()) is not None:
            self.at[3 * worker.id : 3 * worker.id + 3] = [os.getpid(), which, number]

    def path(self, process):
        """Where a worker was, or None."""
        for worker, which, number in zip(self.at[::3], self.at[1::3], self.at[2::3], strict=True):
            if worker == process:
                return self.lists[which].root / self.lists[which].paths[number]
        return None


@contextlib.contextmanager
def naming_files_of_dead_workers():
    """PyTorch reports a worker's death by a RuntimeError, at any place in the main process: here it becomes a
    sentence.

    Raises:
        InputError: which names the file that the worker was at.
    """
    try:
        yield
    except RuntimeError as error:
        found = re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)[^.]*", str(error))
        if not found:
            raise
        processes = map(int, found[1].split(","))
        paths = [
            path
            for process in processes
            for position in ReadingPosition.every
            if (path := position.path(process))
        ]
        where = f" while it read {paths[0]}" if paths else ""
        raise InputError(f"a worker process died{where}: {found[0]}") from error
