"""Batches from sets that fit in memory: data order, views, normalisation and delivery on the device.

Order and randomness depend on (seed, epoch, step, rank) and on whether the device is a GPU, for which one
generator draws the views of 32 steps; so a run can resume at any step.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from datasets.augment.ops import to_device
from datasets.augment.stages import Views
from datasets.images import Normalization

DEVICE_MEMORY_SHARE = 0.5  # a set moves to the GPU if it needs at most this share of the free memory
# Augmenting several steps at once amortises kernel launches on CUDA; on a CPU it only costs cache.
STEPS_AT_ONCE = {"cuda": 32, "cpu": 1}


class Batch(NamedTuple):
    """``images``: float32 normalised, [view 1 (B), view 2 (B), view 3 (B), outliers (M)], without those that
    the loss does not use; ``labels`` (B,); ``indices`` (B,) into the training set, on the host."""

    images: Tensor
    labels: Tensor
    indices: Tensor


def place(images: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda" and images.nbytes <= DEVICE_MEMORY_SHARE * torch.cuda.mem_get_info(device)[0]:
        return images.to(device)
    return images


@dataclass(eq=False)
class TrainLoader:
    """Training batches of uint8 images and outliers, (N, 3, H, W); drops the last incomplete one. Batch sizes
    are those of all processes together; ``contrastive``: batches have views 2 and 3."""

    images: Tensor
    labels: Tensor
    outliers: Tensor | None
    views: Views
    _: KW_ONLY
    batch_size: int
    outlier_batch_size: int
    normalization: Normalization
    outlier_normalization: Normalization
    contrastive: bool
    seed: int
    device: torch.device
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        self.images = place(self.images, self.device)
        self.outliers = None if self.outliers is None else place(self.outliers, self.device)

    def __len__(self) -> int:
        return len(self.labels) // self.batch_size

    @property
    def num_outliers(self) -> int:
        return 0 if self.outliers is None else len(self.outliers)

    def report(self) -> list[str]:
        return []  # all data are in memory: no file is replaced

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yields the batches of an epoch from ``start_step`` to its end."""
        at_once = STEPS_AT_ONCE[self.device.type]
        start = start_step // at_once * at_once
        sizes = {"images": (len(self.labels), self.batch_size)}
        if self.outliers is not None:
            sizes["outliers"] = len(self.outliers), self.outlier_batch_size
        orders = [
            epoch_shares(*size, len(self), self.seed, epoch, name, self.rank, self.world_size)
            for name, size in sizes.items()
        ]
        for first in range(start, len(self), at_once):
            seed = mixed_seed("views", self.seed, epoch, first, self.rank)
            numbers = [order[first : first + at_once] for order in orders]
            yield from self._make(numbers, torch.Generator().manual_seed(seed))[max(0, start_step - first) :]

    def _make(self, numbers: list[Tensor], generator: torch.Generator) -> list[Batch]:
        """Returns the batches of some steps, made together, from the numbers of their images (steps, B) and,
        if there are any, of their outliers (steps, M)."""
        rows, *outlier_rows = numbers
        images = self._take(self.images, rows.flatten())
        parts = [self.normalization(self.views.strong(images, generator))]
        if self.contrastive:
            parts += [self.normalization(self.views.contrastive(images, generator)) for _ in range(2)]
        if outlier_rows:
            outliers = self._take(self.outliers, outlier_rows[0].flatten())
            parts.append(self.outlier_normalization(self.views.outlier(outliers, generator)))
        labels = to_device(self.labels[rows], self.device)
        by_step = zip(*(part.chunk(len(rows)) for part in parts), strict=True)
        return [
            Batch(torch.cat(step).contiguous(memory_format=torch.channels_last), labels[i], rows[i])
            for i, step in enumerate(by_step)
        ]

    def _take(self, images: Tensor, indices: Tensor) -> Tensor:
        if images.device.type == self.device.type:
            return images[to_device(indices, self.device)]
        return to_device(images[indices], self.device)


def evaluation_batches(
    images: Tensor, labels: Tensor, *, batch_size: int, normalization: Normalization, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields (normalised float images, labels), on the device: every image once, in order, not augmented."""
    for batch, of_batch in zip(images.split(batch_size), labels.split(batch_size), strict=True):
        batch = normalization(batch.to(device, non_blocking=True).float().div_(255))
        yield batch.contiguous(memory_format=torch.channels_last), of_batch.to(device, non_blocking=True)


def mixed_seed(*parts: object) -> int:
    """Returns a 63-bit seed from any values; different values give unrelated seeds."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little") >> 1


def epoch_shares(
    n: int, batch_size: int, steps: int, seed: int, epoch: int, stream: str, rank: int, world_size: int
) -> Tensor:
    """Returns a process's share of :func:`epoch_indices`, int64 (steps, batch_size / world_size)."""
    drawn = epoch_indices(n, steps * batch_size, seed, epoch, stream)
    return drawn.view(steps, batch_size)[:, rank::world_size]


def epoch_indices(n: int, needed: int, seed: int, epoch: int, stream: str) -> Tensor:
    """Returns ``needed`` indices below n in random order, int64: a permutation, followed by further ones if n
    is smaller than ``needed``. ``stream`` names what they are drawn for."""
    generator = torch.Generator().manual_seed(mixed_seed(stream, seed, epoch))
    rounds = -(-needed // n)
    return torch.cat([torch.randperm(n, generator=generator) for _ in range(rounds)])[:needed]
