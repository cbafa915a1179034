"""CIFAR-10 and CIFAR-100 from their published python batches, in torchvision's folder layout, and the
surrogate outliers of their long-tailed versions from one array file."""

import pickle
import warnings
from pathlib import Path

import numpy as np
import torch
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.utils import check_integrity

from datasets.images import ImageSet
from utils.errors import InputError, first_line

# torchvision knows the files of the releases, and their MD5 sums.
RELEASES = {"cifar10": CIFAR10, "cifar100": CIFAR100}
NUM_CLASSES = {"cifar10": 10, "cifar100": 100}
OUTLIERS = Path("Tiny_Images_Dataset", "300K_random_images.npy")
_LABELS = {"cifar10": "labels", "cifar100": "fine_labels"}


def load_cifar(name: str, root: Path, train: bool) -> ImageSet:
    """Reads one split of ``cifar10`` or ``cifar100`` (fine labels): images (N, 3, 32, 32).
    Files that differ from the published ones load with a warning.

    Raises InputError: data are missing, truncated, of the wrong shape or type, or have labels out of range.
    """
    release = RELEASES[name]
    folder = Path(root) / release.base_folder
    if not folder.is_dir():
        raise InputError(f"{folder} is missing; `python -m datasets.prepare {name} --drp {root}` fetches it")
    files = release.train_list if train else release.test_list
    batches = [_read_batch(folder / file, _LABELS[name], NUM_CLASSES[name]) for file, _ in files]
    if not all(check_integrity(folder / file, md5) for file, md5 in files):
        message = f"the files in {folder} differ from the published {name} (by MD5) and are used as they are"
        warnings.warn(message, stacklevel=1)  # the same for both splits: shown once
    images = np.concatenate([images for images, _ in batches])
    labels = np.concatenate([labels for _, labels in batches])
    return ImageSet(torch.from_numpy(images.reshape(-1, 3, 32, 32)), torch.from_numpy(labels))


def class_names(name: str, root: Path) -> list[str] | None:
    """The names of the classes, from the release's own file; None if it is missing or is not as published."""
    meta = RELEASES[name].meta
    try:
        names = _read_dict(Path(root) / RELEASES[name].base_folder / meta["filename"]).get(meta["key"])
    except InputError:
        return None
    if not isinstance(names, list) or len(names) != NUM_CLASSES[name]:
        return None
    return [word.decode() if isinstance(word, bytes) else str(word) for word in names]


def load_outliers(root: Path, limit: int | None = None) -> torch.Tensor:
    """Returns the first ``limit`` outliers (all by default), a uint8 (M, 3, 32, 32) view of the file, whose
    other images are not read. Raises InputError: it is missing, truncated, empty or not uint8 (N, 32, 32, 3).
    """
    path = Path(root) / OUTLIERS
    if not path.exists():
        raise InputError(
            f"the surrogate outliers {path} are missing; "
            f"`python -m datasets.prepare tinyimages --drp {root}` says how to get them"
        )
    try:
        images = np.asarray(np.load(path, mmap_mode="c"))
    except Exception as error:  # a damaged header is evaluated as a literal, and raises many kinds
        raise InputError(f"{path} is truncated, or not a .npy file of images: {first_line(error)}") from error
    if images.dtype != np.uint8 or images.shape[1:] != (32, 32, 3) or len(images) == 0:
        raise InputError(f"{path} must be uint8 of shape (N, 32, 32, 3), not {images.dtype} {images.shape}")
    return torch.from_numpy(images[:limit]).permute(0, 3, 1, 2)


_RECONSTRUCT = np.zeros(0).__reduce__()[0]
_CALLABLE = {
    ("_codecs", "encode"): lambda text, encoding: text.encode("latin1"),  # Python 3's bytes at protocol 2
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,  # since NumPy 2
}


class _Unpickler(pickle.Unpickler):
    """Reads arrays and plain values; a pickle that names anything else, which might run code, is refused."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _CALLABLE:
            raise pickle.UnpicklingError(f"it names {module}.{name}; only arrays and plain values are read")
        return _CALLABLE[module, name]


def _read_dict(path: Path) -> dict:
    try:
        with open(path, "rb") as file:
            content = _Unpickler(file, encoding="latin1").load()
        return {key.decode() if isinstance(key, bytes) else key: value for key, value in content.items()}
    except Exception as error:  # a damaged pickle raises whatever the misread instruction does
        raise InputError(f"{path} cannot be read as a CIFAR file: {first_line(error)}") from error


def _read_batch(path: Path, label_key: str, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    batch = _read_dict(path)
    data, labels = batch.get("data"), batch.get(label_key)
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (3072,):
        raise InputError(f"{path}: `data` must be a uint8 array of shape (n, 3072)")
    labels = np.asarray(labels)
    if labels.shape != (len(data),) or set(labels.tolist()) - set(range(num_classes)) or not len(data):
        raise InputError(f"{path}: `{label_key}` must have a label 0..{num_classes - 1} for each image")
    return data, labels.astype(np.int64)
