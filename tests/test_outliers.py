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


def test_the_first_images_channels_first_in_a_view_that_does_not_write_to_the_file(tmp_path, path, images):
    before = path.read_bytes()
    for limit, count in ((None, 12), (5, 5), (100, 12)):
        outliers = load_outliers(tmp_path, limit)
        assert outliers.dtype == torch.uint8
        assert np.array_equal(outliers.numpy(), images[:count].transpose(0, 3, 1, 2))
    assert outliers.stride() == (3072, 1, 96, 3)  # still the layout of the file: nothing was copied
    outliers.zero_()
    assert path.read_bytes() == before


def test_missing_names_the_path_and_the_remedy(tmp_path):
    with pytest.raises(InputError, match="300K_random_images.npy.*datasets.prepare tinyimages"):
        load_outliers(tmp_path)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 3, 32, 32), np.uint8),
        np.zeros((4, 32, 32, 3), np.float32),
        np.zeros((0, 32, 32, 3), np.uint8),
        np.full((4, 32, 32, 3), None),
    ],
)
def test_other_arrays_are_refused(tmp_path, path, array):
    np.save(path, array, allow_pickle=True)
    with pytest.raises(InputError, match="300K_random_images.npy"):
        load_outliers(tmp_path)


def test_truncated_files_and_files_of_another_kind(tmp_path, path, images):
    raw = path.read_bytes()
    np.savez(path.with_suffix(".npz"), np.zeros(3))
    damaged = [raw[:end] for end in (0, 5, 60, 130, 3000, len(raw) - 1)]
    for content in (*damaged, b"<html>not found</html>", path.with_suffix(".npz").read_bytes()):
        path.write_bytes(content)
        with pytest.raises(InputError, match="300K_random_images.npy"):
            load_outliers(tmp_path)
