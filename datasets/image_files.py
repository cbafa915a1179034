"""Image files, each read and decoded once for all its crops; those that cannot be read are replaced and
counted."""

import signal
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datasets.augment.stages import draw_crop_boxes
from datasets.decoding import Unreadable, decode_crops, open_picture, upright_size
from datasets.image_list import ImageFiles
from utils.errors import InputError

UNREADABLE_SHARE = 0.01  # above this a run stops ...
UNREADABLE_FLOOR = 5  # ... unless it is about so few files that one folder's accident explains them
STEPS_AHEAD = 2  # that each worker prepares


def random_crops(
    picture: Image.Image, seed: int, *, views: int, scale: tuple[float, float], size: int
) -> list[Tensor]:
    """Cuts ``views`` random boxes, as torchvision's RandomResizedCrop does: uint8 (3, size, size) each."""
    generator = torch.Generator().manual_seed(seed)
    boxes = draw_crop_boxes(views, *upright_size(picture), scale, generator)
    return decode_crops(picture, torch.stack(boxes, dim=1), size)


class Source(NamedTuple):
    """Files, and ``crop(picture, seed)`` for each. One that cannot be read is replaced by the next one of its
    group (``groups``: int64 (N,); None replaces none)."""

    files: ImageFiles
    crop: Callable[[Image.Image, int], list[Tensor]]
    groups: Tensor | None

    def read(self, number: int, seed: int) -> tuple[int, list[Tensor] | None, dict[Path, str]]:
        """Returns the number of the file used, its crops, None if none could be read, and which could not."""
        failures, candidates = {}, [number]
        while candidates:
            candidate = candidates.pop(0)
            path = self.files.root / self.files.paths[candidate]
            try:
                return candidate, self.crop(open_picture(path), seed), failures
            except Unreadable as error:
                if not failures and self.groups is not None:
                    alike = (self.groups == self.groups[number]).nonzero().flatten()
                    candidates = torch.cat([alike[alike > number], alike[alike < number]]).tolist()
                failures[path] = str(error)
        return number, None, failures


class Step(NamedTuple):
    """``images``: the crops, uint8 (n, 3, S, S), of each view of each list, or what was made of them; None if
    the file of the ``failures`` could not be replaced. ``numbers``: files used; ``seed``: of the views."""

    images: list[Tensor] | Tensor | None
    numbers: list[int]
    failures: dict[Path, str]
    seed: int


class StepDataset(Dataset):
    """Reads whole steps: an index is (seed, the numbers of the files of each source), an item a
    :class:`Step`. ``make(crops, seed)`` makes its images of the crops, if given."""

    def __init__(self, sources: list[Source], make: Callable[[list[Tensor], int], Tensor] | None) -> None:
        self.sources, self.make = sources, make

    def __getitem__(self, index: tuple[int, list[list[int]]]) -> Step:
        seed, wanted = index
        images, used, failures = [], [], {}
        for source, numbers in zip(self.sources, wanted, strict=True):
            of_source = []
            for number in numbers:
                number, crops, failed = source.read(number, seed + len(used))
                used.append(number)
                if crops is None:
                    return Step(None, used, failed, seed)
                of_source.append(crops)
                failures |= failed
            images += map(torch.stack, zip(*of_source, strict=True))
        return Step(images if self.make is None else self.make(images, seed), used, failures, seed)


def read_ahead(
    dataset: StepDataset, steps: list, num_workers: int, device: torch.device, persistent: bool = False
) -> DataLoader:
    """Returns the DataLoader of the steps; the list may be refilled between its iterations."""
    workers = {}
    if num_workers:
        workers = {"multiprocessing_context": "fork", "worker_init_fn": _leave_signals_to_the_main_process}
        workers |= {"prefetch_factor": STEPS_AHEAD, "persistent_workers": persistent}
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=steps,
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # else every epoch would draw from the global one
        **workers,
    )


def _leave_signals_to_the_main_process(worker_id: int) -> None:
    """Terminals and schedulers signal every process; the main one needs batches until it stops."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class Replacements:
    """Counts the files that could not be read and were replaced: ``reasons`` by full path, and how many
    ``times`` such files were met. ``expected``: how many files will be ``read``, at least."""

    def __init__(self, expected: int) -> None:
        self.reasons: dict[Path, str] = {}
        self.times, self.read, self.expected = 0, 0, expected

    def add(self, step: Step) -> None:
        """Adds the files of a step. Raises InputError if a file could be neither read nor replaced; or more
        than 5 files, and more than 1 % of those read so far or expected, are unreadable."""
        if step.images is None:
            path, reason = next(iter(step.failures.items()))
            raise InputError(f"{path} cannot be read: {reason}")
        self.read += len(step.numbers) + len(step.failures)
        self.times += len(step.failures)
        self.reasons |= step.failures
        bearable = UNREADABLE_SHARE * max(self.read, self.expected)
        if len(self.reasons) > UNREADABLE_FLOOR and self.times > bearable:
            raise InputError(f"more than {UNREADABLE_SHARE:.0%} of the files are unreadable: {self._named()}")

    def report(self) -> list[str]:
        """Returns a line about them, if there are any."""
        return [f"unreadable files were replaced: {self._named()}"] if self.reasons else []

    def _named(self) -> str:
        named = [f"{path} ({reason})" for path, reason in islice(self.reasons.items(), 5)]
        return f"{len(self.reasons)}, among them {', '.join(named)}"
