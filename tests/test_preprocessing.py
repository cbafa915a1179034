import numpy as np
import pytest
import torch
from image_files import photograph

from datasets.images import IMAGENET_NORMALIZATION
from datasets.preprocessing import PHOTOGRAPH, Preprocessing
from utils.errors import InputError


@pytest.fixture(params=[PHOTOGRAPH, "squash", "crop"])
def preprocessing(request):
    return Preprocessing(28, request.param, IMAGENET_NORMALIZATION)


def test_files_pictures_and_tensors_give_the_same_pixels(preprocessing, tmp_path):
    picture = photograph(3)
    picture.save(tmp_path / "a.png")
    expected = preprocessing.of_picture(picture)
    assert expected.shape == (3, 28, 28) and expected.dtype == torch.uint8
    tensor = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    found = [preprocessing.of_file(tmp_path / "a.png"), preprocessing.of_tensor(tensor)]
    found += [preprocessing.of_tensor(tensor.double() / 255), preprocessing.of_tensor((tensor / 255).half())]
    assert all(torch.equal(pixels, expected) for pixels in found)
    rounded = preprocessing.of_tensor(torch.full((3, 20, 30), 1 + 1e-4))
    assert (rounded == 255).all()


@pytest.mark.parametrize("value", [1.01, -0.01, float("nan")])
def test_values_that_are_no_image_are_refused(preprocessing, value):
    with pytest.raises(InputError, match="floating-point"):
        preprocessing.of_tensor(torch.full((3, 20, 30), value))


def test_a_file_that_cannot_be_read_is_named(preprocessing, tmp_path):
    (tmp_path / "a.png").write_bytes(b"nothing")
    with pytest.raises(InputError, match="a.png"):
        preprocessing.of_file(tmp_path / "a.png")
