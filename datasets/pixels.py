"""Shared by the readers of image files: upright 8-bit RGB pixels, or the reason why there are none."""

import re
import warnings
from collections.abc import Sequence

import numpy as np
from PIL import Image, UnidentifiedImageError, features

from datasets.checks import os_reason
from utils.errors import first_line

# It names no file, and conversion to RGB leaves transparency out in any case.
warnings.filterwarnings("ignore", message="Palette images with Transparency")

_DECODERS = {"JPEG": "jpg", "PNG": "zlib", "WEBP": "webp"}  # what Pillow can be built without
EXIF_ORIENTATION = 0x0112
_TO_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def exif_orientation(picture: Image.Image) -> int:
    """Returns the EXIF orientation, 1 to 8; 1 (upright) if none can be read."""
    try:
        value = picture.getexif().get(EXIF_ORIENTATION, 1) if "exif" in picture.info else 1
    except Exception:  # broken EXIF is common in good photographs
        return 1
    return value if value in range(1, 9) else 1


def upright_rgb(picture: Image.Image) -> Image.Image:
    """Decodes a picture, turns it as its EXIF orientation says, and converts it to RGB, 8 bits per channel.

    16-bit grey pixels keep their high byte, as Pillow does for 16-bit colour; its own conversion of grey
    clips everything above 255 to white. Alpha, palette, CMYK and 8-bit grey pixels are converted as
    Pillow does.

    Raises:
        ValueError: the pixels are floating-point numbers, or integers of more than 16 bits: such files do not
            say which value is white.
        Exception: whatever Pillow's decoders raise for a damaged file.
    """
    turn = _TO_UPRIGHT.get(exif_orientation(picture))  # as read from the header, which sizes and boxes follow
    picture.load()
    if picture.mode == "F":
        raise ValueError(
            "its pixels are floating-point numbers, which have no known white; store 8 or 16 bits"
        )
    if picture.mode.startswith("I"):  # mode I holds 16 bits, too, where it comes from PGM or an older Pillow
        values = np.asarray(picture)
        if values.min() < 0 or values.max() > 65_535:
            raise ValueError("its pixels are 32-bit integers, which have no known white; store 8 or 16 bits")
        picture = Image.fromarray((values >> 8).astype(np.uint8))
    rgb = picture.convert("RGB")
    return rgb if turn is None else rgb.transpose(turn)


def why_unreadable(error: Exception, formats: Sequence[str]) -> str:
    """Returns in one line why Pillow or torchvision could not decode a file of one of ``formats``."""
    if isinstance(error, UnidentifiedImageError):  # its own words name a Python object instead of the file
        lacking = [name for name in formats if name in _DECODERS and not features.check(_DECODERS[name])]
        missing = f"; this Pillow was built without a decoder for {', '.join(lacking)}" if lacking else ""
        return f"it is no image of the formats {', '.join(formats)}{missing}"
    if isinstance(error, OSError):
        return os_reason(error)
    return re.sub(r"^.*\.cpp:\d+, ", "", first_line(error))  # torchvision names its source file first
