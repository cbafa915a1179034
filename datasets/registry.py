"""The benchmarks whose images fit in memory, by the name of ``--ds``: CIFAR10-LT, CIFAR100-LT and the
embedded digits."""

import numpy as np
import torch

from datasets import ImageSet
from datasets.augment.views import cifar_views, digits_views
from datasets.cifar import load_cifar
from datasets.digits import NUM_OUTLIERS, OOD_SETS, load_digits, load_digits_ood, load_digits_outliers
from datasets.long_tail import long_tail_counts, long_tail_indices
from datasets.normalization import CIFAR_NORMALIZATION, Normalization
from datasets.outliers import load_outliers
from datasets.scood import DEFAULT_SETS, load_ood_sets
from utils.errors import InputError

DATASETS = ("cifar10", "cifar100", "digits")
NUM_CLASSES = {"cifar10": 10, "cifar100": 100, "digits": 8}
DEFAULT_OOD_SETS = DEFAULT_SETS | {"digits": OOD_SETS}
NORMALIZATION = {
    "cifar10": CIFAR_NORMALIZATION,
    "cifar100": CIFAR_NORMALIZATION,
    "digits": Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
}


def views_for(name, pad_crop=True):
    """The random views of a benchmark's training images; ``pad_crop=False`` leaves out the padding of view
    1's crop."""
    if name == "digits":
        return digits_views(padding=2 if pad_crop else 0)
    return cifar_views(padding=4 if pad_crop else 0)


def load_long_tailed(name, root, ratio):
    """The training split cut to the long tail: the first n_c images of each class, n_c = int(n_max ratio^(c /
    (C - 1))).

    n_max is the size of the split's largest class; of the digits, whose classes differ by a few images, of
    class 0.

    Returns:
        :class:`ImageSet`.

    Raises:
        InputError: data that are missing or wrong, or a class with fewer than n_c images.
    """
    split = load_split(name, root, train=True)
    sizes = torch.bincount(split.labels, minlength=NUM_CLASSES[name])
    largest = int(sizes[0] if name == "digits" else sizes.max())
    chosen = long_tail_indices(split.labels, long_tail_counts(largest, NUM_CLASSES[name], ratio))
    return ImageSet(split.images[chosen], split.labels[chosen])


def load_split(name, root, train):
    """The whole training or test split of a benchmark."""
    return load_digits(train) if name == "digits" else load_cifar(name, root, train)


def load_surrogate_outliers(name, root, limit):
    """At most ``limit`` unlabelled outliers, uint8 (M, 3, H, W)."""
    return load_digits_outliers(min(limit, NUM_OUTLIERS)) if name == "digits" else load_outliers(root, limit)


def load_ood(name, sets, root, resize="squash"):
    """OOD test sets: dict of set name to :class:`ImageSet`; labels >= 0 are semantically in-distribution, -1
    is OOD. ``resize`` is explained at :func:`datasets.scood.load_ood_sets`.

    Raises:
        InputError: a set that is not there, before any is loaded, or that has no OOD image.
    """
    if name == "digits":
        loaded = load_digits_ood(sets)
    else:
        loaded = load_ood_sets(name, sets, root, NUM_CLASSES[name], resize)
    for set_name, images in loaded.items():
        if not bool((images.labels < 0).any()):
            raise InputError(f"the OOD set {set_name} has no image that is out of distribution")
    return loaded


def hold_out(labels, fraction):
    """Splits indices class by class: the last ``fraction`` of each class's images, at least one, are held
    out.

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
