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
from datasets.cifar import load_cifar
from datasets.files.plain_pickle import read_plain_dict
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
        return (
            b"U" + bytes([len(value)]) + value
            if len(value) < 256
            else b"T" + struct.pack("<i", len(value)) + value
        )

    def number(value):
        return b"M" + struct.pack("<H", value)

    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85"
        + string(b"b")
        + b"\x87R"
        + b"(K\x01"
        + number(images.shape[0])
        + number(images.shape[1])
        + b"\x86"
        + b"cnumpy\ndtype\n"
        + string(b"u1")
        + b"K\x00K\x01\x87R"
        + b"(K\x03"
        + string(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        + b"\x89"
        + string(images.tobytes())
        + b"tb"
    )
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(" + string(b"data") + array + string(b"labels") + numbers + b"u."


@pytest.fixture
def cifar10(tmp_path):
    parts = [random_batch(n, 10, seed=n) for n in (6, 4, 5, 3, 2)]
    for i, (images, labels) in enumerate(parts, start=1):
        write_batch(tmp_path / "cifar-10-batches-py" / f"data_batch_{i}", images, labels)
    write_batch(tmp_path / "cifar-10-batches-py" / "test_batch", *random_batch(7, 10, seed=9))
    return tmp_path, np.concatenate([images for images, _ in parts]), sum((labels for _, labels in parts), [])


@pytest.mark.filterwarnings("ignore:the files in")
def test_cifar10_is_read_in_the_order_of_the_files(cifar10):
    root, images, labels = cifar10
    train, test = load_cifar("cifar10", root, train=True), load_cifar("cifar10", root, train=False)
    assert train.images.dtype == torch.uint8 and train.labels.dtype == torch.int64
    assert train.images.shape == (20, 3, 32, 32) and train.images.is_contiguous()
    assert torch.equal(train.images, torch.from_numpy(images.reshape(-1, 3, 32, 32)))
    assert train.labels.tolist() == labels
    assert test.images.shape == (7, 3, 32, 32)


@pytest.mark.filterwarnings("ignore:the files in")
def test_cifar100_has_fine_labels(tmp_path):
    images, labels = random_batch(5, 100)
    write_batch(tmp_path / "cifar-100-python" / "train", images, labels, key=b"fine_labels")
    assert load_cifar("cifar100", tmp_path, train=True).labels.tolist() == labels


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_every_binary_protocol_and_both_spellings_of_numpy(tmp_path, protocol):
    images, labels = random_batch(3, 10)
    content = {b"data": images, b"labels": np.asarray(labels), b"one": np.int64(7), b"half": np.float32(0.5)}
    raw = pickle.dumps(content, protocol=protocol)
    new, old = (b"numpy._core", b"numpy.core") if b"numpy._core" in raw else (b"numpy.core", b"numpy._core")
    spellings = [raw]
    if protocol < 4:  # later protocols write the length of the name before it
        spellings.append(raw.replace(new, old))
    for number, spelling in enumerate(spellings):
        path = tmp_path / f"{number}"
        path.write_bytes(spelling)
        read = read_plain_dict(path)
        assert np.array_equal(read[b"data"], images) and read[b"labels"].tolist() == labels
        assert read[b"one"] == 7 and read[b"half"] == 0.5


def test_arrays_in_fortran_order_and_of_other_byte_order(tmp_path):
    content = {b"f": np.asfortranarray(np.arange(6).reshape(2, 3)), b"b": np.arange(5, dtype=">i4")}
    (tmp_path / "x").write_bytes(pickle.dumps(content, protocol=2))
    read = read_plain_dict(tmp_path / "x")
    assert np.array_equal(read[b"f"], content[b"f"]) and np.array_equal(read[b"b"], content[b"b"])


@pytest.mark.filterwarnings("ignore:the files in")
def test_pickles_of_python_2(cifar10):
    root = cifar10[0]
    images, labels = random_batch(5, 10, seed=3)
    raw = python_2_pickle(images, labels)
    assert np.array_equal(
        pickle.loads(raw, encoding="bytes")[b"data"], images
    )  # a pickle Python itself accepts
    (root / "cifar-10-batches-py" / "test_batch").write_bytes(raw)
    test = load_cifar("cifar10", root, train=False)
    assert np.array_equal(test.images.numpy().reshape(5, 3072), images) and test.labels.tolist() == labels


def test_one_warning_where_the_files_are_not_the_published_ones(cifar10, monkeypatch):
    root = cifar10[0]
    with pytest.warns(UserWarning, match="differ from the published cifar10") as caught:
        load_cifar("cifar10", root, train=True)
    assert len(caught) == 1
    folder = root / "cifar-10-batches-py"
    sums = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in folder.glob("data_batch_*")}
    monkeypatch.setitem(cifar.RELEASES, "cifar10", cifar.RELEASES["cifar10"]._replace(train=sums))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_cifar("cifar10", root, train=True)


@pytest.mark.filterwarnings("ignore:the files in")
def test_an_archive_beside_is_unpacked(cifar10, tmp_path_factory):
    root, images, _ = cifar10
    other = tmp_path_factory.mktemp("other")
    with tarfile.open(other / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(root / "cifar-10-batches-py", "cifar-10-batches-py")
    train = load_cifar("cifar10", other, train=True)
    assert np.array_equal(train.images.numpy().reshape(-1, 3072), images)
    assert sorted(path.name for path in other.iterdir()) == ["cifar-10-batches-py", "cifar-10-python.tar.gz"]


def test_an_archive_that_climbs_out_leaves_nothing(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    with tarfile.open(root / "cifar-10-python.tar.gz", "w:gz") as archive:
        for name in ("cifar-10-batches-py/test_batch", "../evil"):
            member = tarfile.TarInfo(name)
            member.size = 3
            archive.addfile(member, io.BytesIO(b"abc"))
    with pytest.raises(InputError, match="evil"):
        load_cifar("cifar10", root, train=False)
    assert [path.name for path in tmp_path.iterdir()] == ["root"]
    assert [path.name for path in root.iterdir()] == ["cifar-10-python.tar.gz"]


def test_missing_data_name_the_folder_and_the_remedy(tmp_path):
    with pytest.raises(InputError, match="cifar-100-python.*datasets.prepare cifar100"):
        load_cifar("cifar100", tmp_path, train=True)


def test_a_missing_batch_is_named(cifar10):
    root = cifar10[0]
    (root / "cifar-10-batches-py" / "data_batch_4").unlink()
    with pytest.raises(InputError, match="data_batch_4"):
        load_cifar("cifar10", root, train=True)


class _Runs:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("protocol", [1, 2, 4])
def test_code_in_a_pickle_is_not_run(cifar10, tmp_path, protocol):
    root, target = cifar10[0], tmp_path / "made by code"
    content = {b"data": _Runs(str(target)), b"labels": []}
    (root / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps(content, protocol=protocol))
    with pytest.raises(InputError, match=r"test_batch holds more than arrays and plain values.*mkdir"):
        load_cifar("cifar10", root, train=False)
    assert not target.exists()


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"(S'x'\nios\nsystem\n.", "more than"),  # INST
        (b"\x80\x02cbuiltins\neval\nU\x011\x85R.", "builtins.eval"),
        (
            b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x04\x00\x00\x00zlib\x86R.",
            "bytes are not described",
        ),
        (
            b"\x80\x02}" + b"(" + b")" + b"\x85" * 10**6 + b"K\x01u.",
            "a key is neither",
        ),  # its hash overflows the stack
        (
            b"\x80\x02)q\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"}h\x00K\x01s.",
            "a key is neither",
        ),  # takes 2^60 steps
        (
            b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x00.",
            "truncated or damaged",
        ),  # a byte array of petabytes
        (b"\x80\x02]" + b"(" * 10_000 + b".", "truncated or damaged"),
        (b"", "truncated or damaged"),
        (b"\x80\x02].", "no dictionary"),
        (b"\x80\x02cnumpy\ndtype\nU\x01O\x89\x88\x87R.", "numpy's dtype 'O'"),
        (
            b"\x80\x02)q\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"cnumpy\ndtype\nh\x00\x89\x88\x87R.",
            "not described as numpy does",
        ),  # takes 2^60 steps to print
    ],
)
def test_pickles_that_are_refused(tmp_path, raw, reason):
    (tmp_path / "x").write_bytes(raw)
    with pytest.raises(InputError, match=reason):
        read_plain_dict(tmp_path / "x")


@pytest.mark.parametrize(
    "claim", [b"\x80\x02}r\xff\xff\xff\x7f.", b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f}."]
)
def test_a_memo_or_a_frame_is_as_large_as_what_is_in_it(tmp_path, claim):
    (tmp_path / "x").write_bytes(claim)  # of 2^31 entries, of 2^63 bytes
    assert read_plain_dict(tmp_path / "x") == {}


def test_object_and_structured_arrays_are_refused(tmp_path):
    for array in (np.array([None, 1], dtype=object), np.zeros(2, dtype=[("a", "i4")]), np.array(["a"])):
        (tmp_path / "x").write_bytes(pickle.dumps({b"data": array}, protocol=2))
        with pytest.raises(InputError, match="not of numbers|more than"):
            read_plain_dict(tmp_path / "x")


def test_an_array_whose_bytes_do_not_fill_its_shape_is_refused(tmp_path):
    raw = pickle.dumps({b"data": np.zeros((200, 100), np.uint8)}, protocol=2)
    (tmp_path / "x").write_bytes(raw.replace(b"K\xc8K\x64\x86", b"K\xc9K\x64\x86"))  # a shape of (201, 100)
    with pytest.raises(InputError, match="truncated or damaged"):
        read_plain_dict(tmp_path / "x")


def test_truncated_anywhere_is_one_sentence(tmp_path):
    raw = pickle.dumps(
        {b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 2], b"names": [b"x", b"y"]}, protocol=2
    )
    path = tmp_path / "x"
    for end in [*range(0, 200), *range(200, len(raw), 257), len(raw) - 1]:
        path.write_bytes(raw[:end])
        with pytest.raises(InputError) as caught:
            read_plain_dict(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore")
def test_flipped_bytes_are_read_or_refused(tmp_path):
    raw = bytearray(pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [1] * 300}, protocol=2))
    rng = np.random.default_rng(0)
    path = tmp_path / "x"
    for position in rng.integers(0, 260, 800):
        damaged = raw.copy()
        damaged[position] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            read_plain_dict(path)
        except InputError:
            pass


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x")
    with pytest.raises(InputError, match="not a file"):
        read_plain_dict(tmp_path / "x")


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
        (np.zeros((2, 3072), np.uint8), [0, 1 << 80], r"outside 0\.\.9"),
        (np.zeros((2, 3072), np.uint8), [0, 0.5], "whole numbers"),
        (np.zeros((2, 3072), np.uint8), b"ab", "whole numbers"),
        (np.zeros((0, 3072), np.uint8), [], "no image"),
    ],
)
@pytest.mark.filterwarnings("ignore:the files in")
def test_wrong_contents_name_the_file(tmp_path, images, labels, reason):
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    path.parent.mkdir()
    path.write_bytes(pickle.dumps({b"data": images, b"labels": labels}, protocol=2))
    with pytest.raises(InputError, match=reason) as caught:
        load_cifar("cifar10", tmp_path, train=False)
    assert "cifar-10-batches-py" in str(caught.value)


def test_a_truncated_archive_leaves_nothing(cifar10, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(cifar10[0] / "cifar-10-batches-py", "cifar-10-batches-py")
    raw = gzip.compress(buffer.getvalue())
    for end in (0, 5, len(raw) // 2, len(raw) - 9):
        (other / "cifar-10-python.tar.gz").write_bytes(raw[:end])
        with pytest.raises(InputError, match="cifar-10-python.tar.gz"):
            load_cifar("cifar10", other, train=True)
        assert [path.name for path in other.iterdir()] == ["cifar-10-python.tar.gz"]
