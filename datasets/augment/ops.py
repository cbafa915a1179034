"""Batched image operations: one parameter per image, no loop over images, no host-device synchronisation.

Images (N, 3, H, W) are not modified; parameters are host tensors (N,), real ones float64. Results equal those
of ``torchvision.transforms.v2.functional``, one image at a time: bit for bit on uint8 images (the bicubic
shears are Pillow's), to rounding error on float32 ones in [0, 1].
"""

import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601-2 weights as torchvision writes them


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copies a host tensor to ``device``, through pinned memory: a pageable copy would make the host wait."""
    if device.type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def _per_image(values: Tensor, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Returns host values (N,) as (N, 1, 1, 1) on the images' device."""
    return to_device(values.to(dtype), images.device).view(-1, 1, 1, 1)


def truncated(images: Tensor) -> Tensor:
    """Converts [0, 255] to uint8, rounding down; through int16, which a CPU converts four times as fast."""
    return images.to(torch.int16).to(torch.uint8)


def luma(images: Tensor) -> Tensor:
    """Returns the brightness (N, 1, H, W), float32; whole numbers for uint8 images, as Pillow rounds here."""
    red, green, blue = images.unbind(1)
    brightness = red.mul(LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2]).unsqueeze_(1)
    return brightness if images.is_floating_point() else brightness.floor_()


def _blend(images: Tensor, other: Tensor | None, factor: Tensor) -> Tensor:
    """Returns ``factor * images + (1 - factor) * other``, clipped; ``other`` None means black."""
    blended = images * _per_image(factor, images)
    if other is not None:
        # Contiguous: addcmul is slow where both factors are broadcast.
        other = other.expand(-1, -1, *images.shape[2:]).contiguous()
        blended.addcmul_(other, _per_image(1.0 - factor, images))
    if images.is_floating_point():
        return blended.clamp_(0.0, 1.0)
    return truncated(blended.clamp_(0.0, 255.0))


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Scales the pixels; factor 0 is black, 1 the image."""
    return _blend(images, None, factor)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blends with each pixel's own brightness; factor 0 is gray, 1 the image."""
    return _blend(images, luma(images), factor)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blends with the image's mean brightness; factor 0 is a uniform gray, 1 the image."""
    return _blend(images, luma(images).mean((1, 2, 3), keepdim=True), factor)


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Rotates the hue of float images by ``shift`` in [-0.5, 0.5] of a full circle.

    As by HSV and back: with V the largest channel and C the spread between the channels, a channel at offset
    n is ``V - C * clip(min(k, 4 - k), 0, 1)``, ``k = (n + 6 hue) mod 6``.
    """
    red, green, blue = images.unbind(1)
    larger, smaller = torch.maximum(green, blue), torch.minimum(green, blue)
    value, middle = torch.maximum(red, larger), torch.minimum(red, larger)
    chroma = value - torch.minimum(middle, smaller)
    # Which channel is largest and which second, as 0 or 1: a CPU does arithmetic far faster than torch.where.
    blue_above_green = torch.lt(green, blue, out=torch.empty_like(larger))
    not_red = torch.lt(red, larger, out=torch.empty_like(larger))
    sector = blue_above_green.mul_(-1.0)
    sector.addcmul_(not_red, sector, value=-2.0).add_(not_red, alpha=-1.0 / 3.0)
    # Gray pixels have slope 0, so any denominator gives them a finite hue, and chroma 0 keeps them gray.
    hue = middle.sub_(smaller).div_(torch.add(1e-20, chroma, alpha=6.0)).add_(sector).abs_()
    hue.add_(_per_image(shift + 1.0, images).squeeze(1)).frac_().mul_(6.0)
    turned = torch.empty_like(images)
    for channel, centre in enumerate((3.0, 2.0, 4.0)):
        distance = hue.sub(centre).abs_()
        drop = 2.0 - distance if channel == 0 else distance.sub_(1.0)
        torch.addcmul(value, drop.clamp_(0.0, 1.0), chroma, value=-1.0, out=turned[:, channel])
    return turned


def _triangle_weights(start, length, size_in, size_out, device):
    """Returns the weights (N, size_out, size_in) of antialiased bilinear resampling of
    ``[start, start + length)``: a triangle filter whose half-width is one pixel, or one output pixel where
    that is larger.
    """
    start, length = (to_device(v.to(torch.float32), device).view(-1, 1, 1) for v in (start, length))
    scale = length / size_out
    centre = torch.arange(size_out, device=device, dtype=torch.float32).add_(0.5).view(1, -1, 1) * scale
    pixel = torch.arange(size_in, device=device, dtype=torch.float32).view(1, 1, -1) - start
    weights = (pixel + 0.5 - centre).abs_().div_(scale.clamp_min(1.0)).neg_().add_(1.0).clamp_min_(0.0)
    weights.mul_((pixel >= 0) & (pixel < length))
    return weights.div_(weights.sum(2, keepdim=True))


def resized_crop(
    images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor, flip: Tensor, size: int
) -> Tensor:
    """Resizes a box of each uint8 image to (size, size), antialiased bilinear; mirrors it where ``flip`` is
    set; returns float32 in [0, 1]. Two batched matrix products, as the resampling is separable and the mirror
    only reorders weights (call it outside autocast)."""
    n, channels, rows, columns = images.shape
    down = _triangle_weights(top, height, rows, size, images.device).div_(255.0)
    across = _triangle_weights(left, width, columns, size, images.device)
    across = torch.where(to_device(flip, images.device).view(-1, 1, 1), across.flip(1), across)
    resized = torch.bmm(images.to(torch.float32).reshape(n, channels * rows, columns), across.transpose(1, 2))
    return torch.matmul(down.unsqueeze(1), resized.view(n, channels, rows, size)).clamp_(0.0, 1.0)


def cutout(images: Tensor, row: Tensor, column: Tensor, length: int) -> Tensor:
    """Blackens ``[centre - length // 2, centre + length // 2)`` in both directions (DeVries and Taylor, arXiv
    1708.04552)."""
    half = length // 2
    down = torch.arange(images.shape[2]) - row[:, None]
    across = torch.arange(images.shape[3]) - column[:, None]
    rows, columns = (to_device((away >= -half) & (away < half), images.device) for away in (down, across))
    return images.masked_fill(rows[:, None, :, None] & columns[:, None, None], 0)


def padded_crop(images: Tensor, top: Tensor, left: Tensor, flip: Tensor, padding: int) -> Tensor:
    """Pads with zeros on each side, crops the original size at (top, left) in [0, 2 * padding], mirrors where
    ``flip`` is set."""
    n, channels, height, width = images.shape
    padded = F.pad(images, [padding] * 4)
    across = torch.arange(width, device=images.device)
    top, left, flip = (to_device(v, images.device).view(-1, 1) for v in (top, left, flip))
    rows = top + torch.arange(height, device=images.device)
    columns = left + torch.where(flip, width - 1 - across, across)
    pixel = (
        (rows.unsqueeze(2) * padded.shape[3] + columns.unsqueeze(1)).view(n, 1, -1).expand(-1, channels, -1)
    )
    return padded.flatten(2).gather(2, pixel).view_as(images)


# By name and value v, as pairs along x and y: the pixel at (x, y) from the centre of the output comes from
# x * first + y * second + third.
MAPS = {
    # Each row (column) moves v pixels further than the one before; the first edge stays.
    "ShearX": lambda v, height, width: ((1.0, 0.0), (v, 1.0), (v * (0.5 * height), 0.0)),
    "ShearY": lambda v, height, width: ((1.0, v), (0.0, 1.0), (0.0, v * (0.5 * width))),
    # Right or down by v pixels, rounded towards zero.
    "TranslateX": lambda v, height, width: ((1.0, 0.0), (0.0, 1.0), (-v.trunc(), 0.0)),
    "TranslateY": lambda v, height, width: ((1.0, 0.0), (0.0, 1.0), (0.0, -v.trunc())),
    # Counter-clockwise by v degrees.
    "Rotate": lambda v, height, width: (
        (v.deg2rad().cos(), v.deg2rad().sin()),
        (-v.deg2rad().sin(), v.deg2rad().cos()),
        (0.0, 0.0),
    ),
}


def warp(images: Tensor, value: Tensor, name: str, fill: int = 0) -> Tensor:
    """Warps uint8 images by the map of that name, nearest neighbour; the value ``fill`` outside."""
    n, _, height, width = images.shape
    device = images.device
    entries = [v for pair in MAPS[name](value, height, width) for v in pair]
    theta = torch.stack([torch.as_tensor(v, dtype=torch.float64).expand(n) for v in entries], 1)
    theta = theta.float().view(n, 3, 2) / torch.tensor([0.5 * width, 0.5 * height])
    by_x, by_y, offset = to_device(theta, device).view(n, 3, 1, 1, 2).unbind(1)
    across = (torch.arange(width, device=device) - 0.5 * (width - 1)).view(1, 1, -1, 1)
    down = (torch.arange(height, device=device) - 0.5 * (height - 1)).view(1, -1, 1, 1)
    # As complex numbers: one addition fills both coordinates of the grid.
    across, down = torch.view_as_complex(across * by_x), torch.view_as_complex(down * by_y + offset)
    grid = torch.view_as_real(across + down)
    shifted = images.to(torch.float32).sub_(fill)  # grid_sample has zeros outside
    warped = F.grid_sample(shifted, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return truncated(warped.add_(fill))


def shear_x_bicubic(images: Tensor, level: Tensor, fill: int) -> Tensor:
    """Shears along x as Pillow's bicubic ``Image.transform`` does: row y comes from ``level * (y + 1/2)``
    further right, ``fill`` outside. The kernel is Keys' cubic with a = -1; the border repeats."""
    n, channels, height, width = images.shape
    centres = torch.arange(width, dtype=torch.float64) + 0.5
    place = centres + level.view(-1, 1, 1) * (torch.arange(height).view(-1, 1) + 0.5)
    inside = (place >= 0) & (place < width)
    first = (place - 0.5).floor()
    t = to_device((place - 0.5 - first).to(torch.float32), images.device).unsqueeze(1)

    def tap(offset):
        columns = to_device((first + offset).clamp_(0, width - 1).long(), images.device)
        return values.gather(3, columns.unsqueeze(1).expand(n, channels, height, width))

    values = images.to(torch.float32)
    a, b, c, d = (tap(offset) for offset in (-1, 0, 1, 2))
    sheared = b + t * (c - a + t * (2 * (a - b) + c - d + t * (b - a + d - c)))
    sheared = sheared.clamp_(0.0, 255.0).masked_fill_(~to_device(inside, images.device).unsqueeze(1), fill)
    return truncated(sheared)


def adjust_sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Blends with a smoothed image, but for a border of one pixel; factor 0 is smooth, 1 the image."""
    sharpened = images.to(torch.float32)
    interior = sharpened[..., 1:-1, 1:-1]
    # The smoothing weights are 1 around a 5, over 13. Whole sums are exact, and a thirteenth is never a tie.
    columns = sharpened[..., :-2] + sharpened[..., 1:-1] + sharpened[..., 2:]
    smooth = columns[..., :-2, :] + columns[..., 1:-1, :] + columns[..., 2:, :]
    smooth.add_(interior, alpha=4.0).div_(13.0).round_()
    interior.addcmul_(smooth.sub_(interior), _per_image(1.0 - factor, images))
    return truncated(sharpened.clamp_(0.0, 255.0))


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keeps the highest ``bits`` (0 to 8) of each value."""
    return images & _per_image(256 - 2 ** (8 - bits.long()), images, torch.uint8)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Inverts the values at or above ``threshold``."""
    above = images - _per_image(threshold.ceil(), images, torch.int16)
    bright = above.bitwise_right_shift_(15).bitwise_not_()  # -1 or 0, faster than a comparison
    return images ^ bright.to(torch.uint8)


def solarize_add(images: Tensor, addition: Tensor) -> Tensor:
    """Adds ``addition`` (0 to 128) to the values below 128."""
    dark = (images >> 7).sub_(1)  # 255 or 0
    return dark.bitwise_and_(_per_image(addition, images, torch.uint8)).add_(images)


def autocontrast(images: Tensor) -> Tensor:
    """Stretches each channel to the full range; a channel of one value stays as it is."""
    stretched = images.to(torch.float32)
    low, high = stretched.amin((2, 3), keepdim=True), stretched.amax((2, 3), keepdim=True)
    flat = low == high
    scale = (high - low).mul_(1.0 / 255.0).masked_fill_(flat, 1.0)
    return truncated(stretched.sub_(low.masked_fill_(flat, 0.0)).div_(scale).clamp_(0.0, 255.0))
