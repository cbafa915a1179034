"""The benchmarks whose images fit in memory, by the name of ``--ds``: one record describes each.

To add one, write a file like digits.py and a record here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from datasets import digits
from datasets.augment.stages import Views
from datasets.augment.views import cifar_views
from datasets.cifar import NUM_CLASSES, class_names, load_cifar, load_outliers
from datasets.images import ImageSet, long_tail_counts, long_tail_indices
from datasets.scood import DEFAULT_SETS, load_ood_sets


@dataclass(frozen=True)
class Benchmark:
    """A data set with its surrogate outliers and OOD sets.

    Attributes:
        num_classes: C.
        ood_sets: the names of the OOD sets evaluated by default.
        training: defaults of train.py's flags, by their names in ``args``.
        views: (whether view 1's crop is padded) -> the random views.
        load_split: (data folder, True for training or False for test) -> the whole split.
        load_outliers: (data folder, limit) -> the first ``limit`` surrogate outliers at most, uint8
            (M, 3, H, W).
        load_ood: (names, data folder, resize mode, see :func:`datasets.scood.load_ood_sets`) -> dict of name
            to :class:`ImageSet`; labels >= 0 are semantically in-distribution, -1 is OOD.
        class_names: data folder -> the names of the classes; None if they are not known.
    """

    num_classes: int
    ood_sets: tuple[str, ...]
    training: dict[str, object]
    views: Callable[[bool], Views]
    load_split: Callable[[Path, bool], ImageSet]
    load_outliers: Callable[[Path, int], Tensor]
    load_ood: Callable[[Sequence[str], Path, str], dict[str, ImageSet]]
    class_names: Callable[[Path], list[str] | None] = lambda root: None

    def load_long_tailed(self, root: Path, ratio: float) -> ImageSet:
        """Returns the long-tailed training set: the first n_c images of each class c,
        n_c = int(n_0 ratio^(c / (C - 1))), where n_0 is the number of images of class 0."""
        split = self.load_split(root, True)
        largest = int((split.labels == 0).sum())
        chosen = long_tail_indices(split.labels, long_tail_counts(largest, self.num_classes, ratio))
        return split.select(chosen)


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
    "normalization": "cifar",
}


def _cifar(name: str) -> Benchmark:
    return Benchmark(
        num_classes=NUM_CLASSES[name],
        ood_sets=DEFAULT_SETS[name],
        training=CIFAR_TRAINING,
        views=lambda pad_crop: cifar_views(padding=4 if pad_crop else 0),
        load_split=partial(load_cifar, name),
        load_outliers=load_outliers,
        load_ood=lambda names, root, resize: load_ood_sets(name, names, root, NUM_CLASSES[name], resize),
        class_names=partial(class_names, name),
    )


BENCHMARKS: dict[str, Benchmark] = {
    "cifar10": _cifar("cifar10"),
    "cifar100": _cifar("cifar100"),
    "digits": Benchmark(
        num_classes=digits.NUM_CLASSES,
        ood_sets=digits.OOD_SETS,
        # rho 0.02: 138 to 2 images per class, a tail that plain cross-entropy does not learn.
        training=CIFAR_TRAINING
        | {"model": "ResNet20", "rho": 0.02, "epochs": 30}
        | {"batch_size": 32, "ob": 64, "normalization": "digits"},
        views=lambda pad_crop: digits.digits_views(padding=2 if pad_crop else 0),
        load_split=lambda root, train: digits.load_digits(train),
        load_outliers=lambda root, limit: digits.load_digits_outliers(limit),
        load_ood=lambda names, root, resize: digits.load_digits_ood(names),
        class_names=lambda root: [str(c) for c in range(digits.NUM_CLASSES)],
    ),
}
