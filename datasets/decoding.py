"""One image file: from its bytes to upright pixels and crops, for every kind of file that image sets hold.

Pillow decodes everything. Plain JPEG files, which are nearly all of them, have quicker decoders, one of
:data:`JPEG_DECODERS` on the CPU or on a GPU; all of them give the same pixels.
"""

import functools
import io
import os
import stat
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from datasets.checks import os_reason
from datasets.pixels import exif_orientation, upright_rgb, why_unreadable
from utils.errors import first_line

# Said at every call of torchvision's decoder, which is used for as long as it is there.
warnings.filterwarnings("ignore", message="The image decoding and encoding capabilities of TorchVision")

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "WEBP")  # Pillow has some that start other programs
MAX_FILE_BYTES = 2**28
MAX_PIXELS = 2**26  # 200 MB decoded; the largest photographs of ImageNet have a third of that
MAX_ASPECT = 100  # scaling a longer strip to a given height could take any amount of memory
END_OF_JPEG = b"\xff\xd9"
MAX_REDUCTION = 64  # a box's side by its crop's: the resize of CUDA fails above about 94


class Unreadable(Exception):
    """A file without a whole image in it; the message is the reason, as in "X cannot be read: reason"."""


class EncodedImage(NamedTuple):
    """A file's bytes with its header read; ``height`` and ``width`` are those of the upright image, in
    pixels.

    ``plain`` marks what every JPEG decoder reads alike: colour, not CMYK, no rotation. The rest is left to
    Pillow.
    """

    data: bytearray
    picture: Image.Image
    height: int
    width: int
    plain: bool


def open_image(path: Path) -> EncodedImage:
    """Reads a file and its header; refuses what would take gigabytes before any of it is decoded.

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
    orientation = exif_orientation(picture)
    # With another transform the file holds RGB, which not every decoder respects.
    plain = (
        picture.format in ("JPEG", "MPO")
        and picture.mode == "RGB"
        and picture.info.get("adobe_transform", 1) == 1
        and orientation == 1
    )
    if orientation >= 5:  # the four that exchange rows and columns
        width, height = height, width
    return EncodedImage(data, picture, height, width, plain)


def _with_torchvision(files: list[Tensor], device: torch.device) -> list[Tensor]:
    from torchvision.io import ImageReadMode, decode_jpeg  # here, because a later torchvision may lack them

    return decode_jpeg(files, ImageReadMode.RGB, device=device)


def _with_torchcodec(files: list[Tensor], device: torch.device) -> list[Tensor]:
    from torchcodec.decoders import decode_jpeg  # optional

    return decode_jpeg(files, mode="RGB", device=device)


# (bytes of plain JPEG files, uint8 (L,) on the host; device) -> images, uint8 (3, H, W) on the device
JpegDecoder = Callable[[list[Tensor], torch.device], list[Tensor]]
JPEG_DECODERS: dict[str, JpegDecoder] = {"torchvision": _with_torchvision, "torchcodec": _with_torchcodec}


@functools.cache
def jpeg_decoder(device: torch.device) -> tuple[JpegDecoder | None, str]:
    """Returns the first of :data:`JPEG_DECODERS` that decodes a small image on the device, or None; and why
    those before it do not, for people to read."""
    stream = io.BytesIO()
    Image.new("RGB", (16, 16), (200, 100, 50)).save(stream, "JPEG")
    file = torch.frombuffer(bytearray(stream.getvalue()), dtype=torch.uint8)
    reasons = []
    for name, decode in JPEG_DECODERS.items():
        try:
            decode([file], device)
        except Exception as error:  # a missing package, library or driver, each with an exception of its own
            reasons.append(f"{name}: {first_line(error)}")
        else:
            return decode, "; ".join(reasons)
    return None, "; ".join(reasons)


def decode_image(encoded: EncodedImage, shrink: int = 1) -> Tensor:
    """Returns the upright image as uint8 RGB (3, H, W), in channels-last memory.

    ``shrink`` 2, 4 or 8 decodes at that fraction of the size, in the DCT domain; see :func:`decoding_shrink`.

    Raises:
        Unreadable: the file is truncated or damaged, or its pixels have no known white.
    """
    cpu = torch.device("cpu")
    decode, _ = jpeg_decoder(cpu)
    try:
        if encoded.plain and shrink == 1 and decode is not None:
            return decode([torch.frombuffer(encoded.data, dtype=torch.uint8)], cpu)[0]
        picture = encoded.picture
        if shrink > 1:
            picture.draft("RGB", (picture.width // shrink, picture.height // shrink))
        picture = upright_rgb(picture)
        pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    except Exception as error:  # see open_image
        raise Unreadable(why_unreadable(error, FORMATS)) from error
    return pixels.view(-1, picture.width, 3).permute(2, 0, 1)


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """Resizes one image, uint8 (3, H, W) on any device: bilinear, antialiased, as torchvision does.

    CUDA's kernel fails where a side shrinks more than about 94 times; see :func:`is_for_gpu`.
    """
    batch = image.unsqueeze(0)
    if image.is_cuda:  # there is no uint8 kernel there
        return (
            F.interpolate(batch.float(), size=(height, width), mode="bilinear", antialias=True)
            .round_()
            .clamp_(0, 255)
            .to(torch.uint8)[0]
        )
    return F.interpolate(batch, size=(height, width), mode="bilinear", antialias=True)[0]


def resized_crops(image: Tensor, boxes: Tensor, size: int, shrink: int = 1) -> list[Tensor]:
    """Cuts boxes (V, 4) of (top, left, height, width) in pixels from an image decoded at 1/``shrink`` of its
    size.

    Returns V crops, uint8 (3, size, size).
    """
    corners = (boxes // shrink).tolist()
    return [
        resize(image[:, top : top + height, left : left + width], size, size)
        for top, left, height, width in corners
    ]


def decoded_crops(encoded: EncodedImage, boxes: Tensor, size: int) -> list[Tensor]:
    """Decodes an image, no larger than its boxes (V, 4) need, and cuts them: V crops, uint8 (3, size, size).

    Raises:
        Unreadable: the file is truncated or damaged.
    """
    shrink = decoding_shrink(encoded, boxes, size)
    return resized_crops(decode_image(encoded, shrink), boxes, size, shrink)


def decoding_shrink(encoded: EncodedImage, boxes: Tensor, size: int) -> int:
    """Returns the strongest shrinking, 1, 2, 4 or 8, at which every box still has ``size`` pixels per side; 1
    for what is no JPEG."""
    if encoded.picture.format not in ("JPEG", "MPO"):
        return 1
    smallest = int(boxes[:, 2:].min())
    return next((shrink for shrink in (8, 4, 2) if smallest // shrink >= size), 1)


def central_crop(image: Tensor, size: int) -> Tensor:
    """Resizes the shorter side to ``size`` * 256 / 224 and cuts the central square, uint8, as torchvision's
    Resize and CenterCrop do."""
    _, height, width = image.shape
    short = size * 256 // 224
    if height <= width:
        image = resize(image, short, short * width // height)
    else:
        image = resize(image, short * height // width, short)
    top, left = (round((side - size) / 2) for side in image.shape[1:])
    return image[:, top : top + size, left : left + size]


def read_again(path: Path) -> str:
    """Returns why a file cannot be read, by reading it once more."""
    try:
        decode_image(open_image(path))
    except Unreadable as error:
        return str(error)
    return "it could be read when it was tried again"


def is_for_gpu(encoded: EncodedImage, boxes: Tensor, size: int) -> bool:
    """Whether a GPU is to decode a file and cut its boxes (V, 4) to ``size`` pixels per side.

    False for what not every decoder reads alike; for a file that lacks its end, which only the CPU's decoders
    are known to notice; and for boxes that CUDA cannot reduce in one go.
    """
    whole = encoded.plain and encoded.data.endswith(END_OF_JPEG)
    return whole and int(boxes[:, 2:].max()) <= MAX_REDUCTION * size
