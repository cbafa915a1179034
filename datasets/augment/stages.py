"""What random views are made of: every image draws its own parameters, operations run on the whole batch.
Parameters are drawn on the host, so which images an operation applies to is known without synchronising with
the device."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from datasets.augment import ops


class Stage:
    """One step of a view: ``apply(images, *drawn)`` returns the changed images, given what was drawn."""

    def draw(self, n: int, height: int, width: int, generator: Generator) -> tuple[Tensor, ...]:
        """Draws the random parameters of ``n`` images of one size: host tensors with n rows."""
        return ()


@dataclass(frozen=True)
class View:
    """Stages applied one after another to the whole batch."""

    stages: tuple[Stage, ...]

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        """Returns the view of uint8 images (N, 3, H, W) on any device, float32 in [0, 1], not normalised.
        ``generator`` is on the CPU."""
        for stage in self.stages:
            n, _, height, width = images.shape
            images = stage.apply(images, *stage.draw(n, height, width, generator))
        return images


class Views(NamedTuple):
    """The views of one data set: ``strong`` is view 1, ``contrastive`` views 2 and 3."""

    strong: View
    contrastive: View
    outlier: View


def uniform(shape: tuple[int, ...], low: float, high: float, generator: Generator) -> Tensor:
    """Draws float64 numbers, uniform over [low, high)."""
    return low + (high - low) * torch.rand(shape, dtype=torch.float64, generator=generator)


def chance(n: int, probability: float, generator: Generator) -> Tensor:
    """Draws bool (n,), True with the given probability."""
    return torch.rand(n, generator=generator) < probability


RATIO = (3 / 4, 4 / 3)  # of a random box's width to its height
Operation = Callable[[Tensor, Tensor], Tensor]


def apply_in_order(images: Tensor, kinds: Tensor, values: Tensor, functions: Sequence[Operation]) -> Tensor:
    """Replaces image i by ``functions[kinds[i, k]](image i, values[i, k])`` for one step k after another.

    ``kinds`` and ``values`` are host tensors (N, steps); kind -1 leaves an image as it is. In each step a
    function runs once, on all its images.
    """
    for kind, value in zip(kinds.unbind(1), values.unbind(1), strict=True):
        numbers = kind.tolist()
        present = sorted(set(numbers))
        if len(present) == 1:
            images = images if present[0] < 0 else functions[present[0]](images, value)
            continue
        sizes = [numbers.count(number) for number in present]
        order = kind.argsort(stable=True)  # images of one kind side by side: one copy to the device for all
        on_device = ops.to_device(order, images.device)
        changed = images.clone()
        for number, members, index in zip(present, order.split(sizes), on_device.split(sizes), strict=True):
            if number >= 0:
                result = functions[number](images.index_select(0, index), value[members])
                changed.index_copy_(0, index, result)
        images = changed
    return images


@dataclass(frozen=True)
class RandomApply(Stage):
    """Applies ``operation`` to each image with the given probability."""

    operation: Callable[[Tensor], Tensor]
    probability: float

    def draw(self, n: int, height: int, width: int, generator: Generator) -> tuple[Tensor]:
        return (chance(n, self.probability, generator),)

    def apply(self, images: Tensor, chosen: Tensor) -> Tensor:
        chosen = chosen[:, None]
        return apply_in_order(images, chosen.long() - 1, chosen, [lambda some, _: self.operation(some)])


HORIZONTAL_FLIP = RandomApply(lambda images: images.flip(3), 0.5)
RANDOM_GRAYSCALE = RandomApply(lambda images: ops.luma(images).repeat(1, 3, 1, 1), 0.2)


@dataclass(frozen=True)
class PaddedCrop(Stage):
    """Pads with zeros, crops the original size at random, mirrors with probability ``flip``."""

    padding: int
    flip: float = 0.5

    def draw(self, n: int, height: int, width: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
        top, left = torch.randint(0, 2 * self.padding + 1, (2, n), generator=generator)
        return top, left, chance(n, self.flip, generator)

    def apply(self, images: Tensor, *drawn: Tensor) -> Tensor:
        return ops.padded_crop(images, *drawn, self.padding)


def draw_crop_boxes(
    n: int, height: int, width: int, scale: tuple[float, float], generator: Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draws boxes (top, left, height, width), int64 (N,) each, as torchvision's RandomResizedCrop does, for n
    images of one size.

    Up to ten tries per image of an area (share of the image, uniform over ``scale``) and an aspect ratio
    (log-uniform over ``RATIO``); the position of the first that fits is uniform. If none fits: the largest
    central box of a permitted ratio.
    """
    area = height * width * uniform((n, 10), *scale, generator)
    aspect = uniform((n, 10), math.log(RATIO[0]), math.log(RATIO[1]), generator).exp()
    columns, rows = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
    fits = (columns > 0) & (columns <= width) & (rows > 0) & (rows <= height)
    first = fits.to(torch.uint8).argmax(1, keepdim=True)
    found, columns, rows = (v.gather(1, first).squeeze(1) for v in (fits, columns, rows))
    columns = torch.where(found, columns, min(width, round(height * RATIO[1])))
    rows = torch.where(found, rows, min(height, round(width / RATIO[0])))
    spare_rows, spare_columns = height - rows, width - columns
    place = torch.rand((2, n), dtype=torch.float64, generator=generator)
    top = torch.where(found, (place[0] * (spare_rows + 1)).long(), spare_rows // 2)
    left = torch.where(found, (place[1] * (spare_columns + 1)).long(), spare_columns // 2)
    return top, left, rows, columns


@dataclass(frozen=True)
class RandomResizedCrop(Stage):
    """Resizes a random box (:func:`draw_crop_boxes`) to ``size`` and mirrors it with probability ``flip``;
    returns float32."""

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    flip: float = 0.5

    def draw(self, n: int, height: int, width: int, generator: Generator) -> tuple[Tensor, ...]:
        boxes = draw_crop_boxes(n, height, width, self.scale, generator)
        return *boxes, chance(n, self.flip, generator)

    def apply(self, images: Tensor, *drawn: Tensor) -> Tensor:
        return ops.resized_crop(images, *drawn, self.size)


@dataclass(frozen=True)
class Cutout(Stage):
    """Blackens one square of side ``length``, centred anywhere on the image."""

    length: int

    def draw(self, n: int, height: int, width: int, generator: Generator) -> tuple[Tensor, ...]:
        return tuple(torch.randint(0, side, (n,), generator=generator) for side in (height, width))

    def apply(self, images: Tensor, *drawn: Tensor) -> Tensor:
        return ops.cutout(images, *drawn, self.length)


class ToFloat(Stage):
    """Converts uint8 to float32 in [0, 1]."""

    def apply(self, images: Tensor) -> Tensor:
        return images.to(torch.float32).mul_(1.0 / 255.0)


class ToUint8(Stage):
    """Converts float32 in [0, 1] to the nearest uint8."""

    def apply(self, images: Tensor) -> Tensor:
        return ops.truncated(images.mul(255.0).round_())


@dataclass(frozen=True)
class ColorJitter(Stage):
    """torchvision's ColorJitter on float images, with the given probability, in an order drawn per image.
    Factors are uniform over [max(0, 1 - x), 1 + x], the shift of the hue over [-x, x]."""

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    probability: float = 0.8

    def draw(self, n: int, height: int, width: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
        chosen = chance(n, self.probability, generator)
        order = torch.rand((n, 4), generator=generator).argsort(1)
        factors = [
            uniform((n,), max(0.0, 1.0 - amount), 1.0 + amount, generator)
            for amount in (self.brightness, self.contrast, self.saturation)
        ]
        hue = uniform((n,), -self.hue, self.hue, generator)
        return chosen, order, torch.stack([*factors, hue], 1)

    def apply(self, images: Tensor, chosen: Tensor, order: Tensor, factors: Tensor) -> Tensor:
        functions = (ops.adjust_brightness, ops.adjust_contrast, ops.adjust_saturation, ops.adjust_hue)
        used = torch.tensor([self.brightness, self.contrast, self.saturation, self.hue]) != 0
        kinds = torch.where(chosen[:, None] & used[order], order, -1)
        return apply_in_order(images, kinds, factors.gather(1, order), functions)
