"""What every reader of image files makes of a decoded picture: upright, 8-bit RGB."""

import numpy as np
from PIL import Image

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
    """The EXIF orientation, 1 to 8; 1, upright, where there is none that can be read."""
    try:
        value = picture.getexif().get(EXIF_ORIENTATION, 1) if "exif" in picture.info else 1
    except Exception:  # broken EXIF is common in good photographs
        return 1
    return value if value in range(1, 9) else 1


def upright_rgb(picture: Image.Image) -> Image.Image:
    """Decodes a picture: turned as its EXIF orientation says, and converted to mode RGB, 8 bits per channel.

    16-bit grey pixels keep their high byte, which is what Pillow makes of 16-bit colour; its own conversion
    of grey clips everything above 255 to white. Alpha, palette, CMYK and 8-bit grey pixels are converted as
    Pillow does.

    Raises:
        ValueError: floating-point pixels, or integers beyond 16 bits: such files do not say which value is
            white.
        Exception: whatever Pillow's decoders raise for a damaged file.
    """
    picture.load()
    turn = _TO_UPRIGHT.get(exif_orientation(picture))
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
