import pickle
import struct

import numpy as np
import pytest
import torch
from cifar_files import write_batch, write_outliers
from command_line import Code

from datasets.cifar import class_names, load_cifar, load_outliers
from utils.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore:the files in")


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
    folder, labels, images = tmp_path / "cifar-10-batches-py", [3, 1, 4, 1, 5, 9, 2, 6], []
    for i in range(5):
        images.append(write_batch(folder / f"data_batch_{i + 1}", labels[: i + 2], "labels", seed=i))
    write_batch(folder / "test_batch", labels[:7], "labels")
    return tmp_path, np.concatenate(images), [label for i in range(5) for label in labels[: i + 2]]


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
    write_batch(tmp_path / "cifar-100-python" / "train", [7, 99, 0], "fine_labels")
    assert load_cifar("cifar100", tmp_path, train=True).labels.tolist() == [7, 99, 0]


@pytest.mark.parametrize("writer", ["python 2", "protocol 2", "renamed numpy", "protocol 4"])
def test_pickles_of_every_age(tmp_path, writer):
    images, labels = np.random.default_rng(3).integers(0, 256, (5, 3072), dtype=np.uint8), [3, 1, 4, 1, 5]
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


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_code_in_a_pickle_is_not_run(tmp_path, protocol):
    target = tmp_path / "made by code"
    content = {b"data": np.array([Code(target)], dtype=object), b"labels": [], b"x": Code(target)}
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
        (np.zeros((0, 3072), np.uint8), []),
    ],
)
def test_wrong_contents_name_the_file(tmp_path, images, labels):
    with pytest.raises(InputError, match="test_batch"):
        load_test_batch(tmp_path, pickle.dumps({b"data": images, b"labels": labels}, protocol=4))


# --- the outliers


def test_missing_outliers_name_the_path_and_the_remedy(tmp_path):
    with pytest.raises(InputError, match="300K_random_images.npy.*datasets.prepare tinyimages"):
        load_outliers(tmp_path)


@pytest.fixture
def path(tmp_path):
    write_outliers(tmp_path, np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8))
    return tmp_path / "Tiny_Images_Dataset" / "300K_random_images.npy"


def test_the_first_outliers_channels_first_in_a_view_that_does_not_write_to_the_file(tmp_path, path):
    before, images = path.read_bytes(), np.load(path)
    for limit, count in ((None, 12), (5, 5), (100, 12)):
        outliers = load_outliers(tmp_path, limit)
        assert outliers.dtype == torch.uint8
        assert np.array_equal(outliers.numpy(), images[:count].transpose(0, 3, 1, 2))
    assert outliers.stride() == (3072, 1, 96, 3)  # still the layout of the file: nothing was copied
    outliers.zero_()
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "shape, kind", [((4, 3, 32, 32), "u1"), ((4, 32, 32, 3), "f4"), ((0, 32, 32, 3), "u1")]
)
def test_other_arrays_are_refused(tmp_path, path, shape, kind):
    np.save(path, np.zeros(shape, kind))
    with pytest.raises(InputError, match="300K_random_images.npy"):
        load_outliers(tmp_path)


def test_truncated_outliers_and_files_of_another_kind(tmp_path, path):
    raw = path.read_bytes()
    np.savez(path.with_suffix(".npz"), np.zeros(3))
    damaged = [raw[:end] for end in (0, 5, 60, 130, 3000, len(raw) - 1)]
    for content in (*damaged, b"<html>not found</html>", path.with_suffix(".npz").read_bytes()):
        path.write_bytes(content)
        with pytest.raises(InputError, match="300K_random_images.npy"):
            load_outliers(tmp_path)
