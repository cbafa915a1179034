"""Single images of any size and kind, preprocessed for a network as in its evaluation."""

from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional

from datasets.decoding import Unreadable, central_crop, decode, open_picture, pixels, upright_rgb
from utils.errors import InputError

RESIZE_MODES = ("squash", "crop")  # of small OOD images
PHOTOGRAPH = "photograph"  # as by datasets.imagenet.EvalImages
ROUNDING = 1e-3  # beyond 0 and 1; a resize of a float image exceeds them by 1e-6, an 8-bit level is 4e-3


class Preprocessing(NamedTuple):
    """How an image of any size becomes ``size`` x ``size`` pixels.

    ``resize`` (bilinear, antialiased): ``squash`` whatever the shape, as the code behind the published tables
    does; ``crop``, the shorter side to ``size``, then the centre, both of which leave an image of the right
    size as it is; or ``PHOTOGRAPH``, the shorter side to size * 256 / 224 and the central square.
    """

    size: int
    resize: str

    def of_picture(self, picture: Image.Image) -> Tensor:
        """Returns uint8 (3, size, size), upright, and RGB from whatever mode; raises InputError."""
        image, size = upright_rgb(picture), self.size
        if self.resize == PHOTOGRAPH:
            return central_crop(pixels(image), size)
        if image.size != (size, size):
            image = functional.resize(image, [size, size] if self.resize == "squash" else size)
        return pixels(functional.center_crop(image, size))

    def of_tensor(self, image: Tensor) -> Tensor:
        """Returns uint8 (3, size, size), on the CPU, from uint8 (3, H, W), or from floating-point numbers in
        [0, 1], rounded to 8 bits; raises InputError at another shape or type, or values outside [0, 1]."""
        is_number = image.is_floating_point() or image.dtype == torch.uint8
        if image.dim() != 3 or image.shape[0] != 3 or 0 in image.shape or not is_number:
            shape = tuple(image.shape)
            raise InputError(f"an image is uint8 or floating-point (3, H, W), not {image.dtype} {shape}")
        image = image.detach().cpu()
        if image.is_floating_point():
            low, high = float(image.min()), float(image.max())
            if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # NaN fails, too
                raise InputError(
                    f"floating-point images have values in [0, 1] and are not normalised; this one has "
                    f"values from {low:g} to {high:g}"
                )
            image = (image.float().clamp(0, 1) * 255).round().to(torch.uint8)
        return self.of_picture(Image.fromarray(image.permute(1, 2, 0).numpy()))

    def of_file(self, path: Path) -> Tensor:
        """Returns uint8 (3, size, size), read as the evaluation reads its files; raises InputError."""
        try:
            picture = open_picture(path)
            if self.resize == PHOTOGRAPH:
                return central_crop(decode(picture), self.size)
            return self.of_picture(picture)
        except Unreadable as error:
            raise InputError(f"the image {path} cannot be read: {error}") from error
