"""Random views of image batches: every image draws its own parameters, every operation runs on the whole
batch.

A view is called as ``view(images, generator)`` with uint8 images (N, 3, H, W) on any device and a CPU
generator, and returns float32 images in [0, 1], not normalised. Parameters are drawn on the host, so one seed
gives the same augmentation on every device, and which images an operation applies to is known without
synchronising with the device. A view is a chain of stages; a stage has ``draw``, which draws its random
parameters for a batch, and ``apply``, which does not modify its input.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from datasets.augment import ops

# In values per image: from here on a CPU core's cache holds few images, and calls cost less than memory.
LARGE_IMAGE = 2**16

# Random parameters: host tensors with one row per image, a NamedTuple of them or one alone.
Drawn = tuple | Tensor | None


class Stage(ABC):
    """One step of a view."""

    def draw(self, n: int, height: int, width: int, generator: Generator) -> Drawn:
        """Draws the random parameters of ``n`` images of one size: host tensors with n rows; None where
        nothing is random."""
        return None

    @abstractmethod
    def apply(self, images: Tensor, drawn: Drawn) -> Tensor:
        """Returns the changed images, given the parameters that :meth:`draw` returned."""

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Returns (height, width) of what :meth:`apply` returns for images of the given size."""
        return height, width

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        return self.apply(images, self.draw(len(images), *images.shape[2:], generator))


def _copy(view: Tensor, out: Tensor) -> None:
    out.copy_(view)


@dataclass(frozen=True)
class View:
    """Stages applied one after another.

    Parameters are drawn for the whole batch. Then the batch passes through one stage after another; on a CPU,
    each large image passes through all stages while it is in the cache.
    """

    stages: tuple[Stage, ...]

    def __call__(
        self,
        images: Tensor,
        generator: Generator,
        out: Tensor | None = None,
        finish: Callable[[Tensor, Tensor], object] = _copy,
    ) -> Tensor:
        """Returns the view, float32 (N, 3, S, S), written to ``out`` if given. ``finish(view, out)`` writes a
        part of it there, perhaps normalised."""
        n, _, height, width = images.shape
        drawn = []
        for stage in self.stages:
            drawn.append(stage.draw(n, height, width, generator))
            height, width = stage.output_size(height, width)
        if out is None:
            out = torch.empty(n, 3, height, width, device=images.device)
        at_once = n if images.is_cuda or 3 * height * width < LARGE_IMAGE else 1
        for start in range(0, n, at_once):
            rows = slice(start, start + at_once)
            part = images[rows]
            for stage, parameters in zip(self.stages, drawn, strict=True):
                part = stage.apply(part, _take(parameters, rows))
            finish(part, out[rows])
        return out


def _take(drawn: Drawn, rows: slice) -> Drawn:
    if isinstance(drawn, tuple):
        return type(drawn)(*(values[rows] for values in drawn))
    return None if drawn is None else drawn[rows]


class Views(NamedTuple):
    """The views of one data set: ``strong`` (view 1) for the classifier, ``contrastive`` (views 2 and 3) for
    the contrastive term, ``outlier`` for outlier exposure."""

    strong: View
    contrastive: View
    outlier: View


def uniform(shape: tuple[int, ...], low: float, high: float, generator: Generator) -> Tensor:
    """Draws float64 numbers, uniform over [low, high)."""
    return low + (high - low) * torch.rand(shape, dtype=torch.float64, generator=generator)


def chance(n: int, probability: float, generator: Generator) -> Tensor:
    """Draws bool (n,), True with the given probability."""
    return torch.rand(n, generator=generator) < probability


Operation = Callable[[Tensor, Tensor], Tensor]


def apply_by_kind(images: Tensor, kind: Tensor, functions: dict[int, Operation], values: Tensor) -> Tensor:
    """Replaces image i by ``functions[kind[i]](image i, values[i])``; images of other kinds stay as they are.

    ``kind`` and ``values`` are host tensors (N,). Each function runs once, on all its images.
    """
    kinds, sizes = (found.tolist() for found in kind.unique(return_counts=True))
    if len(kinds) == 1:
        function = functions.get(kinds[0])
        return images if function is None else function(images, values)
    order = kind.argsort(stable=True)  # images of one kind side by side: one copy to the device for all
    parts = zip(kinds, order.split(sizes), ops.to_device(order, images.device).split(sizes), strict=True)
    changed = images.clone()
    for number, members, index in parts:
        if number in functions:
            changed.index_copy_(0, index, functions[number](images.index_select(0, index), values[members]))
    return changed


def apply_in_order(images: Tensor, kinds: Tensor, functions: dict[int, Operation], values: Tensor) -> Tensor:
    """Calls :func:`apply_by_kind` for each column of ``kinds`` and ``values``, both (N, steps)."""
    for kind, value in zip(kinds.unbind(1), values.unbind(1), strict=True):
        images = apply_by_kind(images, kind, functions, value)
    return images


# --- crops and flips


class CropDraw(NamedTuple):
    top: Tensor
    left: Tensor
    flip: Tensor


@dataclass(frozen=True)
class PaddedCrop(Stage):
    """Pads with zeros, crops the original size at random, mirrors with probability ``flip``. ``padding`` is
    in pixels."""

    padding: int
    flip: float = 0.5

    def draw(self, n: int, height: int, width: int, generator: Generator) -> CropDraw:
        """Draws offsets, int64 (N,) in [0, 2 * padding], and mirrors, bool (N,)."""
        top, left = torch.randint(0, 2 * self.padding + 1, (2, n), generator=generator)
        return CropDraw(top, left, chance(n, self.flip, generator))

    def apply(self, images: Tensor, drawn: CropDraw) -> Tensor:
        return ops.padded_crop(images, *drawn, self.padding)


@dataclass(frozen=True)
class HorizontalFlip(Stage):
    """Mirrors with the given probability."""

    probability: float = 0.5

    def draw(self, n: int, height: int, width: int, generator: Generator) -> Tensor:
        """Draws which images are mirrored, bool (N,)."""
        return chance(n, self.probability, generator)

    def apply(self, images: Tensor, drawn: Tensor) -> Tensor:
        return apply_by_kind(images, drawn.long(), {1: lambda subset, _: subset.flip(3)}, drawn)


def draw_crop_boxes(
    heights: Tensor,
    widths: Tensor,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    generator: Generator,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draws boxes for images of individual sizes, as torchvision's RandomResizedCrop chooses them.

    Up to ten tries per image of an area (share of the image, uniform over ``scale``) and an aspect ratio
    (log-uniform over ``ratio``); the position of the first that fits is uniform. If none fits: the largest
    central box of a permitted ratio. ``heights`` and ``widths`` are host int64 (N,).

    Returns:
        (top, left, height, width), int64 (N,) each.
    """
    tries = (len(heights), 10)
    rows, columns = heights.unsqueeze(1), widths.unsqueeze(1)
    area = (rows * columns) * uniform(tries, *scale, generator)
    aspect = uniform(tries, math.log(ratio[0]), math.log(ratio[1]), generator).exp()
    width, height = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
    fits = (width > 0) & (width <= columns) & (height > 0) & (height <= rows)
    first = fits.to(torch.uint8).argmax(1, keepdim=True)
    found, width, height = (v.gather(1, first).squeeze(1) for v in (fits, width, height))

    central_width = torch.minimum(widths, (heights * max(ratio)).round().long())
    central_height = torch.minimum(heights, (widths / min(ratio)).round().long())
    width, height = torch.where(found, width, central_width), torch.where(found, height, central_height)
    spare_rows, spare_columns = heights - height, widths - width
    place = torch.rand((2, len(heights)), dtype=torch.float64, generator=generator)
    top = torch.where(found, (place[0] * (spare_rows + 1)).long(), spare_rows // 2)
    left = torch.where(found, (place[1] * (spare_columns + 1)).long(), spare_columns // 2)
    return top, left, height, width


class ResizedCropDraw(NamedTuple):
    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    flip: Tensor


@dataclass(frozen=True)
class RandomResizedCrop(Stage):
    """Resizes a random box (:func:`draw_crop_boxes`) to ``size`` and mirrors it with probability ``flip``;
    returns float32."""

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5

    def draw(self, n: int, height: int, width: int, generator: Generator) -> ResizedCropDraw:
        """Draws boxes for ``n`` images of one size, int64 (N,) each, and mirrors, bool (N,)."""
        heights, widths = torch.full((n,), height), torch.full((n,), width)
        boxes = draw_crop_boxes(heights, widths, self.scale, self.ratio, generator)
        return ResizedCropDraw(*boxes, chance(n, self.flip, generator))

    def apply(self, images: Tensor, drawn: ResizedCropDraw) -> Tensor:
        return ops.resized_crop(images, *drawn, self.size)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        return self.size, self.size


class CutoutDraw(NamedTuple):
    row: Tensor  # (N,) int64
    column: Tensor


@dataclass(frozen=True)
class Cutout(Stage):
    """Blackens one square of side ``length``, centred anywhere on the image."""

    length: int

    def draw(self, n: int, height: int, width: int, generator: Generator) -> CutoutDraw:
        """Draws the squares' centres."""
        row, column = (torch.randint(0, side, (n,), generator=generator) for side in (height, width))
        return CutoutDraw(row, column)

    def apply(self, images: Tensor, drawn: CutoutDraw) -> Tensor:
        return ops.cutout(images, *drawn, self.length)


@dataclass(frozen=True)
class ToFloat(Stage):
    """Converts uint8 to float32 in [0, 1]."""

    def apply(self, images: Tensor, drawn: None) -> Tensor:
        return ops.to_float(images)


@dataclass(frozen=True)
class ToUint8(Stage):
    """Converts float32 in [0, 1] to uint8."""

    def apply(self, images: Tensor, drawn: None) -> Tensor:
        return ops.to_uint8(images)


# --- colour


class JitterDraw(NamedTuple):
    chosen: Tensor  # (N,) bool
    order: Tensor  # (N, 4) int64: a permutation of 0 brightness, 1 contrast, 2 saturation, 3 hue
    factors: Tensor  # (N, 4) float64, per operation


@dataclass(frozen=True)
class ColorJitter(Stage):
    """torchvision's ColorJitter on float images, with probability ``probability``, in an order drawn per
    image.

    Factors are uniform over [max(0, 1 - x), 1 + x] for brightness, contrast and saturation, over [-x, x] for
    hue.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    probability: float = 0.8

    def draw(self, n: int, height: int, width: int, generator: Generator) -> JitterDraw:
        """Draws which images change, in which order, and by how much."""
        chosen = chance(n, self.probability, generator)
        order = torch.rand((n, 4), generator=generator).argsort(1)
        scales = [
            uniform((n,), max(0.0, 1.0 - amount), 1.0 + amount, generator)
            for amount in (self.brightness, self.contrast, self.saturation)
        ]
        hue = uniform((n,), -self.hue, self.hue, generator)
        return JitterDraw(chosen, order, torch.stack([*scales, hue], 1))

    def apply(self, images: Tensor, drawn: JitterDraw) -> Tensor:
        chosen, order, factors = drawn
        functions = (ops.adjust_brightness, ops.adjust_contrast, ops.adjust_saturation, ops.adjust_hue)
        amounts = (self.brightness, self.contrast, self.saturation, self.hue)
        wanted = {
            k: function for k, (function, amount) in enumerate(zip(functions, amounts, strict=True)) if amount
        }
        kinds = torch.where(chosen.unsqueeze(1), order, -1)
        return apply_in_order(images, kinds, wanted, factors.gather(1, order))


@dataclass(frozen=True)
class RandomGrayscale(Stage):
    """Replaces colours by their brightness with the given probability."""

    probability: float = 0.2

    def draw(self, n: int, height: int, width: int, generator: Generator) -> Tensor:
        """Draws which images turn gray, bool (N,)."""
        return chance(n, self.probability, generator)

    def apply(self, images: Tensor, drawn: Tensor) -> Tensor:
        return apply_by_kind(images, drawn.long(), {1: lambda subset, _: ops.grayscale(subset)}, drawn)
