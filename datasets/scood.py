"""The SC-OOD suites (Yang et al., ICCV 2021): out-of-distribution test sets that say which of their images
are in fact of the benchmark's own classes."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from tqdm import tqdm

from datasets.image_list import read_present
from datasets.images import ImageSet
from datasets.preprocessing import Preprocessing
from utils.errors import InputError

DEFAULT_SETS = {
    "cifar10": ("cifar100", "lsun", "places365", "svhn", "texture", "tin"),
    "cifar100": ("cifar10", "lsun", "places365", "svhn", "texture", "tin"),
}
SIZE = 32


def list_path(benchmark: str, name: str, root: Path) -> Path:
    return Path(root) / "data" / "imglist" / f"benchmark_{benchmark}" / f"test_{name}.txt"


def image_root(root: Path) -> Path:
    """The folder that entries of the lists are relative to."""
    return Path(root) / "data" / "images"


def load_ood_sets(
    benchmark: str, names: list[str], root: Path, num_classes: int, resize: str = "squash"
) -> dict[str, ImageSet]:
    """Reads test sets: name -> images uint8 (N, 3, 32, 32) and labels int64 (N,), the lists' ``sc_label``: -1
    is out of distribution, any other, below ``num_classes``, the class of ``benchmark`` that it belongs to.

    ``resize`` is explained at :class:`datasets.preprocessing.Preprocessing`.

    Raises InputError: a set has no list or no OOD image, a list cannot be used, or images are missing or
    unreadable.
    """
    if missing := [name for name in names if not list_path(benchmark, name, root).is_file()]:
        folder = list_path(benchmark, "", root).parent
        there = sorted(path.stem.removeprefix("test_") for path in folder.glob("test_*.txt"))
        raise InputError(
            f"no list for the OOD sets {', '.join(missing)} in {folder}; `python -m datasets.prepare scood "
            f"--drp {root}` says how to get them; --dout chooses those there: {' '.join(there) or 'none'}; "
            "--dout without a name evaluates accuracy alone"
        )
    labels = range(-1, num_classes)
    lists = {name: read_present(list_path(benchmark, name, root), image_root(root), labels) for name in names}
    sets, preprocessing = {}, Preprocessing(SIZE, resize)
    for name, (paths, found) in lists.items():
        if not (found < 0).any():
            raise InputError(f"{list_path(benchmark, name, root)} has no OOD image, whose sc_label is -1")
        with ThreadPoolExecutor() as pool:
            read = pool.map(lambda path: preprocessing.of_file(image_root(root) / path), paths)
            images = list(tqdm(read, f"reading {name}", len(paths), leave=False, disable=None))
        sets[name] = ImageSet(torch.stack(images), found)
    return sets
