"""One image file: its upright RGB pixels and its crops, or the reason why it has none.

Pillow reads every format. Plain JPEG files, which are nearly all of them, are decoded by torchvision, to the
same pixels in about half the time, until torchvision removes its decoder.
"""

import contextlib
import io
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2 import functional

from utils.errors import InputError, first_line

try:
    from torchvision.io import ImageReadMode, decode_jpeg
except ImportError:
    decode_jpeg = None

# torchvision announces at every call that its decoder will move.
warnings.filterwarnings("ignore", message="The image decoding and encoding capabilities of TorchVision")
# This one names no file, and conversion to RGB drops transparency anyway.
warnings.filterwarnings("ignore", message="Palette images with Transparency")

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "WEBP")  # Pillow has some that start other programs
# For each EXIF orientation. ImageOps.exif_transpose fails where any other EXIF field is malformed.
TO_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Unreadable(InputError):
    """A file without a whole image in it; the message is the reason, as in "X cannot be read: reason"."""


def open_picture(path: Path) -> Image.Image:
    """Reads a file into memory and parses its header; pixels are decoded later.
    Raises Unreadable: it cannot be read, is no image of ``FORMATS``, or has more than 179 million pixels."""
    try:
        return Image.open(io.BytesIO(path.read_bytes()), formats=FORMATS)
    except UnidentifiedImageError:  # its own words name a Python object instead of the file
        raise Unreadable(f"it is not an image of the formats {', '.join(FORMATS)}") from None
    except Exception as error:  # Pillow's parsers raise many kinds for a damaged file
        raise Unreadable(getattr(error, "strerror", None) or first_line(error)) from error


def orientation(picture: Image.Image) -> int:
    """Returns the EXIF orientation, 1 to 8; 1 (upright) if none can be read. Raises Unreadable for a damaged
    PNG file, which is decoded to find its EXIF."""
    if picture.format == "PNG":  # getexif would decode it too, and a second attempt accepts damaged pixels
        try:
            picture.load()
        except Exception as error:
            raise Unreadable(first_line(error)) from error
    with contextlib.suppress(Exception):  # broken EXIF is common in good photographs
        value = picture.getexif().get(ExifTags.Base.Orientation)
        return value if value in TO_UPRIGHT else 1
    return 1


def upright_size(picture: Image.Image) -> tuple[int, int]:
    """Returns the height and width of the upright picture, in pixels."""
    width, height = picture.size
    return (width, height) if orientation(picture) >= 5 else (height, width)


def upright_rgb(picture: Image.Image) -> Image.Image:
    """Decodes a picture, turns it as its EXIF orientation says, and converts it to RGB, 8 bits per channel.

    16-bit grey pixels keep their high byte, as 16-bit colour does in Pillow, which clips grey ones to white.

    Raises Unreadable: the file is damaged, or the pixels are floating-point numbers or above 16 bits.
    """
    try:
        turn = TO_UPRIGHT.get(orientation(picture))
        picture.load()
        if picture.mode.startswith("I"):  # mode I also holds 16 bits, from PGM or an older Pillow
            grey = np.asarray(picture)
            if grey.min() < 0 or grey.max() > 0xFFFF:
                raise ValueError("its grey pixels have more than 16 bits")
            picture = Image.fromarray((grey >> 8).astype(np.uint8))
        elif picture.mode == "F":
            raise ValueError("its pixels are floating-point numbers, which have no known white")
        rgb = picture.convert("RGB")
        return rgb if turn is None else rgb.transpose(turn)
    except Exception as error:  # Pillow's decoders raise many kinds for a damaged file
        raise Unreadable(first_line(error)) from error


def decode(picture: Image.Image, full_size: bool = True) -> Tensor:
    """Returns the upright pixels of a picture of :func:`open_picture`, uint8 RGB (3, H, W), in channels-last
    memory; raises Unreadable. ``full_size`` is False after ``picture.draft``, unknown to torchvision."""
    # A JPEG file that holds RGB or CMYK instead of YCbCr is left to Pillow. It calls some JPEG files MPO.
    plain = picture.format in ("JPEG", "MPO") and picture.mode == "RGB" and orientation(picture) == 1
    if plain and picture.info.get("adobe_transform", 1) == 1 and full_size and decode_jpeg is not None:
        data = torch.frombuffer(picture.fp.getbuffer(), dtype=torch.uint8)
        with contextlib.suppress(RuntimeError):  # Pillow then says what is wrong
            return decode_jpeg(data, ImageReadMode.RGB)
    return pixels(upright_rgb(picture))


def pixels(picture: Image.Image) -> Tensor:
    """Returns a copy of an RGB picture's pixels, uint8 (3, H, W), in channels-last memory."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def decode_crops(picture: Image.Image, boxes: Tensor, size: int) -> list[Tensor]:
    """Cuts boxes from a picture of :func:`open_picture`, decoded once, and resizes them.

    A large JPEG file is decoded at 1/2, 1/4 or 1/8 of its size, as long as every box keeps ``size`` pixels a
    side. ``boxes`` are (top, left, height, width) in pixels of the upright picture, int64 (V, 4). Returns V
    crops, uint8 (3, size, size); raises Unreadable.
    """
    width, smallest = picture.width, int(boxes[:, 2:].min())
    picture.draft("RGB", tuple(-(-side * size // smallest) for side in picture.size))
    shrink = round(width / picture.width)
    image = decode(picture, full_size=shrink == 1)
    crops = []
    for top, left, height, width in (boxes // shrink).tolist():
        crop = image[None, :, top : top + height, left : left + width]
        crops += F.interpolate(crop, (size, size), mode="bilinear", antialias=True)
    return crops


def central_crop(image: Tensor, size: int) -> Tensor:
    """Resizes the shorter side of uint8 (3, H, W) to ``size`` * 256 / 224 and cuts the central square, uint8
    (3, size, size)."""
    image = functional.resize(image, [size * 256 // 224], antialias=True)
    return functional.center_crop(image, [size, size])
