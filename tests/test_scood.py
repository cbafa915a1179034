import numpy as np
import pytest
import torch
from image_files import png_header
from PIL import Image
from torchvision import transforms

from datasets.scood import DEFAULT_SETS, load_ood_sets, read_image
from utils.errors import InputError


def write_list(root, name, lines, benchmark="cifar10"):
    path = root / "data" / "imglist" / f"benchmark_{benchmark}" / f"test_{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def write_set(root, name, labels, size=(32, 32)):
    folder = root / "data" / "images" / name
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8) for _ in labels]
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i}.png")
    write_list(root, name, [f'{name}/{i}.png {{"label": -1, "sc_label": {c}}}' for i, c in enumerate(labels)])
    return images


def test_images_and_labels_in_the_order_of_the_list(tmp_path):
    images = write_set(tmp_path, "tin", [-1, 3, -1, 0, 9])
    write_set(tmp_path, "svhn", [-1, -1])
    sets = load_ood_sets("cifar10", ["tin", "svhn"], tmp_path, 10)
    assert list(sets) == ["tin", "svhn"]
    assert sets["tin"].labels.tolist() == [-1, 3, -1, 0, 9] and sets["tin"].labels.dtype == torch.int64
    assert sets["tin"].images.dtype == torch.uint8 and sets["tin"].images.is_contiguous()
    assert np.array_equal(sets["tin"].images.numpy(), np.stack(images).transpose(0, 3, 1, 2))
    assert sets["svhn"].images.shape == (2, 3, 32, 32)


def test_the_default_sets_are_the_papers_six():
    assert all(len(names) == 6 and benchmark not in names for benchmark, names in DEFAULT_SETS.items())


def halves(width, height):
    """Left half black, right half white, with a grey column at the left and right edges."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, width // 2 :] = 255
    pixels[:, :2] = pixels[:, -2:] = 128
    return Image.fromarray(pixels)


def test_images_that_are_not_square_are_squashed_whole_unless_asked_to_be_cropped(tmp_path):
    halves(128, 64).save(tmp_path / "wide.png")
    squashed = read_image(tmp_path / "wide.png")[..., 0].astype(int)
    cropped = read_image(tmp_path / "wide.png", "crop")[..., 0].astype(int)
    assert squashed.shape == cropped.shape == (32, 32)
    assert 40 < squashed[5, 0] < 100 and 150 < squashed[5, 31] < 230  # the grey edges are still there
    assert (cropped[:, :14] == 0).all() and (cropped[:, 18:] == 255).all()  # and here they are cut off


@pytest.mark.parametrize("size", [(64, 48), (20, 50), (32, 33)])
@pytest.mark.parametrize(
    ("resize", "reference"),
    [
        ("squash", [transforms.Resize((32, 32))]),
        ("crop", [transforms.Resize(32), transforms.CenterCrop(32)]),
    ],
)
def test_other_sizes_are_resized_as_torchvision_does(tmp_path, size, resize, reference):
    image = write_set(tmp_path, "texture", [-1], size)[0]
    expected = transforms.Compose(reference)(Image.fromarray(image))
    read = load_ood_sets("cifar10", ["texture"], tmp_path, 10, resize)["texture"].images[0]
    assert np.array_equal(read.permute(1, 2, 0).numpy(), np.asarray(expected))


def test_a_label_beyond_the_classes_is_refused_with_its_line(tmp_path):
    write_set(tmp_path, "tin", [-1, 9, 57, -1])
    with pytest.raises(InputError, match=r"test_tin.txt, line 3: .*has the label 57, outside -1\.\.9$"):
        load_ood_sets("cifar10", ["tin"], tmp_path, 10)
    (tmp_path / "data" / "imglist" / "benchmark_cifar10").rename(
        tmp_path / "data" / "imglist" / "benchmark_cifar100"
    )
    assert load_ood_sets("cifar100", ["tin"], tmp_path, 100)["tin"].labels.tolist() == [-1, 9, 57, -1]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1"])
def test_other_colour_modes_become_rgb(tmp_path, mode):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).convert(
        mode
    )
    image.save(tmp_path / "x.png")
    assert np.array_equal(read_image(tmp_path / "x.png"), np.asarray(image.convert("RGB")))


def test_16_bit_grey_images_keep_their_grey_levels(tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "x.png")
    assert np.array_equal(read_image(tmp_path / "x.png"), np.stack([grey] * 3, axis=2))


def test_floating_point_images_are_refused_by_name(tmp_path):
    (tmp_path / "x.ppm").write_bytes(b"Pf\n32 32\n-1.0\n" + np.ones((32, 32), "<f4").tobytes())
    with pytest.raises(InputError, match="x.ppm cannot be read: its pixels are floating-point"):
        read_image(tmp_path / "x.ppm")


def test_turned_photographs_are_read_upright(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side, to be turned clockwise
    Image.fromarray(np.rot90(image)).save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "x.png"), image)


def test_missing_sets_are_named_with_those_that_are_there_before_anything_is_read(tmp_path):
    write_set(tmp_path, "tin", [-1])
    write_set(tmp_path, "svhn", [-1])
    (tmp_path / "data" / "images" / "tin" / "0.png").write_bytes(b"broken")
    with pytest.raises(InputError, match="'lsun', 'places'.*there are svhn, tin .*--dout svhn tin"):
        load_ood_sets("cifar10", ["tin", "lsun", "places"], tmp_path, 10)


def test_no_lists_at_all(tmp_path):
    with pytest.raises(InputError, match="there are none.*prepare scood"):
        load_ood_sets("cifar100", ["tin"], tmp_path, 100)


def test_missing_images_are_counted(tmp_path):
    write_set(tmp_path, "tin", [-1] * 4)
    (tmp_path / "data" / "images" / "tin" / "2.png").unlink()
    with pytest.raises(InputError, match="1 of 4.*tin/2.png"):
        load_ood_sets("cifar10", ["tin"], tmp_path, 10)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("empty", "it is not an image of"),
        ("truncated", "truncated"),
        ("text", "it is not an image of the formats JPEG, PNG, BMP, GIF, PPM, WEBP$"),
        ("postscript", "it is not an image of the formats"),
    ],
)
def test_unreadable_images_are_named_with_the_reason(tmp_path, damage, reason):
    write_set(tmp_path, "tin", [-1] * 2)
    path = tmp_path / "data" / "images" / "tin" / "1.png"
    raw = path.read_bytes()
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n"
    path.write_bytes(
        {"empty": b"", "truncated": raw[:500], "text": b"no image", "postscript": script}[damage]
    )
    with pytest.raises(InputError, match=f"tin/1.png cannot be read: .*{reason}"):
        load_ood_sets("cifar10", ["tin"], tmp_path, 10)


@pytest.mark.parametrize("size", [(60_000, 60_000), (1, 200_000_000)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_images_that_unpack_to_gigabytes_are_refused(tmp_path, size):
    (tmp_path / "x.png").write_bytes(png_header(*size))
    with pytest.raises(InputError, match="x.png cannot be read: .*bomb"):
        read_image(tmp_path / "x.png")
