import struct

import numpy as np
import pytest
import torch
from image_files import photograph
from PIL import ExifTags, Image, ImageOps
from torchvision.transforms import v2

from datasets import decoding
from datasets.decoding import decode, decode_crops, open_picture, upright_rgb, upright_size


@pytest.fixture(params=["torchvision", "Pillow"] if decoding.decode_jpeg else ["Pillow"])
def decoder(request, monkeypatch):
    """Has plain JPEG files decoded by torchvision, or by Pillow, as where torchvision has no decoder."""
    if request.param == "Pillow":
        monkeypatch.setattr(decoding, "decode_jpeg", None)


def upright(path):
    return np.asarray(decode(open_picture(path)).permute(1, 2, 0)).astype(int)


def oriented(orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


def test_every_kind_of_jpeg_gives_the_same_pixels_as_pillow(tmp_path, decoder):
    picture = photograph(1, 200, 301)
    picture.save(tmp_path / "plain.jpg")
    picture.save(tmp_path / "coarse.jpg", quality=30, subsampling="4:2:0")
    picture.save(tmp_path / "fine.jpg", quality=100, subsampling="4:4:4")
    picture.save(tmp_path / "progressive.jpg", progressive=True)
    picture.convert("L").save(tmp_path / "grey.jpg")
    picture.convert("CMYK").save(tmp_path / "cmyk.jpg")
    for orientation in (1, 6):
        picture.save(tmp_path / f"turned{orientation}.jpg", exif=oriented(orientation))
    for path in tmp_path.iterdir():
        expected = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB")).astype(int)
        assert abs(upright(path) - expected).max() <= 2, path.name


def test_other_formats_show_the_same_picture(tmp_path):
    picture = photograph(2)
    picture.save(tmp_path / "really_png.jpg", format="PNG")
    picture.convert("RGBA").save(tmp_path / "alpha.png")
    picture.quantize(200).save(tmp_path / "palette.png")
    picture.save(tmp_path / "a.webp", lossless=True)
    picture.save(tmp_path / "a.bmp")
    expected = np.asarray(picture).astype(int)
    for path in tmp_path.iterdir():
        assert abs(upright(path) - expected).mean() <= (12 if path.stem == "palette" else 0), path.name


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(tmp_path, orientation):
    photograph(3, 30, 50).save(tmp_path / "a.png", exif=oriented(orientation))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.png")))
    assert upright_size(open_picture(tmp_path / "a.png")) == expected.shape[:2]
    np.testing.assert_array_equal(upright(tmp_path / "a.png"), expected)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\x00\x00no TIFF header at all",
        b"Exif\x00\x00II*\x00\xff\xff\xff\xff",
        # orientation 1, and a width that is text: nothing to do, though it could not be written again
        b"Exif\x00\x00II*\x00" + struct.pack("<IHHHI4sHHIHHI", 8, 2, 256, 2, 4, b"abc\0", 274, 3, 1, 1, 0, 0),
    ],
)
def test_broken_exif_does_not_spoil_a_good_picture(tmp_path, exif):
    photograph(4).save(tmp_path / "plain.jpg")
    photograph(4).save(tmp_path / "broken.jpg", exif=exif)
    np.testing.assert_array_equal(upright(tmp_path / "broken.jpg"), upright(tmp_path / "plain.jpg"))


# --- pixels of other kinds than 8-bit RGB


RAMP = np.linspace(0, 65_535, 35).round().astype(np.uint16).reshape(5, 7)


def test_more_than_16_bits_are_refused():
    with pytest.raises(decoding.Unreadable, match="16 bits"):
        upright_rgb(Image.fromarray(np.full((4, 4), 70_000, np.int32)))


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L", "I"])
def test_every_mode_of_16_bits_is_scaled(mode):
    order = {"I": "=i4", "I;16B": ">u2"}.get(mode, "<u2")
    picture = Image.frombytes(mode, (7, 5), RAMP.astype(order).tobytes())
    np.testing.assert_array_equal(np.asarray(upright_rgb(picture))[..., 1], RAMP // 256)


# --- crops


def differences(path, boxes, size):
    """The decoded height, and of each crop the differences from torchvision's."""
    picture, image, found = open_picture(path), decode(open_picture(path)), []
    for crop, box in zip(decode_crops(picture, boxes, size), boxes.tolist(), strict=True):
        expected = v2.functional.resized_crop(image, *box, [size, size], antialias=True)
        found.append((crop.int() - expected.int()).abs().float())
    return picture.height, found


def test_crops_equal_torchvisions(tmp_path):
    photograph(0).save(tmp_path / "a.jpg", quality=95)
    boxes = torch.tensor([[3, 5, 30, 41], [0, 0, 40, 56], [10, 20, 9, 12]])
    # Older versions of torch round by memory layout.
    assert all(crop.max() <= 1 for crop in differences(tmp_path / "a.jpg", boxes, 24)[1])


@pytest.mark.parametrize(("size", "smallest", "decoded"), [(24, 452, 150), (113, 452, 300), (60, 100, 1200)])
def test_large_photographs_are_decoded_smaller_and_look_the_same(tmp_path, size, smallest, decoded):
    photograph(6, 1200, 1600).save(tmp_path / "a.jpg", quality=95)
    boxes = torch.tensor([[100, 200, 900, 1100], [600, 800, smallest, smallest + 4]])
    height, found = differences(tmp_path / "a.jpg", boxes, size)
    assert height == decoded and all(crop.mean() < 2 for crop in found)
