"""Batched image operations: one parameter per sample, no loop over samples, no wait for the device.

Images are (N, 3, H, W) on any device; parameters are host tensors of shape (N,), moved beside the images
without blocking, so that one CPU generator gives the same parameters everywhere. Give real parameters in
float64: torchvision, whose arithmetic these operations reproduce, takes Python floats. Nothing is random
here, and no input is written to.

Two families, each equal to ``torchvision.transforms.v2.functional`` on tensors, one image at a time:

* uint8 in, uint8 out, equal bit for bit (nearest-neighbour sampling, zeros outside): the AutoAugment
  operations;
* float32 in [0, 1], equal to rounding error: resized crop, colour jitter, grayscale.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601-2 weights as torchvision writes them


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """A host tensor on ``device``; through pinned memory, because a pageable copy would make the host
    wait."""
    if device.type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def _per_image(values: Tensor, images: Tensor) -> Tensor:
    """Host values (N,) as float32 (N, 1, 1, 1) beside the images."""
    return to_device(values.to(torch.float32), images.device).view(-1, 1, 1, 1)


def _truncated(images: Tensor) -> Tensor:
    """Float images in [0, 255] to uint8, cut to whole numbers; by way of int16, which a CPU converts four
    times as fast."""
    return images.to(torch.int16).to(torch.uint8)


def _luma(images: Tensor) -> Tensor:
    """Brightness (N, 1, H, W) in float32; whole numbers for uint8 images, which is where Pillow rounds."""
    red, green, blue = images.unbind(1)
    luma = red.mul(LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2]).unsqueeze_(1)
    return luma if images.is_floating_point() else luma.floor_()


def _blend(images: Tensor, other: Tensor | None, factor: Tensor) -> Tensor:
    """``factor * images + (1 - factor) * other``, clipped to the range of the dtype; ``other`` None means
    black."""
    if len(images) == 1:  # numbers instead of tensors of one element: the same arithmetic in quicker loops
        blended = images * float(factor)
        if other is not None:
            blended.add_(other, alpha=float(1.0 - factor))
    else:
        blended = images * _per_image(factor, images)
        if other is not None:
            other = other.expand(
                -1, -1, *images.shape[2:]
            ).contiguous()  # two factors of single numbers run slowly
            blended.addcmul_(other, _per_image(1.0 - factor, images))
    if images.is_floating_point():
        return blended.clamp_(0.0, 1.0)
    return _truncated(blended.clamp_(0.0, 255.0))


# --- brightness, colour and contrast, for both dtypes


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Scale the pixels; factor 0 is black, 1 the image."""
    return _blend(images, None, factor)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with each pixel's own brightness; factor 0 is gray, 1 the image."""
    return _blend(images, _luma(images), factor)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the image's mean brightness; factor 0 is one gray, 1 the image."""
    return _blend(images, _luma(images).mean((1, 2, 3), keepdim=True), factor)


# --- float32 images in [0, 1]


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue of float images by ``shift`` in [-0.5, 0.5] of a full circle.

    Equal to the trip to HSV and back, without forming it: with V the largest channel and C the spread between
        the
    channels, a channel at offset n is ``V - C * clip(min(k, 4 - k), 0, 1)``, ``k = (n + 6 hue) mod 6``.
    """
    red, green, blue = images.unbind(1)
    larger, smaller = torch.maximum(green, blue), torch.minimum(green, blue)
    value, middle = torch.maximum(red, larger), torch.minimum(red, larger)
    chroma = value - torch.minimum(middle, smaller)
    # Which channel leads and which comes second, as 0 or 1: a CPU does arithmetic far quicker than
    # torch.where.
    blue_above_green = torch.lt(green, blue, out=torch.empty_like(larger))
    not_red = torch.lt(red, larger, out=torch.empty_like(larger))
    sector = blue_above_green.mul_(-1.0)
    sector.addcmul_(not_red, sector, value=-2.0).add_(not_red, alpha=-1.0 / 3.0)
    # Gray pixels have slope 0, so that any denominator gives them a finite hue, and chroma 0 keeps them gray.
    hue = middle.sub_(smaller).div_(torch.add(1e-20, chroma, alpha=6.0)).add_(sector).abs_()
    hue.add_(_per_image(shift + 1.0, images).squeeze(1)).frac_().mul_(6.0)
    turned = torch.empty_like(images)
    for channel, centre in enumerate((3.0, 2.0, 4.0)):
        distance = hue.sub(centre).abs_()
        drop = 2.0 - distance if channel == 0 else distance.sub_(1.0)
        torch.addcmul(value, drop.clamp_(0.0, 1.0), chroma, value=-1.0, out=turned[:, channel])
    return turned


def grayscale(images: Tensor) -> Tensor:
    """Each pixel's brightness in all three channels."""
    return _luma(images).to(images.dtype).expand_as(images)


def to_float(images: Tensor) -> Tensor:
    """uint8 to float32 in [0, 1]."""
    return images.to(torch.float32).mul_(1.0 / 255.0)


def to_uint8(images: Tensor) -> Tensor:
    """float32 in [0, 1] to the nearest uint8."""
    return _truncated(images.mul(255.0).round_())


def _triangle_weights(
    start: Tensor, length: Tensor, reverse: Tensor, size_in: int, size_out: int, device: torch.device
) -> Tensor:
    """Weights (N, size_out, size_in) of antialiased bilinear resampling of ``[start, start + length)``.

    Output pixel i looks at the segment's point ``(i + 1/2) * length / size_out`` through a triangle whose
    half-width is one pixel, or one output pixel when that is larger; what lies outside the segment does not
    count.
    """
    start, length, reverse = (
        to_device(v.to(torch.float32), device).view(-1, 1, 1) for v in (start, length, reverse)
    )
    scale = length / size_out
    ahead = torch.arange(size_out, device=device, dtype=torch.float32).add_(0.5).view(1, -1, 1)
    centre = torch.lerp(ahead, size_out - ahead, reverse) * scale
    pixel = torch.arange(size_in, device=device, dtype=torch.float32).view(1, 1, -1) - start
    weights = (pixel + 0.5 - centre).abs_().div_(scale.clamp_min(1.0)).neg_().add_(1.0).clamp_min_(0.0)
    weights.mul_((pixel >= 0) & (pixel < length))
    return weights.div_(weights.sum(2, keepdim=True))


def resized_crop(
    images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor, flip: Tensor, size: int
) -> Tensor:
    """Crop a box from each image, resize it to (size, size), antialiased bilinear, and mirror where ``flip``
    is set.

    The resampling is separable and the mirror only reorders the columns' weights, so all of it is two batched
    matrix products (call it outside autocast). Boxes are int64 and lie inside the images; ``flip`` is bool.
    uint8 or float in, float32 in [0, 1] out.
    """
    n, channels, rows, columns = images.shape
    never = torch.zeros_like(flip)
    down = _triangle_weights(top, height, never, rows, size, images.device)
    across = _triangle_weights(left, width, flip, columns, size, images.device)
    if not images.is_floating_point():
        down.div_(255.0)
    resized = torch.bmm(images.to(torch.float32).reshape(n, channels * rows, columns), across.transpose(1, 2))
    return torch.matmul(down.unsqueeze(1), resized.view(n, channels, rows, size)).clamp_(0.0, 1.0)


def cutout(
    images: Tensor, row: Tensor, column: Tensor, length: int, fill: tuple[float, float, float]
) -> Tensor:
    """Cover the square of side ``length`` centred at (row, column) with the colour ``fill``, clipped at the
    borders.

    Source: DeVries and Taylor, arXiv 1708.04552; their square spans ``[centre - length // 2, centre + length
        // 2)``.
    """
    half = length // 2
    rows = torch.arange(images.shape[2], device=images.device).view(1, 1, -1, 1)
    columns = torch.arange(images.shape[3], device=images.device).view(1, 1, 1, -1)
    row, column = (to_device(v, images.device).view(-1, 1, 1, 1) for v in (row, column))
    inside = ((rows >= row - half) & (rows < row + half)) & (
        (columns >= column - half) & (columns < column + half)
    )
    colour = to_device(torch.tensor(fill, dtype=images.dtype), images.device).view(1, 3, 1, 1)
    return torch.where(inside, colour, images)


# --- any dtype


def horizontal_flip(images: Tensor, flip: Tensor) -> Tensor:
    """Mirror the images whose ``flip`` (bool) is set."""
    return torch.where(to_device(flip, images.device).view(-1, 1, 1, 1), images.flip(3), images)


def padded_crop(images: Tensor, top: Tensor, left: Tensor, flip: Tensor, padding: int) -> Tensor:
    """Pad with ``padding`` zeros on each side, crop the original size at (top, left), mirror where ``flip``
    is set.

    ``top`` and ``left`` are int64 in [0, 2 * padding].
    """
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


# --- uint8 images: the operations of AutoAugment and RandAugment


def _matrix(
    a: Tensor | float,
    b: Tensor | float,
    tx: Tensor | float,
    c: Tensor | float,
    d: Tensor | float,
    ty: Tensor | float,
    like: Tensor,
) -> Tensor:
    entries = [torch.as_tensor(v, dtype=torch.float64).expand(like.shape) for v in (a, b, tx, c, d, ty)]
    return torch.stack(entries, -1).view(-1, 2, 3)


def shear_x_matrix(level: Tensor, height: int) -> Tensor:
    """Matrices (N, 2, 3) for ``affine``: rows slide by ``level`` pixels a row, the top edge stays."""
    level = level.double()
    return _matrix(1.0, level, level * (0.5 * height), 0.0, 1.0, 0.0, level)


def shear_y_matrix(level: Tensor, width: int) -> Tensor:
    """Matrices (N, 2, 3) for ``affine``: columns slide by ``level`` pixels a column, the left edge stays."""
    level = level.double()
    return _matrix(1.0, 0.0, 0.0, level, 1.0, level * (0.5 * width), level)


def translate_matrix(x: Tensor, y: Tensor) -> Tensor:
    """Matrices (N, 2, 3) for ``affine``: move the content right by ``x`` and down by ``y`` whole pixels."""
    x, y = x.double().trunc(), y.double().trunc()
    return _matrix(1.0, 0.0, -x, 0.0, 1.0, -y, x)


def rotate_matrix(degrees: Tensor) -> Tensor:
    """Matrices (N, 2, 3) for ``affine``: turn about the centre, counter-clockwise."""
    angle = torch.deg2rad(degrees.double())
    return _matrix(angle.cos(), -angle.sin(), 0.0, angle.sin(), angle.cos(), 0.0, angle)


def affine(images: Tensor, matrix: Tensor) -> Tensor:
    """Nearest-neighbour affine warp of uint8 images, zeros outside.

    ``matrix`` (N, 2, 3) maps output to input coordinates, in pixels from the image centre.
    """
    n, _, height, width = images.shape
    device = images.device
    half_size = torch.tensor([0.5 * width, 0.5 * height])
    theta = to_device(matrix.to(torch.float32).transpose(1, 2) / half_size, device)
    across = (torch.arange(width, device=device) - 0.5 * (width - 1)).view(1, 1, -1, 1)
    down = (torch.arange(height, device=device) - 0.5 * (height - 1)).view(1, -1, 1, 1)
    by_x, by_y, offset = theta.view(n, 3, 1, 1, 2).unbind(1)
    # As complex numbers, because one addition then fills both coordinates of the grid.
    grid = torch.view_as_real(
        torch.view_as_complex(across * by_x) + torch.view_as_complex(down * by_y + offset)
    )
    warped = F.grid_sample(
        images.to(torch.float32), grid, mode="nearest", padding_mode="zeros", align_corners=False
    )
    return _truncated(warped)


def shear_x(images: Tensor, level: Tensor) -> Tensor:
    """Shear along x by ``level`` (tangent of the angle)."""
    return affine(images, shear_x_matrix(level, images.shape[2]))


def shear_y(images: Tensor, level: Tensor) -> Tensor:
    """Shear along y by ``level`` (tangent of the angle)."""
    return affine(images, shear_y_matrix(level, images.shape[3]))


def translate_x(images: Tensor, pixels: Tensor) -> Tensor:
    """Move right by ``pixels``, rounded towards zero."""
    return affine(images, translate_matrix(pixels, torch.zeros_like(pixels)))


def translate_y(images: Tensor, pixels: Tensor) -> Tensor:
    """Move down by ``pixels``, rounded towards zero."""
    return affine(images, translate_matrix(torch.zeros_like(pixels), pixels))


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Turn counter-clockwise about the centre."""
    return affine(images, rotate_matrix(degrees))


def adjust_sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with a smoothed image; factor 0 is smooth, 1 the image, above 1 sharper. The one-pixel border
    stays."""
    sharpened = images.to(torch.float32)
    interior = sharpened[..., 1:-1, 1:-1]
    # The smoothing weights are 1 around a 5, over 13. Sums of whole numbers are exact, and a thirteenth is
    # never a tie.
    columns = sharpened[..., :-2] + sharpened[..., 1:-1] + sharpened[..., 2:]
    smooth = columns[..., :-2, :] + columns[..., 1:-1, :] + columns[..., 2:, :]
    smooth.add_(interior, alpha=4.0).div_(13.0).round_()
    interior.addcmul_(smooth.sub_(interior), _per_image(1.0 - factor, images))
    return _truncated(sharpened.clamp_(0.0, 255.0))


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep the highest ``bits`` (0 to 8) of each value."""
    mask = (256 - 2 ** (8 - bits.long())).to(torch.uint8)
    return images & to_device(mask, images.device).view(-1, 1, 1, 1)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Invert the values at or above ``threshold``."""
    threshold = to_device(threshold.ceil().to(torch.int16), images.device).view(-1, 1, 1, 1)
    below = (images - threshold) >> 15  # -1 or 0: bit operations cost a CPU a fifth of what torch.where costs
    return images ^ below.bitwise_not_().to(torch.uint8)


def solarize_add(images: Tensor, addition: Tensor) -> Tensor:
    """Add ``addition`` (0 to 128) to the values below 128, clipped at 255."""
    wide = images.to(torch.int16)
    added = (wide + to_device(addition.to(torch.int16), images.device).view(-1, 1, 1, 1)).clamp_(max=255)
    dark = wide.sub_(128).bitwise_right_shift_(15)  # -1 or 0, see solarize
    return images ^ dark.bitwise_and_(added ^ images).to(torch.uint8)


def autocontrast(images: Tensor) -> Tensor:
    """Stretch each channel to the full range; a channel of one value stays."""
    stretched = images.to(torch.float32)
    low, high = stretched.amin((2, 3), keepdim=True), stretched.amax((2, 3), keepdim=True)
    flat = low == high
    scale = (high - low).mul_(1.0 / 255.0).masked_fill_(flat, 1.0)
    return _truncated(stretched.sub_(low.masked_fill_(flat, 0.0)).div_(scale).clamp_(0.0, 255.0))


def equalize(images: Tensor) -> Tensor:
    """Flatten each channel's histogram with Pillow's look-up table; a channel of (nearly) one value stays."""
    values = images.flatten(2).long()
    pixels = values.shape[2]
    counts = values.new_zeros((*values.shape[:2], 256), dtype=torch.int32)
    counts.scatter_add_(2, values, counts.new_ones(1).expand_as(values))
    cumulative = counts.cumsum(2, dtype=torch.int32)
    brightest = counts.gather(2, values.amax(2, keepdim=True))
    step = (pixels - brightest).div_(255, rounding_mode="floor")
    table = (cumulative - counts + step // 2).div_(step.clamp(min=1), rounding_mode="floor").clamp_(0, 255)
    equalized = table.to(torch.uint8).gather(2, values)
    return torch.where(step == 0, images.flatten(2), equalized).view_as(images)


def invert(images: Tensor) -> Tensor:
    """255 minus each value."""
    return 255 - images
