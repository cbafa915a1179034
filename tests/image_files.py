"""Image files, good and bad, that several tests make."""

import io

import numpy as np
from PIL import Image


def photograph(seed, height=40, width=56):
    """A smooth random picture, PIL RGB: survives JPEG nearly unchanged."""
    noise = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def truncate(path, share=0.6):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def encoded(kind):
    stream = io.BytesIO()
    photograph(1).save(stream, kind, quality=95)  # which PNG ignores
    return stream.getvalue()


JPEG, PNG = encoded("JPEG"), encoded("PNG")
THIRD = len(PNG) // 3
UNREADABLE = {
    "empty": b"",
    "text": b"<html>404 not found</html>",
    "truncated": JPEG[: len(JPEG) * 6 // 10],
    "damaged PNG": PNG[:THIRD] + bytes(THIRD) + PNG[2 * THIRD :],
    "gigabytes": b"P6 60000 60000 255\n",
    "not what we read": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
}
