import numpy as np
import pytest
import torch
from cifar_files import write_ood_set
from PIL import Image
from torchvision import transforms

from datasets.scood import load_ood_sets
from utils.errors import InputError


def test_images_and_labels_in_the_order_of_the_list(tmp_path):
    images = write_ood_set(tmp_path, "cifar10", "tin", [-1, 3, -1, 0, 9])
    write_ood_set(tmp_path, "cifar10", "svhn", [-1, -1])
    sets = load_ood_sets("cifar10", ["tin", "svhn"], tmp_path, 10)
    assert list(sets) == ["tin", "svhn"]
    assert sets["tin"].labels.tolist() == [-1, 3, -1, 0, 9] and sets["tin"].labels.dtype == torch.int64
    assert sets["tin"].images.dtype == torch.uint8 and sets["tin"].images.is_contiguous()
    assert np.array_equal(sets["tin"].images.numpy(), images.transpose(0, 3, 1, 2))
    assert sets["svhn"].images.shape == (2, 3, 32, 32)
    with pytest.raises(InputError, match=r"test_tin.txt, line 5"):
        load_ood_sets("cifar10", ["tin"], tmp_path, 9)


@pytest.mark.parametrize("size", [(64, 48), (20, 50), (32, 33)])
@pytest.mark.parametrize(
    ("resize", "reference"),
    [("squash", [transforms.Resize((32, 32))]), ("crop", [transforms.Resize(32), transforms.CenterCrop(32)])],
)
def test_other_sizes_are_resized_as_torchvision_does(tmp_path, size, resize, reference):
    image = write_ood_set(tmp_path, "cifar10", "texture", [-1], size)[0]
    expected = transforms.Compose(reference)(Image.fromarray(image))
    read = load_ood_sets("cifar10", ["texture"], tmp_path, 10, resize)["texture"].images[0]
    assert np.array_equal(read.permute(1, 2, 0).numpy(), np.asarray(expected))


def test_missing_sets_are_named_with_those_that_are_there_before_anything_is_read(tmp_path):
    with pytest.raises(InputError, match="tin.*prepare scood"):
        load_ood_sets("cifar10", ["tin"], tmp_path, 10)
    write_ood_set(tmp_path, "cifar10", "tin", [-1])
    write_ood_set(tmp_path, "cifar10", "svhn", [-1])
    (tmp_path / "data" / "images" / "tin" / "0.png").write_bytes(b"broken")
    with pytest.raises(InputError, match="lsun, places .*svhn tin"):
        load_ood_sets("cifar10", ["tin", "lsun", "places"], tmp_path, 10)


def test_an_unreadable_image_is_named(tmp_path):
    write_ood_set(tmp_path, "cifar10", "tin", [-1] * 4)
    path = tmp_path / "data" / "images" / "tin" / "2.png"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(InputError, match="tin/2.png"):
        load_ood_sets("cifar10", ["tin"], tmp_path, 10)
