import struct

import numpy as np
import pytest
import torch

from datasets.outliers import load_outliers
from utils.errors import InputError


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "Tiny_Images_Dataset" / "300K_random_images.npy"
    path.parent.mkdir()
    return path


@pytest.fixture
def images(path):
    images = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    np.save(path, images)
    return images


@pytest.mark.parametrize(("limit", "count"), [(None, 12), (5, 5), (12, 12), (100, 12)])
def test_the_first_images_channels_first(tmp_path, images, limit, count):
    outliers = load_outliers(tmp_path, limit)
    assert outliers.dtype == torch.uint8
    assert np.array_equal(outliers.numpy(), images[:count].transpose(0, 3, 1, 2))


def test_a_view_of_the_file_that_does_not_write_to_it(tmp_path, path, images):
    before = path.read_bytes()
    outliers = load_outliers(tmp_path)
    assert outliers.stride() == (3072, 1, 96, 3)  # still the layout of the file: nothing was copied
    outliers.zero_()
    assert path.read_bytes() == before


def test_the_second_format_version(tmp_path, path, images):
    with open(path, "wb") as file:
        np.lib.format.write_array(file, images, version=(2, 0))
    assert np.array_equal(load_outliers(tmp_path).numpy(), images.transpose(0, 3, 1, 2))


def test_missing_names_the_path_and_the_remedy(tmp_path):
    with pytest.raises(InputError, match="300K_random_images.npy.*datasets.prepare tinyimages"):
        load_outliers(tmp_path)


@pytest.mark.parametrize("limit", [0, -3])
def test_a_limit_below_one_names_the_flag(tmp_path, images, limit):
    with pytest.raises(InputError, match="--num_ood_samples"):
        load_outliers(tmp_path, limit)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((4, 3, 32, 32), np.uint8), r"\(4, 3, 32, 32\)"),
        (np.zeros((4, 32, 32, 3), np.float32), "float32"),
        (np.zeros((4, 32, 32), np.uint8), r"\(4, 32, 32\)"),
        (np.zeros((0, 32, 32, 3), np.uint8), "no image"),
        (np.asfortranarray(np.zeros((4, 32, 32, 3), np.uint8)), "Fortran"),
        (np.full((4, 32, 32, 3), None), "object"),
        (np.zeros((4, 32, 32, 3), [("a", "u1")]), "uint8"),
    ],
)
def test_other_arrays_are_refused(tmp_path, path, array, reason):
    np.save(path, array, allow_pickle=True)
    with pytest.raises(InputError, match=reason) as caught:
        load_outliers(tmp_path)
    assert str(path) in str(caught.value)


def test_truncated_anywhere(tmp_path, path, images):
    raw = path.read_bytes()
    for end in [*range(0, 140), 3000, len(raw) - 1]:
        path.write_bytes(raw[:end])
        with pytest.raises(InputError, match="300K_random_images") as caught:
            load_outliers(tmp_path)
        assert "\n" not in str(caught.value)


def npy(header, version=1):
    length = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + length + header


@pytest.mark.parametrize(
    "raw",
    [
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + b" " * 1000,  # claims a header of 4 GB
        npy(b"(" * 9000),
        npy(b"[" * 60_000),
        npy(b"{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 32, 32, 3), }\n"),
        npy(b"{'descr': '|u1', 'fortran_order': False, 'shape': (9" + b"9" * 4000 + b", 32, 32, 3), }\n"),
        npy(b"{'descr': '|u1', 'fortran_order': False, 'shape': (True, 32, 32, 3), }\n"),
        npy(b"{'descr': [('a', 'u1', (1 << 40,))], 'fortran_order': False, 'shape': (1,), }\n"),
        npy(b"__import__('os').getcwd()\n"),
        npy(b"\xff\xfe", 3),
        b"<html>not found</html>",
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_hostile_headers_are_refused(tmp_path, path, raw):
    path.write_bytes(raw + b"\0" * 100)
    with pytest.raises(InputError, match="300K_random_images"):
        load_outliers(tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_flipped_header_bytes_are_read_or_refused(tmp_path, path, images):
    raw = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    for position in rng.integers(0, 128, 400):
        damaged = raw.copy()
        damaged[position] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            assert load_outliers(tmp_path).shape[1:] == (3, 32, 32)
        except InputError:
            pass
