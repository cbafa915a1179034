"""Batches from sets that fit in memory: data order, views, normalisation and delivery on the device.

Order and randomness depend on (seed, epoch, step, rank) alone, so that a run can go on at any step.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch

from datasets.randomness import epoch_indices, step_generator

DEVICE_MEMORY_SHARE = 0.5  # a set moves to the GPU when it takes at most this share of what is free there
STEPS_AT_ONCE = {
    "cuda": 16,
    "cpu": 1,
}  # augmentation in bulk amortises launches on CUDA; on a CPU it only costs cache


class Batch(NamedTuple):
    """One step's data. ``images``: float32 normalised, ordered [view 1 (B), view 2 (B), view 3 (B), outliers
    (M)], views 2 and 3 or the outliers left out where the loss does not use them; ``labels`` (B,);
    ``indices`` (B,) into the training set, on the host."""

    images: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor


def place(images, device, share=DEVICE_MEMORY_SHARE):
    """The uint8 images on the device where they fit in ``share`` of its free memory, else where they are."""
    if device.type == "cuda" and images.nbytes <= share * torch.cuda.mem_get_info(device)[0]:
        return images.to(device)
    return images


class TrainLoader:
    """Training batches; drops the last incomplete one.

    Args:
        images, labels: the long-tailed training set, uint8 (N, 3, H, W) and int64 (N,).
        outliers: uint8 (M, 3, H, W), or None for no outliers.
        views: :class:`datasets.augment.views.Views`.
        batch_size, outlier_batch_size: of the global batch; each of the ``world_size`` processes takes its
            share.
        normalization, outlier_normalization: of the views, and of the outliers.
        contrastive: whether views 2 and 3 are made.
    """

    def __init__(
        self,
        images,
        labels,
        outliers,
        views,
        *,
        batch_size,
        outlier_batch_size,
        normalization,
        outlier_normalization,
        contrastive,
        seed,
        device,
        rank=0,
        world_size=1,
    ):
        self.labels = labels
        self.images = place(images, device)
        self.outliers = None if outliers is None else place(outliers, device)
        self.views = views
        self.batch_size, self.outlier_batch_size = batch_size, outlier_batch_size
        self.normalization, self.outlier_normalization = normalization, outlier_normalization
        self.contrastive = contrastive
        self.seed, self.device, self.rank, self.world_size = seed, device, rank, world_size

    def __len__(self):
        return len(self.labels) // self.batch_size

    @property
    def num_outliers(self):
        """How many surrogate outliers there are to draw from."""
        return 0 if self.outliers is None else len(self.outliers)

    def where(self):
        """One line for the log: where the data live."""
        sets = {"images": self.images} | ({} if self.outliers is None else {"outliers": self.outliers})
        return ", ".join(
            f"{len(s):,} {name} on {s.device} ({s.nbytes / 1e6:.0f} MB)" for name, s in sets.items()
        )

    def report(self):
        """Lines about an epoch's reading; from memory there is nothing to tell."""
        return []

    def epoch(self, epoch, start_step=0):
        """Iterates over the batches of an epoch, from ``start_step`` on."""
        steps, at_once = len(self), STEPS_AT_ONCE[self.device.type]
        order = self._share(
            epoch_indices(len(self.labels), steps * self.batch_size, self.seed, epoch, "images"), steps
        )
        outlier_order = None
        if self.outliers is not None:
            needed = steps * self.outlier_batch_size
            drawn = epoch_indices(len(self.outliers), needed, self.seed, epoch, "outliers")
            outlier_order = self._share(drawn, steps)

        def chunk(first):
            """The batches of steps first, first + 1, ..., made in one go."""
            rows = order[first : first + at_once]
            outlier_rows = None if outlier_order is None else outlier_order[first : first + at_once]
            return self._make(rows, outlier_rows, step_generator(self.seed, epoch, first, self.rank))

        firsts = range(start_step // at_once * at_once, steps, at_once)
        make = map(chunk, firsts) if self.device.type == "cpu" else _one_ahead(chunk, firsts)
        for first, batches in zip(firsts, make, strict=True):
            yield from batches[max(0, start_step - first) :]

    def _share(self, indices, steps):
        """(steps, global batch) -> this process's columns."""
        return indices.view(steps, -1)[:, self.rank :: self.world_size]

    def _make(self, rows, outlier_rows, generator):
        steps = len(rows)
        images = self._take(self.images, rows.flatten())
        parts = [self.normalization(self.views.strong(images, generator))]
        if self.contrastive:
            parts += [self.normalization(self.views.contrastive(images, generator)) for _ in range(2)]
        if outlier_rows is not None:
            outliers = self._take(self.outliers, outlier_rows.flatten())
            parts.append(self.outlier_normalization(self.views.outlier(outliers, generator)))
        labels = self.labels[rows].to(self.device, non_blocking=True)
        by_step = zip(*(part.chunk(steps) for part in parts), strict=True)
        return [
            Batch(torch.cat(step).contiguous(memory_format=torch.channels_last), labels[i], rows[i])
            for i, step in enumerate(by_step)
        ]

    def _take(self, images, indices):
        if images.device.type == self.device.type:
            return images[indices.to(self.device, non_blocking=True)]
        return images[indices].pin_memory().to(self.device, non_blocking=True)


def _one_ahead(function, arguments):
    """Like map, with the next result made in a thread while the present one is in use."""
    with ThreadPoolExecutor(1) as pool:
        pending = None
        for argument in arguments:
            following = pool.submit(function, argument)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()


def evaluation_batches(images, labels, *, batch_size, normalization, device):
    """Iterates over (normalised float images, labels on the device): every image once, in order, not
    augmented."""
    for start in range(0, len(labels), batch_size):
        rows = slice(start, start + batch_size)
        batch = images[rows].to(device, non_blocking=True).float().div_(255)
        yield (
            normalization(batch).contiguous(memory_format=torch.channels_last),
            labels[rows].to(device, non_blocking=True),
        )
