import io
import struct
import zlib

import numpy as np
import pytest
from datasets.pixels import exif_orientation, upright_rgb
from image_files import photograph
from PIL import Image


def png_16_bit(values):
    """A PNG with 16 bits per channel: (H, W) is stored as grey, (H, W, 3) as colour."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width = values.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 16, 0 if values.ndim == 2 else 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    image = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + image


def read(raw):
    return np.asarray(upright_rgb(Image.open(io.BytesIO(raw))))


RAMP = np.linspace(0, 65_535, 35).round().astype(np.uint16).reshape(5, 7)


def test_16_bit_grey_is_scaled_like_16_bit_colour():
    grey, colour = read(png_16_bit(RAMP)), read(png_16_bit(np.stack([RAMP] * 3, axis=2)))
    assert grey.dtype == np.uint8 and grey.shape == (5, 7, 3)
    np.testing.assert_array_equal(grey, colour)
    np.testing.assert_array_equal(grey[..., 0], RAMP // 256)
    eight = np.arange(256, dtype=np.uint16).reshape(16, 16)
    np.testing.assert_array_equal(read(png_16_bit(eight * 257))[..., 0], eight)  # 8 bits, stored as 16


def test_16_bit_pgm_is_scaled_by_its_own_white():
    raw = b"P5 7 5 65535\n" + RAMP.astype(">u2").tobytes()
    np.testing.assert_array_equal(read(raw)[..., 0], RAMP // 256)
    ten_bits = read(b"P5 3 1 1023\n" + np.array([0, 512, 1023], ">u2").tobytes())
    np.testing.assert_array_equal(ten_bits[0, :, 0], [0, 128, 255])


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L", "I"])
def test_every_mode_of_16_bits_is_scaled(mode):
    order = {"I": "=i4", "I;16B": ">u2"}.get(mode, "<u2")
    picture = Image.frombytes(mode, (7, 5), RAMP.astype(order).tobytes())
    np.testing.assert_array_equal(np.asarray(upright_rgb(picture))[..., 1], RAMP // 256)


@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        (Image.fromarray(np.array([[0.0, 1.0]], np.float32)), "floating-point"),
        (Image.fromarray(np.array([[0, 65_536]], np.int32)), "32-bit integers"),
        (Image.fromarray(np.array([[-1, 5]], np.int32)), "32-bit integers"),
    ],
)
def test_pixels_without_a_known_white_are_refused_by_name(picture, reason):
    with pytest.raises(ValueError, match=reason):
        upright_rgb(picture)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK", "LA"])
def test_the_other_modes_become_rgb_as_pillow_does(mode):
    source = photograph(0).convert("L") if mode == "LA" else photograph(0)
    picture = source.convert(mode)
    np.testing.assert_array_equal(np.asarray(upright_rgb(picture)), np.asarray(picture.convert("RGB")))


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
def test_pictures_are_turned_upright(orientation, depth):
    height, width = 3, 5
    wanted = np.arange(height * width, dtype=np.uint8).reshape(height, width)
    stored = np.zeros((height, width) if orientation < 5 else (width, height), np.uint8)
    for i in range(height):
        for j in range(width):
            stored[STORED_AT[orientation](i, j, height, width)] = wanted[i, j]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    picture = Image.fromarray(stored if depth == 8 else stored.astype(np.uint16) * 257)
    picture.save(stream, "PNG", exif=exif)
    assert exif_orientation(Image.open(stream)) == orientation
    np.testing.assert_array_equal(read(stream.getvalue())[..., 0], wanted)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize(
    "exif", [b"Exif\x00\x00no TIFF header at all", b"Exif\x00\x00II*\x00\xff\xff\xff\xff"]
)
def test_broken_exif_does_not_spoil_a_good_picture(exif):
    plain, broken = io.BytesIO(), io.BytesIO()
    photograph(4).save(plain, "JPEG")
    photograph(4).save(broken, "JPEG", exif=exif)
    np.testing.assert_array_equal(read(broken.getvalue()), read(plain.getvalue()))
