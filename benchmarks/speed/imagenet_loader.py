"""The ImageNet loader against a plain one: python -m benchmarks.speed.imagenet_loader

Both return three normalised views, 224 x 224, of 500 x 375 JPEG files. The plain one decodes a file once
per view with Pillow and applies torchvision's transforms. On k cores both have k workers (on one core none).
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

SIZE, BATCH = 224, 32


def make_files(root: Path, count: int, seed: int = 0) -> ImageFiles:
    """Writes JPEG files of quality 90: random crops of scikit-learn's two photographs."""
    rng = np.random.default_rng(seed)
    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    for i in range(count):
        photograph = photographs[i % 2]
        width = int(photograph.width * rng.uniform(0.5, 0.75))
        left, top = rng.integers((photograph.width - width, photograph.height - width * 3 // 4)).tolist()
        box = left, top, left + width, top + width * 3 // 4
        photograph.resize((500, 375), Image.Resampling.BICUBIC, box).save(root / f"{i}.jpg", quality=90)
    return ImageFiles(root, [f"{i}.jpg" for i in range(count)], torch.zeros(count, dtype=torch.int64))


class PlainViews(Dataset):
    def __init__(self, files):
        self.paths = [files.root / path for path in files.paths]
        half = transforms.RandomApply([transforms.RandAugment(1, magnitude=10, num_magnitude_bins=11)], p=0.5)
        jitter = transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8)
        strong = [transforms.ColorJitter(0.4, 0.4, 0.4), half, half]
        contrastive = [jitter, transforms.RandomGrayscale(0.2)]
        crop = [transforms.RandomResizedCrop(SIZE), transforms.RandomHorizontalFlip()]
        end = [transforms.ToTensor(), transforms.Normalize(*IMAGENET_NORMALIZATION)]
        self.views = [transforms.Compose(crop + view + end) for view in (strong, contrastive, contrastive)]

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return [view(Image.open(self.paths[index]).convert("RGB")) for view in self.views]


def ours(files, num_workers):
    sizes = {"image_size": SIZE, "batch_size": BATCH, "outlier_batch_size": 0, "num_workers": num_workers}
    common = {"contrastive": True, "seed": 0, "device": torch.device("cpu")}
    loader = FileTrainLoader(files, None, imagenet_views(), **sizes, **common)
    return lambda: [batch.images.shape for batch in loader.epoch(0)]


def plain(files, num_workers):
    loader = DataLoader(PlainViews(files), BATCH, shuffle=True, drop_last=True, num_workers=num_workers)
    return lambda: [views[0].shape for views in loader]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--files", type=int, default=512, help="files to make, and to read in a run")
    args = parser.parse_args()
    torch.set_num_threads(1)  # the cores belong to the workers
    allowed, measured, table = sorted(os.sched_getaffinity(0)), [], []
    with tempfile.TemporaryDirectory() as folder:
        files, speeds = make_files(Path(folder), args.files), {}
        for cores in range(1, min(2, len(allowed)) + 1):
            os.sched_setaffinity(0, allowed[:cores])
            for name, way in {"plain": plain, "ours": ours}.items():
                seconds = timed(way(files, 0 if cores == 1 else cores), args.repeats)
                speeds[name] = [args.files // BATCH * BATCH / s for s in (seconds.median, *seconds[:0:-1])]
            measured.append({"cores": cores} | speeds)
            cells = ["{:.0f} ({:.0f} to {:.0f})".format(*speed) for speed in speeds.values()]
            table.append([str(cores), *cells, f"{speeds['ours'][0] / speeds['plain'][0]:.1f}"])
    head, device = ["cores", "plain way, images/s", "ours, images/s", "ratio"], torch.device("cpu")
    publish(__spec__.name, "imagenet_loader", device, head, table, images_per_second=measured)


if __name__ == "__main__":
    main()
