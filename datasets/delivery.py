"""From the files of a step to its batch, on a CPU and on CUDA.

On a CPU worker processes do all of it: they read, decode, crop and augment into memory that they share with
this process. For CUDA they read, and hand over the files' bytes; the GPU decodes, crops and augments, on a
stream beside that of the training step, which a thread feeds.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from datasets.augment.ops import to_device
from datasets.augment.stages import View
from datasets.decoding import EncodedImage, decoded_crops, is_for_gpu, jpeg_decoder, resized_crops
from datasets.file_reader import FileReader, StepFiles, StepReader
from datasets.loader import Batch, one_ahead
from datasets.normalization import Normalization
from datasets.randomness import mixed_seed
from datasets.workers import slots
from utils.errors import first_line

ROOM_PER_FILE = 2**19  # bytes: hardly a file of ImageNet is larger


class StepViews:
    """Makes the normalised views of a step's crops; randomness depends on (seed, epoch, step, rank) alone.

    Args:
        views: of the training images, then of the outliers, in the order of the batch.
        rows: how many crops each of them is made of.
        image_size: S, the side of a view in pixels.
        normalization: of the views.

    Attributes:
        shape: of the batch's images.
    """

    def __init__(
        self,
        views: Sequence[View],
        rows: Sequence[int],
        image_size: int,
        normalization: Normalization,
        *,
        seed: int,
        rank: int,
        device: torch.device,
    ) -> None:
        self.views, self.image_size, self.normalization = views, image_size, normalization
        self.seed, self.rank = seed, rank
        self.shape = (sum(rows), 3, image_size, image_size)
        self._crops = [torch.empty(n, *self.shape[1:], dtype=torch.uint8, device=device) for n in rows]

    def fill(self, images: Tensor, crops: Sequence[list[list[Tensor]]], epoch: int, step: int) -> None:
        """Fills ``images``, float32 of :attr:`shape`, from the crops, uint8 (3, S, S), of each file of each
        list."""
        generator = torch.Generator().manual_seed(mixed_seed("pixels", self.seed, epoch, step, self.rank))
        by_view = [same_view for of_list in crops for same_view in zip(*of_list, strict=True)]
        start = 0
        for view, stacked, same_view in zip(self.views, self._crops, by_view, strict=True):
            torch.stack(same_view, out=stacked)
            view(stacked, generator, out=images[start : start + len(stacked)], finish=self.normalization)
            start += len(stacked)


class CpuDelivery:
    """Batches for a CPU.

    Args:
        reader, views: of the steps.
        labels: of all training images.
    """

    def __init__(
        self, reader: StepReader, views: StepViews, labels: Tensor, num_workers: int, device: torch.device
    ) -> None:
        self.reader, self.views, self.labels = reader, views, labels
        # The first touch of fresh memory would take longer than the arithmetic on it.
        self.slots = slots(num_workers, *views.shape, dtype=torch.float32)

    def make(self, epoch: int, orders: Sequence[Tensor], step: int) -> StepFiles:
        """Makes a step's images in its slot; for worker processes.

        ``orders`` are the numbers of the files of each list, int64 (steps, share of the batch).
        """
        rows = [order[step] for order in orders]
        files = self.reader.read(epoch, step, rows, partial(decoded_crops, size=self.views.image_size))
        self.views.fill(self._slot(step), files.images, epoch, step)
        return files._replace(images=[])

    def deliver(self, epoch: int, made: Iterable[StepFiles]) -> Iterator[tuple[StepFiles, Batch]]:
        """Yields each step's files and batch; images stay as they are until the next batch but one."""
        for files in made:
            indices = torch.tensor(files.used[0])
            yield files, Batch(self._slot(files.step), self.labels[indices], indices)

    def where(self) -> str:
        """Returns who decodes."""
        return "decoded there"

    def report(self) -> list[str]:
        """Returns lines about failures of a decoder that were recovered from: none."""
        return []

    def _slot(self, step: int) -> Tensor:
        return self.slots[step % len(self.slots)]


class InSlot(NamedTuple):
    """A file in a slot: its bytes (L,) and the boxes (V, 4) to cut, or its crops (V, 3, S, S), no boxes."""

    shape: tuple[int, ...]
    boxes: list[list[int]] | None


class CudaDelivery:
    """Batches for CUDA: a thread queues the work for the next step while the present one runs.

    Workers crop what the GPU does not decode (PNG, grey or very large files, or all if it has no decoder), so
    the size of a step's data is bounded.

    Args:
        reader, views: of the steps.
        labels: of all training images.
    """

    def __init__(
        self, reader: StepReader, views: StepViews, labels: Tensor, num_workers: int, device: torch.device
    ) -> None:
        self.reader, self.views, self.labels, self.device = reader, views, labels, device
        self.stream = torch.cuda.Stream(device)
        self.decode, self.no_decoder = jpeg_decoder(device)
        self.failures, self.failure, self.decoded_here = 0, "", Counter()
        size = sum(n * self._room(r.views) for n, r in zip(reader.counts, reader.readers, strict=True))
        self.slots = slots(num_workers, size, dtype=torch.uint8)

    def _room(self, views: int) -> int:
        """Returns the bytes of a slot that a file with so many views may take."""
        return max(ROOM_PER_FILE, views * 3 * self.views.image_size**2)

    def make(self, epoch: int, orders: Sequence[Tensor], step: int) -> StepFiles:
        """Puts a step's files into its slot; for worker processes. ``orders`` as for a CPU.

        Returns files whose ``images`` are :class:`InSlot`.
        """
        rows = [order[step] for order in orders]
        files = self.reader.read(epoch, step, rows, self._for_slot)
        data = [tensor.flatten() for of_list in files.images for tensor, _ in of_list]
        torch.cat(data, out=self._slot(step)[: sum(map(len, data))])
        return files._replace(
            images=[[InSlot(tuple(t.shape), boxes) for t, boxes in of_list] for of_list in files.images]
        )

    def _for_slot(self, encoded: EncodedImage, boxes: Tensor) -> tuple[Tensor, list[list[int]] | None]:
        size = self.views.image_size
        if self.decode and len(encoded.data) <= self._room(len(boxes)) and is_for_gpu(encoded, boxes, size):
            return torch.frombuffer(encoded.data, dtype=torch.uint8), boxes.tolist()
        return torch.stack(decoded_crops(encoded, boxes, size)), None

    def deliver(self, epoch: int, made: Iterable[StepFiles]) -> Iterator[tuple[StepFiles, Batch]]:
        """Yields each step's files and batch, on the device."""
        for files, batch, ready in one_ahead(partial(self._queue, epoch), made):
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(ready)
            for tensor in (batch.images, batch.labels):
                tensor.record_stream(stream)  # else its memory is free as soon as it is dropped here
            yield files, batch

    def _queue(self, epoch: int, files: StepFiles) -> tuple[StepFiles, Batch, torch.cuda.Event]:
        """Queues a step's decoding, crops and views, in the thread; the event comes when they are done."""
        with torch.cuda.stream(self.stream):
            crops = self._crops(epoch, files)
            images = torch.empty(self.views.shape, device=self.device, memory_format=torch.channels_last)
            self.views.fill(images, crops, epoch, files.step)
            indices = torch.tensor(files.used[0])
            labels = to_device(self.labels[indices], self.device)
            return files, Batch(images, labels, indices), self.stream.record_event()

    def _crops(self, epoch: int, files: StepFiles) -> list[list[list[Tensor]]]:
        """Returns the crops of each file of each list, on the device; ``files`` changes where one is
        replaced."""
        entries = [entry for of_list in files.images for entry in of_list]
        sizes = [math.prod(entry.shape) for entry in entries]
        data = self._slot(files.step)[: sum(sizes)].split(sizes)
        decoded = iter(self._decode([d for d, entry in zip(data, entries, strict=True) if entry.boxes]))
        data, crops = iter(data), []
        for reader, used, of_list in zip(self.reader.readers, files.used, files.images, strict=True):
            crops.append([])
            for place, (shape, boxes) in enumerate(of_list):
                on_host = next(data).view(shape)
                if boxes and (image := next(decoded)) is not None:
                    views = resized_crops(image, torch.tensor(boxes), self.views.image_size)
                else:
                    if boxes:
                        used[place], on_host = self._decode_here(reader, used[place], epoch, files)
                    views = to_device(on_host, self.device).unbind()
                crops[-1].append(views)
        return crops

    def _decode(self, jpegs: list[Tensor]) -> list[Tensor | None]:
        """Returns the images of JPEG files, on the device; None for each that the GPU's decoder refuses."""
        if not jpegs:
            return []
        # The decoder gets memory for its images that work queued on this stream may still be reading, as the
        # allocator hands out what is free once that work is done. But it writes without waiting for this
        # stream: torchvision on a stream of its own, the GPU's hardware decoder on none. So the stream has to
        # be empty first; this thread alone waits for it.
        self.stream.synchronize()
        try:
            return self.decode(jpegs, self.device)
        except RuntimeError as error:  # it does not say which file is to blame
            self.failures, self.failure = self.failures + 1, self.failure or first_line(error)
        return [self._decode_alone(jpeg) for jpeg in jpegs]

    def _decode_alone(self, jpeg: Tensor) -> Tensor | None:
        try:
            return self.decode([jpeg], self.device)[0]
        except RuntimeError:
            return None

    def _decode_here(
        self, reader: FileReader, number: int, epoch: int, files: StepFiles
    ) -> tuple[int, Tensor]:
        """Returns the number and crops of a file that the GPU's decoder refuses, or of one that replaces
        it."""
        self.decoded_here[reader.files.root / reader.files.paths[number]] += 1
        seed = mixed_seed("refused", self.reader.seed, epoch, files.step, self.reader.rank, number)
        generator = torch.Generator().manual_seed(seed)
        decode = partial(decoded_crops, size=self.views.image_size)
        (number,), (crops,) = reader.read(torch.tensor([number]), generator, decode, files.unreadable)
        return number, torch.stack(crops)

    def where(self) -> str:
        """Returns who decodes."""
        if self.decode:
            return f"JPEG decoded on {self.device}"
        return f"decoded there, as no JPEG decoder works on {self.device} ({self.no_decoder})"

    def report(self) -> list[str]:
        """Returns a line about failures of the GPU's decoder, if there were any."""
        if not self.failures:
            return []
        instead = "all files could be decoded one by one"
        if self.decoded_here:
            path, _ = self.decoded_here.most_common(1)[0]
            instead = f"the CPU decoded {self.decoded_here.total():,} images instead, such as {path}"
        return [
            f"warning: the JPEG decoder of {self.device} failed in {self.failures:,} steps "
            f"({self.failure}); {instead}"
        ]

    def _slot(self, step: int) -> Tensor:
        return self.slots[step % len(self.slots)]
