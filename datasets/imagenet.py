"""ImageNet-LT, or any lists of image files: which files, and their batches for training and evaluation.

Worker processes read and crop (:mod:`datasets.image_files`); random views are made on the device, on a CPU in
the workers. Which files a step has, their crops and their views depend on (seed, epoch, step, rank) and on
the files alone, so a run can resume at any step.
"""

import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from datasets.augment.ops import to_device
from datasets.augment.stages import View, Views
from datasets.checks import shown
from datasets.image_files import (
    CentralCrop,
    FileDataset,
    Item,
    RandomCrops,
    Replacements,
    Source,
    collate,
)
from datasets.image_list import MAX_LABEL, ImageFiles, read_present
from datasets.loader import Batch
from datasets.normalization import IMAGENET_NORMALIZATION, Normalization
from datasets.randomness import epoch_shares, mixed_seed
from utils.errors import InputError

CROP_SCALE, OUTLIER_CROP_SCALE = (0.08, 1.0), (0.2, 1.0)
STEPS_AHEAD = 2  # that each worker prepares


def load_files(
    list_path: Path, root: Path, num_classes: int | None = None, labelled: bool = True
) -> ImageFiles:
    """Reads a list of ``path label`` lines whose files all are there.

    Args:
        num_classes: labels have to be below it; None takes the list to be a training list, whose labels 0 ..
            C - 1 all occur.
        labelled: False for lists of outliers, whose labels are ignored.

    Raises:
        InputError: see :func:`datasets.image_list.read_present`; or a training list has one class only, or a
            class without images.
    """
    allowed = range(MAX_LABEL + 1 if num_classes is None else num_classes)
    paths, labels = read_present(list_path, root, allowed if labelled else None)
    if labelled and num_classes is None:
        counts = torch.bincount(labels)
        if len(counts) < 2:
            raise InputError(f"{list_path} has images of one class only; a classifier needs two")
        if (counts == 0).any():
            raise InputError(f"{list_path}: class {int(counts.argmin())} of {len(counts)} has no image")
    return ImageFiles(Path(root), paths, labels)


def load_ood_lists(list_paths: Sequence[Path], root: Path) -> dict[str, ImageFiles]:
    """Reads lists of OOD images, whose labels are ignored: the list's file name without ending -> files.

    Raises:
        InputError: see :func:`load_files`; or two lists have the same name.
    """
    names = [Path(path).stem for path in list_paths]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise InputError(f"--txt_ood_test names two lists {shown(repeated[0])}; rename one")
    return {
        name: load_files(path, root, labelled=False) for name, path in zip(names, list_paths, strict=True)
    }


def folder_names(files: ImageFiles) -> list[str] | None:
    """Names of the classes 0 .. C - 1: their folders', if each class has one folder, and no two the same."""
    folders = {}
    for path, label in zip(files.paths, files.labels.tolist(), strict=True):
        folders.setdefault(label, set()).add(Path(path).parent.name)
    names = [folders[label] for label in sorted(folders)]
    distinct = set().union(*names)
    if len(distinct) < len(names) or any(len(of_class) > 1 for of_class in names) or "" in distinct:
        return None
    return [name for of_class in names for name in of_class]


def select(files: ImageFiles, indices: Tensor) -> ImageFiles:
    """The files of the given numbers, in that order."""
    return ImageFiles(files.root, [files.paths[i] for i in indices.tolist()], files.labels[indices])


def balanced_sample(labels: Tensor, size: int, seed: int) -> Tensor:
    """``size`` indices (all, where there are fewer) as evenly spread over the classes as their sizes admit:
    the first image of every class, then the second, and so on, in a random order within each class."""
    order = torch.randperm(
        len(labels), generator=torch.Generator().manual_seed(mixed_seed("calibration", seed))
    )
    by_class = order[torch.argsort(labels[order], stable=True)]
    counts = torch.bincount(labels)
    first = torch.cat([counts.new_zeros(1), counts.cumsum(0)[:-1]])
    rank = torch.arange(len(labels)) - first.repeat_interleave(counts)
    return by_class[torch.argsort(rank, stable=True)[:size]].sort().values


class StepViews:
    """Makes the normalised views of a step on the device of its crops.

    On a CPU the memory of the images is reused after two steps: the first touch of fresh memory would take a
    seventh of the time.

    Args:
        views: for each of the crops, uint8 (n, 3, S, S), that it is called with.
        normalization: of the views.
    """

    def __init__(self, views: list[View], normalization: Normalization) -> None:
        self.views, self.normalization = views, normalization
        self.buffers: list[Tensor] = []

    def __call__(self, crops: list[Tensor], seed: int) -> Tensor:
        """Returns the views, float32 (N, 3, S, S), one crop's after the other's."""
        generator = torch.Generator().manual_seed(mixed_seed("pixels", seed))
        images = self._memory((sum(map(len, crops)), *crops[0].shape[1:]), crops[0].device)
        parts = images.split([len(of_view) for of_view in crops])
        for view, of_view, part in zip(self.views, crops, parts, strict=True):
            view(of_view, generator, out=part, finish=self.normalization)
        return images

    def _memory(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        if device.type == "cuda":
            return torch.empty(shape, device=device, memory_format=torch.channels_last)
        if len(self.buffers) < 2 + STEPS_AHEAD:
            images = torch.empty(shape)
            self.buffers.append(images if get_worker_info() is None else images.share_memory_())
        else:
            self.buffers.append(self.buffers.pop(0))
        return self.buffers[-1]


class StepSampler:
    """The items of each step of an epoch, for one process.

    Args:
        lists: for "images" and, if there are any, "outliers": the number of files, and how many of them a
            global batch has.

    Attributes:
        epoch, start_step: where the next iteration begins.
    """

    def __init__(self, lists: dict[str, tuple[int, int]], seed: int, rank: int, world_size: int) -> None:
        self.lists, self.seed, self.rank, self.world_size = lists, seed, rank, world_size
        self.epoch, self.start_step = 0, 0

    def __len__(self) -> int:
        files, batch_size = self.lists["images"]
        return files // batch_size

    def __iter__(self) -> Iterator[list[Item]]:
        orders = [
            epoch_shares(*sizes, len(self), self.seed, self.epoch, name, self.rank, self.world_size)
            for name, sizes in self.lists.items()
        ]
        for step in range(self.start_step, len(self)):
            seed = mixed_seed("crops", self.seed, self.epoch, step, self.rank)
            files = [(source, n) for source, order in enumerate(orders) for n in order[step].tolist()]
            yield [Item(*file, seed + place) for place, file in enumerate(files)]


def read_ahead(
    dataset: FileDataset,
    steps: Sequence[list[Item]] | StepSampler,
    num_workers: int,
    device: torch.device,
    make: Callable[[list[Tensor], int], Tensor] | None = None,
    persistent: bool = False,
) -> DataLoader:
    """Returns the DataLoader that yields a :class:`datasets.image_files.Step` for the items of each step; see
    :func:`datasets.image_files.collate` for ``make``."""
    workers = {}
    if num_workers:
        workers = {"multiprocessing_context": "fork", "worker_init_fn": _leave_signals_to_the_main_process}
        workers |= {"prefetch_factor": STEPS_AHEAD, "persistent_workers": persistent}
    return DataLoader(
        dataset,
        batch_sampler=steps,
        collate_fn=partial(collate, make=make),
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # else every epoch would draw from the global one
        **workers,
    )


def _leave_signals_to_the_main_process(worker_id: int) -> None:
    """A terminal or a scheduler signals every process; the main one decides when to stop, and needs batches
    until then. Workers end when it asks, or when it has ended."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class FileTrainLoader:
    """Training batches from image files; drops the last incomplete one.

    Args:
        files: the training list.
        outliers: the list of outliers, or None; its labels are ignored.
        views: of crops, such as :func:`datasets.augment.views.imagenet_views`.
        image_size: S, the side of a view in pixels.
        batch_size, outlier_batch_size: of the global batch, which the ``world_size`` processes share.
        contrastive: whether batches have views 2 and 3.
        num_workers: processes that read; 0 reads in this one.

    Attributes:
        replaced: :class:`datasets.image_files.Replacements` so far.
    """

    def __init__(
        self,
        files: ImageFiles,
        outliers: ImageFiles | None,
        views: Views,
        *,
        image_size: int,
        batch_size: int,
        outlier_batch_size: int,
        contrastive: bool,
        num_workers: int,
        seed: int,
        device: torch.device,
        normalization: Normalization = IMAGENET_NORMALIZATION,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.files, self.outliers, self.replaced = files, outliers, Replacements()
        self.batch_size, self.num_workers, self.device = batch_size, num_workers, device
        of_crop = [views.strong, *([views.contrastive] * 2 if contrastive else [])]
        sources = [Source(files, RandomCrops(len(of_crop), CROP_SCALE, image_size), files.labels)]
        lists = {"images": (len(files.paths), batch_size)}
        if outliers is not None:
            one_group = torch.zeros_like(outliers.labels)
            sources.append(Source(outliers, RandomCrops(1, OUTLIER_CROP_SCALE, image_size), one_group))
            lists["outliers"] = len(outliers.paths), outlier_batch_size
            of_crop.append(views.outlier)
        self.views = StepViews(of_crop, normalization)
        self.steps = StepSampler(lists, seed, rank, world_size)
        self.share = len(range(rank, batch_size, world_size))
        make = self.views if device.type == "cpu" else None
        self.reader = read_ahead(FileDataset(sources), self.steps, num_workers, device, make, persistent=True)

    def __len__(self) -> int:
        """Returns the number of steps per epoch."""
        return len(self.steps)

    @property
    def num_outliers(self) -> int:
        """The number of surrogate outliers to draw from."""
        return 0 if self.outliers is None else len(self.outliers.paths)

    def where(self) -> str:
        """Returns one line for the log: where the files are, and how many processes read them."""
        lists = {"images": self.files} | ({} if self.outliers is None else {"outliers": self.outliers})
        listed = [f"{len(files.paths):,} {name} under {files.root}" for name, files in lists.items()]
        return f"{', '.join(listed)}, read by {self.num_workers} worker processes"

    def report(self) -> list[str]:
        """Returns lines about the files that could not be read so far, and were replaced."""
        return [f"warning: {line}" for line in self.replaced.report()]

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yields the batches of an epoch from ``start_step`` to its end.

        On a CPU the memory of a batch's images is reused after two batches.

        Raises:
            InputError: more than 1 % of the files cannot be read, or none of a class.
        """
        self.steps.epoch, self.steps.start_step = epoch, start_step
        for step in self.reader:
            self.replaced.add(step)
            images = step.images
            if self.device.type == "cuda":
                images = self.views([to_device(crops, self.device) for crops in images], step.seed)
            indices = torch.tensor(step.numbers[: self.share])
            yield Batch(images, to_device(self.files.labels[indices], self.device), indices)


class EvalImages:
    """Every image of a list once, in order, not augmented: shorter side resized to S * 256 / 224, the central
    S x S.

    Yields (normalised float32 images (n, 3, S, S), labels int64 (n,)) on the device. With several processes,
    each takes every ``world_size``-th image, so their shares make up the list.

    Args:
        files: the list.
        image_size: S in pixels.
        num_workers: processes that read; 0 reads in this one.
        replace: whether the next file with the same label takes the place of one that cannot be read. Off for
            test sets: results are about whole sets.

    Attributes:
        replaced: :class:`datasets.image_files.Replacements` so far.
    """

    def __init__(
        self,
        files: ImageFiles,
        *,
        image_size: int,
        batch_size: int,
        num_workers: int,
        device: torch.device,
        normalization: Normalization = IMAGENET_NORMALIZATION,
        replace: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.files, self.normalization, self.device = files, normalization, device
        mine = range(rank, len(files.paths), world_size)
        self.replaced = Replacements(len(mine))
        self.batches = [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]
        dataset = FileDataset([Source(files, CentralCrop(image_size), files.labels if replace else None)])
        steps = [[Item(0, number) for number in batch] for batch in self.batches]
        self.reader = read_ahead(dataset, steps, num_workers, device)

    def __len__(self) -> int:
        """Returns the number of batches of this process."""
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Raises InputError at a file that cannot be read, or where more than 1 % cannot be, if they are
        replaced."""
        for batch, step in zip(self.batches, self.reader, strict=True):
            self.replaced.add(step)
            images = self.normalization(step.images[0].to(self.device, non_blocking=True).float().div_(255))
            labels = self.files.labels[list(batch)].to(self.device)
            yield images.contiguous(memory_format=torch.channels_last), labels
