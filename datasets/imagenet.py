"""Batches from image files: each file is read once and decoded once a step, whatever the number of its views.

Worker processes read the files and choose the random crops. For the CPU they also decode, crop and augment;
for CUDA they hand over the bytes, and decoding, crops and augmentation run on the GPU, on a side stream
beside the step. Order and randomness depend on (seed, epoch, step, rank) and on the files alone, so that a
run can go on at any step.
"""

import math
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torchvision.io import ImageReadMode, decode_jpeg

from datasets.augment.stages import draw_crop_boxes
from datasets.decoding import (
    Unreadable,
    central_crop,
    decode_for_gpu,
    decode_image,
    decoding_shrink,
    open_image,
    read_again,
    resized_crops,
)
from datasets.files.checks import shown
from datasets.image_list import MAX_LABEL, find_missing, read_image_list
from datasets.loader import Batch
from datasets.normalization import IMAGENET_NORMALIZATION
from datasets.randomness import epoch_indices, mixed_seed, step_generator
from datasets.workers import STEPS_AHEAD, ReadingPosition, from_workers, shared_tensor
from utils.errors import InputError

CROP_SCALE, OUTLIER_CROP_SCALE, CROP_RATIO = (0.08, 1.0), (0.2, 1.0), (3 / 4, 4 / 3)

UNREADABLE_SHARE = 0.01  # above this a run stops ...
UNREADABLE_FLOOR = 5  # ... unless it is about so few files that one folder's accident explains them


class ImageFiles(NamedTuple):
    """A list of image files: paths relative to ``root``, and labels int64 (N,)."""

    root: Path
    paths: list[str]
    labels: torch.Tensor


def load_files(
    list_path: Path, root: Path, num_classes: int | None = None, labelled: bool = True
) -> ImageFiles:
    """Reads a list of ``path label`` lines whose files all are there.

    Args:
        num_classes: labels have to be below it; None takes the list to be a training list, whose labels 0 ..
            C - 1 all occur.
        labelled: False for lists of outliers, whose labels are not looked at.

    Raises:
        InputError: see :func:`datasets.image_list.read_image_list`; missing files, by count and first names;
            labels out of range.
    """
    allowed = range(MAX_LABEL + 1 if num_classes is None else num_classes)
    paths, labels = read_image_list(list_path, root, allowed if labelled else None)
    if missing := find_missing(paths, root):
        raise InputError(
            f"{list_path}: {len(missing):,} of {len(paths):,} files are not under {root}, such as "
            f"{missing[0]}"
        )
    if labelled and num_classes is None:
        counts = torch.bincount(labels)
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


def select(files: ImageFiles, indices: torch.Tensor) -> ImageFiles:
    """The files of the given numbers, in that order."""
    return ImageFiles(files.root, [files.paths[i] for i in indices.tolist()], files.labels[indices])


def balanced_sample(labels: torch.Tensor, size: int, seed: int) -> torch.Tensor:
    """``size`` indices (all, where there are fewer) as evenly spread over the classes as their sizes admit:
    everybody's first image, then everybody's second, and so on, in a random order within each class."""
    order = torch.randperm(
        len(labels), generator=torch.Generator().manual_seed(mixed_seed("calibration", seed))
    )
    by_class = order[torch.argsort(labels[order], stable=True)]
    counts = torch.bincount(labels)
    first = torch.cat([counts.new_zeros(1), counts.cumsum(0)[:-1]])
    rank = torch.arange(len(labels)) - first.repeat_interleave(counts)
    return by_class[torch.argsort(rank, stable=True)[:size]].sort().values


class FileReader:
    """Reads files of a list for a step; a file that cannot be read is replaced by the next one of its class.

    Args:
        files: the list.
        by_class: whether replacements must be of the same class; if not, the next file of the list does.
        views: the number V of crops an image gives.
        scale: the share of the image's area that a crop covers, from and to.
        on_reading: called with a file's number before it is opened or decoded.
    """

    def __init__(self, files, *, by_class, views, scale, on_reading):
        self.files, self.views, self.scale, self.on_reading = files, views, scale, on_reading
        groups = files.labels if by_class else torch.zeros_like(files.labels)
        self.by_group = groups.argsort(stable=True)
        self.place = torch.empty_like(self.by_group)
        self.place[self.by_group] = torch.arange(len(groups))
        sizes = groups.bincount()
        self.start, self.size = (sizes.cumsum(0) - sizes)[groups], sizes[groups]

    def read(self, indices, generator, decode, unreadable):
        """Returns the numbers of the files used, one for each of ``indices``; the crops' boxes, int64 (n, V,
        4) of (top, left, height, width); and the list of ``decode(encoded image, its boxes)``.

        Every file that could not be read is counted in ``unreadable`` by its full path.

        Raises:
            InputError: no file of a class can be read.
        """
        candidates = [self._candidates(index, unreadable) for index in indices.tolist()]
        opened = [next(candidate) for candidate in candidates]
        boxes = self._draw_boxes([encoded for _, encoded in opened], generator)
        used, decoded = [], []
        for slot, (number, encoded) in enumerate(opened):
            while True:
                self.on_reading(number)
                try:
                    decoded.append(decode(encoded, boxes[slot]))
                except Unreadable:
                    unreadable[self.files.root / self.files.paths[number]] += 1
                    number, encoded = next(candidates[slot])
                    boxes[slot] = self._draw_boxes([encoded], generator)[0]
                else:
                    used.append(number)
                    break
        return used, boxes, decoded

    def _candidates(self, index, unreadable):
        """Yields (number, encoded image) of a file and then of the others of its group, those that can be
        opened."""
        start, size, place = int(self.start[index]), int(self.size[index]), int(self.place[index])
        for step in range(size):
            number = int(self.by_group[start + (place - start + step) % size])
            self.on_reading(number)
            try:
                encoded = open_image(self.files.root / self.files.paths[number])
            except Unreadable:
                unreadable[self.files.root / self.files.paths[number]] += 1
            else:
                yield number, encoded
        first = self.files.root / self.files.paths[index]
        reason = f"the reason for that one: {read_again(first)}"
        raise InputError(f"none of the {size} files in line for {first} can be read; {reason}")

    def _draw_boxes(self, images, generator):
        heights, widths = (
            torch.tensor([getattr(image, side) for image in images]).repeat_interleave(self.views)
            for side in ("height", "width")
        )
        drawn = draw_crop_boxes(heights, widths, self.scale, CROP_RATIO, generator)
        return torch.stack(drawn, dim=1).view(len(images), self.views, 4)


class Packed(NamedTuple):
    """uint8 tensors of several shapes end to end in one ``buffer``: sending a tensor takes a file handle."""

    buffer: torch.Tensor
    shapes: list[tuple[int, ...]]

    @classmethod
    def pack(cls, tensors):
        return cls(
            torch.cat([tensor.flatten() for tensor in tensors]), [tuple(tensor.shape) for tensor in tensors]
        )

    def unpack(self):
        parts = self.buffer.split([math.prod(shape) for shape in self.shapes])
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]


class StepFiles(NamedTuple):
    """What is read of a step, by list (training images, then outliers): the numbers of the files used, the
    boxes, and crops or encoded images, as :meth:`FileReader.read` gives them. On the CPU the last two become
    the batch, and are empty."""

    used: list[list[int]]
    boxes: list[torch.Tensor]
    decoded: list[list]
    unreadable: Counter


class FileTrainLoader:
    """Training batches from image files; drops the last incomplete one.

    Args:
        files: the training list.
        outliers: the list of outliers, or None for none; its labels are not looked at.
        views: :class:`datasets.augment.views.Views` of crops, such as
            :func:`datasets.augment.views.imagenet_views`.
        image_size: S, the side of a view in pixels.
        batch_size, outlier_batch_size: of the global batch; each of the ``world_size`` processes takes its
            share.
        contrastive: whether views 2 and 3 are made.
        num_workers: processes that read; 0 reads in this one.

    Attributes:
        unreadable: how often each file that cannot be read was met (and replaced), by its full path.
    """

    def __init__(
        self,
        files,
        outliers,
        views,
        *,
        image_size,
        batch_size,
        outlier_batch_size,
        contrastive,
        num_workers,
        seed,
        device,
        rank=0,
        world_size=1,
    ):
        self.files, self.outliers, self.views, self.image_size = files, outliers, views, image_size
        self.batch_size, self.outlier_batch_size = batch_size, outlier_batch_size
        self.num_workers, self.seed, self.device = num_workers, seed, device
        self.rank, self.world_size = rank, world_size
        self.unreadable, self.files_read = Counter(), 0
        self.side_stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._position = ReadingPosition([files, outliers], num_workers)
        self._readers = [
            FileReader(
                files,
                by_class=True,
                views=3 if contrastive else 1,
                scale=CROP_SCALE,
                on_reading=partial(self._position.note, 0),
            )
        ]
        if outliers is not None:
            self._readers.append(
                FileReader(
                    outliers,
                    by_class=False,
                    views=1,
                    scale=OUTLIER_CROP_SCALE,
                    on_reading=partial(self._position.note, 1),
                )
            )
        rows_by_view = [
            len(range(rank, size, world_size))
            for reader, size in zip(self._readers, (batch_size, outlier_batch_size))  # noqa: B905 (outliers may be off)
            for _ in range(reader.views)
        ]
        self._shape = (sum(rows_by_view), 3, image_size, image_size)
        self._crops_by_view = [
            torch.empty(rows, *self._shape[1:], dtype=torch.uint8, device=device) for rows in rows_by_view
        ]
        self._mean, self._std = (
            torch.tensor(v, device=device).view(1, 3, 1, 1) for v in IMAGENET_NORMALIZATION
        )
        # For the CPU, memory that each step's batch is written to in turn: the batches that workers prepare,
        # the one in use and the one before it. The first touch of fresh memory would take longer than the
        # arithmetic on it.
        self._slots = None
        if device.type == "cpu":
            self._slots = shared_tensor(num_workers * STEPS_AHEAD + 2, *self._shape)

    def __len__(self):
        return len(self.files.labels) // self.batch_size

    @property
    def num_outliers(self):
        """How many surrogate outliers there are to draw from."""
        return 0 if self.outliers is None else len(self.outliers.paths)

    def where(self):
        """One line for the log: where the data live."""
        sets = {"images": self.files} | ({} if self.outliers is None else {"outliers": self.outliers})
        listed = ", ".join(f"{len(s.paths):,} {name} under {s.root}" for name, s in sets.items())
        return f"{listed}, read by {self.num_workers} worker processes"

    def report(self):
        """Lines about the files that could not be read so far; each was replaced when it was met."""
        if not self.unreadable:
            return []
        names = ", ".join(f"{path} ({times}x)" for path, times in self.unreadable.most_common(5))
        more = f" and {len(self.unreadable) - 5} more" if len(self.unreadable) > 5 else ""
        counted = f"{len(self.unreadable)} files cannot be read and were replaced"
        return [f"warning: {counted}: {names}{more}; {_reason(self.unreadable)}"]

    def epoch(self, epoch, start_step=0):
        """Iterates over the batches of an epoch, from ``start_step`` on.

        On the CPU the memory of a batch's images is used again: they are good until the next batch but one is
        asked for.

        Raises:
            InputError: more than 1 % of the files cannot be read, or none of a class.
        """
        steps = range(start_step, len(self))
        read = from_workers(partial(self.make, epoch, self._orders(epoch)), steps, self.num_workers)
        for step in steps:
            yield self._deliver(next(read), epoch, step)

    def _orders(self, epoch):
        """For each list, int64 (steps, this process's share of the batch)."""
        lists = [
            (self.files, self.batch_size, "images"),
            (self.outliers, self.outlier_batch_size, "outliers"),
        ]
        steps = len(self)
        return [
            epoch_indices(len(files.paths), steps * size, self.seed, epoch, stream).view(steps, size)[
                :, self.rank :: self.world_size
            ]
            for files, size, stream in lists[: len(self._readers)]
        ]

    def make(self, epoch, orders, step):
        """A worker's part of a step: for CUDA, to pack bytes (``decoded``) and boxes; on the CPU all of it,
        the batch put into the step's slot."""
        rows = [order[step] for order in orders]
        if self.device.type == "cuda":
            files = self._read(epoch, step, rows, lambda encoded, boxes: decode_for_gpu(encoded))
            return files._replace(decoded=Packed.pack(sum(files.decoded, [])))
        files = self._read(epoch, step, rows, self._crops)
        self._augment(files.decoded, epoch, step, self._slot(step))
        return files._replace(boxes=[], decoded=[])

    def _slot(self, step):
        return self._slots[step % len(self._slots)]

    def _read(self, epoch, step, rows, decode):
        generator, unreadable = step_generator(self.seed, epoch, step, self.rank), Counter()
        results = [
            reader.read(numbers, generator, decode, unreadable)
            for reader, numbers in zip(self._readers, rows, strict=True)
        ]
        return StepFiles(*map(list, zip(*results, strict=True)), unreadable)

    def _crops(self, encoded, boxes):
        shrink = decoding_shrink(encoded, boxes, self.image_size)
        return resized_crops(decode_image(encoded, shrink), boxes, self.image_size, shrink)

    def _augment(self, crops, epoch, step, images):
        """Fills ``images`` with the normalised views of ``crops``: by list, the uint8 crops (3, S, S) of each
        file."""
        generator = torch.Generator().manual_seed(mixed_seed("pixels", self.seed, epoch, step, self.rank))
        contrastive = [self.views.contrastive] * (self._readers[0].views - 1)
        chain = [self.views.strong, *contrastive, *[self.views.outlier] * (len(self._readers) - 1)]
        by_view = [same_view for of_list in crops for same_view in zip(*of_list, strict=True)]
        start = 0
        for view, stacked, same_view in zip(chain, self._crops_by_view, by_view, strict=True):
            torch.stack(same_view, out=stacked)
            view(stacked, generator, out=images[start : start + len(stacked)], finish=self._normalize)
            start += len(stacked)

    def _normalize(self, view, out):
        torch.sub(view, self._mean, out=out).div_(self._std)

    def _deliver(self, files, epoch, step):
        """The main process's part: the batch on the device, and what was met on the way is counted."""
        if self.device.type == "cuda":
            files, images = self._decode_on_gpu(files, epoch, step)
        else:
            images = self._slot(step)
        self._count(files)
        indices = torch.tensor(files.used[0])
        return Batch(images, self.files.labels[indices].to(self.device), indices)

    def _decode_on_gpu(self, files, epoch, step):
        """Decodes, crops and augments what :meth:`make` packed for CUDA; returns ``files``, whose numbers may
        have changed, and the batch.

        The host comes here while the GPU is still at the step before, so that work on a side stream runs
        beside it.
        """
        with torch.cuda.stream(self.side_stream):
            images = files.decoded.unpack()
            try:
                jpegs = [image for image in images if image.dim() == 1]
                decoded = iter(decode_jpeg(jpegs, ImageReadMode.RGB, device=self.device) if jpegs else [])
            except RuntimeError:  # nvJPEG does not say which file it refused, so that the CPU does the step
                rows = [torch.tensor(used) for used in files.used]
                again = self._read(epoch, step, rows, self._crops)
                files = again._replace(unreadable=files.unreadable + again.unreadable)
                crops = [
                    [[view.to(self.device) for view in views] for views in crops] for crops in files.decoded
                ]
            else:
                images = (next(decoded) if image.dim() == 1 else image.to(self.device) for image in images)
                crops = [
                    [resized_crops(next(images), box, self.image_size) for box in boxes]
                    for boxes in files.boxes
                ]
            batch = torch.empty(self._shape, device=self.device, memory_format=torch.channels_last)
            self._augment(crops, epoch, step, batch)
        main_stream = torch.cuda.current_stream(self.device)
        main_stream.wait_stream(self.side_stream)
        batch.record_stream(main_stream)
        return files, batch

    def _count(self, files):
        self.unreadable.update(files.unreadable)
        self.files_read += sum(map(len, files.used)) + files.unreadable.total()
        allowed = UNREADABLE_SHARE * self.files_read
        if len(self.unreadable) > UNREADABLE_FLOOR and self.unreadable.total() > allowed:
            raise InputError(
                f"{self.unreadable.total():,} of the {self.files_read:,} files read so far cannot "
                "be read, more than "
                f"{UNREADABLE_SHARE:.0%}; among them {', '.join(map(str, list(self.unreadable)[:3]))}; "
                f"{_reason(self.unreadable)}"
            )


def _reason(unreadable):
    """Why the file that was met most often cannot be read."""
    path = max(unreadable, key=unreadable.get)
    return f"the reason for {path}: {read_again(path)}"


class EvalImages:
    """Every image of a list once, in order, not augmented: shorter side resized to S * 256 / 224, the central
    S x S.

    Iterates over (normalised float32 images (n, 3, S, S), labels int64 (n,)) on the device. With several
    processes, each takes every ``world_size``-th image, so that their shares make up the list.

    Args:
        files: the list.
        image_size: S in pixels.
        num_workers: processes that read; 0 reads in this one.
    """

    def __init__(
        self,
        files,
        *,
        image_size,
        batch_size,
        num_workers,
        device,
        normalization=IMAGENET_NORMALIZATION,
        rank=0,
        world_size=1,
    ):
        self.files, self.image_size, self.batch_size = files, image_size, batch_size
        self.normalization = normalization
        self.num_workers, self.device = num_workers, device
        self._position = ReadingPosition([files], num_workers)
        mine = torch.arange(len(files.paths))[rank::world_size]
        self.batches = mine.split(batch_size) if len(mine) else ()  # a small set may leave a process none

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        """Raises InputError at a file that cannot be read: results are about whole sets."""
        read = from_workers(self._read, range(len(self)), self.num_workers)
        for rows, images in zip(self.batches, read, strict=True):
            images = self.normalization(images.to(self.device).float().div_(255))
            yield (
                images.contiguous(memory_format=torch.channels_last),
                self.files.labels[rows].to(self.device),
            )

    def _read(self, batch):
        """The uint8 images of a batch."""
        images = []
        for number in self.batches[batch].tolist():
            path = self.files.root / self.files.paths[number]
            self._position.note(0, number)
            try:
                images.append(central_crop(decode_image(open_image(path)), self.image_size))
            except Unreadable as error:
                raise InputError(f"{path} cannot be read: {error}") from error
        return torch.stack(images)
