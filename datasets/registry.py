"""The benchmarks whose images fit in memory, by the name of ``--ds``; one record holds all there is to know
of each.

To add one: a file of its own like digits.py, and a record here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datasets import ImageSet, digits
from datasets.augment.stages import Views
from datasets.augment.views import cifar_views
from datasets.cifar import load_cifar
from datasets.long_tail import long_tail_counts, long_tail_indices
from datasets.normalization import CIFAR_NORMALIZATION, Normalization
from datasets.outliers import load_outliers
from datasets.scood import DEFAULT_SETS, load_ood_sets
from utils.errors import InputError


@dataclass(frozen=True)
class Benchmark:
    """A data set with its outliers and OOD sets.

    Attributes:
        num_classes: C. normalization: of all its images.
        ood_sets: names of the OOD sets that are evaluated by default.
        training: the flags of train.py whose defaults differ between data sets.
        views: of training images; with False, without the padding of view 1's crop.
        load_split: (data folder, whether training or test) -> the whole split.
        load_outliers: (data folder, limit) -> at most ``limit`` surrogate outliers, uint8 (M, 3, H, W).
        read_ood: (names, data folder, how images are brought to size) -> name to :class:`ImageSet`.
    """

    num_classes: int
    normalization: Normalization
    ood_sets: tuple[str, ...]
    training: dict[str, object]
    views: Callable[[bool], Views]
    load_split: Callable[[Path, bool], ImageSet]
    load_outliers: Callable[[Path, int], Tensor]
    read_ood: Callable[[Sequence[str], Path, str], dict[str, ImageSet]]

    def load_long_tailed(self, root: Path, ratio: float) -> ImageSet:
        """The training split cut to the long tail: the first n_c images of each class, n_c = int(n_0 ratio^(c
        / (C - 1))).

        n_0 is the number of images of class 0.

        Raises:
            InputError: data that are missing or wrong, or a class with fewer than n_c images.
        """
        split = self.load_split(root, True)
        largest = int((split.labels == 0).sum())
        chosen = long_tail_indices(split.labels, long_tail_counts(largest, self.num_classes, ratio))
        return ImageSet(split.images[chosen], split.labels[chosen])

    def load_ood(self, names: Sequence[str], root: Path, resize: str = "squash") -> dict[str, ImageSet]:
        """OOD test sets by name; labels >= 0 are semantically in-distribution, -1 is OOD.

        ``resize`` is explained at :func:`datasets.scood.load_ood_sets`.

        Raises:
            InputError: a set that is not there, before any is loaded, or that has no OOD image.
        """
        sets = self.read_ood(names, root, resize)
        for name, images in sets.items():
            if not bool((images.labels < 0).any()):
                raise InputError(f"the OOD set {name} has no image that is out of distribution")
        return sets


CIFAR_TRAINING = {
    "model": "ResNet18",
    "rho": 0.01,
    "epochs": 100,
    "batch_size": 128,
    "ob": 256,
    "opt": "adam",
    "lr": 1e-3,
    "wd": 5e-4,
    "Lambda1": 0.1,
    "Lambda2": 0.5,
    "tem_scale": 0.9,
    "num_ood_samples": 300_000,
}


def _cifar(name: str, num_classes: int) -> Benchmark:
    return Benchmark(
        num_classes=num_classes,
        normalization=CIFAR_NORMALIZATION,
        ood_sets=DEFAULT_SETS[name],
        training=CIFAR_TRAINING,
        views=lambda pad_crop: cifar_views(padding=4 if pad_crop else 0),
        load_split=partial(load_cifar, name),
        load_outliers=load_outliers,
        read_ood=lambda names, root, resize: load_ood_sets(name, names, root, num_classes, resize),
    )


BENCHMARKS = {
    "cifar10": _cifar("cifar10", 10),
    "cifar100": _cifar("cifar100", 100),
    "digits": Benchmark(
        num_classes=digits.NUM_CLASSES,
        normalization=digits.NORMALIZATION,
        ood_sets=digits.OOD_SETS,
        training=CIFAR_TRAINING | {"model": "ResNet20", "rho": 0.1, "epochs": 30, "batch_size": 32, "ob": 64},
        views=lambda pad_crop: digits.digits_views(padding=2 if pad_crop else 0),
        load_split=lambda root, train: digits.load_digits(train),
        load_outliers=lambda root, limit: digits.load_digits_outliers(min(limit, digits.NUM_OUTLIERS)),
        read_ood=lambda names, root, resize: digits.load_digits_ood(names),
    ),
}


def hold_out(labels, fraction):
    """Splits indices within each class: the last ``fraction`` of its images, at least one, are held out.

    Returns:
        (kept, held out): int64 index tensors. A class of one image keeps it, and has none held out.
    """
    labels = np.asarray(labels)
    kept, held = [], []
    for c in np.unique(labels):
        rows = np.flatnonzero(labels == c)
        size = min(max(1, round(fraction * len(rows))), len(rows) - 1)
        kept.append(rows[: len(rows) - size])
        held.append(rows[len(rows) - size :])
    return torch.from_numpy(np.concatenate(kept)), torch.from_numpy(np.concatenate(held))
