"""CIFAR-10 and CIFAR-100 from the python batches that their site publishes, in torchvision's folder
layout."""

import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from datasets import ImageSet
from datasets.files.archives import unpack
from datasets.files.checks import file_md5, require_file
from datasets.files.plain_pickle import read_plain_dict
from utils.errors import InputError


class _Release(NamedTuple):
    folder: str
    archive: str
    archive_md5: str
    label_key: str
    names: tuple[str, str]  # the file with the classes' names, and their key in it
    train: dict[str, str]  # file name -> published MD5
    test: dict[str, str]


SITE = "https://www.cs.toronto.edu/~kriz/"
NUM_CLASSES = {"cifar10": 10, "cifar100": 100}
RELEASES = {
    "cifar10": _Release(
        "cifar-10-batches-py",
        "cifar-10-python.tar.gz",
        "c58f30108f718f92721af3b95e74349a",
        "labels",
        ("batches.meta", "label_names"),
        {
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        },
        {"test_batch": "40351d587109b95175f43aff81a1287e"},
    ),
    "cifar100": _Release(
        "cifar-100-python",
        "cifar-100-python.tar.gz",
        "eb9058c3a382ffc7106e4002c42a8d85",
        "fine_labels",
        ("meta", "fine_label_names"),
        {"train": "16019d7e3df5f24257cddd939b257f8d"},
        {"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
    ),
}
_MAX_UNPACKED = 1 << 30  # either archive unpacks to under 200 MB


def load_cifar(name: str, root: Path, train: bool) -> ImageSet:
    """Reads one split: images uint8 (N, 3, 32, 32), labels int64 (N,), in the order of the files.

    ``name`` is ``cifar10`` or ``cifar100`` (fine labels). If the folder is missing and ``root`` has the
    archive, the archive is unpacked. Files that differ from the published ones load with a warning.

    Raises:
        InputError: the data are missing, truncated, of the wrong shape or type, or have labels out of range.
    """
    root = Path(root)
    release = RELEASES[name]
    unpack_cifar(name, root)
    folder = root / release.folder
    if not folder.is_dir():
        raise InputError(
            f"{name} is not in {root}: it needs {folder}/ or {root / release.archive}, "
            f"which `python -m datasets.prepare {name} --drp {root}` fetches"
        )
    files = release.train if train else release.test
    for file in files:
        require_file(folder / file, f"the {name} batch")
    batches = [_read_batch(folder / file, release.label_key, NUM_CLASSES[name]) for file in files]
    if any(file_md5(folder / file) != md5 for file, md5 in files.items()):
        # The same words for both splits: Python's default filter then shows them once.
        warnings.warn(
            f"the files in {folder} differ from the published {name} (by MD5) and are used as they are",
            stacklevel=1,
        )
    images = np.concatenate([images for images, _ in batches])
    labels = np.concatenate([labels for _, labels in batches])
    if len(labels) == 0:
        raise InputError(f"{folder} holds no images of the {'training' if train else 'test'} split")
    return ImageSet(torch.from_numpy(images.reshape(-1, 3, 32, 32)), torch.from_numpy(labels))


def class_names(name: str, root: Path) -> list[str] | None:
    """The names of the classes, from the release's own file; None if it is missing or is not as published."""
    release = RELEASES[name]
    file, key = release.names
    try:
        meta = read_plain_dict(Path(root) / release.folder / file)
    except InputError:
        return None
    names = meta.get(key.encode(), meta.get(key))
    if not isinstance(names, list) or len(names) != NUM_CLASSES[name]:
        return None
    names = [word.decode("latin1") if isinstance(word, bytes) else word for word in names]
    return names if all(isinstance(word, str) and word.isprintable() for word in names) else None


def unpack_cifar(name: str, root: Path) -> None:
    """Unpacks the archive under ``root`` if it exists and its folder does not."""
    folder, archive = root / RELEASES[name].folder, root / RELEASES[name].archive
    if folder.exists() or not archive.is_file():
        return
    try:
        unpack(archive, root, _MAX_UNPACKED)
    except InputError:
        if not folder.is_dir():  # else another process of the same run has unpacked it
            raise


def _read_batch(path: Path, label_key: str, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Reads and checks one batch file: images uint8 (n, 3072), labels int64 (n,)."""
    batch = read_plain_dict(path)
    data, labels = (batch.get(key.encode(), batch.get(key)) for key in ("data", label_key))
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
        got = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else "no array"
        raise InputError(f"{path}: `data` must be a uint8 array of shape (n, 3072), not {got}")
    if isinstance(labels, np.ndarray):
        labels = labels.tolist()
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise InputError(f"{path}: `{label_key}` must be a list of whole numbers")
    if len(labels) != len(data):
        raise InputError(f"{path} has {len(data)} images and {len(labels)} labels")
    wrong = [label for label in labels if not 0 <= label < num_classes]
    if wrong:
        raise InputError(f"{path} has {len(wrong)} labels outside 0..{num_classes - 1}")
    return data, np.asarray(labels, dtype=np.int64)
