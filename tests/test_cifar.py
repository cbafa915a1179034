import gzip
import hashlib
import io
import os
import pickle
import struct
import tarfile
import warnings

import numpy as np
import pytest
import torch

from datasets import cifar
from datasets.cifar import class_names, load_cifar
from utils.errors import InputError


def random_batch(n, classes, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 3072), dtype=np.uint8), rng.integers(0, classes, n).tolist()


def write_batch(path, images, labels, key=b"labels", protocol=2):
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [f"{i}.png".encode() for i in range(len(images))]
    content = {b"batch_label": b"a", key: labels, b"data": images, b"filenames": names}
    path.write_bytes(pickle.dumps(content, protocol=protocol))


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


@pytest.mark.filterwarnings("ignore:the files in")
def test_cifar10_is_read_in_the_order_of_the_files(cifar10):
    root, images, labels = cifar10
    train, test = load_cifar("cifar10", root, train=True), load_cifar("cifar10", root, train=False)
    assert train.images.dtype == torch.uint8 and train.labels.dtype == torch.int64
    assert train.images.is_contiguous()
    assert torch.equal(train.images, torch.from_numpy(images.reshape(-1, 3, 32, 32)))
    assert train.labels.tolist() == labels
    assert test.images.shape == (7, 3, 32, 32)


@pytest.mark.filterwarnings("ignore:the files in")
def test_cifar100_has_fine_labels(tmp_path):
    images, labels = random_batch(5, 100)
    write_batch(tmp_path / "cifar-100-python" / "train", images, labels, key=b"fine_labels")
    assert load_cifar("cifar100", tmp_path, train=True).labels.tolist() == labels


@pytest.mark.parametrize("writer", ["python 2", "protocol 2", "renamed numpy", "protocol 4", "str keys"])
@pytest.mark.filterwarnings("ignore:the files in")
def test_pickles_of_every_age(tmp_path, writer):
    images, labels = random_batch(5, 10, seed=3)
    content = {b"data": images, b"labels": labels}
    old = pickle.dumps(content, protocol=2)
    cores = [b"numpy._core", b"numpy.core"]
    old_core, other = cores if cores[0] in old else reversed(cores)
    raw = {
        "python 2": python_2_pickle(images, labels),
        "protocol 2": old,
        "renamed numpy": old.replace(old_core, other),
        "protocol 4": pickle.dumps(content, protocol=4),
        "str keys": pickle.dumps({"data": images, "labels": np.asarray(labels)}, protocol=4),
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


def test_one_warning_where_the_files_are_not_the_published_ones(cifar10, monkeypatch):
    root = cifar10[0]
    with pytest.warns(UserWarning, match="differ from the published cifar10") as caught:
        load_cifar("cifar10", root, train=True)
    assert len(caught) == 1
    folder = root / "cifar-10-batches-py"
    sums = [[f"data_batch_{i}", None] for i in range(1, 6)]
    for entry in sums:
        entry[1] = hashlib.md5((folder / entry[0]).read_bytes()).hexdigest()
    monkeypatch.setattr(cifar.CIFAR10, "train_list", sums)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_cifar("cifar10", root, train=True)


def test_missing_data_name_the_folder_and_the_remedy(tmp_path):
    with pytest.raises(InputError, match="cifar-100-python.*datasets.prepare cifar100"):
        load_cifar("cifar100", tmp_path, train=True)


def test_a_missing_batch_is_named(cifar10):
    (cifar10[0] / "cifar-10-batches-py" / "data_batch_4").unlink()
    with pytest.raises(InputError, match="data_batch_4 cannot be read"):
        load_cifar("cifar10", cifar10[0], train=True)


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


@pytest.mark.parametrize(
    "raw", [b"(S'x'\nios\nsystem\n.", b"\x80\x02cbuiltins\neval\nU\x011\x85R.", b"", b"]."]
)
def test_pickles_that_are_refused(tmp_path, raw):
    with pytest.raises(InputError, match="test_batch"):
        load_test_batch(tmp_path, raw)


def test_truncated_anywhere_is_one_sentence(tmp_path):
    content = {b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 2], b"names": [b"x", b"y"]}
    raw = pickle.dumps(content, protocol=2)
    for end in [*range(0, 200), *range(200, len(raw), 257), len(raw) - 1]:
        with pytest.raises(InputError, match="test_batch") as caught:
            load_test_batch(tmp_path, raw[:end])
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("images", "labels", "reason"),
    [
        (np.zeros((2, 3071), np.uint8), [0, 1], r"shape \(n, 3072\).*\(2, 3071\)"),
        (np.zeros((2, 3, 32, 32), np.uint8), [0, 1], "shape"),
        (np.zeros((2, 3072), np.int64), [0, 1], "uint8.*int64"),
        (b"no array", [0, 1], "no array"),
        (np.zeros((2, 3072), np.uint8), [0], "2 images and 1 labels"),
        (np.zeros((2, 3072), np.uint8), [0, 10], r"outside 0\.\.9"),
        (np.zeros((2, 3072), np.uint8), [-1, 0], r"outside 0\.\.9"),
        (np.zeros((2, 3072), np.uint8), [0, 0.5], "whole numbers"),
        (np.zeros((0, 3072), np.uint8), [], "no image"),
    ],
)
@pytest.mark.filterwarnings("ignore:the files in")
def test_wrong_contents_name_the_file(tmp_path, images, labels, reason):
    with pytest.raises(InputError, match=f"cifar-10-batches-py.*{reason}"):
        load_test_batch(tmp_path, pickle.dumps({b"data": images, b"labels": labels}, protocol=4))


@pytest.mark.filterwarnings("ignore:the files in")
def test_an_archive_beside_is_unpacked(cifar10, tmp_path_factory):
    root, images, _ = cifar10
    other = tmp_path_factory.mktemp("other")
    archive = other / "cifar-10-python.tar.gz"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        file.add(root / "cifar-10-batches-py", "cifar-10-batches-py")
    raw = gzip.compress(buffer.getvalue())
    for end in (0, 5, len(raw) // 2):
        archive.write_bytes(raw[:end])
        with pytest.raises(InputError, match="cifar-10-python.tar.gz"):
            load_cifar("cifar10", other, train=True)
        assert os.listdir(other) == [archive.name]
    archive.write_bytes(raw)
    train = load_cifar("cifar10", other, train=True)
    assert np.array_equal(train.images.numpy().reshape(-1, 3072), images)
    assert sorted(os.listdir(other)) == ["cifar-10-batches-py", archive.name]
