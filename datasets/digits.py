"""The embedded digits benchmark: real images that ship with scikit-learn, so nothing is downloaded.

In-distribution are the handwritten digits 0-7, with a long-tailed training split; the digits 8 and 9 are the
semantic OOD set. Surrogate outliers are patches of one sample photograph; patches of the *other* photograph
and noise are the far OOD sets. All images are 16 x 16, grey in three channels, so colour gives nothing away.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits as load_sklearn_digits
from sklearn.datasets import load_sample_image

from datasets.augment.stages import ColorJitter, PaddedCrop, RandomResizedCrop, ToFloat, View, Views
from datasets.images import ImageSet
from utils.errors import InputError

SIZE = 16
NUM_CLASSES = 8
TEST_PER_CLASS = 40
NUM_OUTLIERS = 4000
NUM_FAR_OOD = 400
OOD_SETS = ("digits89", "photo", "noise")


def digits_views(padding: int = 2) -> Views:
    """Returns views that do not make one digit look like another; ``padding`` is that of view 1's crop."""
    jitter = ColorJitter(saturation=0.0, hue=0.0)
    strong = View((PaddedCrop(padding, flip=0.0), ToFloat()))
    contrastive = View((RandomResizedCrop(SIZE, scale=(0.5, 1.0), flip=0.0), jitter))
    outlier = View((PaddedCrop(2, flip=0.0), ToFloat(), jitter))
    return Views(strong, contrastive, outlier)


def load_digits(train: bool) -> ImageSet:
    """Returns the digits 0-7, images (N, 3, 16, 16): the test split, 40 of each class drawn with a fixed
    seed, or all others, from which the long tail is taken."""
    images, labels = _all_digits()
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(labels)))
    parts = []
    for c in range(NUM_CLASSES):
        of_class = order[labels[order] == c]
        parts.append(of_class[TEST_PER_CLASS:] if train else of_class[:TEST_PER_CLASS])
    chosen = torch.cat(parts)
    return ImageSet(images[chosen], labels[chosen])


def load_digits_outliers(limit: int) -> torch.Tensor:
    """Returns outliers, uint8 (min(limit, 4000), 3, 16, 16): random patches of scikit-learn's china.jpg."""
    return _patches("china.jpg", NUM_OUTLIERS, seed=1)[:limit]


def load_digits_ood(names: Sequence[str]) -> dict[str, ImageSet]:
    """Returns OOD test sets by name, with labels -1: ``digits89`` (digits 8 and 9), ``photo`` (patches of
    flower.jpg) and ``noise`` (uniform). Raises InputError if a name is unknown."""
    if unknown := [name for name in names if name not in OOD_SETS]:
        raise InputError(f"the digits have no OOD set {', '.join(unknown)}; there are {', '.join(OOD_SETS)}")
    images, labels = _all_digits()
    generator = torch.Generator().manual_seed(3)
    grey_noise = torch.randint(0, 256, (NUM_FAR_OOD, 1, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    sets = {
        "digits89": images[labels >= NUM_CLASSES],
        "photo": _patches("flower.jpg", NUM_FAR_OOD, seed=2),
        "noise": grey_noise.expand(-1, 3, -1, -1),
    }
    return {name: ImageSet(sets[name], torch.full((len(sets[name]),), -1)) for name in names}


def _all_digits() -> tuple[torch.Tensor, torch.Tensor]:
    """All 1,797 digits, enlarged from 8 x 8 with 17 grey levels, uint8 (N, 3, 16, 16), and labels."""
    data = load_sklearn_digits()
    grey = torch.from_numpy(data.images).float()[:, None] * (255 / 16)
    grey = F.interpolate(grey, size=(SIZE, SIZE), mode="bilinear").round().to(torch.uint8)
    return grey.expand(-1, 3, -1, -1), torch.from_numpy(data.target).long()


def _patches(photograph: str, count: int, seed: int) -> torch.Tensor:
    """Random square patches with sides of 16 to 96 pixels, in grey, resized to uint8 (count, 3, 16, 16)."""
    photo = torch.from_numpy(load_sample_image(photograph).copy()).float().mean(dim=2)
    rng = np.random.default_rng(seed)
    patches = []
    for side in rng.integers(SIZE, 97, size=count):
        top, left = rng.integers(0, photo.shape[0] - side + 1), rng.integers(0, photo.shape[1] - side + 1)
        patch = photo[None, None, top : top + side, left : left + side]
        patches.append(F.interpolate(patch, size=(SIZE, SIZE), mode="bilinear", antialias=True))
    return torch.cat(patches).round().clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1)
