"""Image files, read in order; those that cannot be read are replaced and counted."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor

from datasets.augment.stages import draw_crop_boxes
from datasets.decoding import EncodedImage, Unreadable, open_image, read_again
from datasets.image_list import ImageFiles
from datasets.randomness import step_generator
from utils.errors import InputError

CROP_RATIO = (3 / 4, 4 / 3)

UNREADABLE_SHARE = 0.01  # above this a run stops ...
UNREADABLE_FLOOR = 5  # ... unless it is about so few files that one folder's accident explains them

Image = TypeVar("Image")
Decode: TypeAlias = Callable[[EncodedImage, Tensor], Image]


class FileReader:
    """Reads files of a list for a step; a file that cannot be read is replaced by the next one of its class.

    Args:
        files: the list.
        by_class: whether replacements must be of the same class; if not, the next file of the list is taken.
        views: the number V of crops per image.
        scale: the share of the image's area that a crop covers, from and to.
        on_reading: called with a file's number before it is opened or decoded.
    """

    def __init__(
        self,
        files: ImageFiles,
        *,
        by_class: bool,
        views: int,
        scale: tuple[float, float],
        on_reading: Callable[[int], None],
    ) -> None:
        self.files, self.views, self.scale, self.on_reading = files, views, scale, on_reading
        self.groups = files.labels if by_class else torch.zeros_like(files.labels)

    def read(
        self, indices: Tensor, generator: torch.Generator, decode: Decode[Image], unreadable: Counter[Path]
    ) -> tuple[list[int], list[Image]]:
        """Returns the numbers of the files used, one for each of ``indices``, and what ``decode`` makes of
        them.

        ``decode`` is given an encoded image and the boxes of its crops, int64 (V, 4) of (top, left, height,
        width). Every file that could not be read is counted in ``unreadable`` by its full path.

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
        return used, decoded

    def _candidates(self, index: int, unreadable: Counter[Path]) -> Iterator[tuple[int, EncodedImage]]:
        """Yields (number, encoded image) of a file, then of the others of its group, if they open."""
        for number in in_line(self.groups, index):
            self.on_reading(number)
            try:
                encoded = open_image(self.files.root / self.files.paths[number])
            except Unreadable:
                unreadable[self.files.root / self.files.paths[number]] += 1
            else:
                yield number, encoded
        raise none_readable(self.files, self.groups, index)

    def _draw_boxes(self, images: list[EncodedImage], generator: torch.Generator) -> Tensor:
        heights, widths = (
            torch.tensor([getattr(image, side) for image in images]).repeat_interleave(self.views)
            for side in ("height", "width")
        )
        drawn = draw_crop_boxes(heights, widths, self.scale, CROP_RATIO, generator)
        return torch.stack(drawn, dim=1).view(len(images), self.views, 4)


def in_line(groups: Tensor, index: int) -> Iterator[int]:
    """Yields a file's number, then those that may replace it: of its group, from the next one on."""
    yield index
    alike = (groups == groups[index]).nonzero().flatten()
    yield from torch.cat([alike[alike > index], alike[alike < index]]).tolist()


def none_readable(files: ImageFiles, groups: Tensor, index: int) -> InputError:
    """Returns the error for a file that neither itself nor another of its group could be read."""
    first, size = files.root / files.paths[index], int((groups == groups[index]).sum())
    reason = f"the reason for that one: {read_again(first)}"
    return InputError(f"none of the {size} files in line for {first} can be read; {reason}")


class ReplacedFiles:
    """Counts the files that could not be read and were replaced.

    Args:
        expected: how many files will be read in all, where that is known.

    Attributes:
        times: how often each unreadable file was met, by its full path.
        read: how many files were read, these included.
    """

    def __init__(self, expected: int = 0) -> None:
        self.times, self.read, self.expected = Counter(), 0, expected

    def add(self, used: int, unreadable: Counter[Path]) -> None:
        """Adds what was read at one go.

        Raises:
            InputError: more than 5 files, and more than 1 % of those read so far or expected, are unreadable.
        """
        self.times.update(unreadable)
        self.read += used + unreadable.total()
        bearable = UNREADABLE_SHARE * max(self.read, self.expected)
        if len(self.times) > UNREADABLE_FLOOR and self.times.total() > bearable:
            raise InputError(
                f"{self.times.total():,} of the {self.read:,} files read so far cannot be read, more than "
                f"{UNREADABLE_SHARE:.0%}; among them {', '.join(map(str, list(self.times)[:3]))}; "
                f"{self._reason()}"
            )

    def report(self) -> list[str]:
        """Returns a line about them, if there are any."""
        if not self.times:
            return []
        names = ", ".join(f"{path} ({times}x)" for path, times in self.times.most_common(5))
        more = f" and {len(self.times) - 5} more" if len(self.times) > 5 else ""
        counted = f"{len(self.times)} files cannot be read and were replaced"
        if len(self.times) == 1:
            counted = "1 file cannot be read and was replaced"
        return [f"{counted}: {names}{more}; {self._reason()}"]

    def _reason(self) -> str:
        """Returns why the file that was met most often cannot be read."""
        path = max(self.times, key=self.times.get)
        return f"the reason for {path}: {read_again(path)}"


class StepFiles(NamedTuple):
    """What was read for a step.

    ``used`` and ``images`` have an entry per list (training images, then outliers): the numbers of the files
    used, and what was made of them. ``unreadable`` counts the files that were replaced, by their full path.
    """

    step: int
    used: list[list[int]]
    images: list[list]
    unreadable: Counter[Path]


class StepReader:
    """Reads the files of any step; crops depend on (seed, epoch, step, rank) and on the files alone.

    Args:
        readers: of the training images and, if there are any, of the outliers.
        counts: how many files of each a step of this process has.
    """

    def __init__(self, readers: Sequence[FileReader], counts: Sequence[int], seed: int, rank: int) -> None:
        self.readers, self.counts, self.seed, self.rank = readers, counts, seed, rank

    def read(self, epoch: int, step: int, rows: Sequence[Tensor], decode: Decode) -> StepFiles:
        """Reads the files whose numbers ``rows`` has for each list; see :meth:`FileReader.read`."""
        generator, unreadable = step_generator(self.seed, epoch, step, self.rank), Counter()
        read = [
            reader.read(numbers, generator, decode, unreadable)
            for reader, numbers in zip(self.readers, rows, strict=True)
        ]
        used, images = map(list, zip(*read, strict=True))
        return StepFiles(step, used, images, unreadable)
