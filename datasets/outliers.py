"""The surrogate outliers of CIFAR-LT: one array file, memory-mapped."""

import io
import math
from pathlib import Path

import numpy as np
import torch

from datasets.files.checks import os_reason, require_file
from utils.errors import InputError

FILE = Path("Tiny_Images_Dataset", "300K_random_images.npy")
_HEADER_BYTES = 16_384  # the header of a plain array takes 128


def load_outliers(root: Path, limit: int | None = None) -> torch.Tensor:
    """Returns the first ``limit`` outliers (all by default), a uint8 (M, 3, 32, 32) view of the memory-mapped
    file.

    The file may hold any number of images; only those used are read. Writing to the tensor does not change
    the file.

    Raises:
        InputError: the file is missing, truncated, empty or not uint8 (N, 32, 32, 3), or ``limit`` is below
            1.
    """
    if limit is not None and limit < 1:
        raise InputError(f"--num_ood_samples must be at least 1, not {limit}")
    path = Path(root) / FILE
    if not path.exists():
        raise InputError(
            f"the surrogate outliers {path} are missing; "
            f"`python -m datasets.prepare tinyimages --drp {root}` says how to get them"
        )
    return torch.from_numpy(map_outliers(path)[:limit]).permute(0, 3, 1, 2)


def map_outliers(path: Path) -> np.ndarray:
    """Memory-maps an .npy file, uint8 (N, 32, 32, 3), copy-on-write. Raises InputError for any other file."""
    size = require_file(path, "the outlier file")
    try:
        with open(path, "rb") as file:
            start = io.BytesIO(file.read(_HEADER_BYTES))  # bounded: a header may claim gigabytes
        major, _ = np.lib.format.read_magic(start)
        read_header = (
            np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        )
        shape, fortran_order, dtype = read_header(start)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {os_reason(error)}") from error
    except Exception as error:  # NumPy evaluates the header as a literal; a damaged one raises many kinds
        raise InputError(
            f"{path} is not an .npy file of images: {' '.join(str(error)[:120].split())}"
        ) from error
    if dtype != np.uint8 or len(shape) != 4 or shape[1:] != (32, 32, 3) or fortran_order:
        order = " in Fortran order" if fortran_order else ""
        found = f"{str(dtype)[:40]} {str(shape)[:80]}{order}"
        raise InputError(f"{path} must be uint8 of shape (N, 32, 32, 3), not {found}")
    if shape[0] < 1:
        raise InputError(f"{path} holds no images")
    if size < start.tell() + math.prod(shape):
        raise InputError(f"{path} is truncated: {size:,} bytes of {start.tell() + math.prod(shape):,}")
    return np.asarray(np.memmap(path, np.uint8, mode="c", offset=start.tell(), shape=shape))
