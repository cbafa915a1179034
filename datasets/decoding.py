"""One image file: from its bytes to upright pixels and crops, for every kind of file that image sets hold."""

import io
import os
import stat
import warnings
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torchvision.io import ImageReadMode, decode_jpeg

from datasets.files.checks import os_reason
from datasets.pixels import why_unreadable

# torchvision 0.29 announces the end of its decoders; they are the fastest there are until then.
warnings.filterwarnings("ignore", message="The image decoding and encoding capabilities of TorchVision")

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP")
MAX_FILE_BYTES = 2**28
MAX_PIXELS = 2**26  # 200 MB decoded; the largest photographs of ImageNet have a third of that
MAX_ASPECT = 100  # scaling a longer strip to a given height could take any amount of memory
EXIF_ORIENTATION = 0x0112
END_OF_JPEG = b"\xff\xd9"


class Unreadable(Exception):
    """A file without a whole image in it; the message is the reason, as in "X cannot be read: reason"."""


class EncodedImage(NamedTuple):
    """A file's bytes with its header read; ``height`` and ``width`` are those of the upright image, in
    pixels.

    ``plain`` marks what every JPEG decoder reads alike: colour, not CMYK, no rotation. The rest is Pillow's
    work.
    """

    data: bytearray
    picture: Image.Image
    height: int
    width: int
    plain: bool


def open_image(path: Path) -> EncodedImage:
    """Reads a file and its header, and refuses what would take gigabytes before any of it is decoded.

    Raises:
        Unreadable: no regular file, or no image of a known format and reasonable size.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise Unreadable("it is not a file")
        if not 0 < status.st_size <= MAX_FILE_BYTES:
            raise Unreadable(f"it has {status.st_size:,} bytes; the bounds are 1 and {MAX_FILE_BYTES:,}")
        data = bytearray(status.st_size)
        with open(path, "rb") as file:
            del data[file.readinto(data) :]
    except (OSError, ValueError) as error:
        raise Unreadable(os_reason(error)) from error
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
    except Exception as error:  # a stranger's bytes: Pillow's parsers raise whatever their code trips over
        raise Unreadable(why_unreadable(error, FORMATS)) from error
    width, height = picture.size
    if width * height > MAX_PIXELS or max(width, height) > MAX_ASPECT * min(width, height):
        raise Unreadable(f"{width} x {height} pixels are too many or too long a strip")
    orientation = _orientation(picture)
    plain = (
        picture.format in ("JPEG", "MPO")
        and picture.mode == "RGB"
        and picture.info.get("adobe_transform", 1)
        == 1  # else the file holds RGB, which not every decoder respects
        and orientation == 1
    )
    if orientation >= 5:  # the four that exchange rows and columns
        width, height = height, width
    return EncodedImage(data, picture, height, width, plain)


def _orientation(picture: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1, upright, where there is none that can be read."""
    try:
        value = picture.getexif().get(EXIF_ORIENTATION, 1) if "exif" in picture.info else 1
    except Exception:  # broken EXIF is common in good photographs
        return 1
    return value if value in range(1, 9) else 1


def decode_image(encoded: EncodedImage, shrink: int = 1) -> torch.Tensor:
    """The upright image as uint8 RGB (3, H, W), in channels-last memory.

    ``shrink`` 2, 4 or 8 decodes at that fraction of the size, in the DCT domain; see :func:`decoding_shrink`.

    Raises:
        Unreadable: the file is truncated or damaged.
    """
    picture = encoded.picture
    try:
        if encoded.plain and shrink == 1:
            return decode_jpeg(torch.frombuffer(encoded.data, dtype=torch.uint8), ImageReadMode.RGB)
        if shrink > 1:
            picture.draft("RGB", (picture.width // shrink, picture.height // shrink))
        picture.load()
        if _orientation(picture) != 1:
            picture = ImageOps.exif_transpose(picture)
        pixels = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8)
    except Exception as error:  # see open_image
        raise Unreadable(why_unreadable(error, FORMATS)) from error
    return pixels.view(-1, picture.width, 3).permute(2, 0, 1)


def resize(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Antialiased bilinear resize of one image, uint8 (3, H, W) on any device, as torchvision does it."""
    batch = image.unsqueeze(0)
    if image.is_cuda:  # there is no uint8 kernel there
        return (
            F.interpolate(batch.float(), size=(height, width), mode="bilinear", antialias=True)
            .round_()
            .clamp_(0, 255)
            .to(torch.uint8)[0]
        )
    return F.interpolate(batch, size=(height, width), mode="bilinear", antialias=True)[0]


def resized_crops(image: torch.Tensor, boxes: torch.Tensor, size: int, shrink: int = 1) -> list[torch.Tensor]:
    """Cuts boxes (V, 4) of (top, left, height, width) in pixels from an image decoded at 1/``shrink`` of its
    size.

    Returns V crops, uint8 (3, size, size).
    """
    corners = (boxes // shrink).tolist()
    return [
        resize(image[:, top : top + height, left : left + width], size, size)
        for top, left, height, width in corners
    ]


def decoding_shrink(encoded: EncodedImage, boxes: torch.Tensor, size: int) -> int:
    """The strongest shrinking, 1, 2, 4 or 8, at which every box still has ``size`` pixels a side; 1 for what
    is no JPEG."""
    if encoded.picture.format not in ("JPEG", "MPO"):
        return 1
    smallest = int(boxes[:, 2:].min())
    return next((shrink for shrink in (8, 4, 2) if smallest // shrink >= size), 1)


def central_crop(image: torch.Tensor, size: int) -> torch.Tensor:
    """Shorter side to ``size`` * 256 / 224, then the central square, uint8: torchvision's Resize and
    CenterCrop."""
    _, height, width = image.shape
    short = size * 256 // 224
    if height <= width:
        image = resize(image, short, short * width // height)
    else:
        image = resize(image, short * height // width, short)
    top, left = (round((side - size) / 2) for side in image.shape[1:])
    return image[:, top : top + size, left : left + size]


def read_again(path: Path) -> str:
    """Why a file cannot be read, found by reading it once more."""
    try:
        decode_image(open_image(path))
    except Unreadable as error:
        return str(error)
    return "it could be read when it was tried again"


def decode_for_gpu(encoded: EncodedImage) -> torch.Tensor:
    """The bytes (L,) of a file that nvJPEG reads right; any other image decoded, uint8 (3, H, W).

    A file that lacks its end is decoded here too, because only the CPU decoders are known to notice.
    """
    if encoded.plain and encoded.data.endswith(END_OF_JPEG):
        return torch.frombuffer(encoded.data, dtype=torch.uint8)
    return decode_image(encoded)
