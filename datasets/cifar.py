"""CIFAR-10 and CIFAR-100 from the python batches that their site publishes, in torchvision's folder
layout."""

import pickle
import warnings
from pathlib import Path

import numpy as np
import torch
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.utils import check_integrity

from datasets import ImageSet
from datasets.checks import os_reason
from datasets.fetch import unpack
from utils.errors import InputError, first_line

# torchvision knows the files of the releases, and their MD5 sums.
RELEASES = {"cifar10": CIFAR10, "cifar100": CIFAR100}
NUM_CLASSES = {"cifar10": 10, "cifar100": 100}
_LABELS = {"cifar10": "labels", "cifar100": "fine_labels"}


def load_cifar(name: str, root: Path, train: bool) -> ImageSet:
    """Reads one split: images uint8 (N, 3, 32, 32), labels int64 (N,), in the order of the files.

    ``name`` is ``cifar10`` or ``cifar100`` (fine labels). If the folder is missing and ``root`` has the
    archive, the archive is unpacked. Files that differ from the published ones load with a warning.

    Raises:
        InputError: the data are missing, truncated, of the wrong shape or type, or have labels out of range.
    """
    root = Path(root)
    release = RELEASES[name]
    folder, archive = root / release.base_folder, root / release.filename
    if not folder.exists() and archive.is_file():
        try:
            unpack(archive, root)
        except InputError:
            if not folder.is_dir():  # else another process of the same run has unpacked it
                raise
    if not folder.is_dir():
        raise InputError(
            f"{name} is not in {root}: it needs {folder}/ or {archive}, "
            f"which `python -m datasets.prepare {name} --drp {root}` fetches"
        )
    files = release.train_list if train else release.test_list
    batches = [_read_batch(folder / file, _LABELS[name], NUM_CLASSES[name]) for file, _ in files]
    if not all(check_integrity(folder / file, md5) for file, md5 in files):
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
    key = release.meta["key"]
    try:
        meta = _read_dict(Path(root) / release.base_folder / release.meta["filename"])
    except InputError:
        return None
    names = meta.get(key.encode(), meta.get(key))
    if not isinstance(names, list) or len(names) != NUM_CLASSES[name]:
        return None
    names = [word.decode("latin1") if isinstance(word, bytes) else word for word in names]
    return names if all(isinstance(word, str) and word.isprintable() for word in names) else None


_CALLABLE = {
    ("_codecs", "encode"): lambda text, encoding: text.encode("latin1"),  # Python 3's bytes at protocol 2
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    # NumPy 2 renamed numpy.core; batches have either name.
    **{
        (f"numpy.{core}.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0]
        for core in ("core", "_core")
    },
}


class _Unpickler(pickle.Unpickler):
    """Reads arrays and plain values; a pickle that names anything else, which might run code, is refused."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _CALLABLE:
            raise pickle.UnpicklingError(
                f"it names {module}.{name}, and only arrays and plain values are read"
            )
        return _CALLABLE[module, name]


def _read_dict(path: Path) -> dict:
    """Reads a pickled dictionary; strings of Python 2 become bytes.

    Raises:
        InputError: the file is missing or damaged, or holds something else.
    """
    try:
        with open(path, "rb") as file:
            content = _Unpickler(file, encoding="bytes").load()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {os_reason(error)}") from error
    except Exception as error:  # a damaged pickle raises whatever the misread instruction does
        raise InputError(f"{path} is damaged or no CIFAR file: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} does not hold a dictionary")
    return content


def _read_batch(path: Path, label_key: str, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Reads and checks one batch file: images uint8 (n, 3072), labels int64 (n,)."""
    batch = _read_dict(path)
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
    if labels and not 0 <= min(labels) <= max(labels) < num_classes:
        raise InputError(f"{path} has labels outside 0..{num_classes - 1}")
    return data, np.asarray(labels, dtype=np.int64)
