"""Image files, good and bad, that several tests make."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def photograph(seed, height=40, width=56):
    """A smooth random picture, PIL RGB: survives JPEG nearly unchanged."""
    noise = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def truncate(path, share=0.6):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def png_header(width, height):
    """A PNG that announces a size and holds nothing."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def jpeg_bytes(seed=1):
    stream = io.BytesIO()
    photograph(seed).save(stream, "JPEG", quality=95)
    return stream.getvalue()


UNREADABLE = {
    "empty": b"",
    "text": b"<html>404 not found</html>",
    "truncated": jpeg_bytes()[: len(jpeg_bytes()) * 6 // 10],
    "gigabytes": png_header(60_000, 60_000),
    "not what we read": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
}
