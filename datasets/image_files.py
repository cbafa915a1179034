"""Image files, each read and decoded once for all its crops; those that cannot be read are replaced and
counted."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from datasets.augment.stages import draw_crop_boxes
from datasets.decoding import Unreadable, central_crop, decode, decode_crops, open_picture, upright_size
from datasets.image_list import ImageFiles
from utils.errors import InputError

UNREADABLE_SHARE = 0.01  # above this a run stops ...
UNREADABLE_FLOOR = 5  # ... unless it is about so few files that one folder's accident explains them

# (picture, seed) -> its crops, uint8 (3, S, S) each; raises Unreadable
Crop = Callable[[Image.Image, int], list[Tensor]]


class RandomCrops(NamedTuple):
    """Cuts ``views`` random boxes, as torchvision's RandomResizedCrop does, which cover the given share of
    the image's area, from and to; the crops' side is ``size`` pixels."""

    views: int
    scale: tuple[float, float]
    size: int

    def __call__(self, picture: Image.Image, seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        boxes = draw_crop_boxes(self.views, *upright_size(picture), self.scale, generator)
        return decode_crops(picture, torch.stack(boxes, dim=1), self.size)


class CentralCrop(NamedTuple):
    """Cuts the evaluation's crop, see :func:`datasets.decoding.central_crop`."""

    size: int

    def __call__(self, picture: Image.Image, seed: int) -> list[Tensor]:
        return [central_crop(decode(picture), self.size)]


class Source(NamedTuple):
    """A list of files and how to crop them. ``groups`` are int64 (N,): a file that cannot be read is replaced
    by the next one of its group; None replaces none."""

    files: ImageFiles
    crop: Crop
    groups: Tensor | None


class Item(NamedTuple):
    """File ``number`` of list ``source``, and the seed of its crops."""

    source: int
    number: int
    seed: int = 0


class ReadFile(NamedTuple):
    """What was read for an item: the number of the file used, its crops, and the files it replaces, with the
    reasons.

    ``crops`` is None if neither the file nor any in its place could be read.
    """

    item: Item
    number: int
    crops: list[Tensor] | None
    failures: dict[Path, str]


class Step(NamedTuple):
    """The files of a step.

    ``images``: the crops, uint8 (n, 3, S, S), of each view of each list; or what was made of them; or None if
    one of the files could be neither read nor replaced, whose ``failures`` then are left alone.
    ``numbers`` are of all files used, in the order of the items; ``seed`` is that of the first item.
    """

    images: list[Tensor] | Tensor | None
    numbers: list[int]
    failures: dict[Path, str]
    seed: int


class FileDataset(Dataset):
    """Reads the files of one or more lists; an index is an :class:`Item`."""

    def __init__(self, sources: list[Source]) -> None:
        self.sources = sources

    def __getitem__(self, item: Item) -> ReadFile:
        files, crop, groups = self.sources[item.source]
        failures = {}
        for number in in_line(groups, item.number):
            path = files.root / files.paths[number]
            try:
                return ReadFile(item, number, crop(open_picture(path), item.seed), failures)
            except Unreadable as error:
                failures[path] = str(error)
        return ReadFile(item, item.number, None, failures)


def in_line(groups: Tensor | None, number: int) -> Iterator[int]:
    """Yields a file's number, then those that may replace it: of its group, from the next one on."""
    yield number
    if groups is not None:
        alike = (groups == groups[number]).nonzero().flatten()
        yield from torch.cat([alike[alike > number], alike[alike < number]]).tolist()


def collate(read: list[ReadFile], make: Callable[[list[Tensor], int], Tensor] | None = None) -> Step:
    """Gathers the files of a step; ``make(crops, seed)`` makes its images of the crops if given."""
    numbers, seed = [file.number for file in read], read[0].item.seed
    for file in read:
        if file.crops is None:
            return Step(None, numbers, file.failures, seed)
    crops = []
    for _, of_list in itertools.groupby(read, key=lambda file: file.item.source):
        crops += map(torch.stack, zip(*(file.crops for file in of_list), strict=True))
    failures = {path: reason for file in read for path, reason in file.failures.items()}
    return Step(crops if make is None else make(crops, seed), numbers, failures, seed)


class Replacements:
    """Counts the files that could not be read and were replaced.

    Args:
        expected: how many files will be read in all, if that is known.

    Attributes:
        times: how many steps met each unreadable file, by its full path.
        read: how many files were read, these included.
    """

    def __init__(self, expected: int = 0) -> None:
        self.times: Counter[Path] = Counter()
        self.reasons: dict[Path, str] = {}
        self.read, self.expected = 0, expected

    def add(self, step: Step) -> None:
        """Adds the files of a step.

        Raises:
            InputError: a file could be neither read nor replaced; or more than 5 files, and more than 1 % of
                those read so far or expected, are unreadable.
        """
        if step.images is None:
            (path, reason), *others = step.failures.items()
            others = f"; nor can any of the {len(others)} files that could replace it" if others else ""
            raise InputError(f"{path} cannot be read: {reason}{others}")
        self.read += len(step.numbers) + len(step.failures)
        self.times.update(step.failures.keys())
        self.reasons |= step.failures
        bearable = UNREADABLE_SHARE * max(self.read, self.expected)
        if len(self.times) > UNREADABLE_FLOOR and self.times.total() > bearable:
            raise InputError(
                f"{self.times.total():,} of the {self.read:,} files read so far cannot be read, more than "
                f"{UNREADABLE_SHARE:.0%}: {self._named()}"
            )

    def report(self) -> list[str]:
        """Returns a line about them, if there are any."""
        if not self.times:
            return []
        count = len(self.times)
        were = "file cannot be read and was" if count == 1 else "files cannot be read and were"
        return [f"{count} {were} replaced: {self._named()}"]

    def _named(self) -> str:
        """Returns the five files met most often, with the reasons."""
        named = [f"{path} ({times}x: {self.reasons[path]})" for path, times in self.times.most_common(5)]
        more = f" and {len(self.times) - 5} more" if len(self.times) > 5 else ""
        return ", ".join(named) + more
