import io
import struct
import zlib

import numpy as np
import pytest
import torch
from image_files import UNREADABLE, locked_file, photograph, truncate
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
    for name, bound in {
        "really_png.jpg": 0,
        "alpha.png": 0,
        "palette.png": 12,
        "a.webp": 0,
        "a.bmp": 0,
    }.items():
        assert abs(upright(tmp_path / name) - expected).mean() <= bound, name


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


def test_the_size_is_known_where_a_png_has_its_orientation_after_the_pixels(tmp_path):
    photograph(0, 40, 56).save(tmp_path / "x.png", exif=oriented(6))
    raw = (tmp_path / "x.png").read_bytes()
    start = raw.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(raw[start : start + 4], "big")
    (tmp_path / "x.png").write_bytes(raw[:start] + raw[end:-12] + raw[start:end] + raw[-12:])
    picture = open_picture(tmp_path / "x.png")
    assert upright_size(picture) == tuple(decode(picture).shape[1:])


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
    ("values", "reason"),
    [
        (np.array([[0.0, 1.0]], np.float32), "floating-point"),
        (np.array([[0, 65_536]], np.int32), "32-bit integers"),
        (np.array([[-1, 5]], np.int32), "32-bit integers"),
    ],
)
def test_pixels_without_a_known_white_are_refused(values, reason):
    with pytest.raises(ValueError, match=reason):
        upright_rgb(Image.fromarray(values))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK", "LA"])
def test_the_other_modes_become_rgb_as_pillow_does(mode):
    picture = photograph(0).convert("L" if mode == "LA" else "RGB").convert(mode)
    np.testing.assert_array_equal(np.asarray(upright_rgb(picture)), np.asarray(picture.convert("RGB")))


# --- unreadable files


@pytest.mark.parametrize("kind", UNREADABLE)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_unreadable_files_are_refused_in_one_line(tmp_path, kind):
    (tmp_path / "a.jpg").write_bytes(UNREADABLE[kind])
    with pytest.raises(Unreadable) as refused:
        decode(open_picture(tmp_path / "a.jpg"))
    reason = str(refused.value)
    assert reason and "\n" not in reason and "BytesIO" not in reason


def test_the_reasons_of_other_accidents(tmp_path):
    for path, reason in ((tmp_path / "a.jpg", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(Unreadable, match=f"^{reason}$"):
            open_picture(path)
    with locked_file("a.png") as path, pytest.raises(Unreadable, match="^Permission denied$"):
        open_picture(path)


# --- crops


def test_crops_equal_torchvisions(tmp_path):
    photograph(0).save(tmp_path / "a.jpg", quality=95)
    boxes = torch.tensor([[3, 5, 30, 41], [0, 0, 40, 56], [10, 20, 9, 12]])
    crops = decode_crops(open_picture(tmp_path / "a.jpg"), boxes, SIZE)
    image = decode(open_picture(tmp_path / "a.jpg"))
    for crop, box in zip(crops, boxes.tolist(), strict=True):
        expected = v2.functional.resized_crop(image, *box, [SIZE, SIZE], antialias=True)
        assert (
            crop.int() - expected.int()
        ).abs().max() <= 1  # older versions of torch round by memory layout


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


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "bmp", "gif"])
def test_large_files_of_every_format_are_cropped_where_the_box_is(tmp_path, kind):
    """Red left, blue right, and a box on the right that is large enough for a JPEG to be decoded smaller."""
    picture = Image.new("RGB", (240, 200), (255, 0, 0))
    picture.paste((0, 0, 255), (120, 0, 240, 200))
    picture.save(tmp_path / f"a.{kind}")
    (view,) = decode_crops(open_picture(tmp_path / f"a.{kind}"), torch.tensor([[90, 130, 100, 100]]), SIZE)
    assert (view.float().mean((1, 2)) - torch.tensor([0.0, 0.0, 255.0])).abs().max() < 12
