"""ImageNet-LT, or any lists of image files: which files, and their batches for training and evaluation.

Worker processes read and crop (:mod:`datasets.image_files`); random views are made on the device, on a CPU in
the workers. Which files a step has, their crops and their views depend on (seed, epoch, step, rank) and on
the files alone, so a run can resume at any step.
"""

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from datasets.augment.ops import to_device
from datasets.augment.stages import View, Views
from datasets.decoding import central_crop, decode
from datasets.image_files import Replacements, Source, StepDataset, random_crops, read_ahead
from datasets.image_list import ANY_LABEL, ImageFiles, read_present
from datasets.images import IMAGENET_NORMALIZATION, Normalization
from datasets.loader import Batch, epoch_shares, mixed_seed
from utils.errors import InputError

CROP_SCALE, OUTLIER_CROP_SCALE = (0.08, 1.0), (0.2, 1.0)  # shares of the image's area, from and to


def load_files(
    list_path: Path, root: Path, num_classes: int | None = None, labelled: bool = True
) -> ImageFiles:
    """Reads a list of ``path label`` lines whose files all are there; raises InputError.

    Labels have to be below ``num_classes``; with None it is a training list, whose labels 0 .. C - 1 all
    occur. Those of a list of outliers, ``labelled=False``, are ignored.
    """
    allowed = range(num_classes or ANY_LABEL.stop)
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
    Raises InputError, also if two lists have the same name."""
    lists = {Path(path).stem: path for path in list_paths}
    if len(lists) < len(list_paths):
        raise InputError(f"--txt_ood_test has two lists of one name: {', '.join(map(str, list_paths))}")
    return {name: load_files(path, root, labelled=False) for name, path in lists.items()}


def folder_names(files: ImageFiles) -> list[str] | None:
    """Names of the classes 0 .. C - 1: their folders', on the first level of folders where each class has one
    folder, and no two the same; None without such a level."""
    labels = files.labels.tolist()
    for level in zip(*(Path(path).parent.parts for path in files.paths), strict=False):
        named = sorted(set(zip(labels, level, strict=True)))
        if len(named) == len({name for _, name in named}) == len({c for c, _ in named}):
            return [name for _, name in named]
    return None


def balanced_sample(labels: Tensor, size: int, seed: int) -> Tensor:
    """``size`` indices (all, where there are fewer) as evenly spread over the classes as their sizes admit:
    the first image of every class, then the second, and so on, in a random order within each class."""
    generator = torch.Generator().manual_seed(mixed_seed("calibration", seed))
    order = torch.randperm(len(labels), generator=generator)
    by_class = order[torch.argsort(labels[order], stable=True)]
    counts = torch.bincount(labels)
    first = torch.cat([counts.new_zeros(1), counts.cumsum(0)[:-1]])
    rank = torch.arange(len(labels)) - first.repeat_interleave(counts)
    return by_class[torch.argsort(rank, stable=True)[:size]].sort().values


def step_views(views: list[View], normalization: Normalization, crops: list[Tensor], seed: int) -> Tensor:
    """Makes the normalised views of a step's crops, float32 (N, 3, S, S), one crop's after the other's."""
    generator = torch.Generator().manual_seed(mixed_seed("pixels", seed))
    made = [normalization(view(of_view, generator)) for view, of_view in zip(views, crops, strict=True)]
    return torch.cat(made).contiguous(memory_format=torch.channels_last)


@dataclass(eq=False)
class FileTrainLoader:
    """Training batches from image files; drops the last incomplete one. ``image_size``: S, in pixels;
    ``views``: of crops; ``contrastive``: batches have views 2 and 3. Batch sizes are those of all processes
    together; ``num_workers`` processes read for each of them, 0: it reads itself."""

    files: ImageFiles
    outliers: ImageFiles | None
    views: Views
    _: KW_ONLY
    image_size: int
    batch_size: int
    outlier_batch_size: int
    contrastive: bool
    num_workers: int
    seed: int
    device: torch.device
    normalization: Normalization = IMAGENET_NORMALIZATION
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        self.lists = {"images": (self.files, self.batch_size)}
        views = [self.views.strong, *([self.views.contrastive] * 2 if self.contrastive else [])]
        crop = partial(random_crops, views=len(views), scale=CROP_SCALE, size=self.image_size)
        sources = [Source(self.files, crop, self.files.labels)]
        if self.outliers is not None:
            self.lists["outliers"] = self.outliers, self.outlier_batch_size
            crop = partial(random_crops, views=1, scale=OUTLIER_CROP_SCALE, size=self.image_size)
            sources.append(Source(self.outliers, crop, torch.zeros_like(self.outliers.labels)))
            views.append(self.views.outlier)
        per_step = sum(batch_size for _, batch_size in self.lists.values()) // self.world_size
        self.replaced, self.steps = Replacements(len(self) * per_step), []  # those of the epoch that is read
        self.make_views = partial(step_views, views, self.normalization)
        dataset = StepDataset(sources, self.make_views if self.device.type == "cpu" else None)
        self.reader = read_ahead(dataset, self.steps, self.num_workers, self.device, persistent=True)

    def __len__(self) -> int:
        return len(self.files.paths) // self.batch_size

    @property
    def num_outliers(self) -> int:
        return 0 if self.outliers is None else len(self.outliers.paths)

    def report(self) -> list[str]:
        """Returns lines about the files that could not be read so far, and were replaced."""
        return [f"warning: {line}" for line in self.replaced.report()]

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yields the batches of an epoch from ``start_step`` to its end.

        Raises InputError if more than 1 % of the files cannot be read, or none of a class.
        """
        numbers = []  # of the files of each list, by step
        for name, (files, batch_size) in self.lists.items():
            drawn = len(files.paths), batch_size, len(self), self.seed, epoch, name
            numbers.append(epoch_shares(*drawn, self.rank, self.world_size))
        seeds = [mixed_seed("crops", self.seed, epoch, step, self.rank) for step in range(len(self))]
        steps = [(seed, [order[step].tolist() for order in numbers]) for step, seed in enumerate(seeds)]
        self.steps[:] = steps[start_step:]
        share = len(range(self.rank, self.batch_size, self.world_size))
        for step in self.reader:
            self.replaced.add(step)
            images = step.images
            if self.device.type == "cuda":
                images = self.make_views([to_device(crops, self.device) for crops in images], step.seed)
            indices = torch.tensor(step.numbers[:share])
            yield Batch(images, to_device(self.files.labels[indices], self.device), indices)


@dataclass(eq=False)
class EvalImages:
    """Every image of a list once, in order, as :func:`datasets.decoding.central_crop` cuts it.

    Yields (normalised float32 images (n, 3, S, S), labels int64 (n,)) on the device. Each process takes every
    ``world_size``-th image. With ``replace`` the next file with the same label takes the place of one that
    cannot be read, see ``replaced``; not for test sets, as results are about whole sets.
    """

    files: ImageFiles
    _: KW_ONLY
    image_size: int
    batch_size: int
    num_workers: int
    device: torch.device
    normalization: Normalization = IMAGENET_NORMALIZATION
    replace: bool = False
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        mine = torch.arange(len(self.files.paths))[self.rank :: self.world_size]
        self.replaced = Replacements(len(mine))
        self.batches = [batch.tolist() for batch in mine.split(self.batch_size) if len(batch)]
        groups = self.files.labels if self.replace else None
        source = Source(self.files, lambda image, _: [central_crop(decode(image), self.image_size)], groups)
        steps = [(0, [batch]) for batch in self.batches]
        self.reader = read_ahead(StepDataset([source], make=None), steps, self.num_workers, self.device)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Raises InputError at a file that cannot be read, or where more than 1 % cannot be, if they are
        replaced."""
        for batch, step in zip(self.batches, self.reader, strict=True):
            self.replaced.add(step)
            images = self.normalization(step.images[0].to(self.device, non_blocking=True).float().div_(255))
            labels = self.files.labels[batch].to(self.device)
            yield images.contiguous(memory_format=torch.channels_last), labels
