"""Every batched operation against torchvision's functional one, which takes one image and one parameter at a
time."""

import math

import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import pil_to_tensor, to_pil_image
from torchvision.transforms.v2 import functional as tv

from datasets.augment import ops
from datasets.augment.policies import AUTOAUGMENT_OPERATIONS

N = 40


def uint8_images(height, width, n=N):
    """Noise, smooth gradients, and images with one or all channels constant or nearly so."""
    generator = torch.Generator().manual_seed(height * 1000 + width)
    noise = torch.rand((n // 2, 3, height, width), generator=generator)
    smooth = torch.rand((n - n // 2, 3, 4, 4), generator=generator)
    smooth = torch.nn.functional.interpolate(smooth, size=(height, width), mode="bilinear")
    images = torch.cat([noise, smooth]).mul(255.999).to(torch.uint8)
    images[0] = 0
    images[1] = 255
    images[2, 1] = 77
    images[3, :, :-1] = 9
    return images


SIZES = [(32, 32), (16, 16), (24, 37)]
SIGNED_BINS = torch.linspace(0.0, 0.9, 10).double()
FACTORS = {
    "autoaugment": torch.cat([1.0 + SIGNED_BINS, 1.0 - SIGNED_BINS]).repeat(2),
    "continuous": torch.linspace(0.0, 2.0, N, dtype=torch.float64),
}


def one_by_one(function, images, *parameters):
    return torch.stack(
        [
            function(image, *values)
            for image, *values in zip(images, *(p.tolist() for p in parameters), strict=True)
        ]
    )


def assert_same_bytes(batched, single):
    assert batched.dtype == torch.uint8
    torch.testing.assert_close(batched, single, rtol=0, atol=0)


def tv_affine(image, translate=(0, 0), shear=(0.0, 0.0), center=None):
    return tv.affine(
        image,
        angle=0.0,
        translate=list(translate),
        scale=1.0,
        shear=list(shear),
        center=center,
        interpolation=InterpolationMode.NEAREST,
        fill=0,
    )


GEOMETRY = {
    "shear_x": (
        0.3,
        lambda image, v: tv_affine(image, shear=(math.degrees(math.atan(v)), 0.0), center=[0, 0]),
    ),
    "shear_y": (
        0.3,
        lambda image, v: tv_affine(image, shear=(0.0, math.degrees(math.atan(v))), center=[0, 0]),
    ),
    "translate_x": (14.6, lambda image, v: tv_affine(image, translate=(int(v), 0))),
    "translate_y": (14.6, lambda image, v: tv_affine(image, translate=(0, int(v)))),
    "rotate": (30.0, lambda image, v: tv.rotate(image, v, interpolation=InterpolationMode.NEAREST, fill=0)),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", GEOMETRY)
def test_geometry_equals_torchvision(name, size):
    limit, reference = GEOMETRY[name]
    images = uint8_images(*size)
    # AutoAugment's ten bins, less the two where a shear falls half-way between pixels and rounding noise
    # decides.
    bins = torch.linspace(0.0, limit, 10)[[0, 1, 3, 4, 5, 7, 8, 9]].double()
    for values in (
        torch.linspace(-limit, limit, N, dtype=torch.float64),
        torch.cat([bins, -bins]).repeat(3)[:N],
    ):
        assert_same_bytes(getattr(ops, name)(images, values), one_by_one(reference, images, values))


def transformed_by_pillow(image, matrix, resample):
    picture = to_pil_image(image)
    return pil_to_tensor(
        picture.transform(picture.size, Image.AFFINE, matrix, resample, fillcolor=(128,) * 3)
    )


def rotated_by_pillow(image, degrees):
    """Beyond the border is grey 128: an RGBA image turns transparent there."""
    turned = to_pil_image(image).convert("RGBA").rotate(degrees)
    return pil_to_tensor(
        Image.composite(turned, Image.new("RGBA", turned.size, (128,) * 4), turned).convert("RGB")
    )


AUTOAUGMENT_GEOMETRY = {
    "ShearX": (0.3, lambda image, v: transformed_by_pillow(image, (1, v, 0, 0, 1, 0), Image.BICUBIC)),
    "ShearY": (0.3, lambda image, v: transformed_by_pillow(image, (1, 0, 0, v, 1, 0), Image.BICUBIC)),
    "TranslateX": (15, lambda image, v: transformed_by_pillow(image, (1, 0, -v, 0, 1, 0), Image.NEAREST)),
    "TranslateY": (15, lambda image, v: transformed_by_pillow(image, (1, 0, 0, 0, 1, -v), Image.NEAREST)),
    "Rotate": (30.0, rotated_by_pillow),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", AUTOAUGMENT_GEOMETRY)
def test_the_geometry_of_autoaugment_equals_pillow(name, size):
    limit, reference = AUTOAUGMENT_GEOMETRY[name]
    images = uint8_images(*size)
    values = torch.linspace(-limit, limit, N, dtype=torch.float64)
    values = values.round() if name.startswith("Translate") else values
    result, expected = AUTOAUGMENT_OPERATIONS[name](images, values), one_by_one(reference, images, values)
    # Pillow computes coordinates in fixed point; a border between two pixels may fall either way.
    assert (result != expected).float().mean() < 1e-3
    if name.startswith("Shear"):
        assert (result.int() - expected.int()).abs().max() <= 1


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("factors", FACTORS.values(), ids=FACTORS)
@pytest.mark.parametrize(
    "name", ["adjust_brightness", "adjust_saturation", "adjust_contrast", "adjust_sharpness"]
)
def test_uint8_enhancements_equal_torchvision(name, factors, size):
    images = uint8_images(*size)
    assert_same_bytes(getattr(ops, name)(images, factors), one_by_one(getattr(tv, name), images, factors))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["autocontrast", "equalize", "invert"])
def test_operations_without_parameter_equal_torchvision(name, size):
    images = uint8_images(*size)
    assert_same_bytes(getattr(ops, name)(images), one_by_one(getattr(tv, name), images))


def test_posterize_equals_torchvision():
    images, bits = uint8_images(32, 32), torch.arange(N) % 9
    assert_same_bytes(ops.posterize(images, bits), one_by_one(tv.posterize, images, bits))


def test_solarize_equals_torchvision():
    images, threshold = uint8_images(32, 32), torch.linspace(0.0, 255.0, N, dtype=torch.float64)
    assert_same_bytes(ops.solarize(images, threshold), one_by_one(tv.solarize, images, threshold))


def test_solarize_beyond_the_range_changes_nothing():
    images = uint8_images(32, 32)
    assert_same_bytes(ops.solarize(images, torch.full((N,), 256.0)), images)


def test_solarize_add_by_hand():
    values = torch.tensor([0, 17, 127, 128, 255], dtype=torch.uint8)
    images = values.view(1, 1, 1, 5).expand(3, 3, 1, 5)
    result = ops.solarize_add(images, torch.tensor([0, 110, 128]))
    expected = [[0, 17, 127, 128, 255], [110, 127, 237, 128, 255], [128, 145, 255, 128, 255]]
    assert result[:, 1, 0].tolist() == expected


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["adjust_brightness", "adjust_saturation", "adjust_contrast", "adjust_hue"])
def test_float_adjustments_equal_torchvision(name, size):
    images = ops.to_float(uint8_images(*size))
    values = torch.linspace(-0.5, 0.5, N, dtype=torch.float64)
    values = values if name == "adjust_hue" else values + 1.0
    torch.testing.assert_close(
        getattr(ops, name)(images, values), one_by_one(getattr(tv, name), images, values), rtol=0, atol=1e-5
    )


def test_grayscale_equals_torchvision():
    images = ops.to_float(uint8_images(32, 32))
    expected = one_by_one(lambda image: tv.rgb_to_grayscale(image, num_output_channels=3), images)
    torch.testing.assert_close(ops.grayscale(images), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("size_out", [8, 32, 61])
def test_resized_crop_equals_torchvision(size, size_out):
    (rows, columns), images = size, uint8_images(*size)
    generator = torch.Generator().manual_seed(size_out)
    height = torch.randint(1, rows + 1, (N,), generator=generator)
    width = torch.randint(1, columns + 1, (N,), generator=generator)
    top = (torch.rand(N, generator=generator) * (rows - height + 1)).long()
    left = (torch.rand(N, generator=generator) * (columns - width + 1)).long()
    flip = torch.rand(N, generator=generator) < 0.5

    def reference(image, top, left, height, width, flip):
        image = tv.resized_crop(image, top, left, height, width, [size_out, size_out], antialias=True)
        return tv.horizontal_flip(image) if flip else image

    expected = one_by_one(reference, ops.to_float(images), top, left, height, width, flip)
    for given in (images, ops.to_float(images)):
        result = ops.resized_crop(given, top, left, height, width, flip, size_out)
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("padding", [0, 2, 4])
def test_padded_crop_equals_torchvision(padding):
    images = uint8_images(24, 37)
    generator = torch.Generator().manual_seed(padding)
    top, left = torch.randint(0, 2 * padding + 1, (2, N), generator=generator)
    flip = torch.rand(N, generator=generator) < 0.5

    def reference(image, top, left, flip):
        image = tv.crop(tv.pad(image, [padding]), top, left, 24, 37)
        return tv.horizontal_flip(image) if flip else image

    assert_same_bytes(
        ops.padded_crop(images, top, left, flip, padding), one_by_one(reference, images, top, left, flip)
    )


def test_cutout_equals_torchvision_erase():
    images = uint8_images(32, 32)
    row, column = torch.arange(N) % 32, (7 * torch.arange(N)) % 32

    def reference(image, row, column):
        top, left = max(row - 8, 0), max(column - 8, 0)
        height, width = min(row + 8, 32) - top, min(column + 8, 32) - left
        return tv.erase(image, top, left, height, width, torch.zeros(3, 1, 1, dtype=torch.uint8))

    assert_same_bytes(ops.cutout(images, row, column, 16), one_by_one(reference, images, row, column))


def test_conversions_are_inverse_and_equal_torchvision():
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)
    torch.testing.assert_close(ops.to_float(images), tv.to_dtype(images, torch.float32, scale=True))
    assert_same_bytes(ops.to_uint8(ops.to_float(images)), images.contiguous())


@pytest.mark.parametrize(
    "name, values",
    [
        ("rotate", torch.tensor([10.0, 20.0])),
        ("adjust_sharpness", torch.tensor([0.5, 1.5])),
        ("adjust_contrast", torch.tensor([0.5, 1.5])),
        ("posterize", torch.tensor([3, 4])),
        ("solarize", torch.tensor([3.0, 4.0])),
        ("solarize_add", torch.tensor([3, 4])),
        ("autocontrast", None),
        ("equalize", None),
        ("invert", None),
    ],
)
def test_inputs_are_not_written_to(name, values):
    images = uint8_images(32, 32)[-2:]
    before = images.clone()
    getattr(ops, name)(images, *(() if values is None else (values,)))
    assert_same_bytes(images, before)


def test_images_stored_channels_last_give_the_same():
    images = uint8_images(32, 32)
    strided = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    flip, zero = torch.arange(N) % 2 == 0, torch.zeros(N, dtype=torch.long)
    box = (zero, zero + 3, zero + 20, zero + 25, flip)
    assert_same_bytes(
        ops.padded_crop(strided, zero, zero + 5, flip, 4), ops.padded_crop(images, zero, zero + 5, flip, 4)
    )
    assert_same_bytes(ops.equalize(strided), ops.equalize(images))
    torch.testing.assert_close(ops.resized_crop(strided, *box, 32), ops.resized_crop(images, *box, 32))
