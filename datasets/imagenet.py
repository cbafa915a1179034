"""Batches from lists of image files: each file is read once and decoded once per step for all its views.

Which files a step has, and its random crops and views, depend on (seed, epoch, step, rank) and on the files
alone, so a run can resume at any step. Worker processes read; :mod:`datasets.delivery` has the way from there
to the device.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from datasets.augment.stages import View, Views
from datasets.checks import shown
from datasets.decoding import Unreadable, central_crop, decode_image, open_image
from datasets.delivery import CpuDelivery, CudaDelivery, StepViews
from datasets.file_reader import FileReader, ReplacedFiles, StepReader, in_line, none_readable
from datasets.image_list import MAX_LABEL, ImageFiles, read_present
from datasets.loader import Batch
from datasets.normalization import IMAGENET_NORMALIZATION, Normalization
from datasets.randomness import epoch_shares, mixed_seed
from datasets.workers import ReadingPosition, from_workers, slots
from utils.errors import InputError

CROP_SCALE, OUTLIER_CROP_SCALE = (0.08, 1.0), (0.2, 1.0)


def load_files(
    list_path: Path, root: Path, num_classes: int | None = None, labelled: bool = True
) -> ImageFiles:
    """Reads a list of ``path label`` lines whose files all are there.

    Args:
        num_classes: labels have to be below it; None takes the list to be a training list, whose labels 0 ..
            C - 1 all occur.
        labelled: False for lists of outliers, whose labels are not looked at.

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
    """Reads lists of OOD images, whose labels are not looked at: list's file name without ending -> files.

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


class Source(NamedTuple):
    """A list of files that batches draw from.

    ``batch_size`` is that of the global batch; ``views`` are a file's; ``crop_scale`` is the share of the
    image's area that a crop covers, from and to.
    """

    name: str
    files: ImageFiles
    batch_size: int
    views: list[View]
    crop_scale: tuple[float, float]


class FileTrainLoader:
    """Training batches from image files; drops the last incomplete one.

    Args:
        files: the training list.
        outliers: the list of outliers, or None; its labels are not looked at.
        views: of crops, such as :func:`datasets.augment.views.imagenet_views`.
        image_size: S, the side of a view in pixels.
        batch_size, outlier_batch_size: of the global batch, which the ``world_size`` processes share.
        contrastive: whether batches have views 2 and 3.
        num_workers: processes that read; 0 reads in this one.

    Attributes:
        replaced: :class:`datasets.file_reader.ReplacedFiles` so far.
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
        self.batch_size, self.num_workers = batch_size, num_workers
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.replaced = ReplacedFiles()
        of_images = [views.strong, *([views.contrastive] * 2 if contrastive else [])]
        self.sources = [Source("images", files, batch_size, of_images, CROP_SCALE)]
        if outliers is not None:
            source = Source("outliers", outliers, outlier_batch_size, [views.outlier], OUTLIER_CROP_SCALE)
            self.sources.append(source)
        position = ReadingPosition([source.files for source in self.sources], num_workers)
        readers = [
            FileReader(
                source.files,
                by_class=source.name == "images",
                views=len(source.views),
                scale=source.crop_scale,
                on_reading=partial(position.note, i),
            )
            for i, source in enumerate(self.sources)
        ]
        counts = [len(range(rank, source.batch_size, world_size)) for source in self.sources]
        chain = [view for source in self.sources for view in source.views]
        rows = [n for n, source in zip(counts, self.sources, strict=True) for _ in source.views]
        delivery = CudaDelivery if device.type == "cuda" else CpuDelivery
        self._delivery = delivery(
            StepReader(readers, counts, seed, rank),
            StepViews(chain, rows, image_size, normalization, seed=seed, rank=rank, device=device),
            files.labels,
            num_workers,
            device,
        )

    def __len__(self) -> int:
        """Returns the number of steps per epoch."""
        return len(self.sources[0].files.paths) // self.batch_size

    @property
    def num_outliers(self) -> int:
        """The number of surrogate outliers to draw from."""
        return sum(len(source.files.paths) for source in self.sources[1:])

    def where(self) -> str:
        """Returns one line for the log: where the files are, and who reads and decodes them."""
        listed = ", ".join(
            f"{len(source.files.paths):,} {source.name} under {source.files.root}" for source in self.sources
        )
        return f"{listed}, read by {self.num_workers} worker processes, {self._delivery.where()}"

    def report(self) -> list[str]:
        """Returns lines about the files that could not be read so far, and were replaced, and about those
        that a GPU's decoder refused."""
        return [*(f"warning: {line}" for line in self.replaced.report()), *self._delivery.report()]

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yields the batches of an epoch from ``start_step`` to its end.

        On a CPU the memory of a batch's images is used again: they are good until the next batch but one.

        Raises:
            InputError: more than 1 % of the files cannot be read, or none of a class.
        """
        make = partial(self._delivery.make, epoch, self._orders(epoch))
        made = from_workers(make, range(start_step, len(self)), self.num_workers)
        for files, batch in self._delivery.deliver(epoch, made):
            self.replaced.add(sum(map(len, files.used)), files.unreadable)
            yield batch

    def _orders(self, epoch: int) -> list[Tensor]:
        """Returns the numbers of each list's files: int64 (steps, this process's share of the batch)."""
        place = len(self), self.seed, epoch
        return [
            epoch_shares(
                len(source.files.paths), source.batch_size, *place, source.name, self.rank, self.world_size
            )
            for source in self.sources
        ]


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
        replaced: :class:`datasets.file_reader.ReplacedFiles` so far.
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
        self.files, self.image_size, self.normalization = files, image_size, normalization
        self.num_workers, self.device, self.replace = num_workers, device, replace
        self._position = ReadingPosition([files], num_workers)
        mine = torch.arange(len(files.paths))[rank::world_size]
        self.replaced = ReplacedFiles(len(mine))
        self.batches = mine.split(batch_size) if len(mine) else ()  # a small set may leave a process none
        self.slots = slots(num_workers, batch_size, 3, image_size, image_size, dtype=torch.uint8)

    def __len__(self) -> int:
        """Returns the number of batches of this process."""
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Raises InputError at a file that cannot be read, or where more than 1 % cannot be, if they are
        replaced."""
        for batch, unreadable in from_workers(self._read, range(len(self)), self.num_workers):
            rows = self.batches[batch]
            self.replaced.add(len(rows), unreadable)
            images = self._slot(batch).to(self.device).float().div_(255)  # a copy: the slot is used again
            images = self.normalization(images)
            yield (
                images.contiguous(memory_format=torch.channels_last),
                self.files.labels[rows].to(self.device),
            )

    def _slot(self, batch: int) -> Tensor:
        return self.slots[batch % len(self.slots)][: len(self.batches[batch])]

    def _read(self, batch: int) -> tuple[int, Counter[Path]]:
        """Puts the uint8 images of a batch into its slot; returns its number, and the files replaced."""
        slot, unreadable = self._slot(batch), Counter()
        for place, number in enumerate(self.batches[batch].tolist()):
            slot[place] = self._image(number, unreadable)
        return batch, unreadable

    def _image(self, number: int, unreadable: Counter[Path]) -> Tensor:
        """Returns an image of the list, or the one in its place."""
        for candidate in in_line(self.files.labels, number):
            path = self.files.root / self.files.paths[candidate]
            self._position.note(0, candidate)
            try:
                return central_crop(decode_image(open_image(path)), self.image_size)
            except Unreadable as error:
                if not self.replace:
                    raise InputError(f"{path} cannot be read: {error}") from error
                unreadable[path] = 1  # though met again in the line of the file before it
        raise none_readable(self.files, self.files.labels, number)
