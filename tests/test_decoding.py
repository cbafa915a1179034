import io
import struct
import zlib

import numpy as np
import pytest
import torch
from image_files import photograph, truncate
from PIL import ExifTags, Image, ImageOps
from torchvision.transforms import v2

from datasets import decoding
from datasets.decoding import Unreadable, decode, decode_crops, open_picture, upright_rgb, upright_size

SIZE = 24


@pytest.fixture(params=["torchvision", "Pillow"])
def decoder(request, monkeypatch):
    """Has plain JPEG files decoded by torchvision, or by Pillow, as where torchvision has no decoder."""
    if request.param == "Pillow":
        monkeypatch.setattr(decoding, "decode_jpeg", None)
    elif decoding.decode_jpeg is None:
        pytest.skip("this torchvision has no decoder")


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
    picture.save(tmp_path / "broken.jpg", exif=b"Exif\x00\x00not a TIFF header at all")
    for path in tmp_path.iterdir():
        expected = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB")).astype(int)
        assert abs(upright(path) - expected).max() <= 2, path.name


def test_a_truncated_file_is_noticed(tmp_path, decoder):
    photograph(1).save(tmp_path / "a.jpg")
    truncate(tmp_path / "a.jpg")
    with pytest.raises(Unreadable):
        decode(open_picture(tmp_path / "a.jpg"))


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


# --- orientation


# The stored position (row, column) of what an upright picture (H, W) shows at (i, j), from the EXIF
# standard's table of what the first stored row and column are.
STORED_AT = {
    1: lambda i, j, h, w: (i, j),
    2: lambda i, j, h, w: (i, w - 1 - j),
    3: lambda i, j, h, w: (h - 1 - i, w - 1 - j),
    4: lambda i, j, h, w: (h - 1 - i, j),
    5: lambda i, j, h, w: (j, i),
    6: lambda i, j, h, w: (w - 1 - j, i),
    7: lambda i, j, h, w: (w - 1 - j, h - 1 - i),
    8: lambda i, j, h, w: (j, h - 1 - i),
}


@pytest.mark.parametrize("orientation", STORED_AT)
@pytest.mark.parametrize("depth", [8, 16])
def test_pictures_are_turned_upright(tmp_path, orientation, depth):
    height, width = 3, 5
    wanted = np.arange(height * width, dtype=np.uint8).reshape(height, width)
    stored = np.zeros((height, width) if orientation < 5 else (width, height), np.uint8)
    for i in range(height):
        for j in range(width):
            stored[STORED_AT[orientation](i, j, height, width)] = wanted[i, j]
    picture = Image.fromarray(stored if depth == 8 else stored.astype(np.uint16) * 257)
    picture.save(tmp_path / "a.png", exif=oriented(orientation))
    assert upright_size(open_picture(tmp_path / "a.png")) == (height, width)
    np.testing.assert_array_equal(upright(tmp_path / "a.png")[..., 0], wanted)


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


def png_16_bit(values):
    """A PNG with 16 bits per channel: (H, W) is stored as grey, (H, W, 3) as colour."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width = values.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 16, 0 if values.ndim == 2 else 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    image = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + image


def rgb(raw):
    return np.asarray(upright_rgb(Image.open(io.BytesIO(raw))))


RAMP = np.linspace(0, 65_535, 35).round().astype(np.uint16).reshape(5, 7)


def test_16_bit_grey_is_scaled_like_16_bit_colour():
    grey, colour = rgb(png_16_bit(RAMP)), rgb(png_16_bit(np.stack([RAMP] * 3, axis=2)))
    np.testing.assert_array_equal(grey, colour)
    np.testing.assert_array_equal(grey[..., 0], RAMP // 256)
    ten_bits = rgb(b"P5 3 1 1023\n" + np.array([0, 512, 1023], ">u2").tobytes())
    np.testing.assert_array_equal(ten_bits[0, :, 0], [0, 128, 255])  # PGM says its own white


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L", "I"])
def test_every_mode_of_16_bits_is_scaled(mode):
    order = {"I": "=i4", "I;16B": ">u2"}.get(mode, "<u2")
    picture = Image.frombytes(mode, (7, 5), RAMP.astype(order).tobytes())
    np.testing.assert_array_equal(np.asarray(upright_rgb(picture))[..., 1], RAMP // 256)


@pytest.mark.parametrize(
    "values",
    [np.array([[0.0, 1.0]], np.float32), np.array([[0, 65_536]], np.int32), np.array([[-1]], np.int32)],
)
def test_pixels_without_a_known_white_are_refused(values):
    with pytest.raises(Unreadable, match="white"):
        upright_rgb(Image.fromarray(values))


# --- crops


def test_crops_equal_torchvisions(tmp_path):
    photograph(0).save(tmp_path / "a.jpg", quality=95)
    boxes = torch.tensor([[3, 5, 30, 41], [0, 0, 40, 56], [10, 20, 9, 12]])
    crops = decode_crops(open_picture(tmp_path / "a.jpg"), boxes, SIZE)
    image = decode(open_picture(tmp_path / "a.jpg"))
    for crop, box in zip(crops, boxes.tolist(), strict=True):
        expected = v2.functional.resized_crop(image, *box, [SIZE, SIZE], antialias=True)
        # Older versions of torch round by memory layout.
        assert (crop.int() - expected.int()).abs().max() <= 1


@pytest.mark.parametrize(("size", "smallest", "decoded"), [(24, 452, 150), (113, 452, 300), (60, 100, 1200)])
def test_large_photographs_are_decoded_smaller_and_look_the_same(tmp_path, size, smallest, decoded):
    photograph(6, 1200, 1600).save(tmp_path / "a.jpg", quality=95)
    boxes = torch.tensor([[100, 200, 900, 1100], [600, 800, smallest, smallest + 4]])
    picture = open_picture(tmp_path / "a.jpg")
    crops = decode_crops(picture, boxes, size)
    assert picture.height == decoded
    image = decode(open_picture(tmp_path / "a.jpg"))
    for crop, box in zip(crops, boxes.tolist(), strict=True):
        expected = v2.functional.resized_crop(image, *box, [size, size], antialias=True)
        assert (crop.int() - expected.int()).abs().float().mean() < 2
