"""Bytes to batches.

registry: one record per data set that fits in memory; cifar, digits, scood, long_tail: which images
imagenet, image_list, image_files, decoding: lists of image files, read and cropped by worker processes
loader, normalization: how batches are made and ordered
preprocessing: any image for a trained network
augment/: random views
prepare: prepares data sets from the command line; folders: lists, outliers and OOD sets of your own pictures
"""

from typing import NamedTuple

import torch


class ImageSet(NamedTuple):
    """Images of one size and their labels: ``images`` is uint8 (N, 3, H, W), ``labels`` int64 (N,)."""

    images: torch.Tensor
    labels: torch.Tensor

    def select(self, rows: torch.Tensor | slice) -> "ImageSet":
        """Returns the images of these rows, int64 (n,) or a slice, in that order."""
        return ImageSet(self.images[rows], self.labels[rows])
