"""The ImageNet loader against a plain one: python -m benchmarks.speed.imagenet_loader

Both read the same 500 x 375 JPEG files, made here from scikit-learn's two photographs, and return each
image's three views at 224 x 224, normalised float32. Ours is datasets/imagenet.py; the plain one uses Pillow,
decodes each image once per view, and applies torchvision's transforms in PyTorch's DataLoader. On k cores
both run with k worker processes (on one core, in the main process), bound to those cores.
"""

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.speed.common import publish, timed
from datasets.augment.views import imagenet_views
from datasets.imagenet import FileTrainLoader, ImageFiles
from datasets.normalization import IMAGENET_NORMALIZATION
from utils.errors import exit_cleanly

SIZE, BATCH = 224, 32


def make_files(root, count, seed=0):
    """Writes JPEG files of quality 90: random crops of the photographs, some magnified, some mirrored."""
    rng = np.random.default_rng(seed)
    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    names = []
    for i in range(count):
        photograph = photographs[i % len(photographs)]
        scale = rng.uniform(0.5, 0.75)
        width, height = int(photograph.width * scale), int(photograph.width * scale * 0.75)
        left, top = (
            rng.integers(0, photograph.width - width + 1),
            rng.integers(0, photograph.height - height + 1),
        )
        image = photograph.resize(
            (500, 375), Image.Resampling.BICUBIC, (left, top, left + width, top + height)
        )
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        names.append(f"{i:04d}.jpg")
        image.save(root / names[-1], quality=90)
    return ImageFiles(root, names, torch.zeros(count, dtype=torch.int64))


class PlainViews(Dataset):
    """Three views of an image, each decoded separately; two RandAugment operations of probability 1/2."""

    def __init__(self, files):
        self.paths = [files.root / path for path in files.paths]
        operation = transforms.RandomApply(
            [transforms.RandAugment(1, magnitude=10, num_magnitude_bins=11)], p=0.5
        )
        shared = [transforms.RandomResizedCrop(SIZE), transforms.RandomHorizontalFlip()]
        end = [transforms.ToTensor(), transforms.Normalize(*IMAGENET_NORMALIZATION)]
        self.strong = transforms.Compose(
            [*shared, transforms.ColorJitter(0.4, 0.4, 0.4), operation, operation, *end]
        )
        jitter = transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8)
        self.contrastive = transforms.Compose([*shared, jitter, transforms.RandomGrayscale(0.2), *end])

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return [view(self._decode(index)) for view in (self.strong, self.contrastive, self.contrastive)]

    def _decode(self, index):
        with Image.open(self.paths[index]) as image:
            return image.convert("RGB")


def ours(files, num_workers):
    loader = FileTrainLoader(
        files,
        None,
        imagenet_views(),
        image_size=SIZE,
        batch_size=BATCH,
        outlier_batch_size=0,
        contrastive=True,
        num_workers=num_workers,
        seed=0,
        device=torch.device("cpu"),
    )
    return lambda: [batch.images.shape for batch in loader.epoch(0)]


def plain(files, num_workers):
    loader = DataLoader(PlainViews(files), BATCH, shuffle=True, drop_last=True, num_workers=num_workers)
    return lambda: [views[0].shape for views in loader]


def measure(files, cores, repeats):
    """Measures images per second of both loaders on ``cores`` cores, over the repeats, and their ratio."""
    images = len(files.paths) // BATCH * BATCH
    row = {"cores": cores, "workers": 0 if cores == 1 else cores}
    for name, way in (("plain", plain), ("ours", ours)):
        seconds = timed(way(files, row["workers"]), repeats)
        row[name] = {
            "median": images / seconds.median,
            "lowest": images / seconds.high,
            "highest": images / seconds.low,
        }
    return row | {"ratio": row["ours"]["median"] / row["plain"]["median"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=240, help="files to make; a run reads each four times")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)  # the cores belong to the workers
    bound = hasattr(os, "sched_setaffinity")
    allowed = sorted(os.sched_getaffinity(0)) if bound else []
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        files = make_files(Path(folder), args.files)
        files = ImageFiles(files.root, files.paths * 4, files.labels.repeat(4))
        for cores in (1, 2):
            if cores > (len(allowed) or os.cpu_count()):
                continue
            if bound:
                os.sched_setaffinity(0, allowed[:cores])
            rows.append(measure(files, cores, args.repeats))
            if bound:
                os.sched_setaffinity(0, allowed)
    head = ["cores", "plain way, images/s", "ours, images/s", "ratio"]
    cell = "{median:.0f} ({lowest:.0f} to {highest:.0f})"
    table = [
        [str(r["cores"]), cell.format(**r["plain"]), cell.format(**r["ours"]), f"{r['ratio']:.1f}"]
        for r in rows
    ]
    about = {"image_size": SIZE, "file": "JPEG 500 x 375, quality 90"}
    publish(
        __spec__.name, "imagenet_loader", torch.device("cpu"), head, table, images_per_second=rows, **about
    )


if __name__ == "__main__":
    exit_cleanly(main)
