"""Every batched operation against torchvision's functional one, which takes one image and one parameter at a
time."""

import math

import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import pil_to_tensor, to_pil_image
from torchvision.transforms.v2 import functional as tv

from datasets.augment import ops
from datasets.augment.views import AUTOAUGMENT, RANDAUGMENT

N = 40
SIZES = [(32, 32), (24, 37)]


def uint8_images(height, width):
    """Noise, smooth gradients, and images with one or all channels constant or nearly so."""
    generator = torch.Generator().manual_seed(height * 1000 + width)
    noise = torch.rand((N // 2, 3, height, width), generator=generator)
    smooth = torch.rand((N - N // 2, 3, 4, 4), generator=generator)
    smooth = torch.nn.functional.interpolate(smooth, size=(height, width), mode="bilinear")
    images = torch.cat([noise, smooth]).mul(255.999).to(torch.uint8)
    images[0] = 0
    images[1] = 255
    images[2, 1] = 77
    images[3, :, :-1] = 9
    return images


def as_float(images):
    return tv.to_dtype(images, torch.float32, scale=True)


def one_by_one(function, images, *parameters):
    rows = zip(images, *(p.tolist() for p in parameters), strict=True)
    return torch.stack([function(image, *values) for image, *values in rows])


def assert_same_bytes(batched, single):
    assert batched.dtype == torch.uint8
    torch.testing.assert_close(batched, single, rtol=0, atol=0)


def spread(low, high):
    return torch.linspace(low, high, N, dtype=torch.float64)


def tv_affine(image, translate=(0, 0), shear=(0.0, 0.0)):
    center = [0, 0] if any(shear) else None
    return tv.affine(image, angle=0.0, translate=list(translate), scale=1.0, shear=list(shear), center=center)


def degrees(level):
    return math.degrees(math.atan(level))


TORCHVISIONS = {
    "ShearX": (0.3, lambda image, v: tv_affine(image, shear=(degrees(v), 0.0))),
    "ShearY": (0.3, lambda image, v: tv_affine(image, shear=(0.0, degrees(v)))),
    "TranslateX": (14.6, lambda image, v: tv_affine(image, translate=(int(v), 0))),
    "TranslateY": (14.6, lambda image, v: tv_affine(image, translate=(0, int(v)))),
    "Rotate": (30.0, lambda image, v: tv.rotate(image, v, interpolation=InterpolationMode.NEAREST, fill=0)),
}
CASES = [(name, function, spread(-limit, limit)) for name, (limit, function) in TORCHVISIONS.items()]
CASES += [
    ("Brightness", tv.adjust_brightness, spread(0.0, 2.0)),
    ("Color", tv.adjust_saturation, spread(0.0, 2.0)),
    ("Contrast", tv.adjust_contrast, spread(0.0, 2.0)),
    ("Sharpness", tv.adjust_sharpness, spread(0.0, 2.0)),
    ("Posterize", lambda image, v: tv.posterize(image, int(v)), torch.arange(N).double() % 9),
    ("Solarize", lambda image, v: tv.solarize(image, v) if v < 256 else image, spread(0.0, 256.0)),
    (
        "SolarizeAdd",
        lambda image, v: torch.where(image < 128, (image.int() + int(v)).clamp(max=255), image).byte(),
        torch.arange(N).double() * 3,
    ),
    ("AutoContrast", lambda image, _: tv.autocontrast(image), torch.zeros(N)),
    ("Equalize", lambda image, _: pil_to_tensor(ImageOps.equalize(to_pil_image(image))), torch.zeros(N)),
    ("Invert", lambda image, _: tv.invert(image), torch.zeros(N)),
]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name, reference, values", CASES, ids=[name for name, *_ in CASES])
def test_the_operations_of_randaugment_equal_torchvisions(name, reference, values, size):
    images = uint8_images(*size)
    before = images.clone()
    assert_same_bytes(RANDAUGMENT[name][0](images, values), one_by_one(reference, images, values))
    assert torch.equal(images, before), "the input was written to"


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


PILLOWS = {
    "ShearX": (0.3, lambda image, v: transformed_by_pillow(image, (1, v, 0, 0, 1, 0), Image.BICUBIC)),
    "ShearY": (0.3, lambda image, v: transformed_by_pillow(image, (1, 0, 0, v, 1, 0), Image.BICUBIC)),
    "TranslateX": (15, lambda image, v: transformed_by_pillow(image, (1, 0, -v, 0, 1, 0), Image.NEAREST)),
    "TranslateY": (15, lambda image, v: transformed_by_pillow(image, (1, 0, 0, 0, 1, -v), Image.NEAREST)),
    "Rotate": (30.0, rotated_by_pillow),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PILLOWS)
def test_the_geometry_of_autoaugment_equals_pillows(name, size):
    limit, reference = PILLOWS[name]
    images, values = uint8_images(*size), spread(-limit, limit)
    values = values.round() if name.startswith("Translate") else values
    result, expected = AUTOAUGMENT[name][0](images, values), one_by_one(reference, images, values)
    # Pillow computes coordinates in fixed point; a border between two pixels may fall either way.
    assert (result != expected).float().mean() < 1e-3
    if name.startswith("Shear"):
        assert (result.int() - expected.int()).abs().max() <= 1


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["adjust_brightness", "adjust_saturation", "adjust_contrast", "adjust_hue"])
def test_float_adjustments_equal_torchvisions(name, size):
    images = as_float(uint8_images(*size))
    values = spread(-0.5, 0.5) if name == "adjust_hue" else spread(0.5, 1.5)
    expected = one_by_one(getattr(tv, name), images, values)
    torch.testing.assert_close(getattr(ops, name)(images, values), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("size_out", [8, 61])
def test_resized_crop_equals_torchvisions(size, size_out):
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

    expected = one_by_one(reference, as_float(images), top, left, height, width, flip)
    for given in (images, images.contiguous(memory_format=torch.channels_last)):
        result = ops.resized_crop(given, top, left, height, width, flip, size_out)
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("padding", [0, 4])
def test_padded_crop_equals_torchvisions(padding):
    images = uint8_images(24, 37)
    generator = torch.Generator().manual_seed(padding)
    top, left = torch.randint(0, 2 * padding + 1, (2, N), generator=generator)
    flip = torch.rand(N, generator=generator) < 0.5

    def reference(image, top, left, flip):
        image = tv.crop(tv.pad(image, [padding]), top, left, 24, 37)
        return tv.horizontal_flip(image) if flip else image

    expected = one_by_one(reference, images, top, left, flip)
    assert_same_bytes(ops.padded_crop(images, top, left, flip, padding), expected)


def test_cutout_equals_torchvisions_erase():
    images = uint8_images(24, 32)
    row, column = torch.arange(N) % 24, (7 * torch.arange(N)) % 32

    def reference(image, row, column):
        top, left = max(row - 8, 0), max(column - 8, 0)
        height, width = min(row + 8, 24) - top, min(column + 8, 32) - left
        return tv.erase(image, top, left, height, width, torch.zeros(3, 1, 1, dtype=torch.uint8))

    assert_same_bytes(ops.cutout(images, row, column, 16), one_by_one(reference, images, row, column))
