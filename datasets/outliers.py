"""The surrogate outliers of CIFAR-LT: one array file, memory-mapped."""

from pathlib import Path

import numpy as np
import torch

from utils.errors import InputError, first_line

FILE = Path("Tiny_Images_Dataset", "300K_random_images.npy")


def load_outliers(root: Path, limit: int | None = None) -> torch.Tensor:
    """Returns the first ``limit`` outliers (all by default), a uint8 (M, 3, 32, 32) view of the file, whose
    other images are not read. Raises InputError: it is missing, truncated, empty or not uint8 (N, 32, 32, 3).
    """
    path = Path(root) / FILE
    if not path.exists():
        raise InputError(
            f"the surrogate outliers {path} are missing; "
            f"`python -m datasets.prepare tinyimages --drp {root}` says how to get them"
        )
    try:
        images = np.asarray(np.load(path, mmap_mode="c"))
    except Exception as error:  # a damaged header is evaluated as a literal, and raises many kinds
        raise InputError(f"{path} is truncated or no .npy file of images: {first_line(error)}") from error
    if images.dtype != np.uint8 or images.shape[1:] != (32, 32, 3) or len(images) == 0:
        raise InputError(f"{path} must be uint8 of shape (N, 32, 32, 3), not {images.dtype} {images.shape}")
    return torch.from_numpy(images[:limit]).permute(0, 3, 1, 2)
