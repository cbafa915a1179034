import os
import pickle
import struct

import numpy as np
import pytest
import torch

from datasets.cifar import class_names, load_cifar
from utils.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore:the files in")


def random_batch(n, classes, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 3072), dtype=np.uint8), rng.integers(0, classes, n).tolist()


def python_2_pickle(images, labels):
    """The bytes that Python 2's cPickle writes at protocol 2, as the published files are: strings are byte
    strings."""

    def string(value):
        length = struct.pack("<i", len(value))
        return b"U" + length[:1] + value if len(value) < 256 else b"T" + length + value

    shape = b"".join(b"M" + struct.pack("<H", side) for side in images.shape)
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85"
        + string(b"b")
        + b"\x87R(K\x01"
        + shape
        + b"\x86cnumpy\ndtype\n"
        + string(b"u1")
        + b"K\x00K\x01\x87R(K\x03"
        + string(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + string(images.tobytes())
        + b"tb"
    )
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(" + string(b"data") + array + string(b"labels") + numbers + b"u."


def write_batch(path, images, labels, key=b"labels"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps({b"batch_label": b"a", key: labels, b"data": images}, protocol=2))


@pytest.fixture
def cifar10(tmp_path):
    """A data folder, its training images and labels."""
    parts = [random_batch(n, 10, seed=n) for n in (6, 4, 5, 3, 2)]
    for i, (images, labels) in enumerate(parts, start=1):
        write_batch(tmp_path / "cifar-10-batches-py" / f"data_batch_{i}", images, labels)
    write_batch(tmp_path / "cifar-10-batches-py" / "test_batch", *random_batch(7, 10, seed=9))
    return tmp_path, np.concatenate([images for images, _ in parts]), sum((labels for _, labels in parts), [])


def load_test_batch(root, content):
    path = root / "cifar-10-batches-py" / "test_batch"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return load_cifar("cifar10", root, train=False)


def test_cifar10_is_read_in_the_order_of_the_files(cifar10):
    root, images, labels = cifar10
    with pytest.warns(UserWarning, match="differ from the published cifar10"):
        train = load_cifar("cifar10", root, train=True)
    assert train.images.dtype == torch.uint8 and train.labels.dtype == torch.int64
    assert train.images.is_contiguous()
    assert torch.equal(train.images, torch.from_numpy(images.reshape(-1, 3, 32, 32)))
    assert train.labels.tolist() == labels
    assert load_cifar("cifar10", root, train=False).images.shape == (7, 3, 32, 32)


def test_cifar100_has_fine_labels(tmp_path):
    with pytest.raises(InputError, match="cifar-100-python.*datasets.prepare cifar100"):
        load_cifar("cifar100", tmp_path, train=True)
    images, labels = random_batch(5, 100)
    write_batch(tmp_path / "cifar-100-python" / "train", images, labels, key=b"fine_labels")
    assert load_cifar("cifar100", tmp_path, train=True).labels.tolist() == labels


@pytest.mark.parametrize("writer", ["python 2", "protocol 2", "renamed numpy", "protocol 4"])
def test_pickles_of_every_age(tmp_path, writer):
    images, labels = random_batch(5, 10, seed=3)
    content = {"data": images, "labels": labels}
    old = pickle.dumps(content, protocol=2)
    cores = [b"numpy._core", b"numpy.core"]
    old_core, other = cores if cores[0] in old else reversed(cores)
    raw = {
        "python 2": python_2_pickle(images, labels),
        "protocol 2": old,
        "renamed numpy": old.replace(old_core, other),
        "protocol 4": pickle.dumps(content, protocol=4),
    }[writer]
    test = load_test_batch(tmp_path, raw)
    assert np.array_equal(test.images.numpy().reshape(5, 3072), images) and test.labels.tolist() == labels


def test_class_names(tmp_path):
    meta = tmp_path / "cifar-10-batches-py" / "batches.meta"
    assert class_names("cifar10", tmp_path) is None
    meta.parent.mkdir()
    names = [f"class {i}" for i in range(10)]
    meta.write_bytes(pickle.dumps({b"label_names": [name.encode() for name in names]}, protocol=2))
    assert class_names("cifar10", tmp_path) == names
    meta.write_bytes(pickle.dumps({b"label_names": names[1:]}, protocol=2))
    assert class_names("cifar10", tmp_path) is None


class _Runs:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_code_in_a_pickle_is_not_run(tmp_path, protocol):
    target = tmp_path / "made by code"
    content = {b"data": np.array([_Runs(str(target))], dtype=object), b"labels": [], b"x": _Runs(str(target))}
    with pytest.raises(InputError, match="test_batch .*names "):
        load_test_batch(tmp_path, pickle.dumps(content, protocol=protocol))
    assert not target.exists()


def test_missing_and_truncated_files_are_named(cifar10):
    root, images, labels = cifar10
    raw = pickle.dumps({b"data": images, b"labels": labels}, protocol=2)
    for end in (0, 1, 40, len(raw) // 2, len(raw) - 1):
        with pytest.raises(InputError, match="test_batch"):
            load_test_batch(root, raw[:end])
    (root / "cifar-10-batches-py" / "data_batch_4").unlink()
    with pytest.raises(InputError, match="data_batch_4"):
        load_cifar("cifar10", root, train=True)


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (np.zeros((2, 3, 32, 32), np.uint8), [0, 1]),
        (np.zeros((2, 3072), np.int64), [0, 1]),
        (np.zeros((2, 3072), np.uint8), [0]),
        (np.zeros((2, 3072), np.uint8), [0, 10]),
        (np.zeros((2, 3072), np.uint8), [-1, 0]),
        (np.zeros((0, 3072), np.uint8), []),
    ],
)
def test_wrong_contents_name_the_file(tmp_path, images, labels):
    with pytest.raises(InputError, match="test_batch"):
        load_test_batch(tmp_path, pickle.dumps({b"data": images, b"labels": labels}, protocol=4))
